"""Every method that an installation serves, and every kind of caller that there is, as they are in the contracts."""

import asyncio
import importlib
import pkgutil
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import vigil.api
from tests.support.pki import TestPki
from tests.support.stack import TRUST_DOMAIN, Issued, Stack
from vigil.core.certificates import EVERY, Kind, TrustBundle
from vigil.core.clock import SystemClock
from vigil.demo.places import HOSPITALS
from vigil.errors import Reason, Refused
from vigil.rpc.access import VERIFIED_CALLER_METHODS, CallerRule, access_of
from vigil.rpc.channel import Channels
from vigil.rpc.options import client_options
from vigil.rpc.status import TRAILER, from_rpc_error
from vigil.rpc.tls import TlsFiles

TIMEOUT_S = 20.0
LOST: Final = "Internal error from Core"
"""What grpc.aio's client makes of a status that comes while it is writing to a stream: the status is lost."""
ATTEMPTS: Final = 10
KINDS: Final = (Kind.SERVICE, Kind.GATEWAY, Kind.PERSON, Kind.DEVICE)
ELSEWHERE: Final = "southern-hospitals"
"""An organization that has nothing here."""

GATEWAY: Final = "gateway"
"""In the tables the place of whichever gateway."""

FEED = "feed.v1.FeedService"
_SERVED: Final = {
    "identity": (
        *("identity.v1.RegistryService", "identity.v1.CertificateService", "identity.v1.EnrolmentService"),
        *("identity.v1.DeviceService", FEED),
    ),
    "release": ("release.v1.ReleaseService", "release.v1.ArtifactService", FEED),
    "attestation": ("attestation.v1.AttestationService", FEED),
    "policy": ("policy.v1.DecisionService", "policy.v1.PolicyStatusService"),
    "revocation": ("revocation.v1.RevocationService", "revocation.v1.HeadService", FEED),
    "edge": ("revocation.v1.EdgeService",),
    "evidence": (
        *("evidence.v1.EvidenceLogService", "evidence.v1.EvidenceReadService"),
        "evidence.v1.EvidenceErasureService",
    ),
    GATEWAY: (
        *("gateway.v1.CommandService", "gateway.v1.IntentService", "gateway.v1.GatewayDeviceService"),
        "gateway.v1.DeviceLinkService",
    ),
}
SERVED: Final = {process: tuple(f"vigil.api.{name}" for name in names) for process, names in _SERVED.items()}
"""Which process serves which services of ours; a test holds it against what they say of themselves."""
FOREIGN: Final = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
"""What every process serves besides."""


def declared() -> set[str]:
    """Every service that any contract of ours declares."""
    found: set[str] = set()
    for module in pkgutil.walk_packages(vigil.api.__path__, "vigil.api."):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(module.name).DESCRIPTOR
            found.update(service.full_name for service in descriptor.services_by_name.values())
    return found


@dataclass(frozen=True)
class Method:
    """One method at one process."""

    process: str
    descriptor: MethodDescriptor
    rules: tuple[CallerRule, ...]

    @property
    def service(self) -> str:
        return self.descriptor.containing_service.full_name

    @property
    def name(self) -> str:
        """As people say it: `RegistryService/GetSite`."""
        return f"{self.service.rpartition('.')[2]}/{self.descriptor.name}"

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.descriptor.name}"

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(rule.kind for rule in self.rules)

    def request(self, **fields: Any) -> Any:
        """A request; empty without fields."""
        return GetMessageClass(self.descriptor.input_type)(**fields)

    def naming(self, rule: CallerRule, value: str) -> Message:
        """A request whose field, that the rule is about, has this value; nothing else in it."""
        assert rule.path is not None
        request: Any = self.request()
        *outer, last = rule.path.fields
        target = request
        for step in outer:
            target = getattr(target, step.name)
            if step.is_repeated:
                target = target.add()
        setattr(target, last.name, value)
        return request

    async def call(self, channel: grpc.aio.Channel, request: Message) -> Any:
        """Call with one message; the (first) answer, or None where a stream ends without any. Raises Refused."""
        for attempt in range(ATTEMPTS):
            try:
                return await self._call(channel, request)
            except grpc.aio.AioRpcError as error:
                if error.details() != LOST or attempt == ATTEMPTS - 1:
                    raise from_rpc_error(error) from error
        return None

    async def _call(self, channel: grpc.aio.Channel, request: Message) -> Any:
        asked, answered = self.descriptor.client_streaming, self.descriptor.server_streaming
        kind = f"{'stream' if asked else 'unary'}_{'stream' if answered else 'unary'}"
        make = getattr(channel, kind)
        multicallable = make(
            self.path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(self.descriptor.output_type).FromString,
        )
        call = multicallable(_once(request) if asked else request, timeout=TIMEOUT_S)
        if not answered:
            return await call
        try:
            async for response in call:
                return response
            return None
        finally:
            call.cancel()

    async def refusal(self, channel: grpc.aio.Channel, request: Message | None = None) -> Refused:
        """The refusal of a call that must not be admitted."""
        try:
            answer = await self.call(channel, self.request() if request is None else request)
        except Refused as refusal:
            return refusal
        raise AssertionError(f"{self.name} at {self.process} answered {answer!r}")

    async def is_not_reached(self, channel: grpc.aio.Channel) -> None:
        """The handshake fails: gRPC shows UNAVAILABLE, and nothing of ours was said."""
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self._call(channel, self.request())
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE, self.path
        assert TRAILER not in dict(raised.value.trailing_metadata() or ())


