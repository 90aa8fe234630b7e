"""One command's session: a person's context, verified certificates, channels with deadlines."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vigil.api.attestation.v1 import attestation_pb2_grpc
from vigil.api.evidence.v1 import evidence_pb2_grpc
from vigil.api.gateway.v1 import gateway_pb2_grpc
from vigil.api.identity.v1 import identity_pb2_grpc
from vigil.api.policy.v1 import policy_pb2_grpc
from vigil.api.release.v1 import release_pb2_grpc
from vigil.api.revocation.v1 import revocation_pb2_grpc
from vigil.cli.contexts import Context, read_contexts, with_local_endpoints
from vigil.cli.options import Options
from vigil.cli.output import Output
from vigil.core.certificates import ChainVerifier, Identity, Pair, TrustBundle, load_pair
from vigil.core.clock import SystemClock
from vigil.core.statements.envelope import Scribe
from vigil.errors import Reason, Refusal, Refused, refused
from vigil.rpc.channel import Channels
from vigil.rpc.status import translated
from vigil.rpc.tls import TlsFiles
from vigil.run.layout import DataFolder, default_data

if TYPE_CHECKING:
    import grpc

T = TypeVar("T")

PAGE: Final = 500
"""Rows asked for at once."""
UNREACHABLE: Final = frozenset({Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXCEEDED})


@dataclass(frozen=True, slots=True)
class GatewayEnd:
    """A gateway to talk to."""

    gateway_id: str
    address: str
    site_id: str
    channel: "grpc.aio.Channel"

    @property
    def commands(self) -> "gateway_pb2_grpc.CommandServiceAsyncStub":
        return gateway_pb2_grpc.CommandServiceStub(self.channel)

    @property
    def intents(self) -> "gateway_pb2_grpc.IntentServiceAsyncStub":
        return gateway_pb2_grpc.IntentServiceStub(self.channel)

    @property
    def devices(self) -> "gateway_pb2_grpc.GatewayDeviceServiceAsyncStub":
        return gateway_pb2_grpc.GatewayDeviceServiceStub(self.channel)

    @property
    def whom(self) -> str:
        """How it is called in words."""
        return f"the gateway {self.gateway_id} at {self.address}"


class Session:
    """Everything a command needs, made when it is first asked for. For one event loop."""

    def __init__(self, *, options: Options, folder: DataFolder, context: Context, output: Output) -> None:
        self.options = options
        self.folder = folder
        self.context = context
        self.output = output
        self.clock = SystemClock()
        self.entropy = os.urandom

    # --- who

    @cached_property
    def trust_file(self) -> Path:
        """On the machine that runs the services, the bundle that they keep; elsewhere the context's."""
        return self.folder.trust if self.folder.exists() and self._same_root() else self.context.trust

    @cached_property
    def bundle(self) -> TrustBundle:
        return TrustBundle.from_json(self.trust_file.read_text(encoding="utf-8"))

    @cached_property
    def verifier(self) -> ChainVerifier:
        return ChainVerifier(self.bundle)

    @cached_property
    def pair(self) -> Pair:
        return load_pair(self.context.certificate, self.context.key)

    @cached_property
    def person(self) -> Identity:
        """The verified identity behind the context's credential. Raises CERTIFICATE_EXPIRED, CERTIFICATE_INVALID."""
        return self.verifier.verify(self.pair.chain_der, at=self.clock.now(), grace=True)

    @cached_property
    def scribe(self) -> Scribe:
        """Signs in the person's name."""
        return Scribe(
            signer=self.pair.signer,
            issuer=f"{self.person.kind}/{self.person.id}",
            clock=self.clock,
            entropy=self.entropy,
            numbered=False,
        )

    # --- where

    @cached_property
    def channels(self) -> Channels:
        tls = TlsFiles(self.context.certificate, self.context.key, self.trust_file)
        return Channels(tls=tls, trust_domain=self.context.trust_domain, clock=self.clock)

    def channel(self, role: str) -> "grpc.aio.Channel":
        """The channel to a service. Raises SERVICE_UNAVAILABLE where the context names no address of it."""
        address = self.context.endpoints.get(role)
        if address is None:
            raise refused(
                Reason.SERVICE_UNAVAILABLE,
                f"the context {self.context.name} names no address of {role}",
                lifted_by=f"an address of {role} in {self.folder.contexts_file}",
                who="you",
            )
        return self.channels.service(address, role)

    @property
    def registry(self) -> "identity_pb2_grpc.RegistryServiceAsyncStub":
        return identity_pb2_grpc.RegistryServiceStub(self.channel("identity"))

    @property
    def certificates(self) -> "identity_pb2_grpc.CertificateServiceAsyncStub":
        return identity_pb2_grpc.CertificateServiceStub(self.channel("identity"))

    @property
    def enrolment(self) -> "identity_pb2_grpc.EnrolmentServiceAsyncStub":
        return identity_pb2_grpc.EnrolmentServiceStub(self.channel("identity"))

    @property
    def devices(self) -> "identity_pb2_grpc.DeviceServiceAsyncStub":
        return identity_pb2_grpc.DeviceServiceStub(self.channel("identity"))

    @property
    def releases(self) -> "release_pb2_grpc.ReleaseServiceAsyncStub":
        return release_pb2_grpc.ReleaseServiceStub(self.channel("release"))

    @property
    def artifacts(self) -> "release_pb2_grpc.ArtifactServiceAsyncStub":
        return release_pb2_grpc.ArtifactServiceStub(self.channel("release"))

    @property
    def attestation(self) -> "attestation_pb2_grpc.AttestationServiceAsyncStub":
        return attestation_pb2_grpc.AttestationServiceStub(self.channel("attestation"))

    @property
    def evidence(self) -> "evidence_pb2_grpc.EvidenceReadServiceAsyncStub":
        return evidence_pb2_grpc.EvidenceReadServiceStub(self.channel("evidence"))

    @property
    def erasure(self) -> "evidence_pb2_grpc.EvidenceErasureServiceAsyncStub":
        return evidence_pb2_grpc.EvidenceErasureServiceStub(self.channel("evidence"))

    @property
    def revocations(self) -> "revocation_pb2_grpc.RevocationServiceAsyncStub":
        return revocation_pb2_grpc.RevocationServiceStub(self.channel("revocation"))

    @property
    def policy(self) -> "policy_pb2_grpc.PolicyStatusServiceAsyncStub":
        return policy_pb2_grpc.PolicyStatusServiceStub(self.channel("policy"))

    def gateway_end(self, gateway_id: str, address: str, site_id: str = "") -> GatewayEnd:
        """The way to a gateway."""
        return GatewayEnd(gateway_id, address, site_id, self.channels.gateway(address, gateway_id))

    # --- calling

    async def call(
        self,
        whom: str,
        method: Callable[..., Awaitable[T]],
        request: object,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
    ) -> T:
        """One call with a deadline. Raises what refused it; who could not be reached is named."""
        try:
            return await translated(method(request, timeout=timeout or self.options.timeout))
        except Refused as error:
            raise self.named(whom, error) from error

    async def every(
        self,
        whom: str,
        method: Callable[..., Awaitable[Any]],
        request: Any,
        field: str,
        *,
        limit: int = 100_000,
    ) -> list[Any]:
        """Every row of a list, page after page, at most ``limit``."""
        found: list[Any] = []
        while True:
            request.page_size = min(PAGE, limit - len(found))
            response = await self.call(whom, method, request)
            found.extend(getattr(response, field))
            request.page_token = response.next_page_token
            if not request.page_token or len(found) >= limit:
                return found[:limit]

    def named(self, whom: str, error: Refused) -> Refused:
        """The same failure, saying who did not answer and where to look."""
        if error.reason not in UNREACHABLE:
            return error
        address = self.context.endpoints.get(whom)
        name = f"{whom} at {address}" if address else whom
        first = error.refusals[0]
        return Refused(
            [
                Refusal(
                    first.reason,
                    f"{name} did not answer: {first.sentence}",
                    "`vigil status`, which tells what runs and what does not",
                    "the operator",
                    {**first.values, "service": whom},
                )
            ]
        )

    async def close(self) -> None:
        """Close what was opened."""
        if "channels" in self.__dict__:
            await self.channels.close()

    def _same_root(self) -> bool:
        try:
            own = TrustBundle.from_json(self.context.trust.read_text(encoding="utf-8"))
            local = TrustBundle.from_json(self.folder.trust.read_text(encoding="utf-8"))
        except (OSError, Refused):
            return False
        return own.root == local.root


def data_folder(options: Options) -> DataFolder:
    """The data folder that was named, or the user's own."""
    return DataFolder((options.data or default_data()).absolute())


def open_session(options: Options, output: Output) -> Session:
    """Open the session of the named or current context. Raises UsageError, FIELD_INVALID."""
    folder = data_folder(options)
    context = read_contexts(folder).get(options.context)
    return Session(
        options=options, folder=folder, context=with_local_endpoints(context, folder), output=output
    )
