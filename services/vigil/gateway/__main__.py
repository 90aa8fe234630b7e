"""The gateway: ``python -m vigil.gateway --config FILE``. Everything is put together here and nowhere else."""

import asyncio
from collections.abc import Sequence
from functools import partial

import structlog
from prometheus_client import Gauge

from vigil.api.gateway.v1 import gateway_pb2_grpc
from vigil.api.identity.v1 import identity_pb2
from vigil.core.classes import SAFETY_PERIOD_S
from vigil.core.revocations import ReadEntry
from vigil.core.statements.bodies import Scope
from vigil.errors import Refused
from vigil.feed import Replica
from vigil.feed.evidence import EvidenceSpool
from vigil.gateway import command_store, intent_store, store
from vigil.gateway.artifacts import Artifacts
from vigil.gateway.attestation import Attestation
from vigil.gateway.challenges import ChallengeTree
from vigil.gateway.clients import Clients
from vigil.gateway.command_path import CommandPath
from vigil.gateway.config import GatewayConfig
from vigil.gateway.decisions import Decisions
from vigil.gateway.device_link import DeviceLink
from vigil.gateway.device_sessions import DeviceSessions
from vigil.gateway.directory import KINDS, SAVE_INTERVAL_S, Directory, Source
from vigil.gateway.facts import Facts
from vigil.gateway.intents import Home, Intents
from vigil.gateway.own_key import OwnKey
from vigil.gateway.preview import Preview
from vigil.gateway.queries import Queries
from vigil.gateway.quotas import Quotas
from vigil.gateway.receipts import Receipts
from vigil.gateway.records import Records
from vigil.gateway.refusals import RefusalCounts
from vigil.gateway.renewal import Renewal
from vigil.gateway.reports import Reports
from vigil.gateway.revocations import RevocationFollower, RevocationView, thumbprint_of
from vigil.gateway.safety import Safety
from vigil.gateway.servicer import (
    COMMAND_SERVICE,
    DEVICE_SERVICE,
    GRACE_METHODS,
    INTENT_SERVICE,
    LINK_SERVICE,
    CommandServicer,
    DeviceLinkServicer,
    GatewayDeviceServicer,
    IntentServicer,
)
from vigil.gateway.trust import Trust
from vigil.rpc.access import not_in_scope
from vigil.rpc.channel import Channel, Channels
from vigil.rpc.options import StreamSettings
from vigil.rpc.server import GrpcServer, Servicer
from vigil.rpc.service_main import Process, run
from vigil.storage import Disk, open_database

SETTINGS = StreamSettings(max_streams=256, max_calls_per_caller=256, pending_requests=4_096)
"""A person's commands, reads and followed devices, or one device's stream, on each connection; and a site's devices
that all return at once. What waits to be accepted is served in order, so little may wait."""
PRECEDENCE = ("safety", "recall")
"""Whose calls have places that a flood of others' does not take."""
HOUSEKEEPING_S = 3_600.0
INTENTS_KEPT_MS = 30 * 86_400_000
"""How long an expired intent still shows."""
SAVE_AGAIN_S = 5.0
"""After the disk refused."""


