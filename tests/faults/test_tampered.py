"""An insider at the tables of a real log: what is deleted, rewritten, reordered or withheld, and who notices."""

import asyncio
import hashlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.evidence import EvidenceProcess, HoldWriter
from tests.support.pki import ORGANIZATION, SITE, TestPki
from tests.support.reading import CommandLine
from tests.support.stack import eventually
from vigil.core.census import ITEM_BYTES, page_root, subject_key
from vigil.core.clock import SystemClock
from vigil.core.merkle import leaf_hash
from vigil.feed.evidence import EvidenceAppender
from vigil.rpc.channel import Channels

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.holds("insider-evidence"),
]

PUMP = "device/dev-aaaaaaaaaaaaaaaa"
OTHER = "device/dev-bbbbbbbbbbbbbbbb"
RECORDS = 5
OWNER = {"organization_id": ORGANIZATION, "site_id": SITE}


class Log:
    """A log of one service: five records of one pump among others, and a census over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = TestPki(folder / "pki")
        self.copies = 0

    async def build(self) -> None:
        process = self.process(self.folder / "built")
        await process.start()
        writer = HoldWriter(self.pki.person("p-safety", "safety"))
        channels = Channels(
            tls=self.pki.service("policy").tls_files, trust_domain=self.pki.trust_domain, clock=SystemClock()
        )
        appender = EvidenceAppender(
            channel=channels.service(process.address, "evidence"), entropy=os.urandom, streams=1
        )
        for subject in (PUMP, OTHER) * (RECORDS - 1) + (PUMP,):
            await appender.append(writer.hold(subject.partition("/")[2]).data, **OWNER)
        database = process.data / "evidence.db"
        await eventually(
            lambda: counted(database) == 2 * RECORDS - 1, what="a census of all of it", pause=0.2
        )
        await eventually(lambda: signed(database) >= 2 * RECORDS, what="a checkpoint over it", pause=0.2)
        await appender.close()
        await channels.close()
        await process.stop()

    def process(self, folder: Path, *, census_seconds: str = "1") -> EvidenceProcess:
        folder.mkdir(exist_ok=True)
        return EvidenceProcess(self.pki, folder, settings={"census_seconds": census_seconds}, tiles="http")

    def copy(self, *, census_seconds: str = "3600") -> EvidenceProcess:
        """The same log in a folder of its own, its service not started yet."""
        self.copies += 1
        folder = self.folder / f"copy-{self.copies}"
        shutil.copytree(self.folder / "built", folder)
        return self.process(folder, census_seconds=census_seconds)

    def auditor(self, process: EvidenceProcess) -> CommandLine:
        return CommandLine(
            process.folder / "auditor",
            self.pki.person("p-auditor", "auditor"),
            trust_domain=self.pki.trust_domain,
            evidence=process.address,
        )


def counted(database: Path) -> int:
    """Entries that the newest recorded census covers."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        row = connection.execute(
            "SELECT max(size) FROM census JOIN entry ON entry.digest = census.digest"
        ).fetchone()
    return int(row[0] or 0)


def signed(database: Path) -> int:
    """Entries under the newest checkpoint."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT coalesce(max(size), 0) FROM checkpoint").fetchone()[0])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def log(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Log]:
    log = Log(tmp_path_factory.mktemp("tampered"))
    (log.folder / "pki").mkdir(exist_ok=True)
    await log.build()
    yield log


def tamper(process: EvidenceProcess, change: Callable[[sqlite3.Connection], int], *, rows: int = 1) -> None:
    """Change the tables; as many rows as were meant are other ones than before."""
    path = process.data / "evidence.db"
    with closing(sqlite3.connect(path)) as connection:
        before = "\n".join(connection.iterdump())
        assert change(connection) == rows
        connection.commit()
        assert "\n".join(connection.iterdump()) != before


def rows_of(connection: sqlite3.Connection, subject: str) -> list[tuple[int, int]]:
    query = "SELECT number, idx FROM subject_record WHERE subject = ? ORDER BY number"
    return connection.execute(query, (subject,)).fetchall()


def deleted_row(connection: sqlite3.Connection) -> int:
    """One record taken out of the pump's history."""
    query = "DELETE FROM subject_record WHERE subject = ? AND number = 3"
    return connection.execute(query, (PUMP,)).rowcount


