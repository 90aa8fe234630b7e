"""The log as it begins."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_INDEX = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "entry",
        sa.Column("idx", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("organization", sa.String(63), nullable=False),
        sa.Column("site", sa.String(63), nullable=False),
        sa.UniqueConstraint("digest"),
    )
    op.create_table(
        "statement",
        sa.Column("idx", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "body",
        sa.Column("digest", sa.LargeBinary(), primary_key=True),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "certificate",
        sa.Column("thumbprint", sa.LargeBinary(), primary_key=True),
        sa.Column("chain", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "subject_record",
        sa.Column("subject", sa.String(256), primary_key=True),
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("idx", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "node",
        sa.Column("level", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("position", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "group_commit",
        sa.Column("first", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("items", sa.Integer(), nullable=False),
        sa.Column("log_time", sa.BigInteger(), nullable=False),
        sa.Column("signer", sa.LargeBinary(), nullable=False),
        sa.Column("recorded", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "checkpoint",
        sa.Column("size", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
    )
