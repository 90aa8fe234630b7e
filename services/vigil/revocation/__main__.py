"""The revocation service: ``python -m vigil.revocation --config FILE``."""

from collections.abc import Callable
from functools import partial

import grpc
import redis.asyncio
from sqlalchemy import Connection

from vigil.api.feed.v1 import feed_pb2_grpc
from vigil.api.revocation.v1 import revocation_pb2_grpc
from vigil.core.certificates import ChainVerifier, Pair, load_pair
from vigil.core.clock import Clock
from vigil.core.clock_confirmation import confirmed_time, read_folder
from vigil.core.signing_clock import SigningClock
from vigil.feed import FeedServicer, Outbox
from vigil.feed.evidence import EvidenceAppender, EvidenceSpool
from vigil.revocation import store
from vigil.revocation.bus import Publisher, connect
from vigil.revocation.chain import Chain
from vigil.revocation.config import RevocationConfig
from vigil.revocation.coverage import Acknowledgements
from vigil.revocation.directory import Directory
from vigil.revocation.heads import HeadAnswerer, HeadLease, HeadSigner, head_key
from vigil.revocation.restore import Restorer
from vigil.revocation.rooted import RootSteps
from vigil.revocation.service import ChainWriter, Revocations
from vigil.revocation.servicer import HeadServicer, RevocationServicer
from vigil.revocation.trust import CurrentVerifier
from vigil.rpc.channel import Channels
from vigil.rpc.options import MAX_MESSAGE_BYTES
from vigil.rpc.server import GrpcServer, Servicer
from vigil.rpc.service_main import Process, run
from vigil.rpc.tls import TlsWatcher
from vigil.storage import Database, Disk, after_commit, open_database

PRECEDENCE = ("recall", "admin", "edge")
"""Who revokes and who carries it further: their calls have places that a flood of others' does not take."""


def _pairs(config: RevocationConfig) -> list[Pair]:
    pairs = [load_pair(config.signer_certificate, config.signer_key)]
    if config.spare_signer_certificate is not None and config.spare_signer_key is not None:
        pairs.append(load_pair(config.spare_signer_certificate, config.spare_signer_key))
    return pairs


async def serve(
    config: RevocationConfig,
    process: Process,
    *,
    disk: Disk = open_database,
    bus: Callable[[str], redis.asyncio.Redis] = connect,
) -> None:
    """Wire and serve until told to stop."""
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = disk(config.database, metadata=store.METADATA, migrations="vigil.revocation.migrations")
    channels = Channels(
        tls=config.tls, trust_domain=config.trust_domain, clock=process.clock, network=process.network
    )
    evidence = channels.service(config.peer("evidence"), "evidence")
    try:
        # One stream: the log then keeps the order of the chain.
        async with EvidenceAppender(channel=evidence, entropy=process.entropy, streams=1) as appender:
            await _serve(
                config,
                process,
                database=database,
                channels=channels,
                evidence=evidence,
                appender=appender,
                bus=bus,
            )
    finally:
        await process.end()
        await channels.close()
        database.close()