def deleted_newest_row(connection: sqlite3.Connection) -> int:
    query = "DELETE FROM subject_record WHERE subject = ? AND number = ?"
    return connection.execute(query, (PUMP, RECORDS)).rowcount


def reordered(connection: sqlite3.Connection) -> int:
    """Two of the pump's records in each other's place."""
    numbered = dict(rows_of(connection, PUMP))
    query = "UPDATE subject_record SET idx = ? WHERE subject = ? AND number = ?"
    return sum(
        connection.execute(query, (numbered[there], PUMP, here)).rowcount for here, there in ((2, 3), (3, 2))
    )


def rewritten_leaf(connection: sqlite3.Connection) -> int:
    """The time of one record, in the leaf itself."""
    (_, index) = rows_of(connection, PUMP)[2]
    [leaf] = connection.execute("SELECT leaf FROM entry WHERE idx = ?", (index,)).fetchone()
    at = leaf.index(b"\x1b") + 8
    other = leaf[:at] + bytes([leaf[at] ^ 1]) + leaf[at + 1 :]
    return connection.execute("UPDATE entry SET leaf = ? WHERE idx = ?", (other, index)).rowcount


def another_record_in_its_place(connection: sqlite3.Connection) -> int:
    """The other pump's record under this pump's number."""
    (_, index) = rows_of(connection, OTHER)[1]
    query = "UPDATE subject_record SET idx = ? WHERE subject = ? AND number = 2"
    return connection.execute(query, (index, PUMP)).rowcount


def withheld(connection: sqlite3.Connection) -> int:
    """The newest record hidden everywhere that the service looks: the history, and the census's own tree."""
    done = deleted_newest_row(connection)
    (_, index) = rows_of(connection, PUMP)[-1]
    [leaf] = connection.execute("SELECT leaf FROM entry WHERE idx = ?", (index,)).fetchone()
    query = "SELECT census.size, number, data, pages FROM census_page JOIN census USING (size)"
    for size, number, page, names in connection.execute(query).fetchall():
        at = page.find(subject_key(PUMP))
        item = page[at : at + 32] + (RECORDS - 1).to_bytes(8, "big") + leaf_hash(leaf)
        other = page[:at] + item + page[at + ITEM_BYTES :]
        name = names[: 64 * number + 32] + page_root(other) + names[64 * number + 64 :]
        connection.execute(
            "UPDATE census_page SET data = ? WHERE size = ? AND number = ?", (other, size, number)
        )
        connection.execute("UPDATE census SET pages = ? WHERE size = ?", (name, size))
    return done


@dataclass(frozen=True)
class Fault:
    change: Callable[[sqlite3.Connection], int]
    says: str
    rows: int = 1
    others_too: bool = False  # they hang on the same page of the census


BRIEF = (deleted_newest_row, reordered, withheld)
"""What `make test` tries; `make faults` tries all."""
SEEN_BY_PROVE = (
    Fault(deleted_row, "cannot show what it counts"),
    Fault(deleted_newest_row, "cannot show what it counts"),
    Fault(reordered, "number 2 is missing before number 3", rows=2),
    Fault(rewritten_leaf, "number 4 follows another record than the one given"),
    Fault(another_record_in_its_place, "is not about it"),
    Fault(withheld, "its place does not lead to the census's root", others_too=True),
)


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(one, id=one.change.__name__, marks=() if one.change in BRIEF else pytest.mark.thorough)
        for one in SEEN_BY_PROVE
    ],
)
async def test_a_history_that_was_tampered_with_is_not_proved(
    log: Log, fault: Fault, injected: Callable[[int], None]
) -> None:
    """Whoever asks for the pump's history is refused, and told what is wrong."""
    process = log.copy()
    tamper(process, fault.change, rows=fault.rows)
    injected(fault.rows)
    await process.start()
    try:
        auditor = log.auditor(process)
        words = await auditor.said("evidence", "prove", "--subject", PUMP, code=3, json_output=False)
        assert fault.says in " ".join(words.split()), words
        if not fault.others_too:
            await auditor.said("evidence", "prove", "--subject", OTHER)
    finally:
        await process.stop()


