"""Reads the log again and again at a bounded rate, and holds everything that is stored against everything else.

An entry's leaf against its columns, its statement (digest, signature, signer's certificate as it was then), its bodies
and its place among its subjects' records; each commit's `recorded`; each complete subtree against its leaves or the
two below it; the tree against the newest checkpoint. What was erased must have its erasure on record.

A finding stays until that entry is found whole again. It stops nothing: a log that stopped recording because
something old was touched would stop every command. It is said, counted, and shown by `vigil status`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from sqlalchemy import Connection, func, select

from vigil.core import cose
from vigil.core.certificates import ChainVerifier
from vigil.core.clock import Clock, Entropy
from vigil.core.digest import sha256
from vigil.core.merkle import leaf_hash, node_hash
from vigil.core.statements.bodies import Recorded
from vigil.core.statements.envelope import check, read, read_envelope
from vigil.core.tiles import TILE_HEIGHT, TILE_WIDTH
from vigil.errors import Reason, Refused
from vigil.evidence import store
from vigil.evidence.domain import Leaf, decode_leaf, recorded_leaf, root_and_paths, root_of
from vigil.evidence.metrics import AuditMetrics
from vigil.evidence.tables import ENTRY, GROUP_COMMIT, SUBJECT_RECORD
from vigil.storage import Database

STEP: Final = 32
"""Entries read in one transaction."""
SLICE: Final = 8
"""Signatures checked before other tasks of the event loop get their turn: about a millisecond."""
MAX_SHOWN: Final = 20
IDLE_S: Final = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong at an entry; -1 for the whole tree."""

    index: int
    what: str
    sentence: str


@dataclass(slots=True)
class Progress:
    """How far the auditor is: ``checked`` entries of this pass of ``size``; times in ms, 0 for never."""

    checked: int = 0
    size: int = 0
    passes: int = 0
    began: int = 0
    ended: int = 0
    findings: dict[int, Finding] = field(default_factory=dict)

    def shown(self) -> list[Finding]:
        """The first findings, in order."""
        return [self.findings[index] for index in sorted(self.findings)[:MAX_SHOWN]]


class _Damaged(Exception):  # noqa: N818 - becomes a Finding
    def __init__(self, what: str, sentence: str) -> None:
        super().__init__(sentence)
        self.what = what


@dataclass(frozen=True, slots=True)
class _Row:
    entry: store.StoredEntry
    leaf: Leaf


