"""The tables of the first version."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table("sites", sa.Column("site_id", sa.String(63), primary_key=True))
    op.create_table(
        "pumps",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("site_id", sa.String(63), sa.ForeignKey("sites.site_id"), nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.CheckConstraint("number > 0", name="pumps_number_positive"),
    )
