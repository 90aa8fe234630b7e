"""The gateway's tables as they begin."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ROWID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "directory_row",
        sa.Column("source", sa.String(32), primary_key=True),
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("value", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "revocation_entry",
        sa.Column("epoch", _ROWID, primary_key=True, autoincrement=False),
        sa.Column("entry", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "revocation_head",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("era", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.LargeBinary(), nullable=False),
    )
    _create_intents()
    _create_commands()
    op.create_table(
        "device_report",
        sa.Column("id", _ROWID, primary_key=True),
        sa.Column("report", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "evidence_spool",
        sa.Column("sequence", _ROWID, primary_key=True),
        sa.Column("item", sa.LargeBinary(), nullable=False),
        sa.Column("refused", sa.String(64), nullable=False),
    )


def _create_intents() -> None:
    op.create_table(
        "intent",
        sa.Column("id", _ROWID, primary_key=True),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("action", sa.String(256), nullable=False),
        sa.Column("requester", sa.String(64), nullable=False),
        sa.Column("credential", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("needed", sa.Integer(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("devices", sa.Text(), nullable=False),
        sa.Column("done", sa.Text(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("recorded", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("digest"),
    )
    op.create_table(
        "approval",
        sa.Column("intent", sa.LargeBinary(), primary_key=True),
        sa.Column("approver", sa.String(64), primary_key=True),
        sa.Column("credential", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("recorded", sa.LargeBinary(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("voided", sa.Boolean(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
    )


def _create_commands() -> None:
    op.create_table(
        "command",
        sa.Column("id", _ROWID, primary_key=True),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("intent", sa.LargeBinary(), nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("action", sa.String(256), nullable=False),
        sa.Column("action_class", sa.String(2), nullable=False),
        sa.Column("requester", sa.String(64), nullable=False),
        sa.Column("credential", sa.LargeBinary(), nullable=False),
        sa.Column("alone", sa.Boolean(), nullable=False),
        sa.Column("request_id", sa.LargeBinary(), nullable=False),
        sa.Column("work_order", sa.String(256), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(256), nullable=False),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.Column("status", sa.LargeBinary(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("intent_statement", sa.LargeBinary(), nullable=False),
        sa.Column("approvals", sa.LargeBinary(), nullable=False),
        sa.Column("decision", sa.LargeBinary(), nullable=False),
        sa.Column("recorded", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("digest"),
    )
    op.create_index("command_by_intent", "command", ["intent"])
    op.create_index("command_by_device", "command", ["device", "id"])
    op.create_index("command_by_outcome", "command", ["outcome", "id"])
    op.create_table(
        "receipt",
        sa.Column("digest", sa.LargeBinary(), primary_key=True),
        sa.Column("intent", sa.LargeBinary(), nullable=False),
        sa.Column("command", sa.LargeBinary(), nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("request_id", sa.LargeBinary(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
    )
    op.create_index("receipt_by_intent", "receipt", ["intent", "device"])
    op.create_index("receipt_by_request", "receipt", ["device", "request_id"])
