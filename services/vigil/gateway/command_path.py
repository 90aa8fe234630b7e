"""A command's way through the gateway, to be read from top to bottom (docs/protocol.md, "Gateway" 1 to 8).

`prepare` makes the checks that need no decision, lets the device attest if that is due, and asks it for a nonce last.
`submit` takes the signed command: 1 caller and scope, 2 signer, 3 quota, 4 revocation and lease, 5 connection,
6 decision, 7 revocation and lease again, 8 the device's receipts. Class S1 asks no policy; what policy would have
checked of its signatures is checked in `safety`.
"""

import asyncio
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Final

from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.policy.v1 import policy_pb2
from vigil.core.certificates import Identity
from vigil.core.classes import DECISION_DEADLINE_S, LEASE_S, NONCE_LIFETIME_S
from vigil.core.clock import Clock
from vigil.core.statements.bodies import ActionClass, Answer, Approval, Command, Decision, Intent
from vigil.core.statements.envelope import Statement, read
from vigil.errors import Reason, Refused, refused
from vigil.gateway import domain
from vigil.gateway.attestation import Attestation
from vigil.gateway.command_store import CommandRow
from vigil.gateway.decisions import Decisions, unavailable
from vigil.gateway.device_sessions import Session
from vigil.gateway.facts import Facts, Target
from vigil.gateway.intent_store import IntentRow
from vigil.gateway.quotas import Quotas
from vigil.gateway.receipts import InFlight, Receipts
from vigil.gateway.records import Records, outcome_unknown
from vigil.gateway.safety import Safety
from vigil.rpc import deadline, status
from vigil.rpc.room import ElasticRoom, Room

NONCE_S: Final = 2.0
"""How long a device may take to answer with a nonce."""
SAFETY_NONCE_S: Final = 5.0
"""For class S1: half of its bound. A busy device is no reason to give a safety action up."""
DEFAULT_DEADLINE_S: Final = 30.0
"""For a caller that sets no deadline."""
ANSWER_MARGIN_S: Final = 0.3
"""Kept back from the deadline, to make what is known durable and to answer."""
MAX_UNDER_WAY: Final = 512
"""Commands and preparations of all callers at once."""
DECISIONS: Final = 256
LEAST_DECISIONS: Final = 16
"""Commands that wait for policy at once: to begin with, and at least. What policy does not decide in time, nobody waits
for, and nothing is written about."""
SHARE_OF_CREDENTIAL: Final = 0.25
"""Of those places, for one credential: at first as many as its quota of commands under way."""
DECIDED_IN_TIME_S: Final = DECISION_DEADLINE_S / 2
MAX_SAFETY: Final = 64
"""Class S1, apart from the others: nothing else uses these places up."""
MAX_APPROVALS: Final = 8
"""As a profile can demand."""
INSTALLED_BY: Final = ("firmware", "baseline", "library")
"""Parameters that name by digest what an action installs."""

_SAFETY_SLOT_ROLES = ("safety", "recall")


@dataclass(frozen=True, slots=True)
class Submission:
    """A submitted command as it was read; ``kept`` is the intent's row when it was recorded here before."""

    intent: Statement[Intent]
    command: Statement[Command]
    approvals: tuple[bytes, ...]
    kept: IntentRow | None

    @property
    def recorded(self) -> list[evidence_pb2.RecordedItem]:
        """Proofs for the intent, then for each approval; empty for an immediate command."""
        if self.kept is None:
            return []
        parts = [self.kept.recorded, *(approval.recorded for approval in self.kept.approvals)]
        return [evidence_pb2.RecordedItem.FromString(part) for part in parts]


class _StoppedError(Exception):
    """A refusal, and the record as it stood then."""

    def __init__(self, record: CommandRow, refusal: Refused) -> None:
        super().__init__(str(refusal))
        self.record = record
        self.refusal = refusal


