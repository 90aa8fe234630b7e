"""The database's own constraints: the last word, even when nobody looked before inserting."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from tests.unit.identity.test_domain import DEVICE
from vigil.errors import Reason, Refused
from vigil.identity import refusals, store
from vigil.identity.domain import Device, Organization, Site
from vigil.storage import Database, open_database

TAKEN = {
    "udi_issuer": refusals.already_enrolled(""),
    "identity_key": refusals.key_already_enrolled(),
    "attestation_key": refusals.key_already_enrolled(),
    "device_id": refusals.key_already_enrolled(),
}
OTHER = replace(
    DEVICE,
    device_id="dev-bbbbbbbbbbbbbbbb",
    serial="SN-2",
    identity_key=b"\x01" * 32,
    attestation_key=b"\x01" * 32,
    attestation_chain=(b"leaf", b"intermediate"),
)


@pytest.fixture
def database(tmp_path: Path) -> Any:
    made = open_database(tmp_path / "identity.db", metadata=store.METADATA, migrations=store.MIGRATIONS)

    def fill(connection: Connection) -> None:
        store.add(
            connection,
            Organization(organization_id="hospital", display_name="H"),
            {},
            manufacturer_root_key=None,
        )
        site = Site(site_id="site-1", organization_id="hospital", display_name="S", time_zone="UTC")
        store.add(connection, site, {})
        store.add(connection, DEVICE, TAKEN)

    made.write_now(fill)
    yield made
    made.close()


def test_a_row_is_read_as_it_was_written(database: Database) -> None:
    database.write_now(lambda connection: store.add(connection, OTHER, TAKEN))
    assert database.read_now(lambda connection: store.get(connection, Device, OTHER.device_id)) == OTHER


@pytest.mark.parametrize(
    ("same", "reason"),
    [
        ({"serial": DEVICE.serial}, Reason.DEVICE_ALREADY_ENROLLED),
        ({"identity_key": DEVICE.identity_key}, Reason.KEY_ALREADY_ENROLLED),
        ({"attestation_key": DEVICE.attestation_key}, Reason.KEY_ALREADY_ENROLLED),
        ({"device_id": DEVICE.device_id}, Reason.KEY_ALREADY_ENROLLED),
    ],
)
def test_one_device_has_one_row(database: Database, same: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        database.write_now(lambda connection: store.add(connection, replace(OTHER, **same), TAKEN))
    assert caught.value.reason is reason
    assert len(database.read_now(lambda connection: store.find(connection, Device))) == 1


def test_a_device_stands_at_a_site_that_exists(database: Database) -> None:
    with pytest.raises(IntegrityError):
        database.write_now(lambda connection: store.add(connection, replace(OTHER, site_id="nowhere"), TAKEN))


def test_serials_are_case_sensitive(database: Database) -> None:
    database.write_now(
        lambda connection: store.add(connection, replace(OTHER, serial=DEVICE.serial.lower()), TAKEN)
    )
    found = database.read_now(lambda connection: store.find(connection, Device, store.by_names("SN-1")))
    assert found == [DEVICE]
