"""What was erased, by whom and why."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_INDEX = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table of erased records."""
    op.create_table(
        "erased",
        sa.Column("idx", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("reference", sa.String(128), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("first_person", sa.String(64), nullable=False),
        sa.Column("second_person", sa.String(64), nullable=False),
        sa.Column("first_idx", sa.BigInteger(), nullable=False),
        sa.Column("second_idx", sa.BigInteger(), nullable=False),
    )
