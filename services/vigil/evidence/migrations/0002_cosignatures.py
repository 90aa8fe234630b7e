"""What witnesses said of checkpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_INDEX = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table of cosignatures."""
    op.create_table(
        "cosignature",
        sa.Column("size", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("witness", sa.String(512), primary_key=True),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
    )
