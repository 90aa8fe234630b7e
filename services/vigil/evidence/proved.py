"""Whole records with their proofs, several at once: what a question about a moment is answered with.

Each costs a few look-ups by key, and what they share (the tree's right edge, a commit, a signer's certificates) is read
once. So that an answer takes the same time in a log of any size, the statements are the driver's own.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, Select, bindparam, column, literal_column, select, values

from vigil.core import cbor, cose, merkle
from vigil.errors import Reason, Refused, refused
from vigil.evidence.domain import Leaf, cover, decode_leaf, hash_of, recorded_leaf, siblings
from vigil.evidence.erased import load_erased
from vigil.evidence.store import RecordedPlace, StoredEntry
from vigil.evidence.tables import BODY, CERTIFICATE, ENTRY, GROUP_COMMIT, NODE, STATEMENT
from vigil.storage.rows import compiled, run

NODES_AT_ONCE: Final = (32, 128)
"""Nodes in one look-up: those of one record's path, or of ten records' paths."""
_sql = cache(compiled)

_ENTRY = (
    select(ENTRY.c.leaf, ENTRY.c.digest, ENTRY.c.organization, ENTRY.c.site, STATEMENT.c.data)
    .outerjoin(STATEMENT, STATEMENT.c.idx == ENTRY.c.idx)
    .where(ENTRY.c.idx == bindparam("idx"))
)
_LEAF = select(ENTRY.c.leaf).where(ENTRY.c.idx == bindparam("idx"))
_DIGESTS = (
    select(ENTRY.c.digest)
    .where(ENTRY.c.idx >= bindparam("first"), ENTRY.c.idx < bindparam("end"))
    .order_by(ENTRY.c.idx)
)
_BY_DIGEST = select(ENTRY.c.idx).where(ENTRY.c.digest == bindparam("digest"))
_COMMIT = (
    select(GROUP_COMMIT.c.first, GROUP_COMMIT.c["items"], GROUP_COMMIT.c.signer, GROUP_COMMIT.c.recorded)
    .where(GROUP_COMMIT.c.first <= bindparam("idx"))
    .order_by(GROUP_COMMIT.c.first.desc())
    .limit(literal_column("1"))
    .offset(literal_column("0"))
)
_CHAIN = select(CERTIFICATE.c.chain).where(CERTIFICATE.c.thumbprint == bindparam("thumbprint"))
_BODY = select(BODY.c.data).where(BODY.c.digest == bindparam("digest"))


@cache
def _nodes(count: int) -> Select[Any]:
    """So many nodes by (level, position), a look-up for each: compared as rows, SQLite would read the whole table."""
    places = [
        (bindparam(f"level{place}", type_=BigInteger), bindparam(f"position{place}", type_=BigInteger))
        for place in range(count)
    ]
    columns = column("level", BigInteger), column("position", BigInteger)
    key = values(*columns, name="node_key").data(places).cte("node_key")
    return select(NODE.c.level, NODE.c.position, NODE.c.hash).join(
        key, (NODE.c.level == key.c.level) & (NODE.c.position == key.c.position)
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One entry as it is stored, its leaf read."""

    index: int
    data: bytes
    leaf: Leaf
    organization: str
    site: str
    statement: bytes  # empty once erased

    def number(self, subject: str) -> int:
        """Its number among this subject's records; 0 when it is not about it."""
        return next((link.number for link in self.leaf.subjects if link.subject == subject), 0)


