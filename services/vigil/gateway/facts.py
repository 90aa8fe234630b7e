"""Everything that the gateway's checks rest on, brought together for one caller, one device and one action."""

from dataclasses import dataclass

from vigil.api.identity.v1 import identity_pb2
from vigil.core.certificates import Identity
from vigil.core.clock import Clock
from vigil.core.statements.bodies import ActionSpec, Scope
from vigil.errors import Reason, Refused, refused
from vigil.gateway import domain
from vigil.gateway.device_sessions import DeviceSessions
from vigil.gateway.directory import Directory, Model
from vigil.gateway.own_key import OwnKey
from vigil.gateway.revocations import RevocationView
from vigil.rpc.access import not_in_scope
from vigil.rpc.caller import require_site

_COMMANDABLE = frozenset(
    {
        identity_pb2.DEVICE_STATE_ACTIVE,
        identity_pb2.DEVICE_STATE_QUARANTINED,
        identity_pb2.DEVICE_STATE_BANNED,
        identity_pb2.DEVICE_STATE_STORED,
    }
)
"""States in which a device gets commands at all: a pending one may attest, a retired one is gone."""


@dataclass(frozen=True, slots=True)
class Target:
    """A device in the caller's scope, its model, and the action that is asked for."""

    device: identity_pb2.Device
    model: Model
    spec: ActionSpec


class Facts:
    """Look-ups in memory; nothing here waits."""

    def __init__(
        self,
        *,
        directory: Directory,
        sessions: DeviceSessions,
        revocations: RevocationView,
        key: OwnKey,
        clock: Clock,
    ) -> None:
        self.directory = directory
        self.sessions = sessions
        self.revocations = revocations
        self._key = key
        self._clock = clock

    def device(self, caller: Identity, name: str) -> identity_pb2.Device:
        """Gateway check 1, scope: a device of this site that lies in the caller's scope.

        Raises NOT_IN_SCOPE, word for word the same for a device that does not exist.
        """
        device = self.directory.device(name)
        if device is None:
            raise not_in_scope()
        require_site(caller, device.organization_id, device.site_id)
        return device

    def target(self, device: identity_pb2.Device, action: str) -> Target:
        """The action as the device's profile has it. Raises ACTION_UNKNOWN, REPLICA_STALE."""
        model = self.directory.model(device.model)
        if model is None:
            raise refused(
                Reason.REPLICA_STALE,
                f"The gateway has not received a profile for the model {device.model}.",
                lifted_by="the manufacturer publishing it, or the connection to the control plane",
                who="the operator",
            )
        spec = model.actions.get(action)
        if spec is None:
            known = ", ".join(sorted(model.actions))
            raise refused(
                Reason.ACTION_UNKNOWN,
                f"the model {device.model} knows no action {action!r}",
                lifted_by=f"one of its actions: {known}",
                who="the requester",
                action=action,
            )
        return Target(device, model, spec)

    def standing(self, caller: Identity, target: Target) -> domain.Standing:
        """What is known at this moment."""
        now = self._clock.now()
        state = self.revocations.state
        own = self._key.identity
        device_id = target.device.device_id
        return domain.Standing(
            caller=caller,
            spec=target.spec,
            now=now,
            lease_age_s=self.revocations.lease_age(),
            caller_revoked=state.identity_refusal(caller, at=now),
            gateway_revoked=state.identity_refusal(own, at=now) is not None,
            gateway_operational_until=own.operational_until,
            device_effect=state.effect(Scope.DEVICE, device_id, at=now),
            device_commandable=target.device.state in _COMMANDABLE,
            connected=self.sessions.get(device_id) is not None,
        )

    def require_caller(self, caller: Identity, target: Target) -> None:
        """Gateway check 1: the caller's certificate and role for the action's class, answered alone."""
        refusal = domain.caller_refusal(
            caller,
            target.spec.action_class,
            now=self._clock.now(),
            lease_age_s=self.revocations.lease_age(),
        )
        if refusal is not None:
            raise Refused([refusal])

    def require(self, caller: Identity, target: Target) -> None:
        """Gateway checks 1 (certificate, role), 4 and 5. Raises every refusal that applies."""
        refusals = domain.own_refusals(self.standing(caller, target))
        if refusals:
            raise Refused(refusals)

    def require_still(self, caller: Identity, target: Target) -> None:
        """Gateway check 7: revocation and lease once more. Raises every refusal that applies."""
        refusals = domain.forwarding_refusals(self.standing(caller, target))
        if refusals:
            raise Refused(refusals)
