"""The chain as it begins."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "revocation_entry",
        sa.Column("epoch", _NUMBER, primary_key=True, autoincrement=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("chain", sa.LargeBinary(), nullable=False),
        sa.Column("revoker", sa.String(64), nullable=False),
        sa.Column("revoker_organization", sa.String(63), nullable=False),
        sa.Column("organization", sa.String(63), nullable=False),
        sa.Column("ids", sa.Integer(), nullable=False),
        sa.Column("alone", sa.Integer(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
    )
    op.create_index("revocation_entry_by_revoker", "revocation_entry", ["revoker", "create_time"])
    op.create_table(
        "revocation_statement",
        sa.Column("digest", sa.LargeBinary(), primary_key=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "revocation_chain",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("era", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("chain", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "head_lease",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("holder", sa.String(63), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("head_time", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "revocation_proposal",
        sa.Column("content", sa.LargeBinary(), primary_key=True),
        sa.Column("revoker", sa.String(64), primary_key=True),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "acknowledgement",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("subject_id", sa.String(63), primary_key=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("era", sa.BigInteger(), nullable=False),
        sa.Column("enforced_at", sa.BigInteger(), nullable=False),
        sa.Column("edge", sa.String(63), nullable=False),
    )
    op.create_index("acknowledgement_by_epoch", "acknowledgement", ["kind", "epoch"])
    _shared()


def _shared() -> None:
    op.create_table(
        "feed_counter",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("mark", sa.LargeBinary(), nullable=False),
        sa.Column("floor", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "feed_outbox",
        sa.Column("sequence", _NUMBER, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("scope_site", sa.String(63), nullable=False),
        sa.Column("previous_site", sa.String(63), nullable=True),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("mark", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "feed_state",
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("scope_site", sa.String(63), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
    )
    op.create_index("feed_state_by_site", "feed_state", ["scope_site", "kind", "key"])
    op.create_table(
        "evidence_spool",
        sa.Column("sequence", _NUMBER, primary_key=True),
        sa.Column("item", sa.LargeBinary(), nullable=False),
        sa.Column("refused", sa.String(64), nullable=False),
    )
