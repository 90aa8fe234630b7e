"""Reads the log again and again at a bounded rate, and holds everything that is stored against everything else.

An entry's leaf against its columns, its statement (digest, signature, signer's certificate as it was then), its bodies
and its place among its subjects' records; each commit's `recorded`; each complete subtree against its leaves or the
two below it; the tree against the newest checkpoint. What was erased must have its erasure on record: two statements
that name it, by two people. Whatever a rewritten row makes of the code that reads it is a finding; the pass goes on.

A finding stays until that entry is found whole again. It stops nothing: a log that stopped recording because
something old was touched would stop every command. It is said, counted, and shown by `vigil status`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Final, ParamSpec, TypeVar

from sqlalchemy import Connection, bindparam, func, select

from vigil.core import cose
from vigil.core.certificates import ChainVerifier
from vigil.core.clock import Clock, Entropy
from vigil.core.commands import person_of
from vigil.core.digest import sha256
from vigil.core.merkle import leaf_hash, node_hash
from vigil.core.statements.bodies import Recorded
from vigil.core.statements.envelope import check, read, read_envelope
from vigil.core.statements.log_bodies import Erasure, ErasureWhat
from vigil.core.tiles import TILE_HEIGHT, TILE_WIDTH
from vigil.errors import Reason, Refused
from vigil.evidence import erasure, store
from vigil.evidence.domain import Leaf, SubjectLink, decode_leaf, recorded_leaf, root_and_paths, root_of
from vigil.evidence.erased import Erased, load_erased
from vigil.evidence.metrics import AuditMetrics
from vigil.evidence.tables import ENTRY, GROUP_COMMIT, STATEMENT, SUBJECT_RECORD
from vigil.storage import Database
from vigil.storage.failures import DATABASE_ERRORS
from vigil.storage.rows import compiled, run

STEP: Final = 32
"""Entries read in one transaction."""
SLICE: Final = 8
"""Signatures checked before other tasks of the event loop get their turn: about a millisecond."""
MAX_SHOWN: Final = 20
IDLE_S: Final = 1.0
_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
T = TypeVar("T")


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
class _Erasing:
    """What the row beside an entry says of its erasure; and the leaf and statement, with certificates, of each half."""

    erased: Erased
    halves: tuple[tuple[Leaf, bytes], ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """One entry that agrees with what is stored beside it; ``statement`` with its certificates, empty once erased."""

    leaf: Leaf
    statement: bytes
    erasing: _Erasing | None


@dataclass(frozen=True, slots=True)
class _Commit:
    """A commit's `recorded` with its certificates, read once, and the time that its leaves must have."""

    recorded: bytes
    time: int