async def test_what_was_not_tampered_with_is_proved(log: Log) -> None:
    process = log.copy()
    await process.start()
    try:
        words = await log.auditor(process).said("evidence", "prove", "--subject", PUMP, json_output=False)
        assert "All of it holds." in words
    finally:
        await process.stop()


async def test_rewritten_tiles_are_noticed_by_whoever_counts_them(
    log: Log, injected: Callable[[int], None]
) -> None:
    """A proof made before holds as ever; what the tiles show now is not what its checkpoint signs."""
    process = log.copy()
    await process.start()
    auditor = log.auditor(process)
    proof = process.folder / "proof.json"
    line = ("evidence", "check", proof, "--trust", log.pki.trust)
    try:
        proof.write_text(await auditor.said("evidence", "prove", "--subject", PUMP))
        words = await auditor.said(*line, "--tiles", process.tiles, json_output=False)
        assert "counted from the tiles" in " ".join(words.split())
    finally:
        await process.stop()
    tamper(process, rewritten_leaf)
    injected(1)
    await process.start()
    try:
        await auditor.said(*line)
        words = await auditor.said(*line, "--tiles", process.tiles, code=3, json_output=False)
        assert "do not hold what the checkpoint signs" in " ".join(words.split())
    finally:
        await process.stop()


def rewritten_node(connection: sqlite3.Connection) -> int:
    """One hash inside the log's tree."""
    return connection.execute(
        "UPDATE node SET hash = ? WHERE level = 1 AND position = 1", (hashlib.sha256(b"other").digest(),)
    ).rowcount


async def test_a_rewritten_node_of_the_tree_is_noticed_by_every_proof_that_needs_it(
    log: Log, injected: Callable[[int], None]
) -> None:
    process = log.copy()
    tamper(process, rewritten_node)
    injected(1)
    await process.start()
    try:
        auditor = log.auditor(process)
        words = await auditor.said("evidence", "prove", 0, code=3, json_output=False)
        assert "does not stand at its index" in " ".join(words.split())
    finally:
        await process.stop()


def deleted_old_entry(connection: sqlite3.Connection) -> int:
    return connection.execute("DELETE FROM entry WHERE idx = 1").rowcount


async def test_a_log_that_lacks_an_old_entry_goes_on_without_an_index(
    log: Log, injected: Callable[[int], None]
) -> None:
    """The command leaves the index as it is; a service without one serves and records."""
    process = log.copy()
    tamper(process, deleted_old_entry)
    injected(1)
    await process.start()
    auditor = log.auditor(process)
    (auditor.folder / "config").mkdir()
    shutil.copy(process.folder / "evidence.toml", auditor.folder / "config")
    try:
        for _ in range(2):
            words = await auditor.said("evidence", "reindex", code=3)
            assert "The log lacks the entry 1: the index was left as it is." in words
    finally:
        await process.stop()
    with closing(sqlite3.connect(process.data / "evidence.db")) as connection:
        connection.execute("UPDATE index_state SET covered = 0")
        connection.commit()
    await process.start()
    channels = Channels(
        tls=log.pki.service("policy").tls_files, trust_domain=log.pki.trust_domain, clock=SystemClock()
    )
    writer = HoldWriter(log.pki.person("p-safety", "safety"))
    try:
        words = await auditor.said("evidence", "find", "kind=hold", "--from", "2020-01-01", code=3)
        assert "it stands still: the log lacks the entry 1" in words
        async with EvidenceAppender(
            channel=channels.service(process.address, "evidence"), entropy=os.urandom, streams=1
        ) as appender:
            for _ in range(3):
                await appender.append(writer.hold(PUMP.partition("/")[2]).data, **OWNER)
                await asyncio.sleep(1)
        assert process.running
        assert process.stderr.read_text().count("THE LOG IS DAMAGED: the log lacks the entry 1") == 1
    finally:
        await channels.close()
        await process.stop()


