"""What gateways report: where devices are, and the safety actions that devices signed to have carried out.

The registry follows what it can verify: a receipt by the device's attestation key, over an intent of a person of its
site, and for what frees a device the approval of another person. A gateway alone changes nothing but a sighting.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection

from vigil.core.certificates import ChainVerifier, Identity, Kind
from vigil.core.classes import MAX_CLOCK_SKEW_MS
from vigil.core.commands import count_approvals, target_root
from vigil.core.digest import sha256
from vigil.core.statements.bodies import Approval, Intent, Outcome, Receipt
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Reason, Refused, refused
from vigil.identity import domain, refusals, store
from vigil.identity.devices import active_holds, lift_all, recount
from vigil.identity.domain import Device, Hold, Report, SafetyAction
from vigil.identity.ports import Ports, publish, unknown
from vigil.rpc.caller import require_self

MAX_REPORTS: Final = 1000
"""Of one call: a gateway's devices after an outage, below the megabyte of a message as sightings."""

_PERSON: Final = frozenset({Kind.PERSON})
_DEVICE: Final = frozenset({Kind.DEVICE})
_FREEING: Final = frozenset({SafetyAction.RELEASE_QUARANTINE, SafetyAction.LIFT_HOLD})


@dataclass(frozen=True, slots=True)
class Effect:
    """A safety action that a device signed to have applied, as entry ``log_size`` of its log."""

    action: SafetyAction
    intent: bytes
    person: str
    issued_at: int
    log_size: int


