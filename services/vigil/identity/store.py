"""The registry's tables, and how its values lie in them. Unique constraints are the last word on every race."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, Final, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    and_,
    func,
    insert,
    select,
    true,
    union,
    update,
)
from sqlalchemy.exc import IntegrityError

from vigil.core import cbor
from vigil.core.certificates import EVERY, Identity
from vigil.errors import Refused
from vigil.feed import tables
from vigil.feed.evidence import spool_table
from vigil.identity import domain

METADATA = MetaData()
MIGRATIONS: Final = "vigil.identity.migrations"

T = TypeVar("T")


class Words(TypeDecorator[tuple[str, ...]]):
    """A tuple of slugs as one text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str:  # noqa: ARG002
        return " ".join(value or ())

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...]:  # noqa: ARG002
        return tuple((value or "").split())


class Chain(TypeDecorator[tuple[bytes, ...]]):
    """A chain of DER certificates as one deterministic CBOR array."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: tuple[bytes, ...] | None, dialect: Dialect) -> bytes:  # noqa: ARG002
        return cbor.encode(list(value or ()))

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> tuple[bytes, ...]:  # noqa: ARG002
        return tuple(cbor.decode(value)) if value else ()


def _id(name: str, references: str = "", **values: Any) -> "Column[str]":
    """A slug or id; with ``references`` to the row that it names."""
    keys = (ForeignKey(references),) if references else ()
    return Column(name, String(63), *keys, nullable=False, **values)


def _instant(name: str) -> "Column[int]":
    return Column(name, BigInteger, nullable=False)


ORGANIZATION = Table(
    "organization",
    METADATA,
    _id("organization_id", primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("manufacturer_root_pem", Text, nullable=False),
    Column("manufacturer_root_key", LargeBinary, nullable=True, unique=True),
    _instant("create_time"),
)
SITE = Table(
    "site",
    METADATA,
    _id("site_id", primary_key=True),
    _id("organization_id", "organization.organization_id"),
    Column("display_name", Text, nullable=False),
    Column("time_zone", String(64), nullable=False),
    _instant("create_time"),
)
GATEWAY = Table(
    "gateway",
    METADATA,
    _id("gateway_id", primary_key=True),
    _id("organization_id", "organization.organization_id"),
    _id("site_id", "site.site_id"),
    Column("address", String(320), nullable=False),
    Column("certificate_thumbprint", String(64), nullable=False),
    _instant("create_time"),
)
PRINCIPAL = Table(
    "principal",
    METADATA,
    _id("principal_id", primary_key=True),
    _id("organization_id", "organization.organization_id"),
    Column("display_name", Text, nullable=False),
    Column("roles", Words, nullable=False),
    Column("site_ids", Words, nullable=False),
    Column("state", String(16), nullable=False),
    _id("created_by"),
    _id("approved_by"),
    _id("cleared_by"),
    _instant("create_time"),
    Index("principal_by_organization", "organization_id", "principal_id"),
)
CREDENTIAL = Table(
    "credential",
    METADATA,
    Column("thumbprint", String(64), primary_key=True),
    _id("principal_id", "principal.principal_id"),
    _id("organization_id", "organization.organization_id"),
    Column("roles", Words, nullable=False),
    Column("site_ids", Words, nullable=False),
    Column("certificate_pem", Text, nullable=False),
    _instant("operational_until"),
    _instant("not_after"),
    _id("issued_by"),
    _instant("create_time"),
    Index("credential_by_principal", "principal_id", "thumbprint"),
    Index("credential_by_organization", "organization_id", "thumbprint"),
)
DEVICE = Table(
    "device",
    METADATA,
    _id("device_id", primary_key=True),
    Column("udi", String(256), nullable=False),
    Column("udi_issuer", String(16), nullable=False),
    Column("udi_di", String(64), nullable=False),
    Column("serial", String(64), nullable=False),
    Column("asset_tag", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    _id("organization_id", "organization.organization_id"),
    _id("site_id", "site.site_id"),
    _id("observed_gateway_id"),
    Column("state", String(16), nullable=False),
    Column("resumes", String(16), nullable=False),
    Column("holds", Integer, nullable=False),
    Column("identity_key", LargeBinary, nullable=False),
    Column("attestation_key", LargeBinary, nullable=False),
    Column("attestation_certificate", LargeBinary, nullable=False),
    Column("attestation_chain", Chain, nullable=False),
    _id("enrolled_by"),
    _id("activated_by"),
    _instant("quarantine_log"),
    _instant("lift_log"),
    _instant("renewed_at"),
    _instant("create_time"),
    _instant("update_time"),
    UniqueConstraint("udi_issuer", "udi_di", "serial", name="device_udi"),
    UniqueConstraint("identity_key", name="device_identity_key"),
    UniqueConstraint("attestation_key", name="device_attestation_key"),
    Index("device_by_serial", "serial"),
    Index("device_by_asset_tag", "asset_tag"),
    Index("device_by_organization", "organization_id", "site_id", "state"),
)
ENROLMENT = Table(
    "enrolment",
    METADATA,
    _id("enrolment_id", primary_key=True),
    Column("nonce", LargeBinary, nullable=False),
    _id("enroller"),
    _id("organization_id", "organization.organization_id"),
    _id("site_id", "site.site_id"),
    Column("asset_tag", String(64), nullable=False),
    Column("voucher", LargeBinary, nullable=False),
    Column("udi", String(256), nullable=False),
    Column("model", String(64), nullable=False),
    Column("identity_key", LargeBinary, nullable=False),
    _instant("expires"),
    _instant("used_at"),
    Column("possession", LargeBinary, nullable=False),
    Column("tls_chain", Chain, nullable=False),
    Index("enrolment_by_expiry", "expires"),
)
HOLD = Table(
    "hold",
    METADATA,
    Column("digest", LargeBinary, primary_key=True),
    _id("device_id", "device.device_id"),
    _id("placed_by"),
    _instant("issued_at"),
    _instant("expires"),
    _instant("lifted_at"),
    _instant("log_size"),
    Index("hold_by_device", "device_id", "lifted_at"),
    Index("hold_by_expiry", "lifted_at", "expires"),
)
LIFT = Table(
    "lift",
    METADATA,
    Column("digest", LargeBinary, primary_key=True),
    _id("device_id", "device.device_id"),
    _id("person"),
    _instant("create_time"),
)
FEED = tables(METADATA)
SPOOL = spool_table(METADATA)


def newest_time(connection: Connection) -> int | None:
    """When the newest credential was issued (ms): a durable time of the authority's; None before the first."""
    newest: int | None = connection.execute(select(func.max(CREDENTIAL.c.create_time))).scalar_one()
    return newest


