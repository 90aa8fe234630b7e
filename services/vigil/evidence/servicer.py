"""gRPC handlers of the log: convert, call, convert."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.rpc import status_pb2  # type: ignore[import-untyped]

from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.core.certificates import Identity, Kind
from vigil.evidence.audit import Auditor, Progress
from vigil.evidence.domain import Leaf, decode_leaf, not_in_scope
from vigil.evidence.erasing_servicer import erased_message
from vigil.evidence.finding import Finder, Wanted
from vigil.evidence.index import Refers, epoch_key
from vigil.evidence.intake import Submission
from vigil.evidence.moment import Moments, Shown
from vigil.evidence.queries import QueryLog
from vigil.evidence.sequencer import Sequencer, standing_by
from vigil.evidence.service import Checkpointer, LogReader
from vigil.evidence.store import RecordedPlace, StoredEntry
from vigil.evidence.subject_proofs import SubjectProver
from vigil.evidence.witness_book import Held, WitnessBook
from vigil.rpc.caller import caller_of, scope_filtered
from vigil.rpc.stream_server import serve_exchange

Context = grpc.aio.ServicerContext[Any, Any]


class EvidenceLogServicer(evidence_pb2_grpc.EvidenceLogServiceServicer):
    """Takes statements from services and gateways."""

    def __init__(self, *, sequencer: Sequencer) -> None:
        self._sequencer = sequencer

    async def Append(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[evidence_pb2.AppendRequest], context: Context
    ) -> AsyncIterator[evidence_pb2.AppendResponse]:
        caller = caller_of(context)
        responses = serve_exchange(
            request_iterator,
            lambda item: self._sequencer.append(_submission(item, caller)),
            unpack=lambda request: request.items,
            pack=_response,
            failed=_failed,
            reply=_outcome,
        )
        if not self._sequencer.leading:
            raise standing_by()
        async for response in responses:
            yield response
            if not self._sequencer.leading:
                # The caller's next stream leads to the process that writes.
                raise standing_by()


class EvidenceReadServicer(evidence_pb2_grpc.EvidenceReadServiceServicer):
    """Answers people's questions."""

    def __init__(
        self,
        *,
        reader: LogReader,
        checkpointer: Checkpointer,
        book: WitnessBook,
        moments: Moments,
        prover: SubjectProver,
        queries: QueryLog,
        auditor: Auditor,
        finder: Finder,
    ) -> None:
        self._reader = reader
        self._finder = finder
        self._moments = moments
        self._prover = prover
        self._checkpointer = checkpointer
        self._book = book
        self._queries = queries
        self._auditor = auditor

    async def GetEntry(  # noqa: N802 - the contract's name
        self, request: evidence_pb2.GetEntryRequest, context: Context
    ) -> evidence_pb2.Entry:
        caller = caller_of(context)
        if request.WhichOneof("entry") == "digest":
            entry = await self._reader.entry_of(caller, request.digest)
        else:
            entry = await self._reader.entry_at(caller, request.index)
        scope_filtered(caller)
        about = next((link.subject for link in decode_leaf(entry.leaf).subjects), "")
        await self._queries.shown(caller, method="record", subject=about, entries=[entry])
        return _entry(entry)

    async def ListHistory(  # noqa: N802 - the contract's name
        self, request: evidence_pb2.ListHistoryRequest, context: Context
    ) -> evidence_pb2.ListHistoryResponse:
        caller = caller_of(context)
        page = await self._reader.history(
            caller,
            request.subject,
            kinds=tuple(request.kinds),
            page_size=request.page_size,
            page_token=request.page_token,
            since=request.from_ms,
            until=request.to_ms,
        )
        scope_filtered(caller)
        await self._queries.shown(caller, method="history", subject=request.subject, entries=page.entries)
        return evidence_pb2.ListHistoryResponse(
            entries=[_entry(entry) for entry in page.entries], next_page_token=page.next_token
        )

    async def GetInclusionProof(  # noqa: N802 - the contract's name
        self, request: evidence_pb2.GetInclusionProofRequest, context: Context
    ) -> evidence_pb2.InclusionProof:
        caller_of(context)
        proof = await self._reader.inclusion(request.index, request.size, receipt=request.receipt)
        return evidence_pb2.InclusionProof(
            index=proof.index,
            size=proof.checkpoint.size,
            path=proof.path,
            checkpoint=self._checkpoint(await self._book.held(proof.checkpoint)),
            receipt=proof.receipt,
        )

    async def GetConsistencyProof(  # noqa: N802 - the contract's name
        self, request: evidence_pb2.GetConsistencyProofRequest, context: Context
    ) -> evidence_pb2.ConsistencyProof:
        caller_of(context)
        proof = await self._reader.consistency(request.old_size, request.new_size, receipt=request.receipt)
        return evidence_pb2.ConsistencyProof(
            old_size=proof.old_size, new_size=proof.new_size, path=proof.path, receipt=proof.receipt
        )

    async def GetSubjectProof(  # noqa: N802 - the contract's name
        self, request: evidence_pb2.GetSubjectProofRequest, context: Context
    ) -> evidence_pb2.SubjectProof:
        caller = caller_of(context)
        proof = await self._prover.prove(caller, request.subject, size=request.size, first=request.first)
        scope_filtered(caller)
        await self._queries.shown(caller, method="completeness", subject=request.subject, entries=())
        return evidence_pb2.SubjectProof(
            items=[
                evidence_pb2.CensusItem(
                    place=one.place,
                    key=one.item.key,
                    number=one.item.number,
                    leaf=one.item.leaf,
                    path=one.path,
                )
                for one in proof.items
            ],
            first=proof.first,
            leaves=proof.leaves,
            census=_entry(proof.census),
            inclusion_path=proof.path,
            checkpoint=self._checkpoint(await self._book.held(proof.checkpoint)),
        )

    async def GetCheckpoint(  # noqa: N802 - the contract's name
        self, request: evidence_pb2.GetCheckpointRequest, context: Context
    ) -> evidence_pb2.Checkpoint:
        caller_of(context)
        if request.witnessed:
            return self._checkpoint(await self._book.newest())
        return self._checkpoint(await self._book.held(await self._reader.checkpoint()))

    async def FindRecords(  # noqa: N802 - the contract's name
        self, request: evidence_pb2.FindRecordsRequest, context: Context
    ) -> evidence_pb2.FindRecordsResponse:
        caller = caller_of(context)
        found = await self._finder.find(
            caller, _wanted(request), page_size=request.page_size, page_token=request.page_token
        )
        await self._queries.shown(caller, method="find", subject="", entries=found.entries)
        scope_filtered(caller)
        return evidence_pb2.FindRecordsResponse(
            entries=map(_entry, found.entries), next_page_token=found.next_token, covered=found.covered
        )

    async def GetStateAt(  # noqa: N802 - the contract's name
        self, request: evidence_pb2.GetStateAtRequest, context: Context
    ) -> evidence_pb2.StateAt:
        caller = caller_of(context)
        state = await self._moments.state_at(
            caller,
            request.device_id,
            time=request.time_ms,
            as_of=request.as_of_ms,
            covering=request.covering,
            under=(await self._book.newest()).checkpoint if request.witnessed else None,
        )
        scope_filtered(caller)
        seen = [one.entry for one in state.records if not one.withheld]
        subject = f"device/{request.device_id}"
        # The answer is put together while its record is on the way, and leaves when that is durable.
        recorded = asyncio.create_task(
            self._queries.shown(caller, method="moment", subject=subject, entries=seen)
        )
        await asyncio.sleep(0)
        answer = evidence_pb2.StateAt(
            device_id=request.device_id,
            time_ms=request.time_ms,
            considered=state.considered,
            checkpoint=self._checkpoint(await self._book.held(state.checkpoint)),
            records=map(_shown, state.records),
            chain=state.chain,
            first_number=state.first_number,
            newest_number=state.newest_number,
            truncated=state.truncated,
        )
        await recorded
        return answer

    async def GetLogStatus(  # noqa: N802 - the contract's name
        self, _request: evidence_pb2.GetLogStatusRequest, context: Context
    ) -> evidence_pb2.LogStatus:
        caller_of(context)
        guard = self._checkpointer.guard
        return evidence_pb2.LogStatus(
            size=await self._reader.size(),
            checkpoint_size=(await self._reader.checkpoint()).size,
            witnessed_size=self._book.size,
            audit=_audit(self._auditor.progress),
            witnesses=[
                evidence_pb2.WitnessStatus(name=name, size=size, trouble=trouble)
                for name, (size, trouble) in sorted(guard.witnesses.items())
            ],
            older=guard.older,
        )

    def _checkpoint(self, held: Held) -> evidence_pb2.Checkpoint:
        checkpoint = held.checkpoint
        return evidence_pb2.Checkpoint(
            size=checkpoint.size,
            root=checkpoint.root,
            time_ms=checkpoint.time,
            note=held.note,
            verifier_key=self._checkpointer.verifier_key,
            witnesses=held.witnesses,
            witnessed=held.witnessed,
        )


