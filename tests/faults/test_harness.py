"""The injectors do what they say: each fault is seen by a process that knows nothing of it."""

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness.disk import SmallDisk, locked
from tests.faults.harness.shim import Op, Shim

PROGRAM = """
import json, os, sqlite3, sys
steps = []
def step(do):
    try:
        steps.append(do() or 0)
    except OSError as error:
        steps.append(-error.errno)
    except sqlite3.Error as error:
        steps.append(error.sqlite_errorname)
path = sys.argv[1]
step(lambda: os.close(os.open(path + "/new", os.O_CREAT | os.O_WRONLY)))
file = os.open(path + "/file", os.O_CREAT | os.O_RDWR)
step(lambda: os.pwrite(file, b"x" * 100, 0))
step(lambda: os.fsync(file))
step(lambda: os.rename(path + "/file", path + "/other"))
database = sqlite3.connect(path + "/a.db", isolation_level=None)
step(lambda: database.execute("PRAGMA journal_mode=WAL").close())
step(lambda: database.execute("PRAGMA synchronous=FULL").close())
step(lambda: database.execute("CREATE TABLE IF NOT EXISTS a (b)").close())
step(lambda: database.execute("INSERT INTO a VALUES (1)").close())
print(json.dumps(steps))
"""
CALM = [0, 100, 0, 0, 0, 0, 0, 0]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    if Shim.missing():
        pytest.skip(Shim.missing())
    return Shim.build(tmp_path_factory.mktemp("shim"))


def run(shim: Shim, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **shim.environment},
    )


def steps(shim: Shim, folder: Path) -> list[int | str]:
    done = run(shim, folder)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_without_rules_nothing_happens(shim: Shim, tmp_path: Path) -> None:
    assert steps(shim, tmp_path) == CALM
    with (
        shim.watch(Op.DURABLE, path=f"{tmp_path}/a.db") as watched,
        shim.fail(Op.SYNC, path="/elsewhere/") as no,
    ):
        assert steps(shim, tmp_path) == CALM
    assert watched.seen > 3
    assert not watched.fired
    assert not no.seen


@pytest.mark.parametrize(
    ("ops", "error", "place"),
    [
        (Op.OPEN, errno.EACCES, 0),
        (Op.WRITE, errno.ENOSPC, 1),
        (Op.SYNC, errno.EIO, 2),
        (Op.RENAME, errno.EIO, 3),
    ],
)
def test_a_call_fails(shim: Shim, tmp_path: Path, ops: Op, error: int, place: int) -> None:
    path = f"{tmp_path}/new" if ops is Op.OPEN else f"{tmp_path}/"
    with shim.fail(ops, path=path, error=error, count=1) as fault:
        answers = steps(shim, tmp_path)
    assert fault.fired == 1
    assert answers[place] == -error
    assert answers[:place] == CALM[:place]


@pytest.mark.holds("storage-failures")
def test_a_database_meets_a_failing_sync_and_a_full_disk(
    shim: Shim, tmp_path: Path, injected: Callable[[int], None]
) -> None:
    assert steps(shim, tmp_path) == CALM
    with shim.fail(Op.SYNC, path="a.db") as fault:
        assert steps(shim, tmp_path)[-1] == "SQLITE_IOERR_FSYNC"
    with shim.full("a.db-wal") as full:
        assert steps(shim, tmp_path)[-1] == "SQLITE_FULL"
    assert fault.fired
    assert full.fired
    injected(2)
    assert steps(shim, tmp_path) == CALM
    with sqlite3.connect(tmp_path / "a.db") as database:
        assert database.execute("SELECT count(*) FROM a").fetchall() == [(2,)]


def test_a_process_dies_at_the_call_that_was_named(shim: Shim, tmp_path: Path) -> None:
    for after, size in ((False, 0), (True, 100)):
        with shim.kill(Op.WRITE, path=f"{tmp_path}/file", after=after) as fault:
            assert run(shim, tmp_path).returncode == -signal.SIGKILL
        assert fault.fired == 1
        assert (tmp_path / "file").stat().st_size == size
    (tmp_path / "file").write_bytes(b"")
    with shim.tear(path=f"{tmp_path}/file") as fault:
        assert run(shim, tmp_path).returncode == -signal.SIGKILL
    assert fault.fired == 1
    assert (tmp_path / "file").stat().st_size == 50


def test_a_small_disk_fills_and_empties(tmp_path: Path) -> None:
    if SmallDisk.missing():
        pytest.skip(SmallDisk.missing())
    disk = SmallDisk.mount(tmp_path / "disk", megabytes=4)
    try:
        with disk.filled(), pytest.raises(OSError, match="No space left"):
            (disk.folder / "more").write_bytes(bytes(8192))
        (disk.folder / "more").write_bytes(bytes(8192))
    finally:
        disk.unmount()
    assert not (disk.folder / "more").exists()


def test_a_lock_is_held_by_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE a (b)")
    mine = sqlite3.connect(path, timeout=0.0)
    with locked(path), pytest.raises(sqlite3.OperationalError, match="locked"):
        mine.execute("INSERT INTO a VALUES (1)")
    mine.execute("INSERT INTO a VALUES (1)")
    mine.close()
