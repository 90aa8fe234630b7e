"""What no root proved yet, apart from what one did."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make its tables. What was cut off has both in one: it is read anew, up to the kept checkpoint first."""
    for table in ("subject", "series"):
        op.execute(f"DELETE FROM {table} WHERE EXISTS (SELECT 1 FROM state WHERE target <> '')")  # noqa: S608 - ours
    op.execute(
        "UPDATE state SET frontier = x'820080', time = 0 WHERE target <> ''"
    )  # CBOR: size 0, no hashes
    op.drop_column("state", "target")
    op.create_table(
        "unproved",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("frontier", sa.LargeBinary(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
    )
    op.create_table(
        "unproved_subject",
        sa.Column("subject", sa.String(256), primary_key=True),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "unproved_series",
        sa.Column("signer", sa.LargeBinary(), primary_key=True),
        sa.Column("series", sa.LargeBinary(), primary_key=True),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("missing", sa.BigInteger(), nullable=False),
        sqlite_with_rowid=False,
    )
