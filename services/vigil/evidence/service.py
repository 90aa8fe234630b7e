"""Checkpoints, proofs, records and histories: what the log answers to those who read it."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from vigil.core.certificates import Identity
from vigil.core.classes import MAX_CLOCK_SKEW_MS
from vigil.core.clock import Clock
from vigil.core.digest import DIGEST_BYTES
from vigil.core.keys import load_private_key, store_private_key
from vigil.core.merkle import verify_consistency
from vigil.core.receipts import CONSISTENCY, INCLUSION, Proof, sign_receipt
from vigil.core.witness_policy import WitnessPolicy
from vigil.errors import Reason, Refused, refused
from vigil.evidence import index_store, paging, store
from vigil.evidence.domain import (
    Checkpoint,
    LogState,
    check_advance,
    checkpoint_text,
    consistency_path,
    field_invalid,
    is_subject,
    not_in_scope,
    open_note,
    root_of,
    scope_of,
    sign_note,
    verifier_key,
)
from vigil.evidence.guard import HistoryGuard
from vigil.evidence.metrics import LogMetrics
from vigil.evidence.proved import Records, damaged
from vigil.evidence.sequencer import LogDamagedError, Sequencer, standing_by
from vigil.evidence.store import StoredEntry
from vigil.storage import Database

CHECKPOINT_SECONDS: Final = 1.0
"""How often at most a checkpoint is signed that nobody asked for."""
MAX_KINDS: Final = 32

T = TypeVar("T")

_log = logging.getLogger(__name__)


class LogKey:
    """The log's own Ed25519 key, which signs checkpoints, and receipts over the roots of checkpoints."""

    def __init__(self, key: Ed25519PrivateKey, *, origin: str) -> None:
        self._key = key
        self._public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.origin = origin
        self.verifier_key = verifier_key(origin, self._public)

    @classmethod
    def at(
        cls, path: Path, *, database: Database, origin: str, generate: Callable[[], Ed25519PrivateKey]
    ) -> "LogKey":
        """Load the key, or make it (mode 0600) at the first start.

        Raises LogDamagedError when the log has signed checkpoints and its key is gone, or is no Ed25519 key, for a
        new key would be another log; and when the key is not of this database, where it would sign a second history.
        """
        if not path.exists() and database.read_now(store.load_checkpoint) is None:
            cls._found(path, database=database, origin=origin, private=generate())
        if not path.exists():
            raise LogDamagedError(f"the key that signed this log's checkpoints is missing: {path}")
        private = load_private_key(path)
        if not isinstance(private, Ed25519PrivateKey):
            raise LogDamagedError(f"{path} is not an Ed25519 key")
        own = cls(private, origin=origin)
        own._claim(path, database)
        return own

    @classmethod
    def _found(cls, path: Path, *, database: Database, origin: str, private: Ed25519PrivateKey) -> None:
        """Make the key. The database first: one without the key begins again, a key without it must not exist."""
        own = cls(private, origin=origin)
        database.write_now(lambda connection: store.put_own_key(connection, own.verifier_key))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Another process on this database may have been first.
        with contextlib.suppress(FileExistsError):
            store_private_key(path, private)

    def _claim(self, path: Path, database: Database) -> None:
        """Hold the key against its database. One from before keys were kept there shows it by what it has signed."""
        newest, own = database.read_now(
            lambda connection: (
                store.load_checkpoint(connection),
                store.is_own_key(connection, self.verifier_key),
            )
        )
        if newest is not None:
            self.check(newest)
        elif not own:
            raise LogDamagedError(
                f"the database knows nothing of the log that {path} signs, and going on would sign a second history of "
                "it: restore the log's database, or move the key away to begin another log, of which readers and "
                "witnesses must be told"
            )
        if not own:
            database.write_now(lambda connection: store.put_own_key(connection, self.verifier_key))

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises LogDamagedError for a checkpoint that this key did not sign."""
        try:
            open_note(checkpoint.note, self.verifier_key)
        except Refused as error:
            raise LogDamagedError("the log's key is not the one that signed its checkpoints") from error

    def sign(self, size: int, root: bytes) -> str:
        """Sign a checkpoint; answers the note."""
        text = checkpoint_text(self.origin, size, root)
        return sign_note(text, name=self.origin, public_key=self._public, sign=self._key.sign)

    def receipt(self, proof: Proof, root: bytes) -> bytes:
        """Sign a COSE Receipt over a root of which there is a checkpoint. Raises FIELD_INVALID for an empty path."""
        return sign_receipt(proof, root, origin=self.origin, public_key=self._public, sign=self._key.sign)


class Checkpointer:
    """Signs checkpoints that only go forward. Raises LogDamagedError if another key signed the newest one.

    In a process that stands by it signs nothing and follows what the writer signs.
    """

    def __init__(
        self,
        *,
        database: Database,
        sequencer: Sequencer,
        key: LogKey,
        metrics: LogMetrics,
        policy: WitnessPolicy | None = None,
    ) -> None:
        self._database = database
        self._sequencer = sequencer
        self._key = key
        self._metrics = metrics
        self._signing = asyncio.Lock()
        self._newest = self._checked(database.read_now(store.load_checkpoint))
        begun = self._newest is not None and self._newest.size > 0
        self.guard = HistoryGuard(policy or WitnessPolicy(), begun=begun)

    @property
    def verifier_key(self) -> str:
        """The log's key as C2SP writes it."""
        return self._key.verifier_key

    def receipt(self, proof: Proof, checkpoint: Checkpoint) -> bytes:
        """A COSE Receipt under a signed checkpoint (RFC 9942). Raises FIELD_INVALID for a proof without a path."""
        return self._key.receipt(proof, checkpoint.root)

    async def newest(self, *, covering: int | None = None) -> Checkpoint:
        """Answer the newest checkpoint; one signed at once if none yet covers ``covering`` leaves.

        A process that stands by raises EVIDENCE_UNAVAILABLE when the writer has signed none that does.
        """
        newest = self._newest
        if newest is not None and (covering is None or newest.size >= covering):
            return newest
        if self._sequencer.leading:
            return await self.sign()
        newest = await self.follow()
        if newest is None or (covering is not None and newest.size < covering):
            raise standing_by()
        return newest

    async def follow(self) -> Checkpoint | None:
        """Look what the newest checkpoint is, whoever signed it. Raises LogDamagedError for another key's."""
        newest = self._checked(await self._database.read(store.load_checkpoint))
        if newest is not None and (self._newest is None or newest.size > self._newest.size):
            self._newest = newest
            self._metrics.checkpoint(newest.size)
        return self._newest

    async def sign(self) -> Checkpoint:
        """Sign the log as it is durable now, unless that is signed already; durable before it is answered.

        Raises EVIDENCE_UNAVAILABLE while the clock leaps (its time never goes back either), and where enough witnesses
        hold more of this log than is here, or another history of it.
        """
        async with self._signing:
            state = await self._sequencer.state()
            newest = self._newest
            if newest is not None and newest.size == state.size:
                return newest
            self.guard.check()
            time = self._sequencer.time()
            checkpoint = await self._database.write(lambda connection: self._sign(connection, state, time))
            self._newest = checkpoint
            self._metrics.checkpoint(checkpoint.size)
            return checkpoint

    def _sign(self, connection: Connection, state: LogState, time: int) -> Checkpoint:
        """Sign in the transaction that keeps it: against what is stored, and by nobody but the writer.

        Raises STATE_CONFLICT for what would contradict the newest one.
        """
        newest = store.load_checkpoint(connection)
        root = state.frontier.root()
        time = max(time, state.time, 0 if newest is None else newest.time)
        check_advance(newest, size=state.size, root=root, time=time)
        if newest is not None and newest.size == state.size:
            # Kept by a write of which nobody heard, or by another process: one size has one note.
            return newest
        note = self._key.sign(state.size, root)
        checkpoint = Checkpoint(self._key.origin, state.size, root, time, note)
        store.put_checkpoint(connection, checkpoint)
        return checkpoint

    def _checked(self, newest: Checkpoint | None) -> Checkpoint | None:
        if newest is not None:
            self._key.check(newest)
        return newest

    async def run(self) -> None:
        """Sign once a second while there is news, until cancelled."""
        while True:
            try:
                await self.sign()
            except Refused as error:
                _log.warning("no checkpoint: %s", error)
            await asyncio.sleep(CHECKPOINT_SECONDS)


