"""The tables of attestation; every function takes the connection of its transaction."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    MetaData,
    String,
    Table,
    func,
    select,
)

from vigil.api.attestation.v1 import attestation_pb2
from vigil.attestation.domain import Known, decode_known, encode_known
from vigil.core.certificates import EVERY
from vigil.feed import tables
from vigil.feed.evidence import spool_table
from vigil.storage import at_commit, put_rows

METADATA = MetaData()
DEVICE = Table(
    "device",
    METADATA,
    Column("device_id", String(63), primary_key=True),
    Column("organization", String(63), nullable=False),
    Column("site", String(63), nullable=False),
    Column("status", String(16), nullable=False),
    Column("firmware", LargeBinary, nullable=False),
    Column("stale_at", BigInteger, nullable=False),
    Column("known", LargeBinary, nullable=False),  # domain.encode_known
    Column("trust", LargeBinary, nullable=False),  # DeviceTrust
)
FEED = tables(METADATA)
SPOOL = spool_table(METADATA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One device as it stands."""

    device_id: str
    organization: str
    site: str
    status: str
    firmware: bytes
    stale_at: int
    known: Known
    trust: bytes


def load_known(connection: Connection, device_id: str) -> Known:
    """What is known of a device; a fresh start when nothing is."""
    found = connection.execute(
        select(DEVICE.c.known).where(DEVICE.c.device_id == device_id)
    ).scalar_one_or_none()
    return Known() if found is None else decode_known(found)


def save(connection: Connection, row: Row) -> None:
    """Keep the newest appraisal of a device, written with those of the others in the same commit."""
    at_commit(connection, _save_all, row)


def _save_all(connection: Connection, rows: list[Row]) -> None:
    newest = {row.device_id: row for row in rows}
    put_rows(
        connection,
        DEVICE,
        [
            (
                row.device_id,
                row.organization,
                row.site,
                row.status,
                row.firmware,
                row.stale_at,
                encode_known(row.known),
                row.trust,
            )
            for row in newest.values()
        ],
    )


def load_trust(connection: Connection, device_id: str) -> tuple[str, str, bytes] | None:
    """Organization, site and encoded DeviceTrust of one device."""
    query = select(DEVICE.c.organization, DEVICE.c.site, DEVICE.c.trust).where(
        DEVICE.c.device_id == device_id
    )
    found = connection.execute(query).one_or_none()
    return None if found is None else (found[0], found[1], found[2])


def newest_time(connection: Connection) -> int | None:
    """When the result that lasts longest was signed (ms): a durable time of the signer's; None before the first."""
    query = select(DEVICE.c.trust).order_by(DEVICE.c.stale_at.desc()).limit(1)
    found = connection.execute(query).scalar_one_or_none()
    return None if found is None else attestation_pb2.DeviceTrust.FromString(found).appraise_time_ms or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """What a person may see: everything of an organization ('' for all), at these sites ('*' for every one)."""

    organization: str
    sites: tuple[str, ...]


def list_trust(
    connection: Connection,
    visible: Visible,
    *,
    after: str,
    limit: int,
    status: str = "",
    firmware: bytes = b"",
    site: str = "",
) -> list[tuple[str, bytes]]:
    """A page in the order of device ids: (device id, encoded DeviceTrust)."""
    query = select(DEVICE.c.device_id, DEVICE.c.trust).where(DEVICE.c.device_id > after, *_seen(visible))
    if status:
        query = query.where(DEVICE.c.status == status)
    if firmware:
        query = query.where(DEVICE.c.firmware == firmware)
    if site:
        query = query.where(DEVICE.c.site == site)
    rows = connection.execute(query.order_by(DEVICE.c.device_id).limit(limit))
    return [(row[0], row[1]) for row in rows]


def count_trust(
    connection: Connection, visible: Visible, *, now: int, firmware: bytes = b""
) -> tuple[Mapping[str, int], int]:
    """Devices by status, and how many are stale ``now``."""
    conditions = [*_seen(visible), *([DEVICE.c.firmware == firmware] if firmware else [])]
    grouped = connection.execute(
        select(DEVICE.c.status, func.count()).where(*conditions).group_by(DEVICE.c.status)
    )
    by_status = {str(row[0]): int(row[1]) for row in grouped}
    stale = connection.execute(
        select(func.count()).select_from(DEVICE).where(DEVICE.c.stale_at <= now, *conditions)
    ).scalar_one()
    return by_status, stale


def _seen(visible: Visible) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if visible.organization:
        conditions.append(DEVICE.c.organization == visible.organization)
    if EVERY not in visible.sites:
        conditions.append(DEVICE.c.site.in_(visible.sites))
    return conditions