class Auditor:
    """Audits one log. ``rate``: entries a second."""

    def __init__(
        self,
        *,
        database: Database,
        verifier: Callable[[], ChainVerifier],
        rate: float,
        clock: Clock,
        entropy: Entropy,
        metrics: AuditMetrics,
    ) -> None:
        self._database = database
        self._verifier = verifier
        self._rate = rate
        self._clock = clock
        self._entropy = entropy
        self._metrics = metrics
        self.progress = Progress()

    async def run(self) -> None:
        """Audit until cancelled."""
        while True:
            try:
                await self._pass()
            except Refused as error:
                _log.warning("the audit of the log waits: %s", error)
            await asyncio.sleep(IDLE_S)

    async def _pass(self) -> None:
        """Every entry under the newest checkpoint once, from a tile at random: after a restart it is another one."""
        checkpoint = await self._database.read(store.load_checkpoint)
        if checkpoint is None or not checkpoint.size:
            return
        progress = self.progress
        progress.checked, progress.size, progress.began = 0, checkpoint.size, self._clock.now()
        tree = partial(_check_tree, size=checkpoint.size, root=checkpoint.root)
        self._note(-1, await self._database.read(partial(_outcome, tree)))
        tiles = -(-checkpoint.size // TILE_WIDTH)
        start = int.from_bytes(self._entropy(8)) % tiles
        for tile in (*range(start, tiles), *range(start)):
            first = tile * TILE_WIDTH
            end = min(first + TILE_WIDTH, checkpoint.size)
            for at in range(first, end, STEP):
                await self._step(at, min(end, at + STEP))
            if end - first == TILE_WIDTH:
                whole = partial(_check_tile, tile=tile)
                self._note(-2 - tile, await self._database.read(partial(_outcome, whole)))
        progress.passes += 1
        progress.ended = self._clock.now()
        self._metrics.progress(progress.checked, progress.size, len(progress.findings))
        self._metrics.passed(progress.passes, progress.ended)

    async def _step(self, first: int, end: int) -> None:
        begun = self._clock.monotonic()
        rows = await self._database.read(lambda connection: _load(connection, first, end))
        for index, row in enumerate(rows, first):
            self._note(index, self._judge(row) if isinstance(row, _Row) else row)
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        self.progress.checked += end - first
        self._metrics.progress(self.progress.checked, self.progress.size, len(self.progress.findings))
        await asyncio.sleep(max(0.0, (end - first) / self._rate - (self._clock.monotonic() - begun)))

    def _note(self, index: int, damage: Exception | None) -> None:
        """Keep what was found at an entry; -1 is the whole tree, below that are tiles."""
        if damage is None:
            self.progress.findings.pop(index, None)
            return
        what = damage.what if isinstance(damage, _Damaged) else "missing"
        place = index if index >= -1 else (-2 - index) * TILE_WIDTH
        if index not in self.progress.findings:
            _log.error("THE LOG IS DAMAGED at %d (%s): %s", place, what, damage)
        self.progress.findings[index] = Finding(place, what, str(damage))

    def _judge(self, row: "_Row") -> Exception | None:
        try:
            if row.entry.statement:
                self._check_statement(row)
            self._check_recorded(row)
        except _Damaged as damage:
            return damage
        return None

    def _check_statement(self, row: _Row) -> None:
        leaf = row.leaf
        try:
            statement = read_envelope(cose.with_chain(row.entry.statement, row.entry.chain))
        except Refused as error:
            raise _Damaged("statement", "The statement cannot be read.") from error
        if statement.digest != leaf.digest:
            raise _Damaged("statement", "The statement is another than the leaf is of.")
        if (str(statement.kind), statement.signer, statement.number) != (leaf.kind, leaf.signer, leaf.number):
            raise _Damaged("leaf", "The leaf says something else of its statement's kind, signer or number.")
        verifier = self._verifier()
        at = min(statement.issued_at * 1000, leaf.log_time)
        try:
            signer = verifier.valid_at(statement.signer, at=at, grace=True)
            check(statement, signer or verifier.verify(statement.chain, at=at, grace=True))
        except Refused as error:
            raise _Damaged("signature", error.refusals[0].sentence) from error

    def _check_recorded(self, row: _Row) -> None:
        place = row.entry.place
        try:
            statement = read(place.recorded, Recorded)
            verifier = self._verifier()
            signer = verifier.valid_at(statement.signer, at=statement.body.time, grace=True)
            check(statement, signer or verifier.verify(statement.chain, at=statement.body.time, grace=True))
        except Refused as error:
            raise _Damaged("recorded", error.refusals[0].sentence) from error
        if statement.body.time != row.leaf.log_time:
            raise _Damaged("recorded", "The leaf's time is not that of its commit.")


def _outcome(work: Callable[[Connection], None], connection: Connection) -> Exception | None:
    """What damage a check finds; storage that does not answer is none and is raised."""
    try:
        work(connection)
    except (_Damaged, LookupError) as damage:
        return damage
    except Refused as error:
        if error.reason is not Reason.STATEMENT_MALFORMED:
            raise
        return _Damaged("unreadable", error.refusals[0].sentence)
    return None


def _load(connection: Connection, first: int, end: int) -> list[_Row | Exception]:
    """Consecutive entries with all that must agree with them, or what is wrong instead."""
    commits = store.CommitReader(connection)
    rows: list[_Row | Exception] = []
    for index in range(first, end):
        found: list[_Row] = []
        damage = _outcome(lambda c: found.append(_row(c, index, commits)), connection)  # noqa: B023 - called at once
        rows.append(found[0] if damage is None else damage)
    return rows


def _row(connection: Connection, index: int, commits: store.CommitReader) -> _Row:
    """One entry, held against its neighbours in the database. Raises _Damaged, LookupError."""
    entry = store.load_entry(connection, index, commits)
    if entry is None:
        raise LookupError(f"the log lacks the entry {index}")
    leaf = decode_leaf(entry.leaf)
    kind = connection.execute(select(ENTRY.c.kind).where(ENTRY.c.idx == index)).scalar_one()
    if entry.digest != leaf.digest or kind != leaf.kind:
        raise _Damaged("leaf", "The columns beside the leaf say something else than the leaf.")
    kept = {sha256(body) for body in entry.bodies}
    if not kept <= set(leaf.bodies):
        raise _Damaged("body", "A body is another than the one that was recorded.")
    if len(kept) < len(leaf.bodies) or not entry.statement:
        _check_erased(connection, entry, statement_gone=not entry.statement)
    for link in leaf.subjects:
        _check_link(connection, index, link.subject, link.number, link.previous)
    _check_commit(connection, index)
    return _Row(entry, leaf)


def _check_erased(connection: Connection, entry: store.StoredEntry, *, statement_gone: bool) -> None:
    """Something is not there: two people must have had it erased, on record."""
    erased = entry.erased
    if erased is None or (statement_gone and erased.what != "statements"):
        raise _Damaged("missing", "What was recorded is not there, and nobody had it erased.")
    kinds = connection.execute(select(ENTRY.c.kind).where(ENTRY.c.idx.in_(erased.records))).scalars().all()
    if list(kinds) != ["erasure", "erasure"]:
        raise _Damaged("missing", "What was recorded is not there, and its erasure is not on record.")


def _check_link(connection: Connection, index: int, subject: str, number: int, previous: bytes) -> None:
    query = select(SUBJECT_RECORD.c.number, SUBJECT_RECORD.c.idx, ENTRY.c.leaf).join(
        ENTRY, ENTRY.c.idx == SUBJECT_RECORD.c.idx
    )
    wanted = (SUBJECT_RECORD.c.subject == subject) & SUBJECT_RECORD.c.number.in_((number - 1, number))
    found = {row.number: row for row in connection.execute(query.where(wanted))}
    if number not in found or found[number].idx != index:
        raise _Damaged("subject", f"Number {number} of {subject} leads elsewhere.")
    if number > 1 and (number - 1 not in found or leaf_hash(found[number - 1].leaf) != previous):
        raise _Damaged(
            "subject", f"Number {number} of {subject} follows another record than number {number - 1}."
        )


def _check_commit(connection: Connection, index: int) -> None:
    """The first entry of a commit stands for it: its `recorded` is over exactly these digests."""
    commit = connection.execute(select(GROUP_COMMIT).where(GROUP_COMMIT.c.first == index)).one_or_none()
    if commit is None:
        return
    inside = ENTRY.c.idx.between(commit.first, commit.first + commit.items - 1)
    rows = connection.execute(select(ENTRY.c.idx, ENTRY.c.digest).where(inside).order_by(ENTRY.c.idx))
    root, _ = root_and_paths([recorded_leaf(row.idx, row.digest) for row in rows])
    body = read(cose.with_chain(commit.recorded, store.load_chain(connection, commit.signer)), Recorded).body
    if (body.root, body.first, body.count) != (root, commit.first, commit.items):
        raise _Damaged("recorded", "What the log promised of this commit is not what is stored of it.")


def _check_tree(connection: Connection, *, size: int, root: bytes) -> None:
    if root_of(size, store.node_reader(connection)) != root:
        raise _Damaged("tree", "The stored tree does not lead to the newest checkpoint's root.")
    entries = connection.execute(
        select(func.count()).select_from(ENTRY).where(ENTRY.c.idx < size)
    ).scalar_one()
    if entries != size:
        raise _Damaged("missing", f"{size - entries} entries under the newest checkpoint are not there.")


def _check_tile(connection: Connection, *, tile: int) -> None:
    """Every complete subtree in a full tile, and those above that end with it."""
    hashes = [leaf_hash(leaf) for leaf in store.load_leaves(connection, tile * TILE_WIDTH, TILE_WIDTH)]
    for level, made in enumerate(_levels(hashes), 1):
        count = len(made)
        if store.load_subtrees(connection, level, tile * count, count) != made:
            raise _Damaged("tree", f"A stored hash of level {level} is not that of the entries below it.")
    position, level = tile, TILE_HEIGHT
    while position & 1:
        pair = store.load_subtrees(connection, level, position - 1, 2)
        position, level = position >> 1, level + 1
        if store.load_subtrees(connection, level, position, 1) != [node_hash(*pair)]:
            raise _Damaged("tree", f"A stored hash of level {level} is not that of the two below it.")


def _levels(hashes: Sequence[bytes]) -> Iterator[list[bytes]]:
    level = list(hashes)
    while len(level) > 1:
        level = [node_hash(level[at], level[at + 1]) for at in range(0, len(level), 2)]
        yield level
