"""An edge: ``python -m vigil.revocation.edge --config FILE``. Between the service and the gateways."""

from collections.abc import Callable

import redis.asyncio

from vigil.api.revocation.v1 import revocation_pb2_grpc
from vigil.revocation import edge_store
from vigil.revocation.bus import connect
from vigil.revocation.config import EdgeConfig
from vigil.revocation.edge_chain import EdgeChain
from vigil.revocation.edge_hub import SERVICE, EdgeServicer, Hub, add_to_server
from vigil.revocation.edge_upstream import Poller, Reporter, Subscriber
from vigil.revocation.trust import CurrentVerifier
from vigil.rpc.channel import Channels
from vigil.rpc.server import GrpcServer
from vigil.rpc.service_main import Process, run
from vigil.rpc.tls import TlsWatcher
from vigil.storage import Database, Disk, open_database

FOLLOW = f"/{SERVICE}/Follow"


async def serve(
    config: EdgeConfig,
    process: Process,
    *,
    disk: Disk = open_database,
    bus: Callable[[str], redis.asyncio.Redis] = connect,
) -> None:
    """Wire and serve until told to stop."""
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = disk(
        config.database, metadata=edge_store.METADATA, migrations="vigil.revocation.edge_migrations"
    )
    channels = Channels(
        tls=config.tls, trust_domain=config.trust_domain, clock=process.clock, network=process.network
    )
    try:
        await _serve(config, process, database, channels, bus)
    finally:
        await process.end()
        await channels.close()
        database.close()


async def _serve(
    config: EdgeConfig,
    process: Process,
    database: Database,
    channels: Channels,
    bus: Callable[[str], redis.asyncio.Redis],
) -> None:
    clock = process.clock
    verifier = CurrentVerifier(watcher=TlsWatcher(files=config.tls, clock=clock))
    chain = EdgeChain(database=database, verifier=verifier, clock=clock)
    chain.load()
    hub = Hub(chain=chain, clock=clock, metrics=process.metrics)
    service = channels.service(config.peer("revocation"), "revocation")
    stub = revocation_pb2_grpc.HeadServiceStub(service)
    poller = Poller(
        stub=stub, chain=chain, hub=hub, clock=clock, entropy=process.entropy, metrics=process.metrics
    )
    reporter = Reporter(stub=stub, edge_id=config.edge_id, metrics=process.metrics)
    process.supervise("poll", poller.run())
    process.supervise("report", reporter.run())
    if config.redis_url:
        url = config.redis_url
        subscriber = Subscriber(
            client=lambda: bus(url), chain=chain, hub=hub, hint=poller.hint, metrics=process.metrics
        )
        process.supervise("bus", subscriber.run())
    server = GrpcServer(
        role="edge",
        tls=config.tls,
        clock=clock,
        listen=config.listen,
        servicers=[
            (
                add_to_server,
                EdgeServicer(hub=hub, chain=chain, acknowledge=reporter.put, clock=clock),
                SERVICE,
            )
        ],
        revocation_check=chain.refusal,
        # A gateway past its operational end serves S1 only, and is to know all the more who is revoked.
        grace_methods=(FOLLOW,),
        metrics=process.metrics,
        entropy=process.entropy,
        network=process.network,
    )
    process.ready(await server.start())
    await process.until_stopped()
    await server.stop()


def main() -> None:
    """Run the edge."""
    run("edge", EdgeConfig, serve)


if __name__ == "__main__":
    main()
