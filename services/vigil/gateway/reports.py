"""What the registry of devices hears from this gateway: sightings, and receipts of safety actions, spooled."""

import asyncio
from typing import Final

import structlog
from sqlalchemy import Connection

from vigil.api.identity.v1 import identity_pb2, identity_pb2_grpc
from vigil.core.clock import Entropy
from vigil.core.statements.bodies import Effect
from vigil.errors import Reason, Refused
from vigil.gateway import store
from vigil.rpc import status
from vigil.storage import Database, after_commit, news

PAGE: Final = 64
CALL_S: Final = 5.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 10.0
MAX_SIGHTINGS: Final = 4_096

REPORTED: Final = frozenset({Effect.QUARANTINE, Effect.RELEASE_QUARANTINE, Effect.HOLD, Effect.LIFT_HOLD})
"""Effects of actions after which the registry's state of a device differs."""

_PASSING = frozenset(
    {
        Reason.SERVICE_UNAVAILABLE,
        Reason.DEADLINE_EXCEEDED,
        Reason.STORAGE_UNAVAILABLE,
        Reason.QUOTA_EXCEEDED,
        Reason.INTERNAL,
        Reason.CERTIFICATE_EXPIRED,
        Reason.CERTIFICATE_INVALID,
        Reason.TLS_VERSION,
        Reason.GATEWAY_REVOKED,
        Reason.ROLE_NOT_PERMITTED,
    }
)
"""What another moment, or another certificate, may cure; everything else is about the report itself."""


class Reports:
    """Forwards in order; ``run`` is its task. Sightings are held in memory: a device is sighted again."""

    def __init__(
        self,
        *,
        gateway_id: str,
        database: Database,
        stub: "identity_pb2_grpc.DeviceServiceAsyncStub",
        entropy: Entropy,
    ) -> None:
        self._gateway_id = gateway_id
        self._database = database
        self._stub = stub
        self._entropy = entropy
        self._sighted: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._log = structlog.get_logger("vigil.gateway.reports")

    def sighted(self, device_id: str) -> None:
        """A device has connected here."""
        if len(self._sighted) < MAX_SIGHTINGS:
            self._sighted[device_id] = None
            self._wake.set()

    def put(self, connection: Connection, report: identity_pb2.DeviceReport) -> None:
        """Inside a write function: have a receipt reported once this transaction is durable."""
        store.add_report(connection, report.SerializeToString())
        after_commit(connection, self._wake.set)

    async def waiting(self) -> int:
        """How many receipts wait."""
        return await self._database.read(store.count_reports)

    async def run(self) -> None:
        """Forward until cancelled."""
        pause = FIRST_PAUSE_S
        while True:
            self._wake.clear()
            try:
                moved = await self._forward()
            except Refused as refusal:
                self._log.info("reports_wait", reason=str(refusal))
                await asyncio.sleep(pause * (0.5 + int.from_bytes(self._entropy(2), "big") / 0x20000))
                pause = min(LAST_PAUSE_S, pause * 2)
                continue
            pause = FIRST_PAUSE_S
            if not moved:
                await news(self._wake)

    async def _forward(self) -> bool:
        """Send what waits; answers whether anything did. Raises a passing failure."""
        sighted = list(self._sighted)[:PAGE]
        if sighted:
            await self._send([identity_pb2.DeviceReport(device_id=device_id) for device_id in sighted])
            for device_id in sighted:
                self._sighted.pop(device_id, None)
        rows = await self._database.read(lambda conn: store.first_reports(conn, PAGE))
        if rows:
            reports = [identity_pb2.DeviceReport.FromString(data) for _, data in rows]
            # One by one where a page was refused: what is wrong with one must not hold up the others.
            if not await self._send(reports):
                for report in reports:
                    await self._send([report])
            await self._database.write(lambda conn: store.drop_reports(conn, rows[-1][0]), vital=True)
        return bool(sighted or rows)

    async def _send(self, reports: list[identity_pb2.DeviceReport]) -> bool:
        """Whether the registry took them; a passing failure is raised."""
        request = identity_pb2.ReportDevicesRequest(gateway_id=self._gateway_id, reports=reports)
        try:
            await status.translated(self._stub.ReportDevices(request, timeout=CALL_S))
        except Refused as refusal:
            if refusal.reason in _PASSING:
                raise
            self._log.error("report_refused", reason=str(refusal), devices=[one.device_id for one in reports])
            return False
        return True
