"""Decisions: facts from memory, the checks (`domain`), Rego, one signature, one batch on record.

An allow leaves only with its record; a refusal leaves in any case. The decision for one command digest is taken once:
concurrent and later repeats share it, and a record that could not be confirmed is asked for again with the same bytes.
Decisions are kept in memory for as long as the command's nonce can live. After a restart a repeated command gets a new
decision, for a nonce that is dead by then.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from vigil.api.evidence.v1.evidence_pb2 import RecordedItem
from vigil.core.certificates import ChainVerifier, Identity
from vigil.core.classes import DECISION_DEADLINE_S
from vigil.core.clock import Clock
from vigil.core.digest import sha256
from vigil.core.statements.bodies import Command, Decision, Obligation, Profile, Result
from vigil.core.statements.envelope import Scribe, Statement
from vigil.errors import Reason, Refused, refused
from vigil.feed.evidence import EvidenceAppender, Record
from vigil.policy.case import Device, Installable, Item, Judgement, Verified, View
from vigil.policy.domain import decide, judge, refusal_of
from vigil.policy.engine.port import PolicyEngine
from vigil.policy.metrics import PolicyMetrics
from vigil.policy.question import input_document
from vigil.policy.revoked import Revocations
from vigil.policy.sentences import Finding, found
from vigil.rpc import deadline
from vigil.rpc.access import not_in_scope
from vigil.rpc.room import ElasticRoom

KEPT: Final = 20_000
"""Decisions kept: at 3,000 a second, longer than a nonce lives (5 s); about 5 KiB each."""
KEPT_S: Final = 60.0
"""And no longer than this: a permit for now is not applied later either."""
AT_ONCE: Final = 256
"""Decisions and previews at once, to begin with: how many can be decided and recorded in time shows soon enough."""
LEAST_AT_ONCE: Final = 16
MOST_AT_ONCE: Final = 1_024
IN_TIME_S: Final = 0.8
"""What a decision may take here of the 2 s that it may take in all."""
SHARE_OF_GATEWAY: Final = 0.5
"""Of all places, for one gateway: a flood at one site leaves room for the others."""
REFUSAL_RECORD_S: Final = 0.5
"""How long a refusal waits for its record before it leaves without."""
UNKNOWN_DEVICE_AGE_S: Final = 60.0
"""With a registry older than the mildest class allows, nobody knows whether a device exists."""


class Clocked(Protocol):
    """Something that knows how old it is."""

    def age(self) -> float:
        """Seconds; infinite when it was never whole."""
        ...


class Facts(Protocol):
    """What is known in memory; nothing here waits."""

    @property
    def verifier(self) -> ChainVerifier: ...
    @property
    def revocations(self) -> Revocations: ...
    def device(self, device_id: str) -> Device | None: ...
    def profile(self, model: str) -> Verified[Profile] | None: ...
    def result(self, device_id: str) -> Verified[Result] | None: ...
    def installable(self, digest: bytes) -> Installable | None: ...
    def ages(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """A signed decision as it leaves. ``refusal`` is None for an allow, ``recorded`` None where there is no record."""

    decision: bytes
    recorded: RecordedItem | None
    result: bytes
    refusal: Refused | None
    statements_recorded: tuple[RecordedItem, ...]


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be decided now."""

    refusal: Refused | None
    obligations: tuple[Obligation, ...]
    revision: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """One command as it was asked about."""

    gateway_id: str
    device: Device
    item: Item
    command: Statement[Command]


@dataclass(frozen=True, slots=True)
class _Signed:
    """A decision that is signed and not yet known to be recorded."""

    decision: Statement[Decision]
    result: bytes
    refusal: Refused | None
    records: tuple[Record, ...]
    fresh: int  # how many of the records are the intent and its approvals


class _Kept:
    """The decision for one command: who takes it, and what was signed."""

    __slots__ = ("signed", "since", "task")

    def __init__(self, since: float) -> None:
        self.since = since
        self.signed: _Signed | None = None
        self.task: asyncio.Task[Outcome] | None = None