async def _once(request: Message) -> AsyncIterator[Message]:
    yield request


def _methods(process: str, services: Sequence[str]) -> Iterator[Method]:
    for service in services:
        rules = access_of(service)
        for descriptor in Default().FindServiceByName(service).methods:
            access = rules[f"/{service}/{descriptor.name}"]
            yield Method(process, descriptor, access.callers or ())


declared()
METHODS: Final = tuple(
    method for process, services in SERVED.items() for method in _methods(process, services)
)


def foreign_methods(process: str) -> tuple[Method, ...]:
    """Health and reflection; known once `vigil.rpc.builtin` has described version 1 of reflection."""
    from vigil.rpc.builtin import reflection_handlers

    reflection_handlers(())
    found = tuple(_methods(process, FOREIGN))
    assert {method.path for method in found} == VERIFIED_CALLER_METHODS
    return found


Contents = Mapping[str, frozenset[tuple[Any, ...]]]
"""Rows by `process/database/table`."""

BY_ITSELF: Final = ("revocation/revocation.db/head_lease", "attestation/", "evidence/")
"""What moves while nobody does anything: heads are signed, pumps attest when it is due."""
WHEN: Final = {"revocation/revocation.db/acknowledgement": "enforced_at"}
"""A pump that comes back acknowledges what it has enforced since: the time is another, the row is not."""
ATTESTING: Final = {"evidence", "result", "census", "query"}
"""Kinds of what is recorded meanwhile: pumps attest, and the log counts its subjects."""
QUIET_S: Final = 3.0
"""Much longer than a gateway waits before it saves its copy of the registry."""


def contents(stack: Stack) -> Contents:
    """Every row of every table of every process, without the times of `WHEN`."""
    found = {}
    for path in sorted(stack.folder.path.rglob("*.db")):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (table,) in names:
                place = f"{path.relative_to(stack.folder.path)}/{table}"
                rows = connection.execute(f'SELECT * FROM "{table}"')
                kept = [at for at, column in enumerate(rows.description) if column[0] != WHEN.get(place)]
                found[place] = frozenset(tuple(row[at] for at in kept) for row in rows)
    return found


def moved(before: Contents, after: Contents) -> list[str]:
    """Tables with other rows than before, but for what moves by itself."""
    places = {*before, *after}
    return sorted(
        f"{place}: {len(after[place] - before[place])} new, {len(before[place] - after[place])} gone"
        for place in places
        if not place.startswith(BY_ITSELF) and before[place] != after[place]
    )


async def settled(stack: Stack) -> Contents:
    """Every row, once what came before these tests has come to rest: sightings, acknowledgements, saved copies."""
    await stack.calm()
    last = contents(stack)
    while True:
        await asyncio.sleep(QUIET_S)
        now = contents(stack)
        if not moved(last, now):
            return now
        last = now


def assert_unchanged(before: Contents, after: Contents) -> None:
    """No table of any process has another row, and what the log has more are pumps' own attestations."""
    assert set(after) == set(before)
    assert moved(before, after) == []
    [log] = [place for place in before if place.startswith("evidence/") and place.endswith("/entry")]
    assert before[log] <= after[log]
    # Columns: index, leaf, digest, kind, organization, site.
    assert {row[3] for row in after[log] - before[log]} <= ATTESTING