async def _serve(
    config: RevocationConfig,
    process: Process,
    *,
    database: Database,
    channels: Channels,
    evidence: grpc.aio.Channel,
    appender: EvidenceAppender,
    bus: Callable[[str], redis.asyncio.Redis],
) -> None:
    clock = process.clock
    verifier = CurrentVerifier(watcher=TlsWatcher(files=config.tls, clock=clock))
    keys = [
        head_key(pair, verifier=verifier(), clock=clock, entropy=process.entropy) for pair in _pairs(config)
    ]
    lease = HeadLease(database=database, clock=clock, holder=config.instance)
    await lease.acquire()
    chain = Chain(database=database, clock=clock)
    chain.load()
    outbox = Outbox(database)
    spool = EvidenceSpool(database=database, appender=appender, entropy=process.entropy)
    writer = ChainWriter(chain=chain, outbox=outbox, spool=spool, clock=clock)
    head_clock = SigningClock(
        durable=_durable_time(config, process, database, verifier(), era=chain.state.era),
        monotonic=clock.monotonic(),
    )
    signer = HeadSigner(chain=chain, keys=keys, lease=lease, head_clock=head_clock, clock=clock)
    process.supervise("lease", signer.keep())
    await Restorer(
        channel=evidence,
        database=database,
        writer=writer,
        verifier=verifier,
        clock=clock,
        edges=[channels.service(address, "edge") for address in config.edges],
    ).run()
    root_steps = RootSteps(
        database=database,
        chain=chain,
        writer=writer,
        verifier=verifier,
        clock=clock,
        on_era=partial(_era_begins, head_clock, clock),
    )
    async with lease.turn:
        await root_steps.enter(read_folder(config.root_statements))
    process.log.info("chain", era=chain.state.era, epoch=chain.state.epoch, chain=chain.state.chain.hex())
    process.supervise("chain", chain.follow())
    process.supervise("spool", spool.run())
    if config.redis_url:
        publisher = Publisher(client=bus(config.redis_url), signer=signer, metrics=process.metrics)
        chain.listen(publisher.taken)
        process.supervise("bus", publisher.run())
    identity = channels.service(config.peer("identity"), "identity")
    release = channels.service(config.peer("release"), "release")
    directory = Directory(
        identity=lambda: identity, release=lambda: release, clock=clock, entropy=process.entropy
    )
    process.supervise("identity", directory.identity.run())
    process.supervise("release", directory.release.run())
    acknowledgements = Acknowledgements(
        database=database,
        chain=chain,
        directory=directory,
        verifier=verifier,
        clock=clock,
        metrics=process.metrics,
    )
    revocations = Revocations(
        database=database,
        chain=chain,
        writer=writer,
        directory=directory,
        verifier=verifier,
        head_signers=frozenset(key.identity.thumbprint.hex() for key in keys),
        clock=clock,
    )
    server = GrpcServer(
        role="revocation",
        tls=config.tls,
        clock=clock,
        listen=config.listen,
        servicers=_servicers(
            RevocationServicer(revocations=revocations, acknowledgements=acknowledgements, chain=chain),
            HeadServicer(
                answerer=HeadAnswerer(signer=signer, chain=chain, clock=clock),
                acknowledgements=acknowledgements,
                chain=chain,
            ),
            FeedServicer(outbox, clock),
        ),
        revocation_check=chain.refusal,
        precedence=PRECEDENCE,
        max_message_bytes=MAX_MESSAGE_BYTES,
        metrics=process.metrics,
        entropy=process.entropy,
        network=process.network,
    )
    process.ready(await server.start())
    await process.until_stopped()
    await server.stop()


def _era_begins(head_clock: SigningClock, clock: Clock, connection: Connection, floor: int) -> None:
    store.reset_head_time(connection, floor)
    after_commit(connection, lambda: head_clock.begin_again(floor, monotonic=clock.monotonic()))


def _durable_time(
    config: RevocationConfig, process: Process, database: Database, verifier: ChainVerifier, *, era: int
) -> int | None:
    """The newest signed time that is durable, or a later one that two people confirmed."""
    durable = database.read_now(store.head_time)
    if durable is None:
        return None
    confirmed = confirmed_time(
        read_folder(config.confirmations), verifier, era=era, durable=durable, now=process.clock.now()
    )
    if confirmed is not None:
        process.log.warning("clock_confirmed", time=confirmed, durable=durable)
    return confirmed or durable


def _servicers(revocations: RevocationServicer, heads: HeadServicer, feed: FeedServicer) -> list[Servicer]:
    return [
        (
            revocation_pb2_grpc.add_RevocationServiceServicer_to_server,
            revocations,
            "vigil.api.revocation.v1.RevocationService",
        ),
        (
            revocation_pb2_grpc.add_HeadServiceServicer_to_server,
            heads,
            "vigil.api.revocation.v1.HeadService",
        ),
        (feed_pb2_grpc.add_FeedServiceServicer_to_server, feed, "vigil.api.feed.v1.FeedService"),
    ]


def main() -> None:
    """Run the service."""
    run("revocation", RevocationConfig, serve)


if __name__ == "__main__":
    main()