class Decisions:
    """The use cases of the decision service."""

    def __init__(
        self,
        *,
        facts: Facts,
        engine: PolicyEngine,
        scribe: Scribe,
        appender: EvidenceAppender,
        clock: Clock,
        metrics: PolicyMetrics,
        kept: int = KEPT,
        on_recorded: Callable[[int], object] = lambda _time: None,
    ) -> None:
        """``on_recorded`` hears the time (ms) of each decision that is on record."""
        self._facts = facts
        self._engine = engine
        self._scribe = scribe
        self._appender = appender
        self._clock = clock
        self._metrics = metrics
        self._limit = kept
        self._on_recorded = on_recorded
        self._kept: dict[bytes, _Kept] = {}
        self._room = ElasticRoom(
            AT_ONCE,
            least=LEAST_AT_ONCE,
            most=MOST_AT_ONCE,
            target=IN_TIME_S,
            now=clock.monotonic,
            share=SHARE_OF_GATEWAY,
        )
        self.taken = 0
        self._log = structlog.get_logger("vigil.policy")

    @property
    def revision(self) -> str:
        """Of the policy in force."""
        return self._engine.revision

    async def decide(self, gateway: Identity, item: Item, *, deadline_ms: int) -> Outcome:
        """A recorded decision about one command; ``deadline_ms``: instant, 0 for the usual 2 s.

        Raises NOT_IN_SCOPE for a device that is not this gateway's, REPLICA_STALE when that cannot be known,
        SERVICE_UNAVAILABLE when too much is asked for at once, and EVIDENCE_UNAVAILABLE for an allow that could not be
        recorded.
        """
        with self._room.place(gateway.id):
            return await self._answered(gateway, item, deadline_ms=deadline_ms)

    async def _answered(self, gateway: Identity, item: Item, *, deadline_ms: int) -> Outcome:
        begun = self._clock.monotonic()
        command = item.command
        if command is None:
            raise refused(Reason.STATEMENT_MALFORMED, "a decision is about a command")
        budget = self._budget(deadline_ms)
        device = self._device(gateway, item.device_id)
        kept = self._kept.get(command.digest)
        if kept is None:
            kept = self._keep(command.digest, begun)
        else:
            self._metrics.repeated()
        if kept.task is None or (kept.task.done() and _failed(kept.task)):
            # Detached: the decision reaches the record whether or not whoever asked still waits.
            kept.task = deadline.detached(
                self._carry(_Asked(gateway.id, device, item, command), kept, budget)
            )
            kept.task.add_done_callback(_failed)
        try:
            async with asyncio.timeout(budget):
                outcome = await asyncio.shield(kept.task)
        except TimeoutError:
            raise _too_late() from None
        self._metrics.answered(self._clock.monotonic() - begun)
        return outcome

    async def preview(self, gateway: Identity, item: Item) -> Preview:
        """What would be refused now and what would be owed; signs and records nothing. Raises as ``decide``."""
        view = self._view(item, self._device(gateway, item.device_id))
        with self._room.place(gateway.id):
            findings, obligations, _ = await self._judge(item, view)
        return Preview(refusal_of(findings) if findings else None, obligations, self._engine.revision)

    def _budget(self, deadline_ms: int) -> float:
        """Seconds for this decision. Raises POLICY_UNAVAILABLE when they are over."""
        if deadline_ms == 0:
            return DECISION_DEADLINE_S
        left = (deadline_ms - self._clock.now()) / 1000
        if left <= 0:
            raise _too_late(late_ms=round(-left * 1000))
        return min(left, DECISION_DEADLINE_S)

    def _device(self, gateway: Identity, device_id: str) -> Device:
        """A device of the gateway's sites; the same answer for a foreign one as for none."""
        device = self._facts.device(device_id)
        if device is not None and gateway.covers_site(device.organization, device.site):
            return device
        if not self._facts.ages().get("identity", float("inf")) <= UNKNOWN_DEVICE_AGE_S:
            raise refusal_of(
                [found(Reason.REPLICA_STALE, "vigil.policy.replicas_fresh", {"replicas": "identity"})]
            )
        raise not_in_scope()

    def _keep(self, digest: bytes, since: float) -> _Kept:
        kept = self._kept[digest] = _Kept(since)
        while True:
            oldest = next(iter(self._kept))
            if len(self._kept) <= self._limit and since - self._kept[oldest].since <= KEPT_S:
                return kept
            del self._kept[oldest]

    async def _carry(self, asked: _Asked, kept: _Kept, budget: float) -> Outcome:
        """Checks 2 to 8 for a command that is new here; the record alone where it is already decided."""
        if kept.signed is None:
            kept.signed = await self._decided(asked)
        signed = kept.signed
        allow = signed.refusal is None
        try:
            recorded = await self._appender.append_all(
                signed.records, timeout=budget if allow else min(budget, REFUSAL_RECORD_S)
            )
        except Refused as failure:
            self._metrics.unrecorded(str(signed.decision.body.answer))
            self._log.warning(
                "not_recorded", decision=signed.decision.digest.hex(), allow=allow, reason=failure.reason
            )
            if allow:
                raise _unrecorded(failure) from failure
            return Outcome(signed.decision.data, None, signed.result, signed.refusal, ())
        kept.signed = None  # It stands in the task now.
        self._on_recorded(signed.decision.issued_at * 1000)
        return Outcome(
            signed.decision.data,
            recorded[-1],
            signed.result,
            signed.refusal,
            tuple(recorded[: signed.fresh]),
        )

    async def _decided(self, asked: _Asked) -> _Signed:
        """Judge and sign."""
        item = asked.item
        view = self._view(item, asked.device)
        findings, obligations, judgement = await self._judge(item, view)
        # What Rego answers belongs to the decision; the input is what it was asked.
        document = input_document(item, view, judgement, gateway_id=asked.gateway_id)
        body = decide(
            item,
            asked.command,
            view,
            judgement,
            findings=findings,
            obligations=obligations,
            input_digest=sha256(document),
            revision=self._engine.revision,
        )
        decision = self._scribe.sign(body, subject=f"device/{item.device_id}")
        refusal = refusal_of(findings) if findings else None
        self.taken += 1
        self._metrics.decided(
            str(body.answer), () if refusal is None else tuple(str(one.reason) for one in refusal.refusals)
        )
        records, fresh = _batch(asked, judgement, decision, document)
        result = b"" if view.result is None else view.result.statement.data
        return _Signed(decision, result, refusal, records, fresh)

    def _now(self) -> int:
        """Time: what is signed now carries this; a signer whose clock leapt withholds. Raises POLICY_UNAVAILABLE."""
        try:
            return self._scribe.now()
        except Refused as refusal:
            self._log.error("decisions_withheld", reason=str(refusal))
            raise refused(
                Reason.POLICY_UNAVAILABLE,
                "No decision is signed: the clock of the decision service stands too far ahead.",
                lifted_by="the right time",
                who="the operator",
                cause=refusal.reason,
            ) from refusal

    async def _judge(self, item: Item, view: View) -> tuple[list[Finding], tuple[Obligation, ...], Judgement]:
        """Checks 2 to 7: everything found against it; what it owes when nothing was."""
        judgement = judge(item, view)
        findings = list(judgement.findings)
        obligations: tuple[Obligation, ...] = ()
        if judgement.question is not None:
            told, obligations = await self._ask(judgement.question)
            known = {finding.reason for finding in findings}
            findings += [finding for finding in told if finding.reason not in known]
        elif not findings:
            findings.append(found(Reason.POLICY_DENIED, "vigil.command.decision"))
        return findings, obligations, judgement

    async def _ask(self, question: Mapping[str, object]) -> tuple[list[Finding], tuple[Obligation, ...]]:
        """Check 7. Whatever is not an answer refuses."""
        try:
            verdict = await self._engine.decide(question)
        except Refused as refusal:
            return [Finding("vigil.policy.engine", one) for one in refusal.refusals], ()
        if not verdict.allow:
            return [found(one.reason, one.rule, one.values) for one in verdict.reasons], ()
        return [], tuple(Obligation(one.kind, dict(one.values)) for one in verdict.obligations)

    def _view(self, item: Item, device: Device) -> View:
        facts = self._facts
        return View(
            now=self._now(),
            device=device,
            verifier=facts.verifier,
            revocations=facts.revocations,
            ages=facts.ages(),
            profile=facts.profile(device.model),
            result=self._sound_result(item.device_id),
            installable=facts.installable,
        )

    def _sound_result(self, device_id: str) -> Verified[Result] | None:
        """The device's result; one whose signer is revoked says nothing."""
        result = self._facts.result(device_id)
        if result is None:
            return None
        signer = result.signer
        revoked = self._facts.revocations.signer_refusal(signer, at=self._clock.now())
        return None if revoked is not None else result


