"""Reading and writing the log's tables (`tables`); every function takes the connection of its transaction.

Log entries, statements and group commits are written in the order of their keys; leaves' hashes are not stored,
they are the hashes of the leaves. A person's data can be erased (a statement's or a body's row) and the tree
stays whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Select,
    bindparam,
    exists,
    func,
    or_,
    select,
    true,
)

from vigil.core import cbor, cose
from vigil.core.certificates import EVERY
from vigil.core.merkle import Frontier, leaf_hash
from vigil.evidence.domain import (
    Checkpoint,
    Commit,
    LogState,
    NodeReader,
    Scope,
    SubjectHead,
    decode_leaf,
    read_frontier,
    recorded_leaf,
    root_and_paths,
)
from vigil.evidence.erased import Erased, load_erased
from vigil.evidence.tables import (
    BODY,
    CERTIFICATE,
    CHECKPOINT,
    ENTRY,
    GROUP_COMMIT,
    NODE,
    OWN_KEY,
    STATEMENT,
    SUBJECT_RECORD,
)
from vigil.storage import add_missing_rows, insert_rows
from vigil.storage.rows import compiled, run

_KEYS_A_QUERY: Final = 400


# --- writing


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What is stored beside the leaf of one new entry."""

    digest: bytes
    kind: str
    organization: str
    site: str
    statement: bytes
    bodies: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class SignedCommit:
    """The signed `recorded` of one group commit; its certificates are stored once, by thumbprint."""

    statement: bytes
    signer: bytes


def write_commit(
    connection: Connection,
    commit: Commit,
    entries: Sequence[NewEntry],
    *,
    signed: SignedCommit,
    chains: Mapping[bytes, Sequence[bytes]],
) -> None:
    """Write everything that one group commit adds."""
    first = commit.first
    numbered = list(enumerate(entries, first))
    insert_rows(
        connection,
        ENTRY,
        [
            (index, leaf, entry.digest, entry.kind, entry.organization, entry.site)
            for (index, entry), leaf in zip(numbered, commit.leaves, strict=True)
        ],
    )
    insert_rows(connection, STATEMENT, [(index, entry.statement) for index, entry in numbered])
    insert_rows(
        connection,
        SUBJECT_RECORD,
        [
            (link.subject, link.number, index)
            for index, links in enumerate(commit.links, first)
            for link in links
        ],
    )
    insert_rows(connection, NODE, [(node.level, node.position, node.hash) for node in commit.nodes])
    row = (first, len(entries), commit.after.time, signed.signer, signed.statement)
    insert_rows(connection, GROUP_COMMIT, [row])
    put_chains(connection, chains)
    bodies = {digest: body for entry in entries for digest, body in entry.bodies.items()}
    add_missing_rows(connection, BODY, list(bodies.items()))


def put_chains(connection: Connection, chains: Mapping[bytes, Sequence[bytes]]) -> None:
    """Keep certificates that are not kept yet, by the leaf's thumbprint."""
    if chains:
        rows = [(thumbprint, cbor.encode(list(chain))) for thumbprint, chain in chains.items()]
        add_missing_rows(connection, CERTIFICATE, rows)


def put_checkpoint(connection: Connection, checkpoint: Checkpoint) -> None:
    """Keep a checkpoint, unless it was kept by a write whose success nobody heard of: one size has one note."""
    row = (checkpoint.size, checkpoint.root, checkpoint.time, checkpoint.origin, checkpoint.note)
    add_missing_rows(connection, CHECKPOINT, [row])


