"""The evidence service: ``python -m vigil.evidence --config FILE``."""

import asyncio
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vigil.api.evidence.v1 import evidence_pb2_grpc
from vigil.core.certificates import Identity
from vigil.core.clock import Clock
from vigil.core.clock_confirmation import confirmed_time, read_folder
from vigil.core.statements.envelope import Scribe
from vigil.core.statements.opened import OpenedSigner, open_signer
from vigil.core.witness_policy import WitnessPolicy, parse_witness_policy
from vigil.errors import Refused
from vigil.evidence.audit import Auditor
from vigil.evidence.census import CensusTaker
from vigil.evidence.config import EvidenceConfig
from vigil.evidence.domain import origin_of
from vigil.evidence.erasing import Erasing
from vigil.evidence.erasing_servicer import EvidenceErasureServicer
from vigil.evidence.finding import Finder
from vigil.evidence.indexer import Indexer
from vigil.evidence.metrics import AuditMetrics, CensusMetrics, LogMetrics, TileMetrics
from vigil.evidence.moment import Moments
from vigil.evidence.queries import QueryLog
from vigil.evidence.sequencer import Sequencer
from vigil.evidence.service import Checkpointer, LogKey, LogReader
from vigil.evidence.servicer import EvidenceLogServicer, EvidenceReadServicer
from vigil.evidence.signers import Signers
from vigil.evidence.subject_proofs import SubjectProver
from vigil.evidence.tables import METADATA
from vigil.evidence.tile_server import ServerTls, TileServer
from vigil.evidence.tiles import TileReader
from vigil.evidence.turns import Turns, Work
from vigil.evidence.witness_book import WitnessBook
from vigil.evidence.witness_client import WitnessClient
from vigil.evidence.witnessing import Witnessing
from vigil.feed.trust import CurrentVerifier, RevokedCallers
from vigil.rpc.channel import Channels
from vigil.rpc.options import MAX_MESSAGE_BYTES
from vigil.rpc.server import GrpcServer, Servicer
from vigil.rpc.service_main import ConfigError, Process, run
from vigil.rpc.tls import TlsWatcher
from vigil.storage import Database, Disk, Fence, open_database

LOG_SERVICE: Final = "vigil.api.evidence.v1.EvidenceLogService"
"""Its health (grpc.health.v1) says whether this process writes."""
SAID: Final = ("recorded", "census", "query")
"""What the log itself says, with one signer."""


def open_sequencer(
    config: EvidenceConfig,
    process: Process,
    *,
    database: Database,
    verifier: CurrentVerifier,
    signer: OpenedSigner,
    metrics: LogMetrics,
) -> Sequencer:
    """Wire the log's writer."""
    return Sequencer(
        database=database,
        signers=Signers(database=database, verifier=verifier),
        scribes=lambda: signer.scribe(clock=process.clock, entropy=process.entropy),
        recorded_chain=signer.pair.chain_der,
        origin=origin_of(config.trust_domain),
        clock=process.clock,
        entropy=process.entropy,
        metrics=metrics,
        confirmed=lambda newest: confirmed_time(
            read_folder(config.confirmations),
            verifier(),
            era=None,
            durable=newest,
            now=process.clock.now(),
        ),
    )


def open_book(
    config: EvidenceConfig, *, database: Database, log_key: str, metrics: LogMetrics
) -> WitnessBook:
    """The cosignatures beside the log, under the operator's policy. Raises ConfigError for one that cannot be used."""
    policy = WitnessPolicy()
    if config.witness_policy is not None:
        try:
            policy = parse_witness_policy(config.witness_policy.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config.witness_policy} cannot be read: {error}") from error
        except Refused as error:
            raise ConfigError(f"{config.witness_policy}: {error.refusals[0].sentence}") from error
        if not policy.knows_log(log_key):
            raise ConfigError(f"{config.witness_policy} is for other logs than this one: {log_key}")
    return WitnessBook(database=database, policy=policy, metrics=metrics)


