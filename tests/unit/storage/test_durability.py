"""Real faults in a process of its own: a kill at any moment, a disk that takes no more."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select

from tests.unit.storage.schema import METADATA, SITES
from vigil.storage import open_database

ROOT = Path(__file__).parents[3]
MIGRATIONS = Path(__file__).parent / "migrations"
START = """
import asyncio, resource, sys
from pathlib import Path
from sqlalchemy import insert
from tests.unit.storage.schema import METADATA, SITES
from vigil.errors import Reason, Refused
from vigil.storage import open_database

database = open_database(Path(sys.argv[1]), metadata=METADATA, migrations=Path(sys.argv[2]))

async def add(key):
    await database.write(lambda c: c.execute(insert(SITES).values(site_id=key, name="x" * 200)).close())
"""
WRITES = """
async def main():
    number = 0
    while True:
        await asyncio.gather(*(add(f"{number + step}") for step in range(16)))
        number += 16
        print(number, flush=True)

asyncio.run(main())
"""
FULL = """
async def main():
    await add("before")
    size = Path(sys.argv[1] + "-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
    outcomes = await asyncio.gather(*(add(f"{n}") for n in range(400)), return_exceptions=True)
    reasons = {outcome.reason for outcome in outcomes if isinstance(outcome, Refused)}
    assert reasons == {Reason.STORAGE_UNAVAILABLE}, outcomes
    kept = await database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM sites").scalar())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await add("after")
    print(kept, sum(outcome is None for outcome in outcomes))
    database.close()

asyncio.run(main())
"""


def _process(program: str, path: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", START + program, str(path), str(MIGRATIONS)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'services'}"},
    )


@pytest.mark.holds("killed-between-steps")
def test_a_killed_process_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with _process(WRITES, path) as process:
        assert process.stdout is not None
        for _ in range(20):
            acknowledged = int(process.stdout.readline())
        process.kill()
    database = open_database(path, metadata=METADATA, migrations=MIGRATIONS)
    found = set(database.read_now(lambda c: c.execute(select(SITES.c.site_id)).scalars().all()))
    database.close()
    assert acknowledged == 320
    assert {f"{n}" for n in range(acknowledged)} <= found


@pytest.mark.holds("storage-failures")
def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """The kernel refuses to let the log grow; reads go on, and so do writes once there is room."""
    path = tmp_path / "a.db"
    with _process(FULL, path) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    kept, succeeded = map(int, output.split())
    assert kept == succeeded + 1
    database = open_database(path, metadata=METADATA, migrations=MIGRATIONS)
    count = database.read_now(lambda c: c.execute(select(func.count()).select_from(SITES)).scalar())
    database.close()
    assert count == kept + 1