@dataclass(frozen=True, slots=True)
class _Step:
    """Consecutive entries, each as it is or what is wrong instead, and the commits that begin among them."""

    rows: list[_Row | Exception]
    commits: dict[int, _Commit | Exception]


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
        checkpoint = await self._read(store.load_checkpoint)
        if isinstance(checkpoint, Exception):
            self._note(-1, checkpoint)
            return
        if checkpoint is None or not checkpoint.size:
            return
        progress = self.progress
        progress.checked, progress.size, progress.began = 0, checkpoint.size, self._clock.now()
        tree = partial(_check_tree, size=checkpoint.size, root=checkpoint.root)
        self._note(-1, await self._read(partial(_outcome, tree)))
        tiles = -(-checkpoint.size // TILE_WIDTH)
        start = int.from_bytes(self._entropy(8)) % tiles
        for tile in (*range(start, tiles), *range(start)):
            first = tile * TILE_WIDTH
            end = min(first + TILE_WIDTH, checkpoint.size)
            for at in range(first, end, STEP):
                await self._step(at, min(end, at + STEP))
            if end - first == TILE_WIDTH:
                whole = partial(_check_tile, tile=tile)
                self._note(-2 - tile, await self._read(partial(_outcome, whole)))
        progress.passes += 1
        progress.ended = self._clock.now()
        self._metrics.progress(progress.checked, progress.size, len(progress.findings))
        self._metrics.passed(progress.passes, progress.ended)

    async def _read(self, work: Callable[[Connection], T]) -> T | Exception:
        """What a read answers, or what is wrong with what it reads; storage that does not answer is raised."""
        try:
            return await self._database.read(work)
        except Refused:
            raise
        except Exception as error:  # noqa: BLE001 - what cannot be read is damage there, and not the end of the audit
            return _unreadable(error)

    async def _step(self, first: int, end: int) -> None:
        begun = self._clock.monotonic()
        step = await self._read(partial(_load, first=first, end=end))
        if not isinstance(step, Exception):
            await self._judge_all(first, step)
        else:  # one of these cannot even be fetched: each in a transaction of its own
            for index in range(first, end):
                one = await self._read(partial(_load, first=index, end=index + 1))
                await self._judge_all(index, _Step([one], {}) if isinstance(one, Exception) else one)
        self.progress.checked += end - first
        self._metrics.progress(self.progress.checked, self.progress.size, len(self.progress.findings))
        await asyncio.sleep(max(0.0, (end - first) / self._rate - (self._clock.monotonic() - begun)))

    async def _judge_all(self, first: int, step: _Step) -> None:
        for index, row in enumerate(step.rows, first):
            commit = step.commits.get(index)
            damage = row if isinstance(row, Exception) else _outcome(self._check_row, row)
            if damage is None and commit is not None:
                damage = commit if isinstance(commit, Exception) else _outcome(self._check_commit, commit)
            self._note(index, damage)
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)

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

    def _check_row(self, row: _Row) -> None:
        if row.statement:
            self._check_statement(row)
        if row.erasing is not None:
            self._check_erasing(row.leaf, row.erasing)

    def _check_commit(self, commit: _Commit) -> None:
        try:
            statement = read(commit.recorded, Recorded)
            verifier = self._verifier()
            signer = verifier.valid_at(statement.signer, at=statement.body.time, grace=True)
            check(statement, signer or verifier.verify(statement.chain, at=statement.body.time, grace=True))
        except Refused as error:
            raise _Damaged("recorded", error.refusals[0].sentence) from error
        if statement.body.time != commit.time:
            raise _Damaged("recorded", "The commit's time is not the one that the log signed.")

    def _check_statement(self, row: _Row) -> None:
        leaf = row.leaf
        try:
            statement = read_envelope(row.statement)
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

    def _check_erasing(self, leaf: Leaf, erasing: _Erasing) -> None:
        """Both statements are those on record, name this entry, and say what the row beside it says."""
        statements, people = [], []
        try:
            for half, data in erasing.halves:
                statement = read(data, Erasure)
                at = min(statement.issued_at * 1000, half.log_time)
                people.append(person_of(statement, self._verifier(), at=at, grace=True))
                statements.append(statement)
            erasure.check_two(statements, people)
        except Refused as error:
            sentence = f"What was recorded is not there: {error.refusals[0].sentence}"
            raise _Damaged("missing", sentence) from error
        erased, body = erasing.erased, statements[0].body
        signed = (body.what, body.reason, body.reference or "", tuple(one.id for one in people))
        if (
            leaf.digest not in body.records
            or [one.digest for one in statements] != [half.digest for half, _ in erasing.halves]
            or signed != (erased.what, erased.reason, erased.reference, erased.people)
            or erased.time != erasing.halves[1][0].log_time
        ):
            raise _Damaged(
                "missing", "What was recorded is not there, and those named had no such thing erased."
            )


