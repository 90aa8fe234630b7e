"""What a gated command is made of, each part measured alone and warm: the least that the work costs.

How often each part comes in one command of class R is counted from docs/protocol.md ("A command"). What a group commit
of the log shares among many commands is left out, and so is all that only idleness or a crowded machine adds.
"""

import asyncio
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.support.pki import TestPki
from tests.support.policy_documents import CHANGE
from tests.support.statements import EXAMPLES
from vigil.core import keys
from vigil.core.clock import SystemClock
from vigil.core.statements import bodies
from vigil.core.statements.envelope import Scribe, read
from vigil.policy.engine.bundle import DEFAULT_BUNDLE, read_bundle
from vigil.policy.engine.wasm import WasmEngine

BATCHES: Final = 15
"""The least of so many counts: what others do meanwhile on the machine only ever adds."""
SMALL_ROW_BYTES: Final = 1_200
"""A statement with its chain, as a spool keeps it."""
ROW_BYTES: Final = 4_000
"""One command's row at the gateway, with its statements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind of work: microseconds of CPU each, and how often it comes in a command, by process."""

    name: str
    each: float
    times: dict[str, int]

    @property
    def count(self) -> int:
        return sum(self.times.values())

    @property
    def ms(self) -> float:
        """Of one command."""
        return self.each * self.count / 1000

    def words(self) -> str:
        where = ", ".join(f"{process} {count}" for process, count in self.times.items())
        return f"{self.count} x {self.name} at {self.each:.0f} µs ({where})"


def counted(measured: Sequence[Part], times: Mapping[str, dict[str, int]]) -> tuple[Part, ...]:
    """The same parts as they come in other work: how often by process, under each part's name."""
    by_name = {part.name: part for part in measured}
    return tuple(replace(by_name[name], times=where) for name, where in times.items())


def shown(work: str, found: Sequence[Part], *, total_ms: float) -> tuple[str, ...]:
    """What the parts come to, and what of the CPU that was measured they leave over."""
    together = sum(part.ms for part in found)
    words = "; ".join(part.words() for part in found)
    alone = f"Parts of {work}, measured alone and warm: {words}; in all {together:.2f} ms of CPU"
    beside = (
        f"Of the {total_ms:.2f} ms of CPU that {work} costs here, the parts are {together:.2f} ms and"
        f" {total_ms - together:.2f} ms stand between them: transport, tasks, bookkeeping, caches gone cold"
    )
    return alone, beside


def measure() -> tuple[Part, ...]:
    """Measure every part, in a thread without an event loop; takes about a second."""
    with tempfile.TemporaryDirectory(prefix="vigil-parts-") as name:
        folder = Path(name)
        return (*_statements(folder), _rego(), *_durable(folder))


def _statements(folder: Path) -> tuple[Part, ...]:
    credential = TestPki(folder).person("p-technician", "technician")
    scribe = Scribe(
        signer=credential.signer,
        issuer=credential.issuer_name,
        clock=SystemClock(),
        entropy=os.urandom,
        numbered=False,
    )
    intent = EXAMPLES[bodies.Intent]
    signed = scribe.sign(intent, subject="device/d")
    key, data = keys.new_private_key(), bytes(500)
    public, signature = key.public_key(), keys.sign(key, data)
    return (
        Part(
            name="a statement signed",
            each=least(lambda: scribe.sign(intent, subject="device/d"), 100),
            times={"client": 2, "policy": 1, "pump": 1},
        ),
        Part(
            name="a signature verified",
            each=least(lambda: keys.verify(public, keys.ES256, data, signature), 100),
            times={"client": 1, "gateway": 2, "policy": 2, "evidence": 4, "pump": 4},
        ),
        Part(
            name="a statement read",
            each=least(lambda: read(signed.data, bodies.Intent), 200),
            times={"client": 1, "gateway": 4, "policy": 2, "evidence": 4, "pump": 4},
        ),
    )


def _rego() -> Part:
    engine = WasmEngine(read_bundle(DEFAULT_BUNDLE.read_bytes()))
    try:
        each = least(lambda: engine.decide_now(CHANGE), 50)
    finally:
        asyncio.run(engine.close())
    return Part(name="Rego in WebAssembly", each=each, times={"policy": 1})


def _durable(folder: Path) -> tuple[Part, ...]:
    """A durable row, as the stores commit it, and a flushed write of eight bytes, as the secure element counts."""
    connection = sqlite3.connect(folder / "rows.db", isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, data BLOB NOT NULL)")
    row = (bytes(ROW_BYTES),)

    def commit() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO row (data) VALUES (?)", row)
        connection.execute("COMMIT")

    descriptor = os.open(folder / "counter", os.O_WRONLY | os.O_CREAT)

    def count() -> None:
        os.pwrite(descriptor, bytes(8), 0)
        os.fdatasync(descriptor)

    try:
        return (
            Part(
                name="a row made durable",
                each=least(commit, 10),
                times={"gateway": 1, "evidence": 1, "pump": 1},
            ),
            Part(name="a counter made durable", each=least(count, 10), times={"pump": 1}),
        )
    finally:
        os.close(descriptor)
        connection.close()


def shared_rows_us(*, rows: int = 4, sharing: int = 16) -> float:
    """CPU of so many small rows in a durable commit that others share: microseconds of one's part."""
    with tempfile.TemporaryDirectory(prefix="vigil-parts-") as name:
        connection = sqlite3.connect(Path(name) / "rows.db", isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, data BLOB NOT NULL)")
        all_rows = [(bytes(SMALL_ROW_BYTES),)] * (rows * sharing)

        def commit() -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO row (data) VALUES (?)", all_rows)
            connection.execute("COMMIT")

        try:
            return least(commit, 10) / sharing
        finally:
            connection.close()


def least(work: Callable[[], object], count: int) -> float:
    """Microseconds of CPU of one piece of work, the least of many counts of ``count``."""
    work()
    found = []
    for _ in range(BATCHES):
        began = time.process_time()
        for _ in range(count):
            work()
        found.append((time.process_time() - began) / count * 1e6)
    return min(found)
