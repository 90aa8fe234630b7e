"""A small service's tables, as its store.py would have them; the migrations beside it lead to them."""

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

METADATA = MetaData()

SITES = Table(
    "sites",
    METADATA,
    Column("site_id", String(63), primary_key=True),
    Column("name", String(200), nullable=False, server_default=""),
)

PUMPS = Table(
    "pumps",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("site_id", String(63), ForeignKey("sites.site_id"), nullable=False),
    Column("serial", String(40), nullable=False),
    UniqueConstraint("serial", name="pumps_serial_unique"),
    CheckConstraint("number > 0", name="pumps_number_positive"),
    Index("pumps_by_site", "site_id", "number"),
)