TABLE_OF: Final[Mapping[type, Table]] = {
    domain.Organization: ORGANIZATION,
    domain.Site: SITE,
    domain.Gateway: GATEWAY,
    domain.Principal: PRINCIPAL,
    domain.Credential: CREDENTIAL,
    domain.Device: DEVICE,
    domain.Enrolment: ENROLMENT,
    domain.Hold: HOLD,
}
_STATES: Final = {
    (domain.Principal, "state"): domain.PrincipalState,
    (domain.Device, "state"): domain.DeviceState,
    (domain.Device, "resumes"): domain.DeviceState,
}
_NAMES: Final = {kind: tuple(field.name for field in fields(kind)) for kind in TABLE_OF}


def value_of(kind: type[T], row: Row[Any]) -> T:
    """Make a domain value of a row of its table."""
    mapping = row._mapping  # noqa: SLF001 - SQLAlchemy's public accessor
    values = {name: mapping[name] for name in _NAMES[kind]}
    for name in ("state", "resumes"):
        made = _STATES.get((kind, name))
        if made is not None:
            values[name] = made(values[name])
    return kind(**values)


def get(connection: Connection, kind: type[T], key: str | bytes) -> T | None:
    """Read one row by its primary key."""
    table = TABLE_OF[kind]
    (column,) = table.primary_key.columns
    row = connection.execute(select(table).where(column == key)).one_or_none()
    return None if row is None else value_of(kind, row)


def find(
    connection: Connection, kind: type[T], *conditions: ColumnElement[bool], limit: int = 1000
) -> list[T]:
    """Read the rows that meet every condition."""
    table = TABLE_OF[kind]
    (column,) = table.primary_key.columns
    rows = connection.execute(select(table).where(*conditions).order_by(column).limit(limit))
    return [value_of(kind, row) for row in rows]


def page(
    connection: Connection, kind: type[T], *conditions: ColumnElement[bool], after: str, size: int
) -> tuple[list[T], str]:
    """Read one page by primary key; the key of its last row, empty when nothing follows."""
    table = TABLE_OF[kind]
    (column,) = table.primary_key.columns
    found = find(connection, kind, *conditions, column > after, limit=size + 1)
    if len(found) <= size:
        return found, ""
    return found[:size], str(getattr(found[size - 1], column.name))


def add(connection: Connection, value: Any, taken: Mapping[str, Refused], **more: Any) -> None:
    """Insert a value. ``taken`` maps a column whose value must be free to what is raised when it is not.

    The writer is one thread, and callers look before they insert; the constraint has the last word.
    """
    table = TABLE_OF[type(value)]
    try:
        connection.execute(insert(table).values(**asdict(value), **more))
    except IntegrityError as error:
        text = str(error.orig)
        for column, refusal in taken.items():
            if f"{table.name}.{column}" in text:
                raise refusal from error
        raise


def change(connection: Connection, kind: type[Any], key: str | bytes, **values: Any) -> None:
    """Update one row by its primary key."""
    table = TABLE_OF[kind]
    (column,) = table.primary_key.columns
    connection.execute(update(table).where(column == key).values(**values))


def visible_at_sites(table: Table, caller: Identity) -> ColumnElement[bool]:
    """What stands at a site, as far as the caller's scope reaches."""
    return and_(visible_of_organization(table, caller), _at_sites(table, caller.sites))


def visible_of_organization(table: Table, caller: Identity) -> ColumnElement[bool]:
    """What belongs to the caller's organization, or everything for the operator."""
    return true() if caller.operator else table.c.organization_id == caller.organization


def by_names(name: str) -> ColumnElement[bool]:
    """Devices that people call by this serial or asset tag."""
    columns = DEVICE.c
    # One look-up in each index; with OR and an order SQLite would walk the whole table.
    return columns.device_id.in_(
        union(
            select(columns.device_id).where(columns.serial == name),
            select(columns.device_id).where(columns.asset_tag == name),
        )
    )


def _at_sites(table: Table, sites: Iterable[str]) -> ColumnElement[bool]:
    named = tuple(sites)
    return true() if EVERY in named else table.c.site_id.in_(named)
