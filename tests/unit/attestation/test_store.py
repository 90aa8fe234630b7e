from pathlib import Path

from tests.support.statements import NOW
from vigil.attestation import store
from vigil.attestation.domain import Known
from vigil.storage import assert_migrations_match, open_database


def test_migrating_from_nothing_makes_what_the_code_expects() -> None:
    assert_migrations_match(store.METADATA, "vigil.attestation.migrations")


async def test_people_see_the_devices_of_their_organization_and_sites(tmp_path: Path) -> None:
    database = open_database(
        tmp_path / "a.db", metadata=store.METADATA, migrations="vigil.attestation.migrations"
    )
    for place, (organization, site, status) in enumerate(
        [("one", "a", "affirming"), ("one", "b", "warning"), ("two", "a", "affirming")]
    ):
        row = store.Row(
            device_id=f"dev-{place}",
            organization=organization,
            site=site,
            status=status,
            firmware=bytes([place % 2]),
            stale_at=NOW + place,
            known=Known(),
            trust=b"",
        )
        await database.write(lambda connection, row=row: store.save(connection, row))  # type: ignore[misc]

    def listed(organization: str, *sites: str, **filters: object) -> list[str]:
        visible = store.Visible(organization=organization, sites=sites)
        return [
            name
            for name, _ in database.read_now(
                lambda connection: store.list_trust(connection, visible, after="", limit=9, **filters)  # type: ignore[arg-type]
            )
        ]

    assert listed("", "*") == ["dev-0", "dev-1", "dev-2"]
    assert listed("one", "*") == ["dev-0", "dev-1"]
    assert listed("one", "a") == ["dev-0"]
    assert listed("one") == []
    assert listed("", "*", status="affirming") == ["dev-0", "dev-2"]
    assert listed("", "*", firmware=b"\x01") == ["dev-1"]
    everything = store.Visible(organization="", sites=("*",))
    counted = database.read_now(lambda connection: store.count_trust(connection, everything, now=NOW))
    assert counted == ({"affirming": 2, "warning": 1}, 1)
    database.close()