async def send_to_witnesses(
    book: WitnessBook,
    *,
    checkpointer: Checkpointer,
    reader: LogReader,
    clock: Clock,
    metrics: LogMetrics,
) -> None:
    """Have every checkpoint cosigned, until cancelled."""
    async with WitnessClient() as client:
        await Witnessing(
            book=book,
            newest=checkpointer.newest,
            prove=reader.growth,
            post=client.post,
            clock=clock,
            metrics=metrics,
            guard=checkpointer.guard,
        ).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The parts of one log over one database."""

    database: Database
    fence: Fence
    sequencer: Sequencer
    checkpointer: Checkpointer
    reader: LogReader
    indexer: Indexer
    moments: Moments
    census: CensusTaker
    prover: SubjectProver
    queries: QueryLog
    finder: Finder
    auditor: Auditor
    book: WitnessBook
    metrics: LogMetrics
    clock: Clock

    def works(self) -> list[Work]:
        """What is done where the log is written, and nowhere else."""
        works: list[Work] = [self.checkpointer.run, self.indexer.run, self.census.run]
        if self.book.policy.witnesses:
            works.append(
                lambda: send_to_witnesses(
                    self.book,
                    checkpointer=self.checkpointer,
                    reader=self.reader,
                    clock=self.clock,
                    metrics=self.metrics,
                )
            )
        return works


def open_log(
    config: EvidenceConfig, process: Process, *, verifier: CurrentVerifier, disk: Disk = open_database
) -> Log:
    """Wire the log. Raises LogDamagedError, ConfigError, STORAGE_UNAVAILABLE; CERTIFICATE_INVALID when its signer is
    not for what the log itself says.
    """
    metrics = LogMetrics(process.metrics)
    database = disk(config.database, metadata=METADATA, migrations="vigil.evidence.migrations")
    signer = open_signer(
        config.signer_certificate, config.signer_key, *SAID, verifier=verifier(), at=process.clock.now()
    )

    def scribes() -> Scribe:
        return signer.scribe(clock=process.clock, entropy=process.entropy)

    sequencer = open_sequencer(
        config, process, database=database, verifier=verifier, signer=signer, metrics=metrics
    )
    key = LogKey.at(
        config.log_key,
        database=database,
        origin=origin_of(config.trust_domain),
        generate=Ed25519PrivateKey.generate,
    )
    book = open_book(config, database=database, log_key=key.verifier_key, metrics=metrics)
    checkpointer = Checkpointer(
        database=database, sequencer=sequencer, key=key, metrics=metrics, policy=book.policy
    )

    async def size() -> int:
        return (await sequencer.state()).size

    indexer = Indexer(database=database, size=size, clock=process.clock, metrics=metrics)
    return Log(
        database=database,
        fence=Fence(database, clock=process.clock, entropy=process.entropy),
        sequencer=sequencer,
        checkpointer=checkpointer,
        reader=LogReader(
            database=database, sequencer=sequencer, checkpointer=checkpointer, clock=process.clock
        ),
        indexer=indexer,
        moments=Moments(checkpointer=checkpointer, indexer=indexer, size=size, clock=process.clock),
        census=CensusTaker(
            database=database,
            sequencer=sequencer,
            scribes=scribes,
            origin=origin_of(config.trust_domain),
            log_key=key.verifier_key,
            interval=config.census_seconds,
            clock=process.clock,
            metrics=CensusMetrics(process.metrics),
        ),
        prover=SubjectProver(database=database, sequencer=sequencer, checkpointer=checkpointer),
        auditor=Auditor(
            database=database,
            verifier=verifier,
            rate=config.audit_entries_per_second,
            clock=process.clock,
            entropy=process.entropy,
            metrics=AuditMetrics(process.metrics),
        ),
        queries=QueryLog(sequencer=sequencer, scribes=scribes, clock=process.clock),
        finder=Finder(indexer=indexer, size=size, clock=process.clock),
        book=book,
        metrics=metrics,
        clock=process.clock,
    )


async def serve(config: EvidenceConfig, process: Process, *, disk: Disk = open_database) -> None:
    """Wire and serve until told to stop."""
    verifier = CurrentVerifier(watcher=TlsWatcher(files=config.tls, clock=process.clock))
    log = open_log(config, process, verifier=verifier, disk=disk)
    channels = Channels(
        tls=config.tls, trust_domain=config.trust_domain, clock=process.clock, network=process.network
    )
    tasks = [
        process.supervise("sequencer", log.sequencer.run()),
        process.supervise("audit", log.auditor.run()),
    ]
    revoked = None
    if "revocation" in config.peers:
        channel = channels.service(config.peer("revocation"), "revocation")
        revoked = RevokedCallers(
            channel_factory=lambda: channel,
            verifier=verifier,
            clock=process.clock,
            entropy=process.entropy,
        )
        tasks.append(process.supervise("revocations", revoked.run()))
    erasing = Erasing(
        database=log.database,
        sequencer=log.sequencer,
        verifier=verifier,
        revoked=_nobody if revoked is None else revoked.refusal,
        clock=process.clock,
    )
    server = GrpcServer(
        role="evidence",
        tls=config.tls,
        clock=process.clock,
        listen=config.listen,
        servicers=[*_servicers(log), _erasure(erasing)],
        revocation_check=None if revoked is None else revoked.refusal,
        max_message_bytes=MAX_MESSAGE_BYTES,
        metrics=process.metrics,
        entropy=process.entropy,
        network=process.network,
    )
    turns = open_turns(log, server)
    await turns.begin()
    tiles = await _serve_tiles(
        config, process, TileReader(database=log.database, checkpointer=log.checkpointer, book=log.book)
    )
    port = await server.start()
    tasks.append(process.supervise("turns", turns.run()))
    process.ready(port)
    await process.until_stopped()
    if tiles is not None:
        await tiles.stop()
    await server.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await log.fence.release()
    await channels.close()
    log.database.close()


def open_turns(log: Log, server: GrpcServer) -> Turns:
    """Wire what happens as this process begins and ceases to write."""
    return Turns(
        fence=log.fence,
        sequencer=log.sequencer,
        checkpointer=log.checkpointer,
        book=log.book,
        metrics=log.metrics,
        announce=lambda writes: server.health.set(LOG_SERVICE, serving=writes),
        works=log.works(),
    )


async def _serve_tiles(config: EvidenceConfig, process: Process, reader: TileReader) -> TileServer | None:
    """Serve the tiles where the configuration says, if it does. Raises ListenError."""
    if not config.tiles_listen:
        return None
    tls = None
    if config.tiles_tls:
        tls = ServerTls(files=config.tls, watcher=TlsWatcher(files=config.tls, clock=process.clock))
    server = TileServer(
        reader=reader, listen=config.tiles_listen, tls=tls, metrics=TileMetrics(process.metrics)
    )
    port = await server.start()
    process.log.info("tiles", port=port, tls=config.tiles_tls)
    return server


def _servicers(log: Log) -> list[Servicer]:
    reading = EvidenceReadServicer(
        reader=log.reader,
        checkpointer=log.checkpointer,
        book=log.book,
        moments=log.moments,
        prover=log.prover,
        queries=log.queries,
        finder=log.finder,
        auditor=log.auditor,
    )
    return [
        (
            evidence_pb2_grpc.add_EvidenceLogServiceServicer_to_server,
            EvidenceLogServicer(sequencer=log.sequencer),
            LOG_SERVICE,
        ),
        (
            evidence_pb2_grpc.add_EvidenceReadServiceServicer_to_server,
            reading,
            "vigil.api.evidence.v1.EvidenceReadService",
        ),
    ]


def _nobody(_who: Identity) -> None:
    """Without the revocation service nobody is known to be revoked."""


def _erasure(erasing: Erasing) -> Servicer:
    return (
        evidence_pb2_grpc.add_EvidenceErasureServiceServicer_to_server,
        EvidenceErasureServicer(erasing=erasing),
        "vigil.api.evidence.v1.EvidenceErasureService",
    )


def main() -> None:
    """Run the service."""
    run("evidence", EvidenceConfig, serve)


if __name__ == "__main__":
    main()