def _outcome(work: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> Exception | None:
    """What damage a check finds; what the database says is raised, as is that storage does not answer."""
    try:
        work(*args, **kwargs)
    except (_Damaged, LookupError) as damage:
        return damage
    except DATABASE_ERRORS:
        raise
    except Refused as error:
        if error.reason is Reason.STORAGE_UNAVAILABLE:
            raise
        return _Damaged("unreadable", error.refusals[0].sentence)
    except Exception as error:  # noqa: BLE001 - a rewritten row may hold anything; what reads it was written for its type
        return _unreadable(error)
    return None


def _unreadable(error: Exception) -> _Damaged:
    return _Damaged(
        "unreadable", f"What is stored there is nothing that the log writes ({type(error).__name__})."
    )


_ENTRIES = (
    select(ENTRY.c.idx, ENTRY.c.leaf, ENTRY.c.digest, ENTRY.c.kind, STATEMENT.c.data)
    .outerjoin(STATEMENT, STATEMENT.c.idx == ENTRY.c.idx)
    .where(ENTRY.c.idx >= bindparam("first"), ENTRY.c.idx < bindparam("end"))
)
_LINK = (
    select(SUBJECT_RECORD.c.idx, ENTRY.c.leaf)
    .join(ENTRY, ENTRY.c.idx == SUBJECT_RECORD.c.idx)
    .where(SUBJECT_RECORD.c.subject == bindparam("subject"), SUBJECT_RECORD.c.number == bindparam("number"))
)
_HALF = (
    select(ENTRY.c.leaf, STATEMENT.c.data)
    .join(STATEMENT, STATEMENT.c.idx == ENTRY.c.idx)
    .where(ENTRY.c.idx == bindparam("idx"))
)
_sql = cache(compiled)
Chains = Callable[[bytes], tuple[bytes, ...]]
"""A signer's certificates, by thumbprint."""


def _load(connection: Connection, first: int, end: int) -> _Step:
    """Consecutive entries and commits, held against all that is stored beside them."""
    found = {row[0]: row for row in run(connection, _sql(_ENTRIES, connection.dialect), (first, end))}
    leaves: dict[int, Leaf] = {}
    chains = cache(partial(store.load_chain, connection))
    rows: list[_Row | Exception] = []
    for index in range(first, end):
        made: list[_Row] = []
        damage = _outcome(_entry, connection, index, found=found, leaves=leaves, chains=chains, made=made)
        rows.append(damage or made[0])
    return _Step(rows, _commits(connection, first, end, leaves, chains))


def _entry(
    connection: Connection,
    index: int,
    *,
    found: Mapping[int, Any],
    leaves: dict[int, Leaf],
    chains: Chains,
    made: list[_Row],
) -> None:
    leaf = leaves[index] = _read_leaf(found, index)
    data = found[index][4] or b""
    erasing = _check_beside(connection, index=index, leaf=leaf, statement_gone=not data, chains=chains)
    made.append(_Row(leaf, cose.with_chain(data, chains(leaf.signer)) if data else b"", erasing))


def _read_leaf(found: Mapping[int, Any], index: int) -> Leaf:
    """Read a leaf, and hold the columns beside it against it."""
    if index not in found:
        raise LookupError(f"the log lacks the entry {index}")
    _, data, digest, kind, _ = found[index]
    leaf = decode_leaf(data)
    if digest != leaf.digest or kind != leaf.kind:
        raise _Damaged("leaf", "The columns beside the leaf say something else than the leaf.")
    return leaf


def _check_beside(
    connection: Connection, *, index: int, leaf: Leaf, statement_gone: bool, chains: Chains
) -> _Erasing | None:
    """Bodies, and the places among the subjects' records; answers by what erasure something of it is gone."""
    kept = {sha256(body) for body in store.load_bodies(connection, leaf.bodies)}
    if not kept <= set(leaf.bodies):
        raise _Damaged("body", "A body is another than the one that was recorded.")
    for link in leaf.subjects:
        _check_link(connection, index, link)
    if len(kept) == len(set(leaf.bodies)) and not statement_gone:
        return None
    return _load_erasing(connection, index, statement_gone=statement_gone, chains=chains)


def _load_erasing(connection: Connection, index: int, *, statement_gone: bool, chains: Chains) -> _Erasing:
    """Something is not there: two people must have had it erased, on record."""
    erased = load_erased(connection, index)
    if erased is None or (statement_gone and erased.what is not ErasureWhat.STATEMENTS):
        raise _Damaged("missing", "What was recorded is not there, and nobody had it erased.")
    halves = []
    for at in erased.records:
        row = run(connection, _sql(_HALF, connection.dialect), (at,)).fetchone()
        if row is None:
            raise _Damaged("missing", "What was recorded is not there, and its erasure is not on record.")
        leaf = decode_leaf(row[0])
        halves.append((leaf, cose.with_chain(row[1], chains(leaf.signer))))
    return _Erasing(erased, tuple(halves))


def _check_link(connection: Connection, index: int, link: SubjectLink) -> None:
    sql = _sql(_LINK, connection.dialect)
    row = run(connection, sql, (link.subject, link.number)).fetchone()
    if row is None or row[0] != index:
        raise _Damaged("subject", f"Number {link.number} of {link.subject} leads elsewhere.")
    if link.number > 1:
        before = run(connection, sql, (link.subject, link.number - 1)).fetchone()
        if before is None or leaf_hash(before[1]) != link.previous:
            raise _Damaged(
                "subject",
                f"Number {link.number} of {link.subject} follows another record than number {link.number - 1}.",
            )


def _commits(
    connection: Connection, first: int, end: int, leaves: Mapping[int, Leaf], chains: Chains
) -> dict[int, _Commit | Exception]:
    """The commits that begin among these entries; and that every entry belongs to one, whose time it has."""
    query = select(GROUP_COMMIT).where(GROUP_COMMIT.c.first < end).order_by(GROUP_COMMIT.c.first.desc())
    found = []
    for row in connection.execute(query.limit(end - first + 1)):
        found.append(row)
        if row.first <= first:
            break
    commits: dict[int, _Commit | Exception] = {}
    for row in reversed(found):
        begin = max(row.first, first)
        made: list[_Commit] = []
        damage = None
        if row.first >= first:
            damage = _outcome(_commit, connection, row=row, chains=chains, made=made)
        times = {leaves[at].log_time for at in range(begin, min(row.first + row.items, end)) if at in leaves}
        if damage is None and times - {row.log_time}:
            damage = _Damaged("recorded", "A leaf's time is not that of its commit.")
        if damage is not None:
            commits[begin] = damage
        elif made:
            commits[begin] = made[0]
    covered = {at for row in found for at in range(max(first, row.first), min(end, row.first + row.items))}
    for index in set(range(first, end)) - covered:
        commits[index] = LookupError(f"no commit holds the entry {index}")
    return commits


def _commit(connection: Connection, *, row: Any, chains: Chains, made: list[_Commit]) -> None:
    """What was promised is over exactly the digests that are stored."""
    inside = ENTRY.c.idx.between(row.first, row.first + row.items - 1)
    stored = connection.execute(select(ENTRY.c.idx, ENTRY.c.digest).where(inside).order_by(ENTRY.c.idx))
    root, _ = root_and_paths([recorded_leaf(one.idx, one.digest) for one in stored])
    recorded = cose.with_chain(row.recorded, chains(row.signer))
    body = read(recorded, Recorded).body
    if (body.root, body.first, body.count) != (root, row.first, row.items):
        raise _Damaged("recorded", "What the log promised of this commit is not what is stored of it.")
    made.append(_Commit(recorded, row.log_time))


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