@dataclass(frozen=True, slots=True)
class Inclusion:
    index: int
    path: tuple[bytes, ...]
    checkpoint: Checkpoint
    receipt: bytes = b""


@dataclass(frozen=True, slots=True)
class Consistency:
    old_size: int
    new_size: int
    path: tuple[bytes, ...]
    receipt: bytes = b""


@dataclass(frozen=True, slots=True)
class Page:
    entries: tuple[StoredEntry, ...]
    next_token: str


class LogReader:
    """Answers questions about the log. Records are shown to those whose scope covers their owner."""

    def __init__(
        self, *, database: Database, sequencer: Sequencer, checkpointer: Checkpointer, clock: Clock
    ) -> None:
        self._database = database
        self._sequencer = sequencer
        self._checkpointer = checkpointer
        self._clock = clock

    async def _read(self, run: Callable[[Connection], T]) -> T:
        """Read in a transaction. Raises NOT_RECORDED where the log has a hole."""
        try:
            return await self._database.read(run)
        except LookupError as hole:
            _log.error("THE LOG IS DAMAGED: %s", hole, exc_info=hole)
            raise damaged(hole) from hole

    async def entry_at(self, reader: Identity, index: int) -> StoredEntry:
        """One record. Raises NOT_IN_SCOPE, the same for another's record and for none."""
        return await self._entry(reader, lambda _: index)

    async def entry_of(self, reader: Identity, digest: bytes) -> StoredEntry:
        """The record of one statement. Raises as ``entry_at``."""
        if len(digest) != DIGEST_BYTES:
            raise field_invalid("digest", f"A statement's digest has {DIGEST_BYTES} bytes.")
        return await self._entry(reader, lambda connection: store.index_of(connection, digest))

    async def _entry(self, reader: Identity, find: Callable[[Connection], int | None]) -> StoredEntry:
        scope = scope_of(reader)

        def read(connection: Connection) -> StoredEntry | None:
            index = find(connection)
            if index is None or index >= 2**63:
                return None
            return store.load_entry(connection, index, store.CommitReader(connection))

        entry = await self._read(read)
        if entry is None or not scope.covers(entry.organization, entry.site):
            raise not_in_scope("record")
        return entry

    async def history(
        self,
        reader: Identity,
        subject: str,
        *,
        kinds: Sequence[str],
        page_size: int,
        page_token: str,
        since: int = 0,
        until: int = 0,
    ) -> Page:
        """A page of a subject's records that the reader may see, oldest first. Raises NOT_IN_SCOPE, FIELD_INVALID.

        ``since`` and ``until``: only what the log took then (ms), both included; 0 is no bound.
        """
        if not is_subject(subject):
            raise field_invalid("subject", "A subject is written as its kind, a slash and its id.")
        if len(kinds) > MAX_KINDS:
            raise field_invalid("kinds", f"At most {MAX_KINDS} kinds can be asked for.")
        check_window(since, until, now=self._clock.now())
        # Not the window: whoever asks for the last 90 minutes asks for others with every page.
        asked = (subject, *sorted(kinds))
        # What is recorded while somebody turns pages, these very questions among it, is none of the answer.
        (after,), end = paging.place_of(page_token, *asked, parts=1) or ((0,), await self.size())
        limit = paging.rows(page_size)
        scope = scope_of(reader)

        def read(connection: Connection) -> Page:
            if not store.has_visible_record(connection, subject, scope):
                raise not_in_scope(subject.partition("/")[0])
            first, below = index_store.window(connection, subject, since=since, until=until)
            rows = store.history(
                connection,
                subject,
                scope=scope,
                kinds=kinds,
                after=max(after, first),
                below=min(below, end),
                limit=limit + 1,
            )
            entries, more = _page(connection, rows, limit)
            last = rows[len(entries) - 1][0] if more else None
            return Page(entries, "" if last is None else paging.token_after((last,), end, *asked))

        return await self._read(read)

    async def size(self) -> int:
        """How many records there are."""
        return (await self._sequencer.state()).size

    async def checkpoint(self) -> Checkpoint:
        """The newest checkpoint, at most about a second behind the log. A proof of something newer brings its own."""
        return await self._checkpointer.newest()

    async def inclusion(self, index: int, size: int, *, receipt: bool = False) -> Inclusion:
        """Prove a leaf under the checkpoint of ``size`` leaves, 0 for the newest; with a COSE Receipt if asked for.

        Raises RESOURCE_NOT_FOUND, FIELD_INVALID.
        """
        covering = max(index + 1, size)
        if covering > (await self._sequencer.state()).size:
            raise _absent("record", index if size <= index else size - 1)
        checkpoint: Checkpoint | None = await self._checkpointer.newest(covering=covering)
        if size and checkpoint is not None and checkpoint.size != size:
            checkpoint = await self._read(lambda connection: store.load_checkpoint(connection, size))
        if checkpoint is None:
            raise _absent("checkpoint of that size", size)
        if index >= checkpoint.size:
            raise field_invalid("size", "That checkpoint does not cover that record.")
        signed = checkpoint
        path = await self._read(lambda connection: Records(connection).path(index, signed.size))
        made = b""
        if receipt:
            made = self._checkpointer.receipt(Proof(INCLUSION, signed.size, index, path), signed)
        return Inclusion(index, path, signed, made)

    async def consistency(self, old_size: int, new_size: int, *, receipt: bool = False) -> Consistency:
        """Prove the log of ``old_size`` leaves a prefix of that of ``new_size``; 0 is the newest checkpoint's.

        A COSE Receipt is made for a new size that has a checkpoint. Raises RESOURCE_NOT_FOUND, FIELD_INVALID.
        """
        if new_size:
            if new_size > (await self._sequencer.state()).size:
                raise _absent("record", new_size - 1)
        else:
            new_size = (await self._checkpointer.newest(covering=old_size)).size
        if old_size > new_size:
            raise field_invalid("old_size", "The old log cannot be larger than the new one.")
        path = await self._read(
            lambda connection: consistency_path(old_size, new_size, store.node_reader(connection))
        )
        made = b""
        if receipt:
            signed = await self._read(lambda connection: store.load_checkpoint(connection, new_size))
            if signed is None:
                raise _absent("checkpoint of that size", new_size)
            made = self._checkpointer.receipt(Proof(CONSISTENCY, old_size, new_size, path), signed)
        return Consistency(old_size, new_size, path, made)

    async def growth(self, old_size: int, size: int) -> tuple[bytes, ...]:
        """The consistency proof up to the checkpoint of ``size``, held against its root: who is given it and still
        disagrees holds another history. Raises LookupError where the log is damaged.
        """

        def read(connection: Connection) -> tuple[bytes, ...]:
            nodes = store.node_reader(connection)
            path = consistency_path(old_size, size, nodes)
            signed = store.load_checkpoint(connection, size)
            if signed is None:
                raise LookupError(f"the log lacks the checkpoint of {size}")
            if old_size < size and not verify_consistency(
                old_size=old_size,
                new_size=size,
                old_root=root_of(old_size, nodes),
                new_root=signed.root,
                path=path,
            ):
                raise LookupError("the stored tree does not lead to what was signed")
            return path

        return await self._database.read(read)


