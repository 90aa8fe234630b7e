"""The gateway's calls to the control plane: one channel for each service, pooled streams where much travels."""

from dataclasses import dataclass
from typing import Self

from vigil.api.attestation.v1 import attestation_pb2, attestation_pb2_grpc
from vigil.api.identity.v1 import identity_pb2_grpc
from vigil.api.policy.v1 import policy_pb2, policy_pb2_grpc
from vigil.api.release.v1 import release_pb2_grpc
from vigil.api.revocation.v1 import revocation_pb2_grpc
from vigil.core.clock import Entropy
from vigil.feed.evidence import EvidenceAppender
from vigil.gateway.config import GatewayConfig
from vigil.gateway.decisions import STREAMS
from vigil.rpc.channel import Channel, Channels
from vigil.rpc.streams import Exchange

ATTESTATION_STREAMS = 2
"""A site's devices attest every few minutes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """Stubs and exchanges, made once; they connect when they are used."""

    channels: Channels
    identity: Channel
    release: Channel
    devices: "identity_pb2_grpc.DeviceServiceAsyncStub"
    certificates: "identity_pb2_grpc.CertificateServiceAsyncStub"
    artifacts: "release_pb2_grpc.ArtifactServiceAsyncStub"
    decisions: "policy_pb2_grpc.DecisionServiceAsyncStub"
    decide: Exchange[policy_pb2.DecideItem, policy_pb2.DecideOutcome]
    attest: Exchange[attestation_pb2.AttestItem, attestation_pb2.AttestOutcome]
    edges: "tuple[revocation_pb2_grpc.EdgeServiceAsyncStub, ...]"
    evidence: EvidenceAppender

    @classmethod
    def of(cls, config: GatewayConfig, *, channels: Channels, entropy: Entropy) -> Self:
        """Make them of the configuration. Raises ConfigError for a peer that it does not name."""
        identity = channels.service(config.peer("identity"), "identity")
        release = channels.service(config.peer("release"), "release")
        policy = channels.service(config.peer("policy"), "policy")
        attestation = channels.service(config.peer("attestation"), "attestation")
        decisions = policy_pb2_grpc.DecisionServiceStub(policy)
        attesting = attestation_pb2_grpc.AttestationServiceStub(attestation)
        return cls(
            channels=channels,
            identity=identity,
            release=release,
            devices=identity_pb2_grpc.DeviceServiceStub(identity),
            certificates=identity_pb2_grpc.CertificateServiceStub(identity),
            artifacts=release_pb2_grpc.ArtifactServiceStub(release),
            decisions=decisions,
            decide=Exchange(
                name="policy",
                open_stream=decisions.Decide,
                pack=lambda items: policy_pb2.DecideRequest(gateway_id=config.gateway_id, items=items),
                unpack=lambda response: response.items,
                entropy=entropy,
                streams=STREAMS,
                max_batch=8,
                generation=lambda: policy.generation,
            ),
            attest=Exchange(
                name="attestation",
                open_stream=attesting.Attest,
                pack=lambda items: attestation_pb2.AttestRequest(gateway_id=config.gateway_id, items=items),
                unpack=lambda response: response.items,
                entropy=entropy,
                streams=ATTESTATION_STREAMS,
                max_batch=8,
                generation=lambda: attestation.generation,
            ),
            edges=tuple(
                revocation_pb2_grpc.EdgeServiceStub(channels.service(address, "edge"))
                for address in config.edges
            ),
            evidence=EvidenceAppender(
                channel=channels.service(config.peer("evidence"), "evidence"), entropy=entropy
            ),
        )

    def start(self) -> None:
        """Open the streams ahead of the first command."""
        self.decide.start()
        self.attest.start()
        self.evidence.start()

    async def close(self) -> None:
        """End every stream and channel."""
        await self.decide.close()
        await self.attest.close()
        await self.evidence.close()
        await self.channels.close()
