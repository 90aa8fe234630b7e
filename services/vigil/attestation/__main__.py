"""The attestation service: ``python -m vigil.attestation --config FILE``."""

from collections.abc import Mapping

from vigil.api.attestation.v1 import attestation_pb2_grpc
from vigil.api.feed.v1 import feed_pb2_grpc
from vigil.attestation import store
from vigil.attestation.config import AttestationConfig
from vigil.attestation.replicas import Devices, ReferenceValues
from vigil.attestation.service import Attestation, Results
from vigil.attestation.servicer import AttestationServicer
from vigil.core.clock_confirmation import start_time
from vigil.core.signing_clock import SigningTime
from vigil.core.statements.opened import open_signer
from vigil.feed import FeedServicer, Outbox, Replica
from vigil.feed.evidence import EvidenceAppender, EvidenceSpool
from vigil.feed.trust import CurrentVerifier, RevokedCallers
from vigil.rpc.channel import Channels
from vigil.rpc.options import MAX_MESSAGE_BYTES
from vigil.rpc.server import GrpcServer, Servicer
from vigil.rpc.service_main import Process, run
from vigil.rpc.tls import TlsWatcher
from vigil.storage import Disk, open_database


def follow_neighbours(
    config: AttestationConfig,
    process: Process,
    channels: Channels,
    views: Mapping[str, Devices | ReferenceValues],
) -> None:
    """Keep what identity and release tell, each in its view."""
    for name, view in views.items():
        channel = channels.service(config.peer(name), name)
        replica = Replica(
            channel_factory=lambda channel=channel: channel,  # type: ignore[misc]
            name=name,
            clock=process.clock,
            entropy=process.entropy,
            on_change=view.changed,
            on_reset=view.reset,
        )
        process.supervise(f"replica-{name}", replica.run())


async def serve(config: AttestationConfig, process: Process, *, disk: Disk = open_database) -> None:
    """Wire and serve until told to stop."""
    clock, entropy = process.clock, process.entropy
    verifier = CurrentVerifier(watcher=TlsWatcher(files=config.tls, clock=clock))
    database = disk(config.database, metadata=store.METADATA, migrations="vigil.attestation.migrations")
    outbox = Outbox(database)
    channels = Channels(
        tls=config.tls, trust_domain=config.trust_domain, clock=clock, network=process.network
    )
    devices, references = Devices(), ReferenceValues(verifier=verifier)
    follow_neighbours(config, process, channels, {"identity": devices, "release": references})
    revocation = channels.service(config.peer("revocation"), "revocation")
    revoked = RevokedCallers(
        channel_factory=lambda: revocation, verifier=verifier, clock=clock, entropy=entropy
    )
    process.supervise("revocations", revoked.run())
    appender = EvidenceAppender(
        channel=channels.service(config.peer("evidence"), "evidence"), entropy=entropy, streams=1
    )
    spool = EvidenceSpool(database=database, appender=appender, entropy=entropy)
    process.supervise("spool", spool.run())
    durable = start_time(
        config.confirmations, verifier(), durable=database.read_now(store.newest_time), now=clock.now()
    )
    signing_time = SigningTime(clock=clock, durable=durable)
    signer = open_signer(
        config.signer_certificate, config.signer_key, "result", verifier=verifier(), at=clock.now()
    )
    attestation = Attestation(
        database=database,
        outbox=outbox,
        spool=spool,
        verifier=verifier,
        devices=devices,
        references=references,
        revoked=revoked.refusal,
        scribe=signer.scribe(clock=signing_time, entropy=entropy),
        clock=clock,
        on_stored=signing_time.stored,
        entropy=entropy,
    )
    servicer = AttestationServicer(attestation=attestation, results=Results(database=database, clock=clock))
    server = GrpcServer(
        role="attestation",
        tls=config.tls,
        clock=clock,
        listen=config.listen,
        servicers=_servicers(servicer, FeedServicer(outbox, clock)),
        revocation_check=revoked.refusal,
        max_message_bytes=MAX_MESSAGE_BYTES,
        metrics=process.metrics,
        entropy=entropy,
        network=process.network,
    )
    process.ready(await server.start())
    await process.until_stopped()
    await server.stop()
    await process.end()
    await appender.close()
    await channels.close()
    database.close()


def _servicers(servicer: AttestationServicer, feed: FeedServicer) -> list[Servicer]:
    return [
        (
            attestation_pb2_grpc.add_AttestationServiceServicer_to_server,
            servicer,
            "vigil.api.attestation.v1.AttestationService",
        ),
        (feed_pb2_grpc.add_FeedServiceServicer_to_server, feed, "vigil.api.feed.v1.FeedService"),
    ]


def main() -> None:
    """Run the service."""
    run("attestation", AttestationConfig, serve)


if __name__ == "__main__":
    main()
