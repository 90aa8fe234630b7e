"""A restore never un-revokes: before anything is served, the log and the edges are asked for what the database lacks.

The log keeps the steps for good, but the newest may not have reached it when the database was lost. Each edge has what
it enforced. Neither is believed for its word: a step counts with the chain up to it and the people's signatures.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from sqlalchemy import Connection

from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core import cose
from vigil.core.certificates import ChainVerifier, Identity, Kind
from vigil.core.clock import Clock
from vigil.core.digest import sha256
from vigil.core.revocations import (
    REVOKER_ROLES,
    Entry,
    ReadEntry,
    chain_hash,
    check_reinstatement,
    check_rooted,
)
from vigil.core.salted import unsalted
from vigil.core.statements.envelope import Statement, StatementKind, check, read_any
from vigil.errors import Reason, Refused
from vigil.revocation import store
from vigil.revocation.domain import LOG_SUBJECT, Step, read_record_body
from vigil.revocation.rooted import ROOTED, draft_of_rooted
from vigil.revocation.service import ChainWriter, draft_of_record
from vigil.rpc.status import translated
from vigil.storage import Database

KINDS: Final = (StatementKind.REVOCATION, StatementKind.REINSTATEMENT, *ROOTED)
PAGE: Final = 500
TIMEOUT_S: Final = 10.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 3.0
EDGE_WAIT_S: Final = 10.0
"""How long a start waits for an edge that does not answer. One that comes later and knows more refuses our heads: the
gateways behind it enforce what they have, and their leases run out."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One verified statement of the chain as the log kept it; ``step`` where it says that it stood."""

    statement: Statement[Any]
    signer: Identity
    step: Step | None
    number: int


