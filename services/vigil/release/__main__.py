"""The release service: ``python -m vigil.release --config FILE``."""

from collections.abc import Callable

from vigil.api.feed.v1 import feed_pb2_grpc
from vigil.api.release.v1 import release_pb2_grpc
from vigil.core.certificates import Identity
from vigil.errors import Reason
from vigil.feed import FeedServicer, Outbox
from vigil.feed.evidence import EvidenceAppender, EvidenceSpool
from vigil.feed.trust import CurrentVerifier, RevokedCallers
from vigil.release.artifacts import ArtifactStore
from vigil.release.config import ReleaseConfig
from vigil.release.service import Ports, ReleaseService
from vigil.release.servicer import ArtifactServicer, ReleaseServicer
from vigil.release.store import METADATA, MIGRATIONS
from vigil.release.uploads import Uploads
from vigil.rpc.channel import Channels
from vigil.rpc.options import MAX_MESSAGE_BYTES
from vigil.rpc.server import GrpcServer, Servicer
from vigil.rpc.service_main import Process, run
from vigil.rpc.tls import TlsWatcher
from vigil.storage import Disk, open_database


def servicers(ports: Ports) -> list[Servicer]:
    """Name every contract that this process serves."""
    package = "vigil.api.release.v1"
    service = ReleaseService(ports)
    artifacts = ArtifactServicer(service=service, uploads=Uploads(ports.artifacts))
    return [
        (
            release_pb2_grpc.add_ReleaseServiceServicer_to_server,
            ReleaseServicer(service),
            f"{package}.ReleaseService",
        ),
        (
            release_pb2_grpc.add_ArtifactServiceServicer_to_server,
            artifacts,
            f"{package}.ArtifactService",
        ),
        (
            feed_pb2_grpc.add_FeedServiceServicer_to_server,
            FeedServicer(ports.outbox, ports.clock),
            "vigil.api.feed.v1.FeedService",
        ),
    ]


async def serve(config: ReleaseConfig, process: Process, *, disk: Disk = open_database) -> None:
    """Wire and serve until told to stop."""
    clock, entropy = process.clock, process.entropy
    database = disk(config.database, metadata=METADATA, migrations=MIGRATIONS)
    channels = Channels(
        tls=config.tls, trust_domain=config.trust_domain, clock=clock, network=process.network
    )
    appender = EvidenceAppender(
        channel=channels.service(config.peer("evidence"), "evidence"), entropy=entropy, streams=1
    )
    spool = EvidenceSpool(database=database, appender=appender, entropy=entropy)
    verifier = CurrentVerifier(watcher=TlsWatcher(files=config.tls, clock=clock), at_once=True)
    check: Callable[[Identity], Reason | None] | None = None
    if "revocation" in config.peers:
        channel = channels.service(config.peer("revocation"), "revocation")
        revoked = RevokedCallers(
            channel_factory=lambda: channel, verifier=verifier, clock=clock, entropy=entropy
        )
        process.supervise("revocations", revoked.run())
        check = revoked.refusal
    ports = Ports(
        database=database,
        outbox=Outbox(database),
        spool=spool,
        artifacts=ArtifactStore(config.artifacts),
        verifier=verifier,
        revoked=check or _nobody,
        clock=clock,
    )
    server = GrpcServer(
        role=process.role,
        tls=config.tls,
        clock=clock,
        listen=config.listen,
        servicers=servicers(ports),
        revocation_check=check,
        max_message_bytes=MAX_MESSAGE_BYTES,
        metrics=process.metrics,
        entropy=entropy,
        network=process.network,
    )
    process.supervise("spool", spool.run())
    process.ready(await server.start())
    try:
        await process.until_stopped()
    finally:
        await server.stop()
        await process.end()
        await appender.close()
        await channels.close()
        database.close()


def _nobody(_who: Identity) -> Reason | None:
    """Without a revocation service nobody is known revoked."""
    return None


def main() -> None:
    """Run as ``python -m vigil.release --config FILE``."""
    run("release", ReleaseConfig, serve)


if __name__ == "__main__":
    main()
