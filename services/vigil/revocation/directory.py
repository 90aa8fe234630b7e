"""Whose a credential, device, gateway, build or baseline is, as the replicas of identity and release have it."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import grpc

from vigil.api.identity.v1 import identity_pb2
from vigil.api.release.v1 import release_pb2
from vigil.core.clock import Clock, Entropy
from vigil.core.revocations import REVOKER_ROLES
from vigil.core.statements.bodies import Scope
from vigil.errors import Reason, Refused, refused
from vigil.feed import Change, Replica
from vigil.revocation.domain import Owner, Reinstater

ARRIVAL_S: Final = 2.0
"""A service that has just started hears its neighbours within this time, or they are away."""
ChannelFactory = Callable[[], grpc.aio.Channel]


class _Identity:
    """What identity said, whole from one reset to the next."""

    def __init__(self) -> None:
        self.people: dict[str, identity_pb2.Principal] = {}
        self.credentials: dict[str, identity_pb2.Credential] = {}
        self.thumbprints: dict[str, set[str]] = {}
        self.devices: dict[str, Owner] = {}
        self.gateways: dict[str, Owner] = {}

    def change(self, change: Change) -> None:
        match change.kind:
            case "principal":
                if change.deleted:
                    self.people.pop(change.key, None)
                else:
                    self.people[change.key] = identity_pb2.Principal.FromString(change.value)
            case "credential":
                self._credential(change)
            case "device":
                if change.deleted:
                    self.devices.pop(change.key, None)
                else:
                    device = identity_pb2.Device.FromString(change.value)
                    self.devices[change.key] = Owner(device.organization_id, (device.site_id,))
            case "gateway":
                if change.deleted:
                    self.gateways.pop(change.key, None)
                else:
                    gateway = identity_pb2.Gateway.FromString(change.value)
                    self.gateways[change.key] = Owner(gateway.organization_id, (gateway.site_id,))
            case _:
                return

    def _credential(self, change: Change) -> None:
        if not change.deleted:
            credential = identity_pb2.Credential.FromString(change.value)
            self.credentials[credential.thumbprint] = credential
            self.thumbprints.setdefault(credential.principal_id, set()).add(credential.thumbprint)


class Directory:
    """Two replicas behind one question. Until a replica was whole once, what it would know is REPLICA_STALE."""

    def __init__(
        self, *, identity: ChannelFactory, release: ChannelFactory, clock: Clock, entropy: Entropy
    ) -> None:
        self._identity = self._identity_next = _Identity()
        self._releases: dict[str, Owner] = {}
        self._releases_next = self._releases
        self.identity = Replica(
            channel_factory=identity,
            name="identity",
            clock=clock,
            entropy=entropy,
            on_change=self._change_identity,
            on_reset=self._reset_identity,
            kinds=("principal", "credential", "device", "gateway"),
        )
        self.release = Replica(
            channel_factory=release,
            name="release",
            clock=clock,
            entropy=entropy,
            on_change=self._change_release,
            on_reset=self._reset_release,
            kinds=("release", "baseline"),
        )

    async def arrived(self, scope: Scope) -> None:
        """Give a replica that was never whole a moment to become so; then things are judged as they are."""
        build = scope in (Scope.BUILD, Scope.BASELINE)
        if not (self._releases if build else self._identity.people):
            replica = self.release if build else self.identity
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ARRIVAL_S):
                    await replica.synced.wait()

    def owner(self, scope: Scope, name: str) -> Owner | None:
        """Whose an id is; None when nobody knows it. Raises REPLICA_STALE."""
        match scope:
            case Scope.BUILD | Scope.BASELINE:
                return self._release().get(f"{scope}/{name}")
            case Scope.DEVICE:
                return self._people().devices.get(name)
            case Scope.GATEWAY:
                return self._people().gateways.get(name)
            case Scope.CREDENTIAL:
                known = self._people()
                person = known.people.get(name.removeprefix("principal/"))
                if not name.startswith("principal/"):
                    credential = known.credentials.get(name)
                    person = known.people.get(credential.principal_id) if credential else None
                return None if person is None else Owner(person.organization_id, tuple(person.site_ids))
            case _:
                return None

    def organization(self, scope: Scope, ids: tuple[str, ...]) -> str:
        """The one organization that owns all of these as far as is known; empty for several or none."""
        try:
            owners = {owner.organization for name in ids if (owner := self.owner(scope, name)) is not None}
        except Refused:
            # REPLICA_STALE: whose it is decides here who is shown it, nothing else.
            return ""
        return owners.pop() if len(owners) == 1 else ""

    def reinstaters(self, operator: str) -> Iterator[Reinstater]:
        """Active people of the operator with a revoker's role. Raises REPLICA_STALE."""
        known = self._people()
        for person in known.people.values():
            if (
                person.organization_id == operator
                and person.state == identity_pb2.PRINCIPAL_STATE_ACTIVE
                and any(role in REVOKER_ROLES for role in person.roles)
            ):
                yield Reinstater(person.principal_id, tuple(known.thumbprints.get(person.principal_id, ())))

    def gateways(self) -> dict[str, Owner]:
        """Every known gateway. Raises REPLICA_STALE."""
        return self._people().gateways

    def _people(self) -> _Identity:
        if self.identity.synced.is_set():
            self._identity = self._identity_next
        elif not self._identity.people:
            raise _stale("identity")
        return self._identity

    def _release(self) -> dict[str, Owner]:
        if self.release.synced.is_set():
            self._releases = self._releases_next
        elif not self._releases:
            raise _stale("release")
        return self._releases

    def _change_identity(self, change: Change) -> None:
        self._identity_next.change(change)

    def _reset_identity(self) -> None:
        self._identity_next = _Identity()

    def _reset_release(self) -> None:
        self._releases_next = {}

    def _change_release(self, change: Change) -> None:
        scope = Scope.BUILD if change.kind == "release" else Scope.BASELINE
        name = f"{scope}/{change.key.partition('@')[0]}"
        if change.deleted:
            self._releases_next.pop(name, None)
        elif scope is Scope.BUILD:
            build = release_pb2.Release.FromString(change.value)
            self._releases_next[name] = Owner(build.organization_id)
        else:
            baseline = release_pb2.Baseline.FromString(change.value)
            sites = (baseline.site_id,) if baseline.site_id else ()
            self._releases_next[name] = Owner(baseline.organization_id, sites)


def _stale(role: str) -> Refused:
    return refused(
        Reason.REPLICA_STALE,
        f"What {role} knows has not arrived yet.",
        lifted_by=f"the {role} service answering",
        who="the operator",
    )
