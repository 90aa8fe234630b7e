"""Whose log this is: the key that signs it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the table that a key is held against; the one that signed what is there is added at the next start."""
    op.create_table("own_key", sa.Column("verifier_key", sa.Text(), primary_key=True))
