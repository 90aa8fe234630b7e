"""Class S1 at the gateway: no policy is asked, so the gateway looks at the signatures itself.

See docs/protocol.md, "Classes". The device makes checks 1 to 4 and 7 to 10 besides. Beyond three devices in ten
minutes one person needs a second person's approval of the intent.
"""

from collections.abc import Sequence
from typing import Protocol

from vigil.core.certificates import Identity
from vigil.core.clock import Clock
from vigil.core.commands import (
    check_command,
    check_intent,
    check_parameters,
    count_approvals,
    person_of,
    said_by_nonce,
)
from vigil.core.statements.bodies import ActionClass, Approval, Command, Intent
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Refusal, Refused
from vigil.gateway import domain
from vigil.gateway.facts import Target
from vigil.gateway.quotas import Quotas, second_person
from vigil.gateway.revocations import RevocationView
from vigil.gateway.trust import Trust


class Submitted(Protocol):
    """What of a submission is judged here."""

    @property
    def intent(self) -> Statement[Intent]: ...
    @property
    def command(self) -> Statement[Command]: ...
    @property
    def approvals(self) -> tuple[bytes, ...]: ...


class Safety:
    """Judges S1 commands."""

    def __init__(self, *, trust: Trust, revocations: RevocationView, quotas: Quotas, clock: Clock) -> None:
        self._trust = trust
        self._revocations = revocations
        self._quotas = quotas
        self._clock = clock

    def check(self, caller: Identity, target: Target, submitted: Submitted) -> bool:
        """Signatures, target, parameters, and the second person; answers whether the caller acts alone.

        Raises every refusal that applies.
        """
        now, device = self._clock.now(), target.device
        intent, command = submitted.intent, submitted.command
        check(command, caller)
        requester = person_of(intent, self._trust.verifier, at=now, grace=True)
        refusals = self._person_refusals(requester, target)
        refusals += check_intent(intent, at=None if said_by_nonce(intent, ActionClass.S1) else now)
        refusals += check_command(
            command, intent, signer=caller, requester=requester, device_id=device.device_id
        )
        refusals += check_parameters(target.spec, intent.body.parameters)
        approvals = [self._approval(data) for data in submitted.approvals]
        for approval, person, _ in approvals:
            refusals += self._person_refusals(person, target) if approval.body.intent == intent.digest else []

        def lacking(needed: int) -> Sequence[Refusal]:
            return count_approvals(
                intent,
                approvals,
                requester=requester,
                organization=device.organization_id,
                site=device.site_id,
                needed=needed,
                now=now,
            )

        refusals += lacking(target.spec.approvals)
        alone = bool(lacking(1))
        if alone and not self._quotas.safety_admits(caller.id, device.device_id):
            refusals.append(second_person())
        if refusals:
            raise Refused(refusals)
        if alone:
            self._quotas.safety_touched(caller.id, device.device_id)
        return alone

    def _approval(self, data: bytes) -> tuple[Statement[Approval], Identity, int]:
        now = self._clock.now()
        approval = read(data, Approval)
        return approval, person_of(approval, self._trust.verifier, at=now, grace=True), now

    def _person_refusals(self, person: Identity, target: Target) -> list[Refusal]:
        """Requester and approvers as the caller itself: certificate, role, scope, revocation."""
        now = self._clock.now()
        first = domain.caller_refusal(
            person, ActionClass.S1, now=now, lease_age_s=self._revocations.lease_age()
        )
        if first is not None:
            return [first]
        if not person.covers_site(target.device.organization_id, target.device.site_id):
            return [domain.out_of_scope()]
        revoked = self._revocations.state.identity_refusal(person, at=now)
        return [] if revoked is None else [domain.revoked_caller(revoked)]
