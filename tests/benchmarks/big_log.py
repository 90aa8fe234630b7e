"""A log of millions of entries, written through the log's own arithmetic and tables, and kept between runs.

The lives of 50,000 devices over 200 days. Of those that are asked about (`ASKED`), every statement is really signed;
the others' have the same form and size, each its own bytes, and a signature that nobody reads. Commits, `recorded`,
tree, chains, index and checkpoint are the product's. They lie in `VIGIL_BENCH_CACHE`, or ~/.cache/vigil/bench:
10 million entries take about 20 GB, and once a quarter of an hour to build.
"""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from tests.support.pki import ORGANIZATION, SITE, Credential, TestPki
from tests.support.statements import OTHER
from tests.support.story import LIFETIME_MS, Story
from vigil.core import cbor, cose
from vigil.core.certificates import TLS_KINDS, ChainVerifier, TrustBundle, milliseconds
from vigil.core.clock import ManualClock, SystemClock
from vigil.core.digest import sha256
from vigil.core.statements import bodies
from vigil.core.statements.envelope import Number, read_envelope
from vigil.evidence import index_store, store
from vigil.evidence.domain import (
    Admitted,
    Checkpoint,
    LogState,
    SubjectHead,
    keep_bodies,
    origin_of,
    sequence,
    subjects_of,
)
from vigil.evidence.index import Named, Rows
from vigil.evidence.intake import Submission
from vigil.evidence.service import LogKey
from vigil.evidence.store import NewEntry, SignedCommit
from vigil.evidence.tables import METADATA
from vigil.identity.ca import load_issuer
from vigil.storage import Database, open_database

FORMAT: Final = 1
"""Another one is built anew."""
DEVICES: Final = 50_000
ASKED: Final = 200
DAYS: Final = 200
DAY_MS: Final = 86_400_000
A_COMMIT: Final = 32
"""Entries under one `recorded`: more than share a commit at the working size."""
A_TRANSACTION: Final = 262_144
"""Entries in one transaction of the builder, which nobody waits for: rows of one page are written once."""
CACHE_KIB: Final = 3_000_000
RECORDS: Final = ("evidence", "result", "evidence", "result", "decision", "receipt")
"""What a device leaves behind at each turn: two attestations, and a command."""
REVOCATIONS: Final = 500
MAX_AGE_MS: Final = (DAYS + 25) * DAY_MS
"""A log whose newest entry is more than 30 days old records nothing more, not even who asked it."""

Told = Callable[[float], None]


