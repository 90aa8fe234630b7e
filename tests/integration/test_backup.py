"""A data folder backed up while it is written to, put back, and not where a witness holds more than the copy."""

import asyncio
import gzip
import io
import json
import shutil
import sqlite3
import stat
import sys
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from tests.integration.test_witness import Log
from tests.support.evidence import EvidenceProcess
from tests.support.pki import TestPki
from tests.support.stack import eventually
from tests.support.witness import WitnessProcess
from tests.unit.cli.support import conforms
from vigil.core.notes import verifier_key
from vigil.evidence.domain import origin_of

pytestmark = pytest.mark.holds("insider-evidence")


class World:
    """An installation of one service, and a witness of its log elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = TestPki(folder)
        self.data = self.pki.directory
        self.policy = self.data / "witness-policy"
        self.restored = 0

    async def start(self) -> None:
        first = EvidenceProcess(self.pki, self.data)
        await first.start()
        await first.stop()
        key = load_pem_private_key((first.data / "log.key").read_bytes(), None)
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key = verifier_key(origin_of(self.pki.trust_domain), public)
        self.witness = WitnessProcess(self.folder / "witness", name="witness.test/w", logs=[self.key])
        await self.witness.init()
        await self.witness.start()
        named = f"witness w {self.witness.verifier_key} {self.witness.url}"
        self.policy.write_text(f"log {self.key}\n{named}\nquorum w\n")
        self.log = await Log(self.pki, self.data, self.policy).start()

    async def stop(self) -> None:
        await self.log.stop()
        await self.witness.stop()

    async def cli(self, *words: object, code: int = 0, shape: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vigil.cli", "--output", "json", *map(str, words)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, errors = await process.communicate()
        assert process.returncode == code, (out, errors)
        value = json.loads(out)
        conforms(value, shape)
        return value

    async def back_up(self, name: str, *more: str) -> Path:
        archive = self.folder / name
        await self.cli("--data", self.data, "backup", archive, *more, shape="backup")
        return archive

    async def restore(self, archive: Path, *more: object) -> Path:
        self.restored += 1
        target = self.folder / f"restored-{self.restored}"
        await self.cli("--data", target, "restore", archive, *more, shape="restored")
        return target

    async def refusal(self, archive: Path, *more: object, code: int = 3) -> Any:
        target = self.folder / "refused"
        value = await self.cli("--data", target, "restore", archive, *more, code=code, shape="error")
        assert not target.exists()
        assert not list(self.folder.glob(".restoring-*")), "something of it was left lying"
        return value["error"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.start()
    yield world
    await world.stop()


def rows(folder: Path, sql: str) -> list[Any]:
    with closing(
        sqlite3.connect(f"file:{folder / 'evidence' / 'evidence.db'}?mode=ro", uri=True)
    ) as connection:
        return connection.execute(sql).fetchall()


def changed(archive: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Another archive, with members changed."""
    with tarfile.open(archive) as members:
        held = {one.name: members.extractfile(one).read() for one in members}  # type: ignore[union-attr]
    change(held)
    with tarfile.open(target, "w:gz") as out:
        for name, data in held.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return target