class CommandPath:
    """Prepare and submit."""

    def __init__(
        self,
        *,
        facts: Facts,
        quotas: Quotas,
        attestation: Attestation,
        decisions: Decisions,
        safety: Safety,
        receipts: Receipts,
        records: Records,
        clock: Clock,
    ) -> None:
        self._facts = facts
        self._quotas = quotas
        self._attestation = attestation
        self._decisions = decisions
        self._safety = safety
        self._receipts = receipts
        self._records = records
        self._clock = clock
        self._rooms = {True: Room(MAX_SAFETY), False: Room(MAX_UNDER_WAY)}
        self._decision_room = ElasticRoom(
            DECISIONS,
            least=LEAST_DECISIONS,
            most=MAX_UNDER_WAY,
            target=DECIDED_IN_TIME_S,
            now=clock.monotonic,
            share=SHARE_OF_CREDENTIAL,
        )
        self._running: dict[bytes, asyncio.Task[gateway_pb2.SubmitCommandResponse]] = {}

    # --- prepare

    async def prepare(
        self, caller: Identity, request: gateway_pb2.PrepareCommandRequest
    ) -> gateway_pb2.PrepareCommandResponse:
        """Checks 1, 3, 4, 5; attestation if due; the nonce last. Raises what refuses it."""
        device = self._facts.device(caller, request.device_id)
        target = self._facts.target(device, request.action)
        self._facts.require_caller(caller, target)
        self._take_quota(caller, target)
        self._facts.require(caller, target)
        session = self._facts.sessions.require(device.device_id)
        with self._room(target).place(caller.thumbprint):
            return await self._prepared(caller, target, session)

    async def _prepared(
        self, caller: Identity, target: Target, session: Session
    ) -> gateway_pb2.PrepareCommandResponse:
        device, action_class = target.device, target.spec.action_class
        result = self._attestation.newest(device.device_id)
        if domain.attestation_due(
            action_class,
            None if result is None else result.body,
            target.model.profile,
            now=self._clock.now(),
        ):
            await self._attestation.refresh(session)
            result = self._attestation.newest(device.device_id)
        self._quotas.nonce_wanted(caller.thumbprint, device.device_id)
        nonce = await self._nonce(session, caller, target)
        self._quotas.nonce_given(caller.thumbprint, device.device_id)
        return gateway_pb2.PrepareCommandResponse(
            device_id=device.device_id,
            udi=device.udi,
            nonce=nonce,
            nonce_lifetime_ms=int(NONCE_LIFETIME_S * 1000),
            profile=target.model.message.profile,
            result=b"" if result is None else result.data,
            attestation_chain=session.hello.attestation_chain or device.attestation_chain,
        )

    async def _nonce(self, session: Session, caller: Identity, target: Target) -> bytes:
        version = target.model.profile.version
        newer = target.model.message.profile if version > session.profile_version else b""
        safety = target.spec.action_class is ActionClass.S1 or caller.has_role(*_SAFETY_SLOT_ROLES)

        def ask(call_id: int) -> gateway_pb2.ConnectResponse:
            return gateway_pb2.ConnectResponse(
                nonce=gateway_pb2.NonceRequest(
                    call_id=call_id, credential=caller.thumbprint, safety=safety, profile=newer
                )
            )

        seconds = SAFETY_NONCE_S if target.spec.action_class is ActionClass.S1 else NONCE_S
        reply: gateway_pb2.NonceReply = await session.ask(ask, seconds=seconds)
        if reply.HasField("error"):
            raise status.from_status(reply.error)
        session.profile_version = max(session.profile_version, version)
        return reply.nonce

    # --- submit

    async def submit(
        self, caller: Identity, request: gateway_pb2.SubmitCommandRequest
    ) -> gateway_pb2.SubmitCommandResponse:
        """Checks 1 to 8. The same command bytes again get the same answer. Raises what refuses it."""
        # 1: scope, answered alone and the same for a device that does not exist.
        device = self._facts.device(caller, request.device_id)
        submission = await self._read(request)
        target = self._facts.target(device, submission.intent.body.action)
        # 1: the caller's certificate and role, for the action's class.
        self._facts.require_caller(caller, target)
        # 2: the signer is the caller.
        if submission.command.signer != caller.thumbprint:
            raise refused(
                Reason.SIGNER_NOT_CALLER,
                "The command was signed with another credential than the one that sends it.",
                lifted_by="sending it with the credential that signed it",
                who="you",
            )
        # 3: quota; safety actions have their own.
        self._take_quota(caller, target, step="submit")
        digest = submission.command.digest
        running = self._running.get(digest)
        if running is None:
            answer = await self._records.answer_of(digest)
            if answer is not None:
                return answer
            # The command goes on when its caller has gone: what the device did must reach the record.
            running = deadline.detached(self._carry(caller, target, submission, self._until()))
            self._running[digest] = running
            running.add_done_callback(lambda task: self._ended(digest, task))
        return await asyncio.shield(running)

    async def _carry(
        self, caller: Identity, target: Target, submission: Submission, until: float
    ) -> gateway_pb2.SubmitCommandResponse:
        """Checks 4 to 8, and the record of how it ended."""
        with self._quotas.under_way(caller.thumbprint), self._room(target).place(caller.thumbprint):
            with self._deciding(caller, target):
                record = self._records.open(caller, target, submission)
                try:
                    record, waiting = await self._let_through(record, caller, target, submission)
                except _StoppedError as ended:
                    await self._records.refused(ended.record, ended.refusal)
                    raise ended.refusal from None
            try:
                # 8: the device's receipts.
                return await self._await_receipts(record, waiting, until)
            finally:
                self._receipts.done(waiting)

    async def _let_through(
        self, record: CommandRow, caller: Identity, target: Target, submission: Submission
    ) -> tuple[CommandRow, InFlight]:
        """Checks 4 to 7; the bundle leaves as the last thing. Raises with the record as it was when it was refused."""
        try:
            # 4 and 5: revocation, the lease for this class, the connection.
            self._facts.require(caller, target)
            _require_usable(submission.kept)
            fresh = self._quotas.nonce_used(caller.thumbprint, target.device.device_id)
            decided = None
            if target.spec.action_class is ActionClass.S1:
                record = replace(record, alone=self._safety.check(caller, target, submission))
            else:
                _require_fresh(fresh)
                # Nothing is begun whose record would find no room.
                self._records.require_room()
                # 6: the decision, recorded by policy before it came.
                decided = await self._decide(target, submission)
                record = replace(
                    record,
                    decision=decided.decision,
                    recorded=decided.recorded.SerializeToString(),
                    settled=True,
                )
                if decided.HasField("refusal"):
                    raise status.from_status(decided.refusal)
            # An intent taken back, or an approval voided, while policy decided: the permit is worth nothing.
            await self._require_unchanged(submission)
            # 7: revocation and lease again, just before forwarding.
            self._facts.require_still(caller, target)
            session = self._facts.sessions.require(target.device.device_id)
            record = replace(record, settled=True, outcome=domain.FORWARDED)
            return record, self._forward(session, target, submission, decided)
        except Refused as refusal:
            raise _StoppedError(record, refusal) from refusal

    async def _await_receipts(
        self, record: CommandRow, waiting: InFlight, until: float
    ) -> gateway_pb2.SubmitCommandResponse:
        """Check 8: receipts until the deadline, durable before anybody is told of them. Raises OUTCOME_UNKNOWN."""
        left = until - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(0.0, left)):
                await waiting.answered
        except TimeoutError:
            if not waiting.receipts:
                self._receipts.done(waiting)
                await self._records.unknown(record)
                raise outcome_unknown(record) from None
        except Refused as refusal:
            self._receipts.done(waiting)
            await self._records.refused(record, refusal)
            raise
        # From here on a further receipt goes to the record by itself, behind this write.
        self._receipts.done(waiting)
        return await self._records.answered(record, list(waiting.receipts.values()))

    async def _require_unchanged(self, submission: Submission) -> None:
        if submission.kept is not None:
            kept = await self._records.intent(submission.intent.digest)
            if kept is None or len(kept.approvals) < len(submission.kept.approvals):
                raise Refused([domain.taken_back()])
            _require_usable(kept)

    def _ended(self, digest: bytes, task: asyncio.Task[gateway_pb2.SubmitCommandResponse]) -> None:
        self._running.pop(digest, None)
        # Whoever asked may be gone; what happened stands in the record.
        if not task.cancelled():
            task.exception()

    async def _read(self, request: gateway_pb2.SubmitCommandRequest) -> Submission:
        """Bounds and strict parsing, and what is kept here of the intent. Raises STATEMENT_MALFORMED."""
        if len(request.approvals) > MAX_APPROVALS:
            raise refused(Reason.STATEMENT_MALFORMED, f"a command carries at most {MAX_APPROVALS} approvals")
        command = read(request.command, Command)
        intent = read(request.intent, Intent)
        kept = await self._records.intent(intent.digest)
        if kept is not None:
            return Submission(intent, command, tuple(one.statement for one in kept.approvals), kept)
        for approval in request.approvals:
            read(approval, Approval)
        return Submission(intent, command, tuple(request.approvals), None)

    async def _decide(self, target: Target, submission: Submission) -> policy_pb2.Decided:
        """Check 6: an answer about this very command. Raises POLICY_UNAVAILABLE."""
        item = policy_pb2.DecideItem(
            device_id=target.device.device_id,
            intent=submission.intent.data,
            approvals=submission.approvals,
            command=submission.command.data,
            recorded=submission.recorded,
            deadline_ms=self._clock.now() + int(DECISION_DEADLINE_S * 1000),
        )
        decided = await self._decisions.decide(item)
        decision = read(decided.decision, Decision).body
        # The device checks the permit's signature and record; here it only has to be an answer to what was asked.
        about_this = (
            decision.command == submission.command.digest and decision.device == target.device.device_id
        )
        allowed = decision.answer is Answer.ALLOW and decided.HasField("recorded")
        if not about_this or allowed is decided.HasField("refusal"):
            raise unavailable()
        return decided

    def _forward(
        self,
        session: Session,
        target: Target,
        submission: Submission,
        decided: policy_pb2.Decided | None,
    ) -> InFlight:
        """Send the bundle; from here on its receipts are awaited. Raises DEVICE_OFFLINE."""
        intent = submission.intent
        waiting = InFlight(
            intent=intent.digest,
            device_id=target.device.device_id,
            call_id=session.call_id(),
            request_id=intent.body.request_id,
            answered=asyncio.get_running_loop().create_future(),
        )
        bundle = gateway_pb2.Bundle(
            call_id=waiting.call_id,
            intent=intent.data,
            approvals=submission.approvals,
            statements_recorded=submission.recorded,
            command=submission.command.data,
            release=self._installation(intent.body),
        )
        result = self._attestation.newest(target.device.device_id)
        if result is not None:
            bundle.result = result.data
        if decided is not None:
            bundle.permit = decided.decision
            bundle.permit_recorded.CopyFrom(decided.recorded)
            if decided.result:
                bundle.result = decided.result
            if not bundle.statements_recorded:
                bundle.statements_recorded.extend(decided.statements_recorded)
        self._receipts.expect(waiting)
        try:
            session.send(gateway_pb2.ConnectResponse(bundle=bundle))
        except Refused:
            self._receipts.done(waiting)
            raise
        return waiting

    def _installation(self, intent: Intent) -> bytes:
        """The signed release or baseline that the intent's parameters name by digest."""
        for name in INSTALLED_BY:
            digest = intent.parameters.get(name)
            if isinstance(digest, bytes):
                return self._facts.directory.installation(digest)
        return b""

    def _deciding(self, caller: Identity, target: Target) -> AbstractContextManager[None]:
        """A place among those that wait for policy; safety waits for nobody."""
        if target.spec.action_class is ActionClass.S1:
            return nullcontext()
        return self._decision_room.place(caller.thumbprint)

    def _room(self, target: Target) -> Room:
        """Overload refuses at once instead of making everything late, and safety keeps its own places."""
        return self._rooms[target.spec.action_class is ActionClass.S1]

    def _take_quota(self, caller: Identity, target: Target, *, step: str = "prepare") -> None:
        """Check 3. What is refused here is counted, and told once a minute (`refusals`)."""
        kind = "safety" if target.spec.action_class is ActionClass.S1 else "commands"
        self._quotas.take(caller.thumbprint, kind, step=step)
        if target.spec.action_class is ActionClass.R and self._facts.revocations.lease_age() > LEASE_S:
            # The class table: R goes on for ten minutes without a lease, rate-limited.
            self._quotas.take(caller.thumbprint, "degraded", step=step)

    @staticmethod
    def _until() -> float:
        """When the answer must be ready, on the loop's clock."""
        left = deadline.remaining()
        left = DEFAULT_DEADLINE_S if left is None else left
        return asyncio.get_running_loop().time() + max(left - ANSWER_MARGIN_S, left / 2)


def _require_fresh(fresh: bool) -> None:
    """Raises NONCE_EXPIRED: the device would refuse it, so no permit is recorded that nobody can use."""
    if not fresh:
        raise Refused([domain.dead_nonce()])


def _require_usable(kept: IntentRow | None) -> None:
    """Raises INTENT_CANCELLED."""
    if kept is not None and not domain.intent_usable(kept.state):
        raise Refused([domain.taken_back()])