def cache() -> Path:
    """Where logs are kept between runs."""
    named = os.environ.get("VIGIL_BENCH_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "vigil" / "bench"


def devices(size: int) -> int:
    """How many live in a log of this size: each has 20 records or more."""
    return min(DEVICES, size // 20)


def asked(count: int) -> range:
    """The numbers of those that are asked about, spread over all."""
    return range(0, count - count % ASKED, count // ASKED)


def device_name(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    return "dev-" + "".join(letters[(number >> 5 * place) & 31] for place in range(16))


class KeptPki(TestPki):
    """A `TestPki` that is still there the next time: keys and certificates are read from its folder."""

    def __init__(self, folder: Path, *, clock: ManualClock | SystemClock) -> None:
        if not (folder / "made").exists():
            folder.mkdir(parents=True)
            super().__init__(folder, clock=clock)
            (folder / "made").touch()
            return
        self.clock = clock
        self.tmp_path = folder
        [self.directory] = folder.glob("pki-of-*")
        self.trust_domain = self.directory.name.removeprefix("pki-of-")
        self.bundle = TrustBundle.from_json(self.trust.read_text(encoding="utf-8"))
        self.verifier = ChainVerifier(self.bundle)
        intermediates = self.directory / "pki" / "intermediates"
        self.issuers = {
            kind: load_issuer(intermediates / f"{kind}.pem", intermediates / f"{kind}.key")
            for kind in TLS_KINDS
        }
        self._issued = int.from_bytes(os.urandom(6), "big")
        self._signers: dict[str, Credential] = {}


@dataclass(frozen=True)
class BigLog:
    """A finished log of one size; ``began`` and ``ended`` (ms) are those of its devices' lives."""

    folder: Path
    pki: Path
    size: int
    began: int
    ended: int

    def asked(self) -> list[str]:
        """The devices whose statements are really signed."""
        return [device_name(number) for number in asked(devices(self.size))]


def big_log(size: int, told: Told) -> BigLog:
    """The log of this size; built if there is none, or one that is too old to go on."""
    root = cache() / f"log-{FORMAT}"
    if root.exists() and _age_ms(root / "pki") > MAX_AGE_MS:
        shutil.rmtree(root)
    made = root / f"{size}.json"
    if not made.exists():
        times = _Builder(root, size, told).build()
        made.write_text(json.dumps(times))
    times = json.loads(made.read_text())
    return BigLog(root / str(size), root / "pki", size, times["began"], times["ended"])


def _age_ms(pki: Path) -> int:
    clock = SystemClock()
    began = milliseconds(KeptPki(pki, clock=clock).bundle.root.not_valid_before_utc)
    return clock.now() - began


@dataclass(frozen=True, slots=True)
class _Item:
    """A statement with its place in everything, before it has an index."""

    admitted: Admitted
    entry: NewEntry
    chain: tuple[bytes, ...] | None
    time: int
    references: tuple[tuple[str, bytes], ...]
    """What the index says of it: a test holds that against what the product makes of the log."""


class _Builder:
    def __init__(self, root: Path, size: int, told: Told) -> None:
        self._folder = root / str(size)
        self._size = size
        self._told = told
        shutil.rmtree(self._folder, ignore_errors=True)
        # The certificates are as old as the log.
        clock = ManualClock(SystemClock().now() - DAYS * DAY_MS)
        pki = KeptPki(root / "pki", clock=clock)
        clock.set_now(milliseconds(pki.bundle.root.not_valid_before_utc) + DAY_MS)
        self._clock = clock
        self._began = clock.now()
        self._pki = pki
        recorded = pki.signer_credential("recorded")
        self._scribe = recorded.scribe(clock, numbered=True)
        self._chains = {self._scribe.thumbprint: recorded.chain}
        self._heads: dict[str, SubjectHead] = {}

    def build(self) -> dict[str, int]:
        database = open_database(
            self._folder / "evidence" / "evidence.db",
            metadata=METADATA,
            migrations="vigil.evidence.migrations",
        )
        try:
            state = database.read_now(store.load_state)
            items = _Statements(self._pki, self._clock, self._size, began=self._began).all()
            while state.size < self._size:
                count = min(A_TRANSACTION, self._size - state.size)
                state = self._transact(database, state, items, count)
                self._told(state.size / self._size)
            self._sign(database, state)
        finally:
            database.close()
        return {"began": self._began, "ended": state.time}

    def _transact(self, database: Database, state: LogState, items: Iterator[_Item], count: int) -> LogState:
        def write(connection: Connection) -> LogState:
            connection.exec_driver_sql(f"PRAGMA cache_size = -{CACHE_KIB}")
            after, end, rows = state, state.size + count, Rows([], [], [])
            while after.size < end:
                some = list(itertools.islice(items, min(A_COMMIT, end - after.size)))
                for index, one in enumerate(some, after.size):
                    _index(rows, index, one)
                after = self._commit(connection, after, some)
            index_store.write_batch(connection, index_store.Batch(state.size, end, rows, frozenset()))
            return after

        return database.write_now(write)

    def _commit(self, connection: Connection, state: LogState, items: Sequence[_Item]) -> LogState:
        commit = sequence(state, [one.admitted for one in items], heads=self._heads, now=self._clock.now())
        # An intent has one record: its head is never asked for again.
        self._heads.update((name, head) for name, head in commit.heads.items() if name[0] != "i")
        body = bodies.Recorded(commit.root, commit.first, len(items), commit.after.time)
        signed = self._scribe.sign(body, subject=f"log/{origin_of(self._pki.trust_domain)}")
        chains = self._chains | {one.admitted.signer: one.chain for one in items if one.chain is not None}
        store.write_commit(
            connection,
            commit,
            [one.entry for one in items],
            signed=SignedCommit(cose.without_chain(signed.data), self._scribe.thumbprint),
            chains=chains,
        )
        self._chains = {}
        return commit.after

    def _sign(self, database: Database, state: LogState) -> None:
        origin = origin_of(self._pki.trust_domain)
        key = LogKey.at(
            self._folder / "evidence" / "log.key",
            database=database,
            origin=origin,
            generate=Ed25519PrivateKey.generate,
        )
        root = state.frontier.root()
        note = key.sign(state.size, root)
        checkpoint = Checkpoint(origin, state.size, root, state.time, note)
        database.write_now(lambda connection: store.put_checkpoint(connection, checkpoint))


def _index(rows: Rows, index: int, one: _Item) -> None:
    kind = one.admitted.kind
    rows.subjects.extend([(subject, kind, one.time, index) for subject in one.admitted.subjects])
    rows.kinds.append((kind, one.time, index))
    rows.references.extend([(what, value, index) for what, value in one.references])


class _Statements:
    """What 50,000 devices and a recall team have recorded, in the order of the log; the clock goes along."""

    def __init__(self, pki: TestPki, clock: ManualClock, size: int, *, began: int) -> None:
        self._pki = pki
        self._clock = clock
        self._size = size
        self._began = began
        self._templates = _templates(pki, clock)
        until = began + 2 * DAYS * DAY_MS
        self._devices = devices(size)
        self._asked = {
            number: Story(pki, clock, device=device_name(number), lasts_until=until)
            for number in asked(self._devices)
        }
        self._recall = Story(pki, clock, device=device_name(DEVICES), lasts_until=until)
        self._shown: set[bytes] = set()

    def all(self) -> Iterator[_Item]:
        turns = self._size // len(RECORDS) + 1
        step, next_step = (DAYS - 2) * DAY_MS / turns, turns // REVOCATIONS
        for turn in range(turns):
            self._clock.set_now(self._began + int(turn * step))
            number = turn * 7_919 % self._devices
            if number in self._asked:
                yield from self._really(self._asked[number])
            else:
                yield from self._alike(device_name(number), turn)
            if turn % next_step == 0:
                name = sha256(turn.to_bytes(8, "big")).hex()
                yield self._item(self._recall.revoked(bodies.Scope.BUILD, name))

    def _really(self, story: Story) -> Iterator[_Item]:
        for _ in range(2):
            for one in story.measured():
                yield self._item(one)
        yield self._item(story.decided())
        yield self._item(story.done("set-rate"))

    def _item(self, one: Submission) -> _Item:
        statement = read_envelope(one.statement)
        kept = keep_bodies(one.bodies, os.urandom)
        subjects = subjects_of(one.subjects, statement.subject)
        admitted = Admitted(
            str(statement.kind), statement.digest, statement.signer, statement.number, subjects, tuple(kept)
        )
        entry = NewEntry(
            statement.digest,
            admitted.kind,
            one.organization,
            one.site,
            statement.sign1.without_chain,
            kept,
        )
        chain = None if statement.signer in self._shown else statement.chain
        self._shown.add(statement.signer)
        time, references = _said(admitted, entry, self._clock.now())
        return _Item(admitted, entry, chain, time, references)

    def _alike(self, device: str, turn: int) -> Iterator[_Item]:
        evidence = b""
        for place, kind in enumerate(RECORDS):
            template = self._templates[kind]
            unique = sha256(turn.to_bytes(8, "big") + bytes([place]))
            now = self._clock.now()
            data, digest = template.filled(device, unique, evidence, now)
            references = template.references(unique, evidence)
            evidence = digest if kind == "evidence" else evidence
            subjects = (f"device/{device}",)
            if kind == "decision":
                subjects = (*subjects, f"person/p-{turn % 1_000}", f"intent/{unique.hex()}")
            admitted = Admitted(kind, digest, template.signer, template.number, subjects, ())
            time = now // 1000 * 1000 if kind == "evidence" else now
            entry = NewEntry(digest, kind, ORGANIZATION, SITE, data, {})
            yield _Item(admitted, entry, None, time, references)


def _said(admitted: Admitted, entry: NewEntry, now: int) -> tuple[int, tuple[tuple[str, bytes], ...]]:
    """The time and the references that the product reads in a statement."""
    named = Named(admitted.kind, now, list(admitted.subjects), list(admitted.bodies))
    rows = Rows.of([(0, named, entry.statement, tuple(entry.bodies.values()))])
    return rows.kinds[0][1], tuple((what, value) for what, value, _ in rows.references)


@dataclass(frozen=True, slots=True)
class _Template:
    """A statement whose device, times and random parts are put in anew, and whose signature stays."""

    protected: bytes
    payload: bytes
    signature: bytes
    signer: bytes
    number: Number | None
    cti: bytes
    evidence: bytes
    now: int
    refers: tuple[tuple[str, bytes], ...]

    def references(self, unique: bytes, evidence: bytes) -> tuple[tuple[str, bytes], ...]:
        """What it refers to, once filled."""
        put = {OTHER: unique, bytes(16): unique[:16], self.evidence: evidence}
        return tuple((what, put.get(value, value)) for what, value in self.refers)

    def filled(self, device: str, unique: bytes, evidence: bytes, now: int) -> tuple[bytes, bytes]:
        """A statement of its own, and its digest."""
        name = device.encode()
        protected = self.protected.replace(_MARK, name).replace(self.cti, unique[:16])
        protected = protected.replace(_seconds(self.now), _seconds(now))
        payload = self.payload.replace(_MARK, name).replace(OTHER, unique).replace(bytes(16), unique[:16])
        payload = payload.replace(self.evidence, evidence) if evidence else payload
        for later in (0, LIFETIME_MS, LIFETIME_MS // 10):
            payload = payload.replace(_milliseconds(self.now + later), _milliseconds(now + later))
        parts = map(cbor.byte_string, (protected, payload, self.signature))
        first, second, third = parts
        return b"\x84" + first + b"\xa0" + second + third, sha256(cose.sig_structure(protected, payload))


_MARK: Final = device_name(2**79).encode()


def _seconds(now: int) -> bytes:
    return cbor.encode(now // 1000)


def _milliseconds(now: int) -> bytes:
    return cbor.encode(now)


def _templates(pki: TestPki, clock: ManualClock) -> dict[str, _Template]:
    story = Story(pki, clock, device=_MARK.decode())
    evidence, result = story.measured()
    found = {}
    source = read_envelope(evidence.statement).digest
    for one in (evidence, result, story.decided(), story.done("set-rate")):
        statement = read_envelope(one.statement)
        sign1 = statement.sign1
        found[str(statement.kind)] = _Template(
            sign1.protected,
            sign1.payload,
            sign1.signature,
            sign1.signer,
            statement.number,
            statement.id,
            source,
            clock.now(),
            _said(
                Admitted(str(statement.kind), b"", b"", None, (), ()),
                NewEntry(b"", "", "", "", sign1.without_chain, {}),
                clock.now(),
            )[1],
        )
    return found