@pytest.mark.thorough
async def test_a_backup_is_put_back_and_not_where_a_witness_holds_more(world: World, injected: Any) -> None:
    await world.log.append("one", "two", "three")
    await world.log.covering(3, witnessed=True)
    old = await world.back_up("old.tar.gz")
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    with tarfile.open(old) as members:
        names = members.getnames()
        manifest = json.load(members.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert "evidence/evidence.db" in names
    assert not [name for name in names if name.endswith((".key", "passphrase", "-wal"))]
    assert "evidence/log.key" in manifest["left_out"]
    assert (manifest["log_size"], manifest["verifier_key"]) == (3, world.key)

    target = await world.restore(old)
    assert rows(target, "SELECT * FROM entry") == rows(world.data, "SELECT * FROM entry")
    assert (target / "pki" / "trust.json").read_bytes() == (world.data / "pki" / "trust.json").read_bytes()
    error = await world.cli("--data", target, "restore", old, code=3, shape="error")
    assert "not empty" in error["error"]["sentence"]

    note = world.folder / "three.txt"
    note.write_text((await world.log.covering(3)).note)
    await world.log.append("four", "five")
    newer = world.folder / "five.txt"
    newer.write_text((await world.log.covering(5, witnessed=True)).note)
    # The witness has seen five: whoever goes on from three signs a second history.
    error = await world.refusal(old)
    assert error["reason"] == "STATE_CONFLICT"
    assert "witness w holds 5" in error["sentence"]
    assert (await world.refusal(old, "--checkpoint", note))["reason"] == "STATE_CONFLICT"
    fresh = await world.back_up("fresh.tar.gz")
    assert len(rows(await world.restore(fresh, "--checkpoint", newer), "SELECT * FROM entry")) == 5

    await world.witness.stop()
    error = await world.refusal(fresh)
    assert error["reason"] == "NOT_WITNESSED"
    await world.restore(fresh, "--checkpoint", newer)
    error = await world.refusal(old, "--checkpoint", newer)
    assert error["reason"] == "STATE_CONFLICT"
    await world.restore(old, "--unwitnessed")
    apart = await world.restore(old, "--new-log")
    assert (apart / "evidence-before" / "evidence.db").exists()
    assert not (apart / "evidence").exists()
    injected(2)


async def test_an_older_copy_put_back_by_hand_signs_no_second_history(world: World, injected: Any) -> None:
    """Nobody asked `vigil restore`: the folder itself was copied. The witness has seen more, and the log notices."""
    await world.log.append("one", "two", "three")
    await world.log.covering(3, witnessed=True)
    await world.log.stop()
    old = world.folder / "old-evidence"
    shutil.copytree(world.data / "evidence", old)
    world.log = await Log(world.pki, world.data, world.policy).start()
    await world.log.append("four")
    seen = await world.log.covering(4, witnessed=True)
    await world.log.stop()
    shutil.rmtree(world.data / "evidence")
    shutil.copytree(old, world.data / "evidence")
    world.log = await Log(world.pki, world.data, world.policy).start()
    await world.log.append("another four", "another five")

    async def told() -> bool:
        return world.log.told("holds more of this log") or world.log.told("hold more of this log")

    await eventually(told, what="the log notices that it is an older copy")
    assert (await world.log.checkpoint()).size == 3
    assert rows(world.data, "SELECT max(size) FROM checkpoint") == [(3,)]
    assert seen.size == 4
    injected(1)


@pytest.mark.thorough
async def test_an_archive_of_a_folder_whose_log_was_gone_is_refused(world: World, injected: Any) -> None:
    await world.log.append("one", "two", "three")
    await world.log.covering(3, witnessed=True)
    await world.log.stop()
    for path in (world.data / "evidence").glob("evidence.db*"):
        path.unlink()
    archive = await world.back_up("without.tar.gz", "--with-keys")
    for asked in ((), ("--unwitnessed",), ("--log", world.key)):
        error = await world.refusal(archive, *asked)
        assert error["reason"] == "STATE_CONFLICT"
        assert "holds no log" in error["sentence"]
    apart = await world.restore(archive, "--new-log")
    assert (apart / "evidence-before" / "log.key").exists()
    assert not (apart / "evidence" / "log.key").exists()
    injected(1)


@pytest.mark.thorough
async def test_writers_do_not_disturb_a_backup_nor_it_them(world: World) -> None:
    stop = asyncio.Event()

    async def write() -> int:
        count = 0
        while not stop.is_set():
            await world.log.append(f"{count}")
            count += 1
        return count

    writing = asyncio.create_task(write())
    await world.log.covering(20)
    archive = await world.back_up("busy.tar.gz", "--with-keys")
    stop.set()
    written = await writing
    target = await world.restore(archive, "--unwitnessed")
    kept = rows(target, "SELECT idx, leaf FROM entry")
    assert 20 <= len(kept) <= written
    assert kept == rows(world.data, "SELECT idx, leaf FROM entry")[: len(kept)]
    assert (target / "evidence" / "log.key").read_bytes() == (
        world.data / "evidence" / "log.key"
    ).read_bytes()
    again = await world.cli("--data", world.data, "backup", archive, code=3, shape="error")
    assert again["error"]["reason"] == "RESOURCE_EXISTS"


async def test_an_archive_that_was_changed_is_refused(world: World, injected: Any) -> None:
    await world.log.append("one", "two", "three")
    await world.log.covering(3, witnessed=True)
    archive = await world.back_up("good.tar.gz")
    asked = ("--unwitnessed",)
    other = world.folder / "other.tar.gz"

    def manifest(held: dict[str, bytes]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(held["manifest.json"])
        return found

    def cut(held: dict[str, bytes]) -> None:
        held["pki/trust.json"] = held["pki/trust.json"][:-1]

    def added(held: dict[str, bytes]) -> None:
        held["people/mallory.pem"] = b"x"

    def outside(held: dict[str, bytes]) -> None:
        held["../outside"] = b"x"

    def nameless(held: dict[str, bytes]) -> None:
        del held["manifest.json"]

    for change in (cut, added, outside, nameless):
        error = await world.refusal(changed(archive, other, change), *asked)
        assert error["reason"] == "ARTIFACT_CORRUPT", change
    assert not (world.folder / "outside").exists()
    other.write_bytes(archive.read_bytes()[:-200])
    assert (await world.refusal(other, *asked))["reason"] == "ARTIFACT_CORRUPT"
    other.write_bytes(gzip.compress(b"no archive"))
    assert (await world.refusal(other, *asked))["reason"] == "ARTIFACT_CORRUPT"

    def rewritten(held: dict[str, bytes]) -> None:
        """A record is another one, and the manifest was made to fit: the log's signature is not."""
        path = world.folder / "rewritten.db"
        path.write_bytes(held["evidence/evidence.db"])
        with closing(sqlite3.connect(path)) as connection:
            leaf = connection.execute("SELECT leaf FROM entry WHERE idx = 1").fetchone()[0]
            connection.execute(
                "UPDATE entry SET leaf = ? WHERE idx = 1", (leaf[:-1] + bytes([leaf[-1] ^ 1]),)
            )
            connection.commit()
        data = path.read_bytes()
        held["evidence/evidence.db"] = data
        found = manifest(held)
        for member in found["members"]:
            if member["path"] == "evidence/evidence.db":
                member["size"], member["sha256"] = len(data), sha256(data).hexdigest()
        held["manifest.json"] = json.dumps(found).encode()

    error = await world.refusal(changed(archive, other, rewritten), *asked)
    assert error["reason"] == "STATE_CONFLICT"
    assert "root" in error["sentence"]
    stranger = world.key.replace("+", "x+", 1)
    assert (await world.refusal(archive, *asked, "--log", stranger))["reason"] == "STATE_CONFLICT"
    injected(1)