class Records:
    """Reads records and proofs in one transaction. Raises LookupError where the log has holes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: dict[int, Row] = {}
        self._commits: dict[int, tuple[int, int, bytes, list[bytes]]] = {}
        self._chains: dict[bytes, tuple[bytes, ...]] = {}

    def row(self, index: int) -> Row:
        """One entry."""
        found = self._rows.get(index)
        if found is None:
            stored = self._one(_ENTRY, (index,))
            if stored is None:
                raise LookupError(f"the log lacks the entry {index}")
            data, _, organization, site, statement = stored
            found = Row(index, data, decode_leaf(data), organization, site, statement or b"")
            self._rows[index] = found
        return found

    def numbers(self, subject: str) -> list[tuple[int, int]]:
        """The (number, index) of this subject's records among those that were read so far."""
        found = ((row.number(subject), row.index) for row in self._rows.values())
        return [one for one in found if one[0]]

    def index_of(self, digest: bytes) -> int | None:
        """Where a statement is recorded."""
        found = self._one(_BY_DIGEST, (digest,))
        return None if found is None else int(found[0])

    def bodies(self, leaf: Leaf) -> tuple[bytes, ...]:
        """The bodies beside a record that are still kept."""
        found = (self._one(_BODY, (digest,)) for digest in leaf.bodies)
        return tuple(row[0] for row in found if row is not None)

    def entry(self, index: int) -> StoredEntry:
        """A whole record, with the log's promise and every certificate."""
        row = self.row(index)
        bodies = self.bodies(row.leaf)
        whole = row.statement and len(bodies) == len(row.leaf.bodies)
        return StoredEntry(
            index=index,
            leaf=row.data,
            digest=row.leaf.digest,
            statement=row.statement,
            chain=self._chain(row.leaf.signer),
            bodies=bodies,
            place=self._place(index),
            organization=row.organization,
            site=row.site,
            erased=None if whole else load_erased(self._connection, index),
        )

    def path(self, index: int, size: int) -> tuple[bytes, ...]:
        """The inclusion path of an entry in the tree of the first ``size``."""
        return self.paths([index], size)[0]

    def paths(self, indexes: Sequence[int], size: int) -> list[tuple[bytes, ...]]:
        """The inclusion paths of entries in the tree of the first ``size``; every node of them is read at once."""
        paths = [siblings(index, size) for index in indexes]
        spans = dict.fromkeys(itertools.chain.from_iterable(paths))
        nodes = self._read_nodes(list(dict.fromkeys(key for span in spans for key in cover(*span))))
        hashes = {span: hash_of(*span, lambda level, position: nodes[level, position]) for span in spans}
        return [tuple(hashes[span] for span in path) for path in paths]

    def _read_nodes(self, keys: Sequence[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        found = {
            (0, position): merkle.leaf_hash(self.leaf(position)) for level, position in keys if not level
        }
        above = [key for key in keys if key[0]]
        most = NODES_AT_ONCE[-1]
        for start in range(0, len(above), most):
            page = above[start : start + most]
            count = next(size for size in NODES_AT_ONCE if size >= len(page))
            page += page[-1:] * (count - len(page))
            sql = _sql(_nodes(count), self._connection.dialect)
            rows = run(self._connection, sql, tuple(itertools.chain.from_iterable(page)))
            found |= {(level, position): hashed for level, position, hashed in rows}
        for level, position in keys:
            if (level, position) not in found:
                raise LookupError(f"the log's tree lacks the subtree {position} of level {level}")
        return found

    def leaf(self, index: int) -> bytes:
        """One leaf."""
        row = self._rows.get(index)
        if row is not None:
            return row.data
        stored = self._one(_LEAF, (index,))
        if stored is None:
            raise LookupError(f"the log lacks the entry {index}")
        data: bytes = stored[0]
        return data

    def _place(self, index: int) -> RecordedPlace:
        first, items, recorded, leaves = self._commit(index)
        if index >= first + items or len(leaves) != items:
            raise LookupError(f"no whole commit holds the entry {index}")
        return RecordedPlace(recorded, index, tuple(merkle.inclusion_path(leaves, index - first)))

    def _commit(self, index: int) -> tuple[int, int, bytes, list[bytes]]:
        for first, items, recorded, leaves in self._commits.values():
            if first <= index < first + items:
                return first, items, recorded, leaves
        row = self._one(_COMMIT, (index,))
        if row is None:
            raise LookupError(f"no commit holds the entry {index}")
        first, items, signer, statement = row
        digests = run(self._connection, _sql(_DIGESTS, self._connection.dialect), (first, first + items))
        leaves = [recorded_leaf(place, digest) for place, (digest,) in enumerate(digests, first)]
        found = first, items, cose.with_chain(statement, self._chain(signer)), leaves
        self._commits[first] = found
        return found

    def _chain(self, thumbprint: bytes) -> tuple[bytes, ...]:
        if thumbprint not in self._chains:
            row = self._one(_CHAIN, (thumbprint,))
            self._chains[thumbprint] = () if row is None else tuple(cbor.decode(row[0]))
        return self._chains[thumbprint]

    def _one(self, query: Select[Any], values: Sequence[object]) -> Any:
        return run(self._connection, _sql(query, self._connection.dialect), tuple(values)).fetchone()


def damaged(hole: LookupError) -> Refused:
    """NOT_RECORDED for what the log must hold and cannot show."""
    return refused(
        Reason.NOT_RECORDED,
        f"The log cannot show what it has recorded: {hole}.",
        lifted_by="the log's tables as they were written; the tiles show what they must hold",
        who="the log's operator",
    )
