"""The index behind the log, empty: the service fills it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the index of log times, and the tables of the index."""
    op.create_index("group_commit_log_time", "group_commit", ["log_time", "first"])
    op.create_table(
        "subject_time",
        sa.Column("subject", sa.String(256), primary_key=True),
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("time", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("idx", sa.BigInteger(), primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "kind_time",
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("time", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("idx", sa.BigInteger(), primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "reference",
        sa.Column("what", sa.String(16), primary_key=True),
        sa.Column("value", sa.LargeBinary(), primary_key=True),
        sa.Column("idx", sa.BigInteger(), primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "index_state",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("covered", sa.BigInteger(), nullable=False),
    )
