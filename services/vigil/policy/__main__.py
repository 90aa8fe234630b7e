"""The policy service: ``python -m vigil.policy --config FILE``."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from vigil.api.policy.v1 import policy_pb2_grpc
from vigil.api.revocation.v1 import revocation_pb2_grpc
from vigil.core.certificates import ChainVerifier, Identity
from vigil.core.signing_clock import SigningTime
from vigil.core.statements.bodies import Profile, Result
from vigil.core.statements.opened import open_signer
from vigil.errors import Reason, refused
from vigil.feed import Replica
from vigil.feed.evidence import EvidenceAppender
from vigil.feed.trust import CurrentVerifier
from vigil.policy.case import Device, Installable, Verified
from vigil.policy.config import PolicyConfig
from vigil.policy.engine.bundle import DEFAULT_BUNDLE, read_bundle
from vigil.policy.engine.port import PolicyEngine
from vigil.policy.engine.wasm import WasmEngine
from vigil.policy.heads import HeadFollower
from vigil.policy.metrics import PolicyMetrics
from vigil.policy.replicas import KINDS, Devices, Published, Results
from vigil.policy.revoked import Revocations
from vigil.policy.service import Decisions
from vigil.policy.servicer import DecisionServicer, PolicyStatusServicer
from vigil.rpc.channel import Channels
from vigil.rpc.options import MAX_MESSAGE_BYTES
from vigil.rpc.server import GrpcServer, Servicer
from vigil.rpc.service_main import Process, run
from vigil.rpc.tls import TlsWatcher


async def open_engine(config: PolicyConfig) -> PolicyEngine:
    """The engine with the bundle in force. Raises POLICY_UNDEFINED for one that cannot be run."""
    published = config.data_dir / "bundle.tar.gz"
    path = config.bundle or (published if published.exists() else DEFAULT_BUNDLE)
    try:
        bundle = read_bundle(path.read_bytes())
    except OSError as error:
        raise refused(Reason.POLICY_UNDEFINED, f"the bundle {path} cannot be read: {error}") from error
    if config.engine == "wasm":
        return WasmEngine(bundle)
    # Its HTTP client costs a third of a second to import, and most installations run Rego in the process.
    from vigil.policy.engine.opa_server import OpaServerEngine

    host, port = config.opa_address
    return await OpaServerEngine.open(host=host, port=port, revision=bundle.revision)


class Memory:
    """Everything known without asking, followed for the life of the process."""

    def __init__(
        self,
        *,
        config: PolicyConfig,
        process: Process,
        channels: Channels,
        verifier: CurrentVerifier,
        on_head: Callable[[int], object],
    ) -> None:
        self._verifier = verifier
        self.devices = Devices()
        self.published = Published(verifier=verifier)
        self.results = Results(verifier=verifier)
        channel = channels.service(config.peer("revocation"), "revocation")
        self._heads = HeadFollower(
            stub=revocation_pb2_grpc.HeadServiceStub(channel),
            verifier=verifier,
            clock=process.clock,
            entropy=process.entropy,
            on_head=on_head,
        )
        self._replicas = [
            self._replica(name, view, config, process, channels)
            for name, view in (
                ("identity", self.devices),
                ("release", self.published),
                ("attestation", self.results),
            )
        ]
        self._clock = process.clock
        for replica in self._replicas:
            process.supervise(f"replica-{replica.name}", replica.run())
        process.supervise("heads", self._heads.run())

    @staticmethod
    def _replica(
        name: str,
        view: Devices | Published | Results,
        config: PolicyConfig,
        process: Process,
        channels: Channels,
    ) -> Replica:
        channel = channels.service(config.peer(name), name)
        return Replica(
            channel_factory=lambda: channel,
            name=name,
            clock=process.clock,
            entropy=process.entropy,
            on_change=view.changed,
            on_reset=view.reset,
            kinds=KINDS[name],
        )

    @property
    def verifier(self) -> ChainVerifier:
        return self._verifier()

    @property
    def revocations(self) -> Revocations:
        return self._heads.revocations

    def device(self, device_id: str) -> Device | None:
        return self.devices.get(device_id)

    def profile(self, model: str) -> Verified[Profile] | None:
        return self.published.profile(model)

    def result(self, device_id: str) -> Verified[Result] | None:
        return self.results.get(device_id)

    def installable(self, digest: bytes) -> Installable | None:
        return self.published.installable(digest)

    def ages(self) -> Mapping[str, float]:
        return {
            **{replica.name: replica.age() for replica in self._replicas},
            "revocation": self._heads.age(),
        }

    def caller_refusal(self, caller: Identity) -> Reason | None:
        """Why this caller may not act; None when nothing is known against it."""
        return self.revocations.state.identity_refusal(caller, at=self._clock.now())


async def serve(
    config: PolicyConfig,
    process: Process,
    *,
    opened: Callable[[PolicyConfig], Awaitable[PolicyEngine]] = open_engine,
) -> None:
    """Wire and serve until told to stop."""
    verifier = CurrentVerifier(watcher=TlsWatcher(files=config.tls, clock=process.clock))
    # Time: what a decision signer has durable are its decisions on record; at a start, what heads say.
    signing_time = SigningTime(clock=process.clock, durable=None)
    signer = open_signer(
        config.signer_certificate, config.signer_key, "decision", verifier=verifier(), at=process.clock.now()
    )
    scribe = signer.scribe(clock=signing_time, entropy=process.entropy)
    engine = await opened(config)
    channels = Channels(
        tls=config.tls, trust_domain=config.trust_domain, clock=process.clock, network=process.network
    )
    memory = Memory(
        config=config, process=process, channels=channels, verifier=verifier, on_head=signing_time.begin
    )
    appender = EvidenceAppender(
        channel=channels.service(config.peer("evidence"), "evidence"),
        entropy=process.entropy,
        streams=config.streams,
    )
    appender.start()
    decisions = Decisions(
        facts=memory,
        engine=engine,
        scribe=scribe,
        appender=appender,
        clock=process.clock,
        metrics=PolicyMetrics(process.metrics),
        on_recorded=signing_time.stored,
    )
    server = GrpcServer(
        role="policy",
        tls=config.tls,
        clock=process.clock,
        listen=config.listen,
        servicers=_servicers(decisions, config.engine, memory),
        revocation_check=memory.caller_refusal,
        max_message_bytes=MAX_MESSAGE_BYTES,
        metrics=process.metrics,
        entropy=process.entropy,
        network=process.network,
    )
    process.ready(await server.start())
    await process.until_stopped()
    await server.stop()
    await process.end()
    await asyncio.gather(appender.close(), engine.close())
    await channels.close()


def _servicers(decisions: Decisions, engine: str, memory: Memory) -> list[Servicer]:
    return [
        (
            policy_pb2_grpc.add_DecisionServiceServicer_to_server,
            DecisionServicer(decisions=decisions),
            "vigil.api.policy.v1.DecisionService",
        ),
        (
            policy_pb2_grpc.add_PolicyStatusServiceServicer_to_server,
            PolicyStatusServicer(
                decisions=decisions,
                engine=engine,
                ages=memory.ages,
                epoch=lambda: memory.revocations.state.epoch,
            ),
            "vigil.api.policy.v1.PolicyStatusService",
        ),
    ]


def main() -> None:
    """Run the service."""
    run("policy", PolicyConfig, serve)


if __name__ == "__main__":
    main()
