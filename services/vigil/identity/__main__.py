"""The identity service's process: everything is put together here and nowhere else."""

import asyncio
import zoneinfo

import structlog

from vigil.api.feed.v1 import feed_pb2_grpc
from vigil.api.identity.v1 import identity_pb2_grpc
from vigil.core.clock_confirmation import start_time
from vigil.core.signing_clock import SigningTime
from vigil.errors import Refused
from vigil.feed import FeedServicer, Outbox
from vigil.feed.evidence import EvidenceAppender, EvidenceSpool
from vigil.feed.trust import RevokedCallers
from vigil.identity.ca import CertificateAuthority
from vigil.identity.config import IdentityConfig
from vigil.identity.ports import Ports
from vigil.identity.service import IdentityService
from vigil.identity.servicer import CertificateServicer, DeviceServicer, EnrolmentServicer, RegistryServicer
from vigil.identity.store import METADATA, MIGRATIONS, newest_time
from vigil.identity.trust import Trust
from vigil.rpc.channel import Channels
from vigil.rpc.server import GrpcServer, Servicer
from vigil.rpc.service_main import Process, run
from vigil.storage import Disk, open_database

GRACE_METHODS = frozenset(
    {
        # A gateway that slept past its operational end comes back by renewing (COMMANDS, Certificates).
        "/vigil.api.identity.v1.CertificateService/RenewGatewayCertificate",
    }
)


def servicers(service: IdentityService, feed: FeedServicer) -> list[Servicer]:
    """Name every contract that this process serves."""
    package = "vigil.api.identity.v1"
    return [
        (
            identity_pb2_grpc.add_RegistryServiceServicer_to_server,
            RegistryServicer(service),
            f"{package}.RegistryService",
        ),
        (
            identity_pb2_grpc.add_CertificateServiceServicer_to_server,
            CertificateServicer(service),
            f"{package}.CertificateService",
        ),
        (
            identity_pb2_grpc.add_EnrolmentServiceServicer_to_server,
            EnrolmentServicer(service),
            f"{package}.EnrolmentService",
        ),
        (
            identity_pb2_grpc.add_DeviceServiceServicer_to_server,
            DeviceServicer(service),
            f"{package}.DeviceService",
        ),
        (feed_pb2_grpc.add_FeedServiceServicer_to_server, feed, "vigil.api.feed.v1.FeedService"),
    ]


async def serve(config: IdentityConfig, process: Process, *, disk: Disk = open_database) -> None:
    """Run the service until the process is told to stop."""
    clock, entropy = process.clock, process.entropy
    database = disk(config.data_dir / f"{process.role}.db", metadata=METADATA, migrations=MIGRATIONS)
    channels = Channels(
        tls=config.tls, trust_domain=config.trust_domain, clock=clock, network=process.network
    )
    outbox = Outbox(database)
    appender = EvidenceAppender(
        channel=channels.service(config.peer("evidence"), "evidence"), entropy=entropy, streams=1
    )
    spool = EvidenceSpool(database=database, appender=appender, entropy=entropy)
    # Time: whoever issues certificates withholds like every signer when the clock leaps.
    trust = Trust(config.pki_dir)
    durable = start_time(
        config.confirmations, trust.verifier, durable=database.read_now(newest_time), now=clock.now()
    )
    signing_time = SigningTime(clock=clock, durable=durable)
    ports = Ports(
        database=database,
        outbox=outbox,
        spool=spool,
        authority=CertificateAuthority.load(
            config.pki_dir, clock=signing_time, entropy=entropy, on_issued=signing_time.stored
        ),
        trust=trust,
        clock=clock,
        entropy=entropy,
        time_zones=frozenset({*zoneinfo.available_timezones(), "UTC"}),
    )
    service = IdentityService(ports)
    await service.registry.begin()
    revoked = None
    if "revocation" in config.peers:
        channel = channels.service(config.peer("revocation"), "revocation")
        revoked = RevokedCallers(
            channel_factory=lambda: channel,
            verifier=lambda: ports.trust.verifier,
            clock=clock,
            entropy=entropy,
        )
        process.supervise("revocations", revoked.run())
    server = GrpcServer(
        role=process.role,
        tls=config.tls,
        clock=clock,
        listen=config.listen,
        servicers=servicers(service, FeedServicer(outbox, clock)),
        revocation_check=None if revoked is None else revoked.refusal,
        grace_methods=GRACE_METHODS,
        metrics=process.metrics,
        entropy=entropy,
        network=process.network,
    )
    process.supervise("spool", spool.run())
    process.supervise("sweep", _sweep(service, config.sweep_seconds))
    process.ready(await server.start())
    try:
        await process.until_stopped()
    finally:
        await server.stop()
        await process.end()
        await appender.close()
        await channels.close()
        database.close()


async def _sweep(service: IdentityService, seconds: float) -> None:
    log = structlog.get_logger("vigil.identity")
    while True:
        await asyncio.sleep(seconds)
        try:
            await service.sweep()
        except Refused as refusal:
            log.warning("sweep_waits", reason=refusal.reason, sentence=str(refusal))


def main() -> None:
    """Run as ``python -m vigil.identity --config FILE``."""
    run("identity", IdentityConfig, serve)


if __name__ == "__main__":
    main()