def _audit(progress: Progress) -> evidence_pb2.AuditStatus:
    return evidence_pb2.AuditStatus(
        checked=progress.checked,
        size=progress.size,
        passes=progress.passes,
        began_time_ms=progress.began,
        ended_time_ms=progress.ended,
        damaged=len(progress.findings),
        damages=[
            evidence_pb2.Damage(index=one.index, what=one.what, sentence=one.sentence)
            for one in progress.shown()
        ],
    )


def _submission(item: evidence_pb2.AppendItem, caller: Identity) -> Submission:
    # A gateway speaks for the sites in its certificate: it cannot write into another hospital's history.
    if caller.kind is Kind.GATEWAY and not caller.covers_site(item.organization_id, item.site_id):
        raise not_in_scope("site")
    return Submission(
        statement=item.statement,
        subjects=tuple(item.subjects),
        bodies=tuple(item.bodies),
        organization=item.organization_id,
        site=item.site_id,
        sender=caller.spiffe_id,
    )


Outcome = tuple[evidence_pb2.AppendOutcome, bytes]
"""An item's outcome, and the `recorded` of its commit, which a response holds once; empty for a failure."""


def _failed(call_id: int, status: status_pb2.Status) -> Outcome:
    return evidence_pb2.AppendOutcome(call_id=call_id, error=status), b""