class Gateway:
    """The objects of one gateway, wired; ``serve`` runs them."""

    def __init__(self, config: GatewayConfig, process: Process, *, disk: Disk = open_database) -> None:
        clock, entropy = process.clock, process.entropy
        self._config = config
        self._process = process
        self._entropy = entropy
        self._log = structlog.get_logger("vigil.gateway")
        self.trust = Trust(path=config.trust, clock=clock)
        self.key = OwnKey(
            gateway_id=config.gateway_id, tls=config.tls, trust=self.trust, clock=clock, entropy=entropy
        )
        self.database = disk(
            config.data_dir / "gateway.db", metadata=store.METADATA, migrations=store.MIGRATIONS
        )
        self.clients = Clients.of(
            config,
            channels=Channels(
                tls=config.tls, trust_domain=config.trust_domain, clock=clock, network=process.network
            ),
            entropy=entropy,
        )
        self.directory = Directory(
            database=self.database, site_id=config.site_id, on_manufacturer=self._manufacturer
        )
        self.directory.restore()
        self.revocations = RevocationView(database=self.database, trust=self.trust, clock=clock)
        self.revocations.restore()
        self.sessions = DeviceSessions(entropy=entropy)
        self.challenges = ChallengeTree()
        self.quotas = Quotas(clock=clock, limits=config.quotas.limits)
        self._restore_quotas()
        self.spool = EvidenceSpool(database=self.database, appender=self.clients.evidence, entropy=entropy)
        self.reports = Reports(
            gateway_id=config.gateway_id,
            database=self.database,
            stub=self.clients.devices,
            entropy=entropy,
        )
        self.replicas = {
            source.name: self._replica(source, channel)
            for source, channel in zip(
                self.directory.sources, (self.clients.identity, self.clients.release), strict=True
            )
        }
        self._wire()
        self._measure()

    def _measure(self) -> None:
        """What Prometheus may ask at any moment."""
        registry = self._process.metrics
        devices = Gauge("vigil_gateway_connected_devices", "Devices with a stream.", registry=registry)
        devices.set_function(lambda: len(self.sessions))
        lease = Gauge(
            "vigil_gateway_lease_age_seconds",
            "Since the sending of the newest answered challenge.",
            registry=registry,
        )
        lease.set_function(self.revocations.lease_age)
        epoch = Gauge("vigil_gateway_revocation_epoch", "The epoch that is enforced.", registry=registry)
        epoch.set_function(lambda: self.revocations.state.epoch)

    def _wire(self) -> None:
        """The use cases, and the server over them."""
        config, clock = self._config, self._process.clock
        home = Home(config.organization_id, config.site_id)
        self._wire_records(home)
        self._wire_link()
        self._wire_keepers(home)
        facts = Facts(
            directory=self.directory,
            sessions=self.sessions,
            revocations=self.revocations,
            key=self.key,
            clock=clock,
        )
        decisions = Decisions(
            gateway_id=config.gateway_id, exchange=self.clients.decide, stub=self.clients.decisions
        )
        path = CommandPath(
            facts=facts,
            quotas=self.quotas,
            attestation=self.attestation,
            decisions=decisions,
            safety=Safety(trust=self.trust, revocations=self.revocations, quotas=self.quotas, clock=clock),
            receipts=self.receipts,
            records=self.records,
            clock=clock,
        )
        intents = Intents(
            facts=facts,
            quotas=self.quotas,
            records=self.records,
            database=self.database,
            evidence=self.clients.evidence,
            clock=clock,
            home=home,
        )
        preview = Preview(facts=facts, quotas=self.quotas, decisions=decisions, records=self.records)
        queries = self._queries(facts, home)
        self.server = self._server(
            self._servicers(
                CommandServicer(path=path, preview=preview, queries=queries),
                IntentServicer(intents=intents),
                GatewayDeviceServicer(queries=queries),
                DeviceLinkServicer(link=self.link),
            )
        )

    def _wire_records(self, home: Home) -> None:
        """What commands and receipts leave behind."""
        clock = self._process.clock
        self.receipts = Receipts(
            database=self.database,
            spool=self.spool,
            reports=self.reports,
            directory=self.directory,
            trust=self.trust,
            clock=clock,
            organization_id=home.organization_id,
            site_id=home.site_id,
        )
        self.records = Records(
            database=self.database,
            receipts=self.receipts,
            spool=self.spool,
            sessions=self.sessions,
            clock=clock,
            organization_id=home.organization_id,
            site_id=home.site_id,
        )

    def _wire_link(self) -> None:
        """The devices' streams, and the revocations that reach them."""
        config, clock = self._config, self._process.clock
        self.attestation = Attestation(
            exchange=self.clients.attest,
            trust=self.trust,
            revocations=self.revocations.state,
            clock=clock,
        )
        self.link = DeviceLink(
            gateway_id=config.gateway_id,
            directory=self.directory,
            sessions=self.sessions,
            attestation=self.attestation,
            artifacts=Artifacts(
                folder=config.data_dir / "artifacts",
                directory=self.directory,
                stub=self.clients.artifacts,
            ),
            receipts=self.receipts,
            reports=self.reports,
            revocations=self.revocations,
            challenges=self.challenges,
            certificates=self.clients.certificates,
            trust=self.trust,
            database=self.database,
            clock=clock,
        )
        self.follower = RevocationFollower(
            gateway_id=config.gateway_id,
            edges=self.clients.edges,
            view=self.revocations,
            challenges=self.challenges,
            key=self.key,
            clock=clock,
            entropy=self._entropy,
            on_restricted=self._restricted,
            on_enforced=self.link.enforced,
        )
        self.link.acknowledge_through(self.follower)

    def _wire_keepers(self, home: Home) -> None:
        """What runs beside the calls: counts of refusals, the gateway's own certificate."""
        clock = self._process.clock
        self.refusals = RefusalCounts(
            quotas=self.quotas,
            key=self.key,
            database=self.database,
            spool=self.spool,
            clock=clock,
            organization_id=home.organization_id,
            site_id=home.site_id,
        )
        self.renewal = Renewal(
            gateway_id=self._config.gateway_id,
            stub=self.clients.certificates,
            tls=self._config.tls,
            key=self.key,
            trust=self.trust,
            on_renewed=self.clients.channels.refresh,
            clock=clock,
            entropy=self._entropy,
        )

    def _queries(self, facts: Facts, home: Home) -> Queries:
        return Queries(
            facts=facts,
            quotas=self.quotas,
            attestation=self.attestation,
            receipts=self.receipts,
            records=self.records,
            database=self.database,
            key=self.key,
            clock=self._process.clock,
            home=home,
            gateway_id=self._config.gateway_id,
            replica_ages=lambda: {name: replica.age() for name, replica in self.replicas.items()},
            spooled=self._spooled,
        )

    def _server(self, servicers: list[Servicer]) -> GrpcServer:
        config, clock = self._config, self._process.clock
        return GrpcServer(
            role="gateway",
            tls=config.tls,
            clock=clock,
            listen=config.listen,
            servicers=servicers,
            revocation_check=lambda caller: self.revocations.state.identity_refusal(caller, at=clock.now()),
            grace_methods=GRACE_METHODS,
            precedence=PRECEDENCE,
            settings=SETTINGS,
            metrics=self._process.metrics,
            entropy=self._entropy,
            network=self._process.network,
        )

    async def start(self) -> int:
        """Serve; answers the port."""
        self.clients.start()
        supervise = self._process.supervise
        supervise("spool", self.spool.run())
        supervise("reports", self.reports.run())
        supervise("records", self.records.run())
        supervise("revocations", self.follower.run())
        supervise("renewal", self.renewal.run())
        supervise("refusals", self.refusals.run())
        supervise("housekeeping", self._keep_house())
        for source in self.directory.sources:
            supervise(f"{source.name} replica", self.replicas[source.name].run())
            supervise(f"{source.name} saver", self._save(source))
        return await self.server.start()

    async def stop(self) -> None:
        """End in order: no new calls, then the tasks, then the channels, then the database."""
        await self.server.stop()
        await self._process.end()
        await self.clients.close()
        self.database.close()

    def _replica(self, source: Source, channel: Channel) -> Replica:
        return Replica(
            channel_factory=lambda: channel,
            name=source.name,
            clock=self._process.clock,
            entropy=self._entropy,
            on_change=source.on_change,
            on_reset=source.on_reset,
            kinds=KINDS[source.name],
        )

    async def _save(self, source: Source) -> None:
        """Keep the database's copy of one source near what memory has; take each snapshot when it is whole."""
        replica = self.replicas[source.name]
        while True:
            await replica.synced.wait()
            source.complete()
            self._part_with_strangers()
            try:
                async with asyncio.timeout(SAVE_INTERVAL_S * 5):
                    await source.changed()
            except TimeoutError:
                continue
            await asyncio.sleep(SAVE_INTERVAL_S)
            try:
                await source.save()
            except Refused as refusal:
                self._log.error("directory_not_saved", source=source.name, reason=str(refusal))
                await asyncio.sleep(SAVE_AGAIN_S)
                source.touch()

    def _part_with_strangers(self) -> None:
        """A device that moved to another site, or was retired, loses its stream here."""
        for session in self.sessions:
            device = self.directory.device(session.device_id)
            if device is None or device.state == identity_pb2.DEVICE_STATE_RETIRED:
                session.end(not_in_scope())

    def _restricted(self, taken: Sequence[ReadEntry]) -> None:
        """At once, from memory: open streams are cut, nonces dropped."""
        self.server.streams.sweep()
        for read_one in taken:
            revocation = read_one.revocation
            if revocation is not None and revocation.body.scope is Scope.CREDENTIAL:
                for name in revocation.body.ids:
                    self.quotas.drop_nonces(thumbprint_of(name))

    def _manufacturer(self, organization: str, root_pem: str) -> None:
        try:
            if self.trust.add_manufacturer(organization, root_pem):
                self._log.info("manufacturer_trusted", organization=organization)
        except OSError as error:
            self._log.error("trust_not_kept", organization=organization, error=str(error))

    def _restore_quotas(self) -> None:
        """What class S1 touched in the last ten minutes, before this start."""
        now = self._process.clock.now()
        since = now - int(SAFETY_PERIOD_S * 1000)
        for person, device, time in self.database.read_now(
            lambda conn: command_store.touched_alone(conn, since=since)
        ):
            self.quotas.safety_touched(person, device, ago=max(0.0, (now - time) / 1000))

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            before = self._process.clock.now() - INTENTS_KEPT_MS
            try:
                await self.database.write(command_store.prune)
                await self.database.write(partial(intent_store.prune_intents, expired_before=before))
            except Refused as refusal:
                self._log.warning("not_pruned", reason=str(refusal))

    async def _spooled(self) -> int:
        return await self.spool.waiting() + await self.reports.waiting()

    @staticmethod
    def _servicers(
        commands: CommandServicer,
        intents: IntentServicer,
        devices: GatewayDeviceServicer,
        link: DeviceLinkServicer,
    ) -> list[Servicer]:
        return [
            (gateway_pb2_grpc.add_CommandServiceServicer_to_server, commands, COMMAND_SERVICE),
            (gateway_pb2_grpc.add_IntentServiceServicer_to_server, intents, INTENT_SERVICE),
            (gateway_pb2_grpc.add_GatewayDeviceServiceServicer_to_server, devices, DEVICE_SERVICE),
            (gateway_pb2_grpc.add_DeviceLinkServiceServicer_to_server, link, LINK_SERVICE),
        ]


async def serve(config: GatewayConfig, process: Process, *, disk: Disk = open_database) -> None:
    """Run until told to stop."""
    gateway = Gateway(config, process, disk=disk)
    try:
        process.ready(await gateway.start())
        await process.until_stopped()
    finally:
        await gateway.stop()


def main() -> None:
    """Run the service."""
    run("gateway", GatewayConfig, serve)


if __name__ == "__main__":
    main()