class Restorer:
    """Compares the log's history of the chain with the database's, and enters again what is missing."""

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel,
        database: Database,
        writer: ChainWriter,
        verifier: Callable[[], ChainVerifier],
        clock: Clock,
        edges: Sequence[grpc.aio.Channel] = (),
    ) -> None:
        self._stub: Any = evidence_pb2_grpc.EvidenceReadServiceStub(channel)
        self._edges = [revocation_pb2_grpc.EdgeServiceStub(edge) for edge in edges]
        self._database = database
        self._writer = writer
        self._verifier = verifier
        self._clock = clock
        self._log = structlog.get_logger("vigil.revocation.restore")

    async def run(self) -> int:
        """Wait for the log's answer, however long it takes; answers how many steps were entered again.

        Nothing is served before: a database of last week would free what was revoked since.
        """
        pause = FIRST_PAUSE_S
        while True:
            try:
                recorded = await self._history()
                break
            except Refused as refusal:
                self._log.warning("waiting_for_evidence", reason=str(refusal))
                await asyncio.sleep(pause)
                pause = min(LAST_PAUSE_S, pause * 2)
        entered = await self._enter(recorded)
        for edge in self._edges:
            entered += await self._restore_from(edge)
        return entered

    async def _restore_from(self, edge: Any) -> int:
        """What one edge has beyond the database, as far as it can be verified."""
        entered = 0
        until = self._clock.monotonic() + EDGE_WAIT_S
        while True:
            before = await self._database.read(store.position)
            request = revocation_pb2.GetEntriesRequest(after_epoch=before.epoch)
            try:
                batch = await translated(edge.GetEntries(request, timeout=EDGE_WAIT_S))
            except Refused as refusal:
                if self._clock.monotonic() > until:
                    self._log.error("edge_not_asked", reason=str(refusal))
                    return entered
                await asyncio.sleep(FIRST_PAUSE_S)
                continue
            claimed = list(self._claimed(batch.entries, epoch=before.epoch, chain=before.chain))
            if not claimed:
                return entered
            taken = await self._enter(claimed, on_record=False)
            if not taken:
                return entered
            entered += taken

    def _claimed(
        self, entries: Iterable[revocation_pb2.RevocationEntry], *, epoch: int, chain: bytes
    ) -> Iterator[Recorded]:
        """An edge's entries, up to the first that does not follow or that nobody signed who may."""
        now = self._clock.now()
        for entry in entries:
            epoch += 1
            try:
                statements = [read_any(data) for data in entry.statements]
                signers = [self._signer(one) if one.kind in KINDS else None for one in statements]
            except Refused as refusal:
                self._log.error("edge_not_believed", epoch=epoch, reason=str(refusal))
                return
            chain = chain_hash(chain, epoch, [one.digest for one in statements])
            if not statements or entry.epoch != epoch or entry.chain != chain or None in signers:
                self._log.error("edge_not_believed", epoch=epoch, claimed=entry.epoch)
                return
            step = Step(epoch, chain, min(entry.create_time_ms, now))
            for statement, signer in zip(statements, signers, strict=True):
                if signer is not None:
                    yield Recorded(statement, signer, step, epoch)

    async def _history(self) -> list[Recorded]:
        found: list[Recorded] = []
        token = ""
        while True:
            request = evidence_pb2.ListHistoryRequest(
                subject=LOG_SUBJECT, kinds=[str(kind) for kind in KINDS], page_size=PAGE, page_token=token
            )
            try:
                page = await translated(self._stub.ListHistory(request, timeout=TIMEOUT_S))
            except Refused as refusal:
                if refusal.reason is Reason.NOT_IN_SCOPE:
                    # The log has nothing under this subject: nothing was ever revoked.
                    return found
                raise
            for entry in page.entries:
                one = self._verified(entry, number=len(found))
                if one is not None:
                    found.append(one)
            token = page.next_page_token
            if not token:
                return found

    def _verified(self, entry: evidence_pb2.Entry, *, number: int) -> Recorded | None:
        """A statement with its signer; None, loudly, for what no person of the recall team signed."""
        try:
            data = cose.with_chain(entry.statement, tuple(entry.chain))
            statement = read_any(data)
            if statement.kind not in KINDS:
                return None
            signer = self._signer(statement)
            if signer is None:
                return None
            bodies = [unsalted(body) for body in entry.bodies]
        except Refused as refusal:
            self._log.error("record_not_usable", index=entry.index, reason=str(refusal))
            return None
        steps = (step for body in bodies if (step := read_record_body(body)) is not None)
        return Recorded(statement, signer, next(steps, None), number)

    def _signer(self, statement: Statement[Any]) -> Identity | None:
        """Who signed it, verified; None for a person who may not."""
        verifier = self._verifier()
        if statement.kind in ROOTED and statement.signer == verifier.root_identity.thumbprint:
            check(statement, verifier.root_identity)
            return verifier.root_identity
        at = min(statement.issued_at * 1000, self._clock.now())
        signer = verifier.verify(statement.chain, at=at, kinds=frozenset({Kind.PERSON}), grace=True)
        check(statement, signer)
        return signer if signer.has_role(*REVOKER_ROLES) else None

    async def _enter(self, recorded: Iterable[Recorded], *, on_record: bool = True) -> int:
        groups = _grouped(recorded)

        def run(connection: Connection) -> int:
            entered = 0
            for group in groups:
                if any(store.epoch_of(connection, one.statement.digest) is not None for one in group):
                    continue
                if not self._sound(group):
                    continue
                step, before = group[0].step, store.position(connection)
                digests = [one.statement.digest for one in group]
                if step is None or chain_hash(before.chain, before.epoch + 1, digests) != step.chain:
                    # Readers that hold the former chain need an era statement; what is revoked stays revoked.
                    self._log.error("chain_differs", epoch=before.epoch + 1, recorded=step and step.epoch)
                statements = tuple(one.statement for one in group)
                rooted = statements[0].kind in ROOTED
                draft = (
                    draft_of_rooted(statements) if rooted else draft_of_record(statements, group[0].signer)
                )
                time = step.time if step is not None else group[0].statement.issued_at * 1000
                if on_record:
                    self._writer.append(connection, draft, recorded_at=time)
                else:
                    self._writer.append(connection, draft, taken_at=time)
                entered += 1
            return entered

        entered = await self._database.write(run, vital=True)
        if entered:
            self._log.warning("revocations_restored", entries=entered)
        return entered

    def _sound(self, group: tuple[Recorded, ...]) -> bool:
        """A reinstatement frees only with both people's signatures, from the log as from anywhere."""
        statements = tuple(one.statement for one in group)
        if statements[0].kind is StatementKind.REVOCATION:
            return len(group) == 1
        entry = Entry(0, tuple(one.data for one in statements), b"")
        try:
            if statements[0].kind in ROOTED:
                check_rooted(statements, self._verifier(), at=self._clock.now())
                return True
            check_reinstatement(ReadEntry(entry, None, statements), self._verifier(), at=self._clock.now())
        except Refused as refusal:
            self._log.error("step_not_restored", reason=str(refusal))
            return False
        return True


def _grouped(recorded: Iterable[Recorded]) -> list[tuple[Recorded, ...]]:
    """The steps in the order of their epochs: a revocation alone, the two statements of a reinstatement together."""
    groups: dict[bytes, list[Recorded]] = {}
    for one in recorded:
        alone = one.statement.kind is StatementKind.REVOCATION
        key = one.statement.digest if alone else sha256(one.statement.sign1.payload)
        if one.step is not None and not alone:
            key = one.step.chain
        groups.setdefault(key, []).append(one)
    ordered = sorted(groups.values(), key=lambda group: _place(group[0]))
    return [tuple(group) for group in ordered]


def _place(one: Recorded) -> tuple[int, int]:
    return (one.step.epoch if one.step is not None else 2**63, one.number)