def _page(
    connection: Connection, rows: Sequence[tuple[int, int]], limit: int
) -> tuple[tuple[StoredEntry, ...], bool]:
    """The entries of (number, index) that fit into a page, and whether there are more."""
    commits = store.CommitReader(connection)
    entries: list[StoredEntry] = []
    size = 0
    for _, index in rows[:limit]:
        entry = store.load_entry(connection, index, commits)
        if entry is None:
            raise LookupError(f"the log lacks the entry {index}")
        entries.append(entry)
        size += paging.size_of(entry)
        if size > paging.PAGE_BYTES:
            break
    return tuple(entries), len(entries) < len(rows)


def check_window(since: int, until: int, *, now: int) -> None:
    """Whether a window of time can be asked about; 0 is no bound. Raises FIELD_INVALID."""
    if since < 0 or until < 0:
        raise field_invalid("from_ms", "A window lies after 1970.")
    if since > now + MAX_CLOCK_SKEW_MS:
        raise field_invalid("from_ms", "That window lies in the future: nothing can be on record in it.")
    if until and since > until:
        raise field_invalid("to_ms", "The window ends before it begins.")


def _absent(what: str, number: int) -> Refused:
    return refused(Reason.RESOURCE_NOT_FOUND, f"The log has no {what}: {number}.", number=number)
