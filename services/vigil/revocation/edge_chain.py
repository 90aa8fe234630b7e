"""The chain as an edge verified it: nothing counts before a signed head confirms it."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog
from sqlalchemy import Connection

from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.certificates import ChainVerifier, Identity
from vigil.core.clock import Clock
from vigil.core.revocations import EMPTY_CHAIN, Entry, ReadEntry, RevocationState
from vigil.core.statements.bodies import Head
from vigil.core.statements.envelope import Statement
from vigil.errors import Reason, Refused
from vigil.revocation import edge_store
from vigil.revocation.chain import BATCH, Tail, Values, bounded, entry_of
from vigil.storage import Database

RevocationEntry = revocation_pb2.RevocationEntry


class EdgeChain:
    """State, newest entries and hashes in memory, all entries in the edge's own database."""

    def __init__(self, *, database: Database, verifier: Callable[[], ChainVerifier], clock: Clock) -> None:
        self._database = database
        self._verifier = verifier
        self._clock = clock
        self._tail = Tail()
        self._hashes: list[bytes] = [EMPTY_CHAIN]
        self._unsaved: Values = []
        self._replaced = False
        self._persisting = asyncio.Lock()
        self._log = structlog.get_logger("vigil.edge.chain")
        self.state = RevocationState()
        self.head: Statement[Head] | None = None
        """The newest verified head since the start."""

    def load(self) -> None:
        """Take what this edge verified and persisted before. Raises STATEMENT_MALFORMED when it was altered."""
        while True:
            values = self._database.read_now(
                lambda conn: edge_store.after(conn, self.state.epoch, limit=BATCH)
            )
            if not values:
                break
            for epoch, value in values:
                entry = entry_of(value)
                self.state.append(entry)
                self._keep(epoch, entry.chain, value)

    def advance(self, entries: Iterable[RevocationEntry], head: Statement[Head]) -> None:
        """Take what a head confirms. Raises what `RevocationState.advance` raises; then nothing has changed.

        Entries behind a gap are left aside: what is missing before them is SNAPSHOT_REQUIRED.
        """
        given = {message.epoch: message for message in entries}
        messages: dict[int, RevocationEntry] = {}
        epoch = self.state.epoch
        while (epoch := epoch + 1) in given:
            messages[epoch] = given[epoch]
        taken = self.state.advance(
            _entries(messages.values()), head, verifier=self._verifier(), at=self._clock.now()
        )
        self._taken(taken, messages, head)

    def renew(self, entries: Iterable[RevocationEntry], head: Statement[Head]) -> None:
        """Take the chain of a later era whole, in the place of this one. Raises what `RevocationState.renewed` raises.

        The offline root and two people opened that era, in that chain: what this edge held before counts no more.
        """
        messages = {message.epoch: message for message in entries}
        state, taken = self.state.renewed(
            _entries(messages.values()), head, verifier=self._verifier(), at=self._clock.now()
        )
        self._log.warning("another_chain", era=state.era, epoch=state.epoch, former=self.state.epoch)
        self.state = state
        self._tail, self._hashes, self._unsaved, self._replaced = Tail(), [EMPTY_CHAIN], [], True
        self._taken(taken, messages, head)

    def _taken(
        self, taken: Iterable[ReadEntry], messages: Mapping[int, RevocationEntry], head: Statement[Head]
    ) -> None:
        self.head = head
        for one in taken:
            epoch = one.entry.epoch
            value = messages[epoch].SerializeToString()
            self._keep(epoch, one.entry.chain, value)
            self._unsaved.append((epoch, value))

    def _keep(self, epoch: int, chain: bytes, value: bytes) -> None:
        self._tail.append(epoch, value)
        self._hashes.append(chain)

    async def persist(self) -> None:
        """Make what was taken durable; what cannot be written now is tried again, or fetched after a restart."""
        async with self._persisting:
            unsaved, era, replaced = self._unsaved, self.state.era, self._replaced
            count = len(unsaved)
            if not count and not replaced:
                return
            values = unsaved[:count]

            def write(connection: Connection) -> None:
                if replaced:
                    edge_store.forget(connection)
                edge_store.put(connection, values, era=era)

            try:
                await self._database.write(write)
            except Refused as refusal:
                self._log.error("entries_not_persisted", reason=str(refusal), entries=count)
                return
            if self._unsaved is not unsaved:
                # Another chain came meanwhile, and is written next.
                return
            self._replaced = False
            del unsaved[:count]

    def hash_at(self, epoch: int) -> bytes | None:
        """The chain hash at an epoch; None for one that is not known here."""
        return self._hashes[epoch] if 0 <= epoch < len(self._hashes) else None

    def refusal(self, caller: Identity) -> Reason | None:
        """Why this caller may not act; None when nothing is known against it."""
        return self.state.identity_refusal(caller, at=self._clock.now())

    async def after(self, epoch: int) -> Sequence[tuple[int, bytes]]:
        """The entries after an epoch, as many as one message holds."""
        values = self._tail.after(epoch, limit=BATCH)
        if values is None:
            values = await self._database.read(lambda conn: edge_store.after(conn, epoch, limit=BATCH))
        return bounded(values)


def _entries(messages: Iterable[RevocationEntry]) -> list[Entry]:
    return [Entry(message.epoch, tuple(message.statements), message.chain) for message in messages]
