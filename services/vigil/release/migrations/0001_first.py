"""Models, builds and baselines, with feed and spool."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "model",
        sa.Column("place", sa.String(128), primary_key=True),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("organization_id", sa.String(63), nullable=False),
        sa.Column("profile", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "build",
        sa.Column("place", sa.String(128), primary_key=True),
        sa.Column("firmware", sa.LargeBinary(), nullable=False),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("version", sa.String(63), nullable=False),
        sa.Column("security_version", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("organization_id", sa.String(63), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("sbom", sa.LargeBinary(), nullable=False),
        sa.Column("sbom_attestation", sa.LargeBinary(), nullable=False),
        sa.Column("component_count", sa.Integer(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("firmware"),
    )
    op.create_table(
        "baseline",
        sa.Column("place", sa.String(320), primary_key=True),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("site_id", sa.String(128), nullable=False),
        sa.Column("organization_id", sa.String(128), nullable=False),
        sa.Column("models", sa.Text(), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_to", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("digest"),
    )
    op.create_index("baseline_by_content", "baseline", ["content", "site_id"])
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
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=False),
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
        sa.Column("sequence", _SEQUENCE, primary_key=True),
        sa.Column("item", sa.LargeBinary(), nullable=False),
        sa.Column("refused", sa.String(64), nullable=False),
    )
