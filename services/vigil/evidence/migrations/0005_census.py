"""The trees of the newest censuses."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_INDEX = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables of trees and of their pages."""
    op.create_table(
        "census",
        sa.Column("size", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("subjects", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("pages", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "census_page",
        sa.Column("size", _INDEX, primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sqlite_with_rowid=False,
    )