def _pages(values: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    for start in range(0, len(values), _KEYS_A_QUERY):
        yield values[start : start + _KEYS_A_QUERY]


# --- reading the log's own state

_NODE = select(NODE.c.hash).where(
    NODE.c.level == bindparam("level"), NODE.c.position == bindparam("position")
)
_LEAF = select(ENTRY.c.leaf).where(ENTRY.c.idx == bindparam("idx"))
_HEAD = (
    select(SUBJECT_RECORD.c.number, ENTRY.c.leaf)
    .join(ENTRY, ENTRY.c.idx == SUBJECT_RECORD.c.idx)
    .where(SUBJECT_RECORD.c.subject == bindparam("subject"))
    .order_by(SUBJECT_RECORD.c.number.desc())
)
_ENTRY = (
    select(ENTRY, STATEMENT.c.data)
    .outerjoin(STATEMENT, STATEMENT.c.idx == ENTRY.c.idx)
    .where(ENTRY.c.idx == bindparam("idx"))
)
_COMMIT_OF = (
    select(GROUP_COMMIT)
    .where(GROUP_COMMIT.c.first <= bindparam("idx"))
    .order_by(GROUP_COMMIT.c.first.desc())
    .limit(1)
)


def node_reader(connection: Connection) -> NodeReader:
    """Read complete subtrees; raises LookupError for one that is not stored."""

    def read(level: int, position: int) -> bytes:
        if level == 0:
            leaf = connection.execute(_LEAF, {"idx": position}).scalar()
            found = None if leaf is None else leaf_hash(leaf)
        else:
            found = connection.execute(_NODE, {"level": level, "position": position}).scalar()
        if found is None:
            raise LookupError(f"the log's tree lacks the subtree {position} of level {level}")
        return found

    return read


def load_leaves(connection: Connection, first: int, count: int) -> list[bytes]:
    """Read the leaves of consecutive entries. Raises LookupError when one is missing."""
    inside = ENTRY.c.idx.between(first, first + count - 1)
    return _whole(connection, select(ENTRY.c.leaf).where(inside).order_by(ENTRY.c.idx), count)


def load_subtrees(connection: Connection, level: int, first: int, count: int) -> list[bytes]:
    """Read the hashes of consecutive complete subtrees of one level. Raises LookupError when one is missing."""
    if level == 0:
        return [leaf_hash(leaf) for leaf in load_leaves(connection, first, count)]
    inside = (NODE.c.level == level) & NODE.c.position.between(first, first + count - 1)
    return _whole(connection, select(NODE.c.hash).where(inside).order_by(NODE.c.position), count)


def _whole(connection: Connection, query: Select[Any], count: int) -> list[bytes]:
    found: list[bytes] = list(connection.execute(query).scalars())
    if len(found) != count:
        raise LookupError(f"the log lacks {count - len(found)} of {count} neighbours")
    return found


def load_state(connection: Connection) -> LogState:
    """Read the log's size, frontier and newest log time. Raises LookupError when the tree has holes."""
    newest = connection.execute(select(func.max(ENTRY.c.idx))).scalar()
    if newest is None:
        return LogState(Frontier.empty(), 0)
    commit = connection.execute(_COMMIT_OF, {"idx": newest}).one_or_none()
    if commit is None or commit.first + commit.items != newest + 1:
        raise LookupError("the log's newest entry belongs to no commit")
    return LogState(read_frontier(newest + 1, node_reader(connection)), commit.log_time)


def load_heads(connection: Connection, subjects: Iterable[str]) -> dict[str, SubjectHead]:
    """Read the newest record of each subject that has any."""
    heads = {}
    sql = _head_sql(connection.dialect)
    for subject in subjects:
        row = run(connection, sql, (subject,)).fetchone()
        if row is not None:
            heads[subject] = SubjectHead(row[0], leaf_hash(row[1]))
    return heads


@cache
def _head_sql(dialect: Dialect) -> str:
    """The look-up of a head, compiled once: a fleet's first records ask for every one of it."""
    return f"{compiled(_HEAD, dialect)} LIMIT 1"


def find_digests(connection: Connection, digests: Sequence[bytes]) -> dict[bytes, int]:
    """Find the log index of each statement that is on record."""
    found: dict[bytes, int] = {}
    head, placeholder = _digests_sql(connection.dialect)
    for page in _pages(digests):
        places = ", ".join((placeholder,) * len(page))
        rows = run(connection, f"{head} IN ({places})", tuple(page))
        found |= {digest: index for digest, index in rows}  # noqa: C416 - rows are tuples of another type
    return found


@cache
def _digests_sql(dialect: Dialect) -> tuple[str, str]:
    """The look-up up to its list, and one placeholder."""
    one = select(ENTRY.c.digest, ENTRY.c.idx).where(ENTRY.c.digest == bindparam("digest"))
    head, _, placeholder = compiled(one, dialect).rpartition(" = ")
    return head, placeholder


def load_chain(connection: Connection, thumbprint: bytes) -> tuple[bytes, ...]:
    """Read a signer's certificates (DER, leaf first); empty when they are not known."""
    column = CERTIFICATE.c.chain
    stored = connection.execute(select(column).where(CERTIFICATE.c.thumbprint == thumbprint)).scalar()
    return () if stored is None else tuple(cbor.decode(stored))


# --- reading entries


@dataclass(frozen=True, slots=True)
class RecordedPlace:
    """A statement's place in the log: the signed `recorded` of its commit, and the way from it to there."""

    recorded: bytes  # COSE_Sign1, with certificates wherever it leaves the service
    index: int
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """One record. ``statement`` is empty once erased; an erased body is missing from ``bodies``."""

    index: int
    leaf: bytes
    digest: bytes
    statement: bytes
    chain: tuple[bytes, ...]
    bodies: tuple[bytes, ...]
    place: RecordedPlace
    organization: str
    site: str
    erased: Erased | None = None


class CommitReader:
    """Reads where entries are recorded, in one transaction; each group commit is read and hashed once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._commits: dict[int, tuple[bytes, tuple[tuple[bytes, ...], ...]]] = {}

    def place(self, index: int) -> RecordedPlace:
        """Answer an entry's place, certificates included. Raises LookupError when no commit holds it."""
        row = self._connection.execute(_COMMIT_OF, {"idx": index}).one_or_none()
        if row is None or index >= row.first + row.items:
            raise LookupError(f"no commit holds the entry {index}")
        if row.first not in self._commits:
            chain = load_chain(self._connection, row.signer)
            recorded = cose.with_chain(row.recorded, chain)
            self._commits[row.first] = recorded, self._paths(row.first, row.items)
        recorded, paths = self._commits[row.first]
        return RecordedPlace(recorded, index, paths[index - row.first])

    def _paths(self, first: int, count: int) -> tuple[tuple[bytes, ...], ...]:
        inside = ENTRY.c.idx.between(first, first + count - 1)
        query = select(ENTRY.c.idx, ENTRY.c.digest).where(inside).order_by(ENTRY.c.idx)
        _, paths = root_and_paths(
            [recorded_leaf(row.idx, row.digest) for row in self._connection.execute(query)]
        )
        if len(paths) != count:
            raise LookupError(f"the commit at {first} lacks entries")
        return paths


def load_entry(connection: Connection, index: int, commits: CommitReader) -> StoredEntry | None:
    """Read one whole record; None if there is none. Raises LookupError when the log has holes."""
    row = connection.execute(_ENTRY, {"idx": index}).one_or_none()
    if row is None:
        return None
    leaf = decode_leaf(row.leaf)
    bodies = load_bodies(connection, leaf.bodies)
    whole = row.data is not None and len(bodies) == len(leaf.bodies)
    return StoredEntry(
        index=index,
        leaf=row.leaf,
        digest=row.digest,
        statement=row.data or b"",
        chain=load_chain(connection, leaf.signer),
        bodies=bodies,
        place=commits.place(index),
        organization=row.organization,
        site=row.site,
        erased=None if whole else load_erased(connection, index),
    )


def load_subject_leaves(connection: Connection, subject: str, first: int, count: int) -> list[bytes]:
    """Read the leaves of a subject's records by their numbers. Raises LookupError when one is missing."""
    query = (
        select(ENTRY.c.leaf)
        .join(SUBJECT_RECORD, ENTRY.c.idx == SUBJECT_RECORD.c.idx)
        .where(SUBJECT_RECORD.c.subject == subject, SUBJECT_RECORD.c.number.between(first, first + count - 1))
        .order_by(SUBJECT_RECORD.c.number)
    )
    return _whole(connection, query, count)


def load_bodies(connection: Connection, digests: Sequence[bytes]) -> tuple[bytes, ...]:
    """Read the bodies that are still kept, salts included, in the order of their digests."""
    if not digests:
        return ()
    rows = connection.execute(select(BODY.c.digest, BODY.c.data).where(BODY.c.digest.in_(digests)))
    kept = {row.digest: row.data for row in rows}
    return tuple(kept[digest] for digest in digests if digest in kept)


def index_of(connection: Connection, digest: bytes) -> int | None:
    """Find one statement's index."""
    return connection.execute(select(ENTRY.c.idx).where(ENTRY.c.digest == digest)).scalar()


def visible(scope: Scope) -> ColumnElement[bool]:
    """The condition of ``Scope.covers`` on an entry, in SQL."""
    if scope.everything:
        return true()
    owned = ENTRY.c.organization != ""
    if scope.organization != EVERY:
        owned = ENTRY.c.organization == scope.organization
    sited = (
        ENTRY.c.site != ""
        if EVERY in scope.sites
        else (ENTRY.c.site != "") & ENTRY.c.site.in_(sorted(scope.sites))
    )
    return owned & (or_(sited, ENTRY.c.site == "") if scope.siteless else sited)


def has_visible_record(connection: Connection, subject: str, scope: Scope) -> bool:
    """Whether the scope covers any record of this subject."""
    records = SUBJECT_RECORD.join(ENTRY, ENTRY.c.idx == SUBJECT_RECORD.c.idx)
    found = exists().select_from(records).where(SUBJECT_RECORD.c.subject == subject, visible(scope))
    return bool(connection.execute(select(found)).scalar())


def history(
    connection: Connection,
    subject: str,
    *,
    scope: Scope,
    kinds: Sequence[str],
    after: int,
    below: int,
    limit: int,
) -> list[tuple[int, int]]:
    """Read (number, index) of a subject's visible records after a number and below an index, oldest first."""
    query = (
        select(SUBJECT_RECORD.c.number, SUBJECT_RECORD.c.idx)
        .join(ENTRY, ENTRY.c.idx == SUBJECT_RECORD.c.idx)
        .where(SUBJECT_RECORD.c.subject == subject, SUBJECT_RECORD.c.number > after, visible(scope))
        .where(SUBJECT_RECORD.c.idx < below)
        .order_by(SUBJECT_RECORD.c.number)
        .limit(limit)
    )
    if kinds:
        query = query.where(ENTRY.c.kind.in_(kinds))
    return [(row.number, row.idx) for row in connection.execute(query)]


# --- checkpoints


def load_checkpoint(connection: Connection, size: int | None = None) -> Checkpoint | None:
    """Read the checkpoint of one size, or the newest."""
    query = select(CHECKPOINT).order_by(CHECKPOINT.c.size.desc()).limit(1)
    if size is not None:
        query = query.where(CHECKPOINT.c.size == size)
    row = connection.execute(query).one_or_none()
    return None if row is None else Checkpoint(row.origin, row.size, row.root, row.time, row.note)


def put_own_key(connection: Connection, key: str) -> None:
    """Bind the database to a log's verifier key."""
    add_missing_rows(connection, OWN_KEY, [(key,)])


def is_own_key(connection: Connection, key: str) -> bool:
    """Whether the database was bound to this key."""
    found = exists().where(OWN_KEY.c.verifier_key == key)
    return bool(connection.execute(select(found)).scalar())