def _batch(
    asked: _Asked, judgement: Judgement, decision: Statement[Decision], document: bytes
) -> tuple[tuple[Record, ...], int]:
    """Check 8, one batch: intent and approvals unless they are on record, command, decision with its input.

    Also how many of them are the intent and its approvals, all of them or none.
    """
    item, device = asked.item, asked.device
    about, intent = f"device/{item.device_id}", f"intent/{item.intent.digest.hex()}"
    people = {one.statement.digest: f"person/{one.person.id}" for one in judgement.signed}

    def record(data: bytes, signer: bytes, *bodies: bytes) -> Record:
        person = people.get(signer)
        return Record(
            statement=data,
            subjects=(about, intent) if person is None else (about, person, intent),
            bodies=bodies,
            organization_id=device.organization,
            site_id=device.site,
        )

    new: tuple[Statement[Any], ...] = () if item.proofs else (item.intent, *item.approvals)
    statements: tuple[Statement[Any], ...] = (*new, asked.command)
    # A signature that does not hold is nobody's word and has no place in the log.
    records = [record(one.data, one.digest) for one in statements if one.digest in people]
    records.append(record(decision.data, item.intent.digest, document))
    return tuple(records), len(new) if all(one.digest in people for one in new) else 0


def _failed(task: asyncio.Task[Outcome]) -> bool:
    """Whether a task ended without an outcome; asking takes note of its exception."""
    return task.cancelled() or task.exception() is not None


def _too_late(**values: int) -> Refused:
    return refused(
        Reason.POLICY_UNAVAILABLE,
        "There was no time left to decide.",
        lifted_by="a new command with a new nonce",
        who="the requester",
        **values,
    )


def _unrecorded(cause: Refused) -> Refused:
    return refused(
        Reason.EVIDENCE_UNAVAILABLE,
        "The decision could not be recorded, so no permit leaves.",
        lifted_by="the evidence service answering again; then a new command",
        who="the operator",
        cause=cause.reason,
    )
