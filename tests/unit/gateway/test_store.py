"""Tables, the directory's snapshots, and the trust file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.gateway.world import FIRMWARE, MODEL, World
from vigil.core.digest import sha256
from vigil.errors import Reason, Refused
from vigil.feed import Change
from vigil.gateway import command_store, pages, store
from vigil.gateway.directory import Directory
from vigil.gateway.trust import Trust
from vigil.storage import Database, assert_migrations_match, open_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(tmp_path / "one.db", metadata=store.METADATA, migrations=store.MIGRATIONS)
    yield opened
    opened.close()


def test_migrations_lead_to_the_metadata() -> None:
    assert_migrations_match(store.METADATA, store.MIGRATIONS)


def directory(database: Database, found: list[str] | None = None) -> Directory:
    return Directory(
        database=database,
        site_id="site-1",
        on_manufacturer=lambda name, _pem: (found if found is not None else []).append(name),
    )


def change(kind: str, key: str, value: bytes = b"", *, deleted: bool = False) -> Change:
    return Change(sequence=1, kind=kind, key=key, value=value, deleted=deleted, site_id="")


async def test_a_snapshot_counts_only_when_it_is_whole(world: World, database: Database) -> None:
    known = directory(database)
    first, second = "dev-aaaaaaaaaaaaaaaa", "dev-bbbbbbbbbbbbbbbb"
    known.identity.on_reset()
    known.identity.on_change(change("device", first, world.device_row(first).SerializeToString()))
    assert known.device(first) is None
    known.identity.complete()
    await known.identity.save()
    assert known.device(first) is not None
    # The next snapshot stops half-way: what was known stays, in memory and after a restart.
    known.identity.on_reset()
    known.identity.on_change(change("device", second, world.device_row(second).SerializeToString()))
    assert known.device(first) is not None
    assert known.device(second) is None
    again = directory(database)
    again.restore()
    assert [one.device_id for one in again.devices()] == [first]


async def test_changes_are_saved_and_a_moved_device_is_gone(world: World, database: Database) -> None:
    known = directory(database)
    name = "dev-aaaaaaaaaaaaaaaa"
    row = world.device_row(name, asset_tag="P-1")
    known.identity.on_change(change("device", name, row.SerializeToString()))
    row.asset_tag = "P-2"
    known.identity.on_change(change("device", name, row.SerializeToString()))
    await known.identity.save()
    assert known.device("P-1") is None
    assert known.device("P-2") is not None
    again = directory(database)
    again.restore()
    assert again.device("P-2") is not None
    known.identity.on_change(change("device", name, deleted=True))
    await known.identity.save()
    assert known.device(name) is None
    gone = directory(database)
    gone.restore()
    assert gone.devices() == []


def test_a_name_that_two_devices_share_names_none(world: World, database: Database) -> None:
    known = directory(database)
    for name in ("dev-aaaaaaaaaaaaaaaa", "dev-bbbbbbbbbbbbbbbb"):
        row = world.device_row(name, asset_tag="P-1")
        known.identity.on_change(change("device", name, row.SerializeToString()))
    assert known.device("P-1") is None


def test_manufacturers_are_told_of(database: Database) -> None:
    from vigil.api.identity.v1 import identity_pb2

    found: list[str] = []
    known = directory(database, found)
    organization = identity_pb2.Organization(organization_id="maker", manufacturer_root_pem="pem")
    known.identity.on_change(change("organization", "maker", organization.SerializeToString()))
    assert found == ["maker"]


def test_what_is_published_and_nothing_else(world: World) -> None:
    world.seed()
    kept = open_database(
        world.folder / "gateway" / "gateway.db", metadata=store.METADATA, migrations=store.MIGRATIONS
    )
    known = directory(kept)
    known.restore()
    assert known.artifact_size(sha256(FIRMWARE)) == len(FIRMWARE)
    assert known.artifact_size(bytes(32)) is None
    model = known.model(MODEL)
    assert model is not None
    assert model.profile.version == 2
    kept.close()


def test_a_trust_bundle_of_another_root_is_never_taken(world: World) -> None:
    trust = Trust(path=world.pki.trust, clock=world.clock)
    other = world.pki.other_domain()
    assert not trust.take(other.bundle.to_json())
    assert not trust.take("{")
    pem = other.manufacturer("rival").root.public_bytes
    from cryptography.hazmat.primitives.serialization import Encoding

    assert trust.add_manufacturer("rival", pem(Encoding.PEM).decode())
    assert "rival" in trust.verifier.bundle.manufacturers
    assert "rival" in Trust(path=world.pki.trust, clock=world.clock).verifier.bundle.manufacturers
    assert not trust.add_manufacturer("rival", pem(Encoding.PEM).decode())


def test_prefixes() -> None:
    assert store.is_prefix("ab" * 4)
    assert not store.is_prefix("ab" * 3)
    assert not store.is_prefix("AB" * 4)
    assert not store.is_prefix("ab" * 33)
    low, high = store.digest_range("ab" * 4)
    assert low < bytes.fromhex("ab" * 4) + b"\x01" * 28 < high


def test_pages() -> None:
    assert pages.size_of(0) == pages.DEFAULT
    assert pages.size_of(10_000) == pages.MOST
    assert pages.place_of(pages.token_of(7)) == 7
    for broken in ("x", "-1", "0", "1" * 19, "\u0661"):
        with pytest.raises(Refused) as caught:
            pages.place_of(broken)
        assert caught.value.reason is Reason.FIELD_INVALID


def test_old_refusals_are_dropped(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_store, "KEPT_REFUSALS", 3)

    def row(number: int) -> command_store.CommandRow:
        return command_store.CommandRow(
            digest=number.to_bytes(32),
            intent=bytes(32),
            device="dev-aaaaaaaaaaaaaaaa",
            action="act",
            action_class="C",
            requester="p-one",
            credential=bytes(32),
            alone=False,
            request_id=number.to_bytes(16),
            work_order="",
            outcome="refused",
            reason="",
            settled=False,
            status=b"",
            statement=b"",
            intent_statement=b"",
            approvals=(b"one", b"two"),
            decision=b"",
            recorded=b"",
            create_time=number,
            update_time=number,
        )

    for number in range(8):
        database.write_now(lambda conn, number=number: command_store.put_command(conn, row(number)))
    database.write_now(command_store.prune)
    left = database.read_now(
        lambda conn: command_store.list_commands(conn, before=None, limit=100, device="")
    )
    assert [one.create_time for _, one in left] == [7, 6, 5]
    assert left[0][1].approvals == (b"one", b"two")