class Reports:
    """The use case of ReportDevices."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def report(
        self, caller: Identity, gateway_id: str, reports: Sequence[Report]
    ) -> list[tuple[str, Refused]]:
        """Take what holds; answer, by device, why the others were not taken. Raises FIELD_INVALID."""
        require_self(caller, gateway_id)
        if len(reports) > MAX_REPORTS:
            raise refusals.invalid("reports", f"one call brings at most {MAX_REPORTS}")
        found = await self._ports.database.read(
            lambda connection: {
                one.device_id: store.get(connection, Device, one.device_id) for one in reports
            }
        )
        taken: list[tuple[str, Effect | None]] = []
        left: list[tuple[str, Refused]] = []
        for one in reports:
            try:
                device = found[one.device_id]
                if device is None or not caller.covers_site(device.organization_id, device.site_id):
                    raise unknown()
                effect = read_effect(
                    one, device, verifier=self._ports.trust.verifier, now=self._ports.clock.now()
                )
            except Refused as refusal:
                left.append((one.device_id, refusal))
                continue
            if effect is not None or device.observed_gateway_id != caller.id:
                taken.append((one.device_id, effect))
        if taken:
            await self._ports.database.write(lambda connection: self._apply(connection, caller.id, taken))
        return left

    def _apply(
        self, connection: Connection, gateway_id: str, taken: Sequence[tuple[str, Effect | None]]
    ) -> None:
        for device_id, effect in taken:
            device = store.get(connection, Device, device_id)
            if device is None:
                continue
            if device.observed_gateway_id != gateway_id:
                device = self._store(connection, replace(device, observed_gateway_id=gateway_id))
            if effect is None:
                continue
            match effect.action:
                case SafetyAction.QUARANTINE | SafetyAction.RELEASE_QUARANTINE:
                    self._quarantine(connection, device, effect)
                case SafetyAction.HOLD:
                    self._hold(connection, device, effect)
                case SafetyAction.LIFT_HOLD:
                    self._lift(connection, device, effect)

    def _quarantine(self, connection: Connection, device: Device, effect: Effect) -> None:
        if effect.log_size <= device.quarantine_log:
            return
        entering = effect.action is SafetyAction.QUARANTINE
        states = domain.quarantined(device) if entering else domain.released(device)
        state, resumes = states or (device.state, device.resumes)
        self._store(connection, replace(device, state=state, resumes=resumes, quarantine_log=effect.log_size))

    def _hold(self, connection: Connection, device: Device, effect: Effect) -> None:
        # One intent may name many devices, and each bears its own hold.
        digest = sha256(effect.intent + device.device_id.encode())
        if effect.log_size <= device.lift_log or store.get(connection, Hold, digest) is not None:
            return
        hold = Hold(
            digest=digest,
            device_id=device.device_id,
            placed_by=effect.person,
            issued_at=effect.issued_at,
            expires=0,
            lifted_at=0,
            log_size=effect.log_size,
        )
        store.add(connection, hold, {})
        recount(self._ports, connection, device)

    def _lift(self, connection: Connection, device: Device, effect: Effect) -> None:
        if effect.log_size <= device.lift_log:
            return
        # A hold that came after this lift was signed, or that the device logged later, stays.
        lifted = [
            hold
            for hold in active_holds(connection, device.device_id)
            if (
                hold.log_size < effect.log_size
                if hold.log_size
                else hold.issued_at <= effect.issued_at + MAX_CLOCK_SKEW_MS
            )
        ]
        lift_all(connection, device.device_id, lifted, now=self._ports.clock.now())
        store.change(connection, Device, device.device_id, lift_log=effect.log_size)
        recount(self._ports, connection, replace(device, lift_log=effect.log_size))

    def _store(self, connection: Connection, device: Device) -> Device:
        made = replace(device, update_time=self._ports.clock.now())
        store.change(
            connection,
            Device,
            made.device_id,
            observed_gateway_id=made.observed_gateway_id,
            state=made.state,
            resumes=made.resumes,
            quarantine_log=made.quarantine_log,
            update_time=made.update_time,
        )
        publish(self._ports.outbox, connection, made)
        return made


def read_effect(report: Report, device: Device, *, verifier: ChainVerifier, now: int) -> Effect | None:
    """Verify a report; None when it is a sighting, or a receipt that changes nothing here.

    Raises STATEMENT_MALFORMED, SIGNATURE_INVALID, NOT_IN_TARGET, NOT_IN_SCOPE, APPROVALS_MISSING and the chains'
    refusals. Credentials are judged as of the moment when they signed: reports come late after an outage, and a
    safety credential works through its grace.
    """
    if not report.receipt:
        return None
    receipt = read(report.receipt, Receipt)
    _check_device(receipt, device, verifier=verifier, now=now)
    body = receipt.body
    if body.outcome is not Outcome.APPLIED or body.action not in set(SafetyAction):
        return None
    action = SafetyAction(body.action)
    intent = read(report.intent, Intent)
    requester = _person(intent, verifier, now=now)
    if intent.digest != body.intent or intent.body.action != action:
        raise refused(Reason.NOT_IN_TARGET, "The receipt is for another intent.")
    if intent.body.target_count == 1 and intent.body.target_root != target_root([device.device_id]):
        raise refused(Reason.NOT_IN_TARGET, "The intent names another device.")
    if not requester.covers_site(device.organization_id, device.site_id):
        raise unknown()
    if action in _FREEING:
        _check_approved(report, intent, requester, device, verifier=verifier, at=(body.device_time, now))
    return Effect(action, intent.digest, requester.id, intent.issued_at * 1000, body.log.size)


def _check_device(receipt: Statement[Receipt], device: Device, *, verifier: ChainVerifier, now: int) -> None:
    """The receipt is this device's, by the attestation key on record."""
    chain = receipt.chain or device.attestation_chain
    signer = verifier.verify(chain, at=now, kinds=_DEVICE, grace=True)
    check(receipt, signer)
    if (signer.id, signer.key_thumbprint) != (device.device_id, device.attestation_key):
        raise refused(Reason.SIGNATURE_INVALID, "The receipt was signed by another device's key.")
    if receipt.body.device != device.device_id:
        raise refused(Reason.NOT_IN_TARGET, "The receipt names another device.")


def _check_approved(
    report: Report,
    intent: Statement[Intent],
    requester: Identity,
    device: Device,
    *,
    verifier: ChainVerifier,
    at: tuple[int, int],
) -> None:
    """COMMANDS, Classes: leaving quarantine or a hold needs two people."""
    device_time, now = at
    approvals = []
    for data in report.approvals:
        approval = read(data, Approval)
        approvals.append((approval, _person(approval, verifier, now=now), approval.issued_at * 1000))
    missing = count_approvals(
        intent,
        approvals,
        requester=requester,
        organization=device.organization_id,
        site=device.site_id,
        needed=1,
        now=min(device_time, now),
    )
    if missing:
        raise Refused(missing)


def _person(
    statement: Statement[Intent] | Statement[Approval], verifier: ChainVerifier, *, now: int
) -> Identity:
    signed_at = min(now, statement.issued_at * 1000)
    person = verifier.verify(statement.chain, at=signed_at, kinds=_PERSON, grace=True)
    check(statement, person)
    return person