@dataclass
class Callers:
    """Credentials by what they are, made when they are first asked for, and channels for them."""

    stack: Stack
    tmp_path: Path
    _made: dict[tuple[Any, ...], Issued] = field(default_factory=dict)
    _closing: list[Any] = field(default_factory=list)
    _foreign: TestPki | None = None
    _bare: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    _others: dict[Kind, Channels] = field(default_factory=dict)

    def process(self, method: Method) -> str:
        """The name of the process that serves a method here: of gateways, the first hospital's."""
        return self.stack.world.gateways[self.stack.first] if method.process == GATEWAY else method.process

    def server_name(self, method: Method) -> str:
        """What its certificate must carry."""
        process = self.process(method)
        return (
            f"{process}.gateway.{TRUST_DOMAIN}" if method.process == GATEWAY else f"{process}.{TRUST_DOMAIN}"
        )

    def channel(self, method: Method, credential: Issued) -> grpc.aio.Channel:
        return self.stack.channel(credential.tls_files, self.process(method))

    def of(self, kind: Kind, subject_id: str = "", **values: Any) -> Issued:
        """A credential; without more the mightiest of its kind, at the first hospital where it has a place."""
        key = (kind, subject_id, *sorted(values.items()))
        if key not in self._made:
            defaults: dict[str, Any] = {"organization": "operator", "sites": (EVERY,)}
            name = subject_id or self.own_id(kind)
            if kind is Kind.SERVICE:
                defaults = {"organization": EVERY, "roles": (name,)}
            elif kind in (Kind.GATEWAY, Kind.DEVICE):
                defaults = {"organization": HOSPITALS, "sites": (self.stack.first,)}
            self._made[key] = self.stack.issue(kind, name, **{**defaults, **values})
        return self._made[key]

    def own_id(self, kind: Kind) -> str:
        """Somebody there is."""
        return {
            Kind.SERVICE: "release",
            Kind.GATEWAY: self.stack.world.gateways[self.stack.first],
            Kind.PERSON: "p-ada",
            Kind.DEVICE: self.stack.pumps(self.stack.first)[0].device_id,
        }[kind]

    def another_id(self, kind: Kind) -> str:
        """Somebody else of that kind."""
        return {
            Kind.SERVICE: "policy",
            Kind.GATEWAY: self.stack.world.gateways[self.stack.second],
            Kind.PERSON: "p-ben",
            Kind.DEVICE: self.stack.pumps(self.stack.second)[0].device_id,
        }[kind]

    def right(self, rule: CallerRule, **values: Any) -> Issued:
        """Whom a rule is about, with its roles."""
        if rule.kind is Kind.SERVICE:
            return self.of(Kind.SERVICE, rule.roles[0] if rule.roles else "", **values)
        roles = {"roles": rule.roles[:1]} if rule.roles else {}
        return self.of(rule.kind, **{**roles, **values})

    def wrong(self, method: Method) -> Iterator[Issued]:
        """Every kind that a method does not admit, and of those it admits somebody without the role."""
        for kind in KINDS:
            rules = [rule for rule in method.rules if rule.kind is kind]
            if not rules:
                yield self.of(kind, **({"roles": ("admin", "auditor")} if kind is Kind.PERSON else {}))
            elif all(rule.roles for rule in rules):
                roles = {role for rule in rules for role in rule.roles}
                if kind is Kind.SERVICE:
                    yield self.of(kind, next(role for role in SERVED if role not in roles))
                else:
                    yield self.of(kind, roles=("visitor",))
                    yield self.of(kind, roles=())

    def bare(self, method: Method) -> grpc.aio.Channel:
        """Without any certificate, but knowing whom to trust."""
        process = self.process(method)
        if process not in self._bare:
            bundle = TrustBundle.from_json(self.stack.folder.trust.read_text())
            self._bare[process] = grpc.aio.secure_channel(
                self.stack.address(process),
                grpc.ssl_channel_credentials(bundle.root_pem),
                options=client_options(self.server_name(method)),
            )
        return self._bare[process]

    def foreign(self, method: Method, kind: Kind) -> grpc.aio.Channel:
        """With a certificate of another trust domain that grants the same."""
        if self._foreign is None:
            self._foreign = TestPki(self.tmp_path, trust_domain="vigil.elsewhere")
        if kind not in self._others:
            roles = ("admin", "technician", "recall") if kind is Kind.PERSON else ()
            made = self._foreign.issue(kind, self.own_id(kind), roles=roles).tls_files
            files = TlsFiles(made.certificate, made.key, self.stack.folder.trust)
            self._others[kind] = Channels(tls=files, trust_domain=TRUST_DOMAIN, clock=SystemClock())
        channels, process = self._others[kind], self.process(method)
        make = channels.gateway if method.process == GATEWAY else channels.service
        return make(self.stack.address(process), process)

    async def close(self) -> None:
        for channel in self._bare.values():
            await channel.close()
        for channels in self._others.values():
            await channels.close()


def is_alone(refusal: Refused, reason: Reason) -> bool:
    """Whether a refusal says this and nothing beside it."""
    return [one.reason for one in refusal.refusals] == [reason]
