"""What a census proves of one subject: that its records are whole, or that it has none."""

import logging
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from vigil.core.census import Placed, subject_key
from vigil.core.certificates import Identity
from vigil.errors import Reason, Refused, refused
from vigil.evidence import census_store, store
from vigil.evidence.census_store import Tree
from vigil.evidence.domain import (
    Checkpoint,
    Scope,
    field_invalid,
    inclusion_path,
    is_subject,
    not_in_scope,
    scope_of,
)
from vigil.evidence.sequencer import Sequencer
from vigil.evidence.service import Checkpointer
from vigil.evidence.store import StoredEntry
from vigil.storage import Database

LEAVES: Final = 1_000
"""Leaves in one answer; a subject that has more is asked for again from where it ended."""
LEAF_BYTES: Final = 2 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SubjectProof:
    """A subject in a census, and that census under a checkpoint.

    ``leaves`` are those of the numbers from ``first`` on, as many as fit; empty where the census knows no such subject.
    """

    items: tuple[Placed, ...]
    first: int
    leaves: tuple[bytes, ...]
    census: StoredEntry
    path: tuple[bytes, ...]
    checkpoint: Checkpoint


class SubjectProver:
    """Makes proofs of whole subjects.

    Whoever may read one record of a subject gets the leaves of all of them: a gap would be no proof, and leaves are
    what the tiles show. That a subject has no record is told to auditors, admins and the recall team; to others it is
    the same as somebody else's.
    """

    def __init__(self, *, database: Database, sequencer: Sequencer, checkpointer: Checkpointer) -> None:
        self._database = database
        self._sequencer = sequencer
        self._checkpointer = checkpointer

    async def prove(self, reader: Identity, subject: str, *, size: int, first: int) -> SubjectProof:
        """Prove by the newest census under the checkpoint of ``size`` entries, 0 for the newest.

        ``first``: the number to begin with, 0 for the first one. Raises NOT_IN_SCOPE, FIELD_INVALID,
        RESOURCE_NOT_FOUND while there is no such checkpoint or no census under it; NOT_RECORDED where the log lacks
        what the census counts.
        """
        if not is_subject(subject):
            raise field_invalid("subject", "A subject is written as its kind, a slash and its id.")
        scope = scope_of(reader)
        await self._database.read(lambda connection: _check_scope(connection, subject, scope))
        checkpoint = await self._checkpoint(size)

        def read(connection: Connection) -> SubjectProof:
            tree = census_store.newest_recorded(connection, below=checkpoint.size)
            if tree is None:
                raise _no_census(checkpoint.size)
            return _proof(connection, subject, tree, checkpoint, first=first)

        try:
            return await self._database.read(read)
        except LookupError as error:
            _log.error("%s cannot be proved: %s", subject, error)
            raise _damaged(subject) from error

    async def _checkpoint(self, size: int) -> Checkpoint:
        if not size:
            newest = await self._database.read(census_store.newest_recorded)
            covering = None if newest is None or newest.index is None else newest.index + 1
            return await self._checkpointer.newest(covering=covering)
        found: Checkpoint | None = None
        if size <= (await self._sequencer.state()).size:
            found = await self._database.read(lambda connection: store.load_checkpoint(connection, size))
        if found is None:
            raise refused(
                Reason.RESOURCE_NOT_FOUND, f"The log has no checkpoint of that size: {size}.", number=size
            )
        return found


def _check_scope(connection: Connection, subject: str, scope: Scope) -> None:
    if store.has_visible_record(connection, subject, scope):
        return
    if not scope.siteless or store.load_heads(connection, [subject]):
        raise not_in_scope(subject.partition("/")[0])


def _proof(
    connection: Connection, subject: str, tree: Tree, checkpoint: Checkpoint, *, first: int
) -> SubjectProof:
    key = subject_key(subject)
    index = tree.index if tree.index is not None else -1
    items = census_store.place(connection, tree, key)
    census = store.load_entry(connection, index, store.CommitReader(connection))
    if census is None:
        raise LookupError(f"the log lacks the entry {index}")
    path = inclusion_path(index, checkpoint.size, store.node_reader(connection))
    if len(items) != 1 or items[0].item.key != key:
        if first > 1:
            raise field_invalid("first", "The census counts no record of it.")
        return SubjectProof(items, 0, (), census, path, checkpoint)
    newest = items[0].item.number
    start = max(first, 1)
    if start > newest:
        raise field_invalid("first", f"The census counts {newest} records of it.")
    leaves = store.load_subject_leaves(connection, subject, start, min(LEAVES, newest + 1 - start))
    return SubjectProof(items, start, _fitting(leaves), census, path, checkpoint)


def _fitting(leaves: list[bytes]) -> tuple[bytes, ...]:
    taken: list[bytes] = []
    size = 0
    for leaf in leaves:
        size += len(leaf)
        if taken and size > LEAF_BYTES:
            break
        taken.append(leaf)
    return tuple(taken)


def _damaged(subject: str) -> Refused:
    return refused(
        Reason.NOT_RECORDED,
        f"The log cannot show what it counts of {subject}: something is missing from its tables.",
        lifted_by="the tables as they were written; the tiles show what they must hold",
        who="the log's operator",
        subject=subject,
    )


def _no_census(size: int) -> Refused:
    return refused(
        Reason.RESOURCE_NOT_FOUND,
        f"There is no census yet that the checkpoint of {size} entries covers and whose tree is kept.",
        lifted_by="asking again after the next census, or under a newer checkpoint",
        who="caller",
        number=size,
    )