def deleted_entry(connection: sqlite3.Connection) -> int:
    return connection.execute("DELETE FROM entry WHERE idx = (SELECT max(idx) FROM entry)").rowcount


def another_edge(connection: sqlite3.Connection) -> int:
    """A tree whose right edge is another than the one that was signed."""
    query = "UPDATE node SET hash = zeroblob(32) WHERE level = (SELECT max(level) FROM node)"
    return connection.execute(query).rowcount


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (deleted_entry, "has signed a checkpoint of 10"),
        (another_edge, "the stored tree does not lead to the newest checkpoint's root"),
    ],
)
async def test_a_log_that_contradicts_its_checkpoint_does_not_start(
    log: Log, change: Callable[[sqlite3.Connection], int], says: str, injected: Callable[[int], None]
) -> None:
    process = log.copy()
    tamper(process, change)
    injected(1)
    with pytest.raises(RuntimeError, match="did not start") as caught:
        await process.start()
    assert says in str(caught.value)


def changed_page(connection: sqlite3.Connection) -> int:
    """One number in the stored tree of the newest census."""
    query = "SELECT size, number, data FROM census_page ORDER BY size DESC LIMIT 1"
    size, number, page = connection.execute(query).fetchone()
    other = page[:39] + bytes([page[39] ^ 1]) + page[40:]
    change = "UPDATE census_page SET data = ? WHERE size = ? AND number = ?"
    return connection.execute(change, (other, size, number)).rowcount


@pytest.mark.thorough
async def test_a_stored_census_that_was_changed_is_made_again_from_the_log(
    log: Log, injected: Callable[[int], None]
) -> None:
    process = log.copy(census_seconds="1")
    tamper(process, changed_page)
    injected(1)
    writer = HoldWriter(log.pki.person("p-safety", "safety"))
    before = counted(process.data / "evidence.db")
    await process.start()
    channels = Channels(
        tls=log.pki.service("policy").tls_files, trust_domain=log.pki.trust_domain, clock=SystemClock()
    )
    try:
        async with EvidenceAppender(
            channel=channels.service(process.address, "evidence"), entropy=os.urandom, streams=1
        ) as appender:
            await appender.append(writer.hold(PUMP.partition("/")[2]).data, **OWNER)
        await eventually(
            lambda: counted(process.data / "evidence.db") > before + 1, what="another census", pause=0.2
        )
        assert "damaged" in process.stderr.read_text()
        words = await log.auditor(process).said("evidence", "prove", "--subject", PUMP, json_output=False)
        assert f"Records 1 to {RECORDS + 1} of {PUMP}" in " ".join(words.split())
    finally:
        await channels.close()
        await process.stop()


@pytest.mark.thorough
async def test_a_number_given_twice_is_told_by_the_next_census(
    log: Log, injected: Callable[[int], None]
) -> None:
    """The pump's newest row is gone when the service starts: it numbers from what it finds, and the census objects."""
    process = log.copy(census_seconds="1")
    tamper(process, deleted_newest_row)
    injected(1)
    writer = HoldWriter(log.pki.person("p-safety", "safety"))
    await process.start()
    channels = Channels(
        tls=log.pki.service("policy").tls_files, trust_domain=log.pki.trust_domain, clock=SystemClock()
    )
    try:
        async with EvidenceAppender(
            channel=channels.service(process.address, "evidence"), entropy=os.urandom, streams=1
        ) as appender:
            await appender.append(writer.hold(PUMP.partition("/")[2]).data, **OWNER)
        await eventually(
            lambda: "do not follow one another" in process.stderr.read_text(), what="it is told", pause=0.2
        )
        assert PUMP in process.stderr.read_text()
    finally:
        await channels.close()
        await process.stop()