def _outcome(call_id: int, place: RecordedPlace) -> Outcome:
    recorded = evidence_pb2.RecordedItem(index=place.index, path=place.path)
    return evidence_pb2.AppendOutcome(call_id=call_id, recorded=recorded), place.recorded


def _response(outcomes: list[Outcome]) -> evidence_pb2.AppendResponse:
    commits: dict[bytes, int] = {}
    for outcome, recorded in outcomes:
        if recorded:
            outcome.commit = commits.setdefault(recorded, len(commits))
    return evidence_pb2.AppendResponse(items=[outcome for outcome, _ in outcomes], commits=list(commits))


def _wanted(request: evidence_pb2.FindRecordsRequest) -> Wanted:
    name = request.WhichOneof("what")
    if name is None or name == "kind":
        return Wanted(kind=request.kind, since=request.from_ms, until=request.to_ms)
    value = epoch_key(request.epoch) if name == "epoch" else getattr(request, name)
    what = Refers(name.removesuffix("_id"))
    return Wanted(what=what, value=value, since=request.from_ms, until=request.to_ms)


def _shown(shown: Shown) -> evidence_pb2.StateRecord:
    roles = [evidence_pb2.RecordRole.ValueType(role) for role in shown.roles]
    return evidence_pb2.StateRecord(
        entry=_entry(shown.entry, shown.leaf), roles=roles, inclusion_path=shown.path, withheld=shown.withheld
    )


def _recorded(place: RecordedPlace) -> evidence_pb2.RecordedItem:
    return evidence_pb2.RecordedItem(recorded=place.recorded, index=place.index, path=place.path)


def _entry(entry: StoredEntry, leaf: Leaf | None = None) -> evidence_pb2.Entry:
    leaf = leaf or decode_leaf(entry.leaf)
    return evidence_pb2.Entry(
        index=entry.index,
        leaf=entry.leaf,
        kind=leaf.kind,
        log_time_ms=leaf.log_time,
        digest=entry.digest,
        statement=entry.statement,
        chain=entry.chain,
        subjects=[
            evidence_pb2.SubjectNumber(subject=link.subject, number=link.number, previous=link.previous)
            for link in leaf.subjects
        ],
        bodies=entry.bodies,
        recorded=_recorded(entry.place),
        erased=None if entry.erased is None else erased_message(entry.erased),
    )
