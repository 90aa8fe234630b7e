"""Intents that wait for approvals: on record before they are kept, kept before anybody is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.core.certificates import Identity
from vigil.core.clock import Clock
from vigil.core.commands import check_intent, target_root
from vigil.core.statements.bodies import ActionClass, Approval, Intent
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Reason, Refusal, Refused, refused
from vigil.feed.evidence import EvidenceAppender
from vigil.gateway import domain, intent_store, pages
from vigil.gateway.facts import Facts
from vigil.gateway.intent_store import ApprovalRow, IntentRow
from vigil.gateway.quotas import Quotas
from vigil.gateway.records import Records
from vigil.rpc.access import not_in_scope
from vigil.rpc.caller import require_site, scope_filtered
from vigil.storage import Database

MAX_DEVICES: Final = 1_024
"""Devices of one intent: a large site's fleet of one model."""
MAX_SUBJECTS: Final = 64
"""Devices that an intent is recorded under one by one; a larger one is recorded under its site."""
RECORD_S: Final = 5.0
APPROVING_ROLES: Final = ("approver", "safety")
"""Roles whose approval counts (`count_approvals`)."""


@dataclass(frozen=True, slots=True)
class Home:
    """Whose gateway this is."""

    organization_id: str
    site_id: str


class Intents:
    """Create, approve, cancel, look at."""

    def __init__(
        self,
        *,
        facts: Facts,
        quotas: Quotas,
        records: Records,
        database: Database,
        evidence: EvidenceAppender,
        clock: Clock,
        home: Home,
    ) -> None:
        self._facts = facts
        self._quotas = quotas
        self._records = records
        self._database = database
        self._evidence = evidence
        self._clock = clock
        self._home = home

    async def create(
        self, caller: Identity, request: gateway_pb2.CreateIntentRequest
    ) -> gateway_pb2.IntentRecord:
        """Keep a signed intent, once it is on record. Raises what refuses it, EVIDENCE_UNAVAILABLE."""
        device_ids = list(request.device_ids)
        if not 1 <= len(device_ids) <= MAX_DEVICES:
            raise refused(
                Reason.FIELD_INVALID, f"an intent names 1 to {MAX_DEVICES} devices", field="device_ids"
            )
        devices = [self._facts.device(caller, name) for name in device_ids]
        intent = read(request.intent, Intent)
        specs = [self._facts.target(device, intent.body.action).spec for device in devices]
        domain.check_same_class(specs)
        self._require_person(caller, specs[0].action_class)
        _require_signer(intent, caller)
        self._quotas.take(caller.thumbprint, "intents")
        self._check_target(intent, [device.device_id for device in devices])
        known = await self._records.intent(intent.digest)
        if known is not None:
            return self._message(known)
        now = self._clock.now()
        recorded = await self._record(intent.data, [device.device_id for device in devices])
        row = IntentRow(
            digest=intent.digest,
            action=intent.body.action,
            requester=caller.id,
            credential=caller.thumbprint,
            state=intent_store.OPEN,
            needed=domain.approvals_needed(specs),
            expires=intent.body.expires,
            devices=tuple(device.device_id for device in devices),
            done=(),
            statement=intent.data,
            recorded=recorded,
            create_time=now,
        )
        await self._database.write(lambda conn: intent_store.put_intent(conn, row))
        self._records.intent_kept(row.digest)
        return self._message(row)

    async def approve(
        self, caller: Identity, request: gateway_pb2.ApproveIntentRequest
    ) -> gateway_pb2.IntentRecord:
        """Add another person's approval, once it is on record. Raises what refuses it, EVIDENCE_UNAVAILABLE."""
        row = await self._require(caller, request.intent_id)
        approval = read(request.approval, Approval)
        self._quotas.take(caller.thumbprint, "intents")
        if not caller.has_role(*APPROVING_ROLES):
            raise refused(
                Reason.ROLE_NOT_PERMITTED,
                "Your approval would not count: it takes an approver or a safety officer.",
                lifted_by="an approval by one of them",
                who="an approver of the site",
            )
        _require_signer(approval, caller)
        if any(one.digest == approval.digest for one in row.approvals):
            return self._message(row)
        refusals = self._approval_refusals(row, approval, caller)
        if refusals:
            raise Refused(refusals)
        recorded = await self._record(approval.data, row.devices)
        kept = ApprovalRow(
            intent=row.digest,
            approver=caller.id,
            credential=caller.thumbprint,
            digest=approval.digest,
            statement=approval.data,
            recorded=recorded,
            expires=approval.body.expires,
            voided=False,
            create_time=self._clock.now(),
        )
        await self._database.write(lambda conn: intent_store.put_approval(conn, kept))
        return self._message(await self._require(caller, row.digest.hex()))

    async def cancel(self, caller: Identity, intent_id: str) -> gateway_pb2.IntentRecord:
        """The requester takes an intent back. Raises SIGNER_NOT_CALLER for anybody else, STATE_CONFLICT."""
        row = await self._require(caller, intent_id)
        if caller.id != row.requester:
            raise refused(
                Reason.SIGNER_NOT_CALLER,
                "Only its requester takes an intent back.",
                lifted_by="asking the requester",
                who=row.requester,
            )
        if row.state == intent_store.USED:
            raise refused(Reason.STATE_CONFLICT, "The intent was carried out; it cannot be taken back.")
        await self._database.write(lambda conn: intent_store.cancel_intent(conn, row.digest))
        return self._message(await self._require(caller, row.digest.hex()))

    async def get(self, caller: Identity, intent_id: str) -> gateway_pb2.IntentRecord:
        """One intent by its id or the beginning of it. Raises NOT_IN_SCOPE."""
        return self._message(await self._require(caller, intent_id))

    async def list_all(
        self, caller: Identity, request: gateway_pb2.ListIntentsRequest
    ) -> gateway_pb2.ListIntentsResponse:
        """A page, newest first; of a state when one is named. Raises FIELD_INVALID."""
        if request.state and request.state not in domain.INTENT_STATES:
            raise refused(Reason.FIELD_INVALID, "no such state of an intent", field="state")
        self._quotas.take(caller.thumbprint, "reads")
        scope_filtered(caller)
        if not caller.covers_site(self._home.organization_id, self._home.site_id):
            return gateway_pb2.ListIntentsResponse()
        size = pages.size_of(request.page_size)
        before = pages.place_of(request.page_token)
        found: list[gateway_pb2.IntentRecord] = []
        while True:
            rows = await self._database.read(
                partial(intent_store.list_intents, before=before, limit=pages.MOST)
            )
            for place, row in rows:
                message = self._message(row)
                if request.state in ("", message.state):
                    found.append(message)
                before = place
                if len(found) == size:
                    return gateway_pb2.ListIntentsResponse(
                        intents=found, next_page_token=pages.token_of(before)
                    )
            if len(rows) < pages.MOST:
                return gateway_pb2.ListIntentsResponse(intents=found)

    def _require_person(self, caller: Identity, action_class: ActionClass) -> None:
        refusal = domain.caller_refusal(
            caller,
            action_class,
            now=self._clock.now(),
            lease_age_s=self._facts.revocations.lease_age(),
        )
        if refusal is not None:
            raise Refused([refusal])

    def _check_target(self, intent: Statement[Intent], device_ids: Sequence[str]) -> None:
        body = intent.body
        if body.target_count != len(device_ids) or body.target_root != target_root(device_ids):
            raise refused(
                Reason.NOT_IN_TARGET,
                "The intent's target was not made over these devices in this order.",
                lifted_by="the devices in the order that the target was made over",
                who="the requester",
            )
        refusals = [
            refusal
            for refusal in check_intent(intent, at=self._clock.now())
            if refusal.reason is not Reason.OUTSIDE_WINDOW
        ]
        if refusals:
            raise Refused(refusals)

    def _approval_refusals(
        self, row: IntentRow, approval: Statement[Approval], caller: Identity
    ) -> list[Refusal]:
        now = self._clock.now()
        refusals = []
        if approval.body.intent != row.digest:
            refusals.append(Refusal(Reason.NOT_IN_TARGET, "The approval is for another intent."))
        if caller.id == row.requester or any(one.approver == caller.id for one in row.approvals):
            refusals.append(
                Refusal(
                    Reason.APPROVER_NOT_DISTINCT,
                    "An approval by the requester, or a second one by the same person, does not count.",
                    "an approval by somebody else",
                    "an approver",
                )
            )
        if min(approval.body.expires, row.expires) <= now:
            refusals.append(
                Refusal(Reason.INTENT_EXPIRED, "The intent or the approval has expired.", "a new intent")
            )
        if not domain.intent_usable(row.state):
            refusals.append(domain.taken_back())
        return refusals

    async def _record(self, statement: bytes, device_ids: Sequence[str]) -> bytes:
        subjects = [f"device/{device_id}" for device_id in device_ids]
        if len(subjects) > MAX_SUBJECTS:
            subjects = [f"site/{self._home.site_id}"]
        recorded = await self._evidence.append(
            statement,
            subjects=subjects,
            organization_id=self._home.organization_id,
            site_id=self._home.site_id,
            timeout=RECORD_S,
        )
        return recorded.SerializeToString()

    async def _require(self, caller: Identity, intent_id: str) -> IntentRow:
        rows = await self._database.read(lambda conn: intent_store.find_intents_by_prefix(conn, intent_id))
        if len(rows) != 1:
            raise not_in_scope()
        require_site(caller, self._home.organization_id, self._home.site_id)
        return rows[0]

    def _message(self, row: IntentRow) -> gateway_pb2.IntentRecord:
        now = self._clock.now()
        standing = [one for one in row.approvals if one.expires > now]
        recorded = [row.recorded, *(one.recorded for one in row.approvals)]
        return gateway_pb2.IntentRecord(
            intent_id=row.digest.hex(),
            device_id=row.devices[0],
            device_ids=row.devices,
            action=row.action,
            requester=row.requester,
            state=domain.intent_state(
                row.state, needed=row.needed, given=len(standing), expires=row.expires, now=now
            ),
            approvals_needed=row.needed,
            approvals_given=len(standing),
            expire_time_ms=row.expires,
            intent=row.statement,
            approvals=[one.statement for one in row.approvals],
            recorded=[evidence_pb2.RecordedItem.FromString(part) for part in recorded],
            create_time_ms=row.create_time,
        )


def _require_signer(statement: Statement[Intent] | Statement[Approval], caller: Identity) -> None:
    """The caller signed it, and the signature holds. Raises SIGNER_NOT_CALLER, SIGNATURE_INVALID."""
    if statement.signer != caller.thumbprint:
        raise refused(
            Reason.SIGNER_NOT_CALLER,
            "It was signed with another credential than the one that sends it.",
            lifted_by="sending it with the credential that signed it",
            who="you",
        )
    check(statement, caller)
