"""Addresses are chosen once; an older folder gets those that it lacks, and never one twice."""

from pathlib import Path

from vigil.run.first import choose_endpoints
from vigil.run.layout import SERVICES, TILES, DataFolder, port_of

BASE = 31_400


def test_each_service_and_the_tiles_get_an_address_for_good(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    chosen = choose_endpoints(folder, BASE)
    assert set(chosen) == {*SERVICES, TILES}
    assert len(set(chosen.values())) == len(chosen)
    assert all(address.startswith("127.0.0.1:") and port_of(address) >= BASE for address in chosen.values())
    assert choose_endpoints(folder, BASE + 100) == folder.read_endpoints() == chosen


def test_an_older_folder_gets_an_address_for_the_tiles_that_nobody_has(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    older = {name: f"127.0.0.1:{BASE + place}" for place, name in enumerate((*SERVICES, "gw-1"))}
    folder.write_endpoints(older)
    chosen = choose_endpoints(folder, BASE)
    assert older.items() <= chosen.items()
    assert chosen[TILES] not in older.values()
