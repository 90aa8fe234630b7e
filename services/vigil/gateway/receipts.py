"""Receipts: verified against the device's attestation certificate, durable, and only then shown.

A receipt belongs to an intent on a device; whichever command of that intent waits gets it. What arrives when nobody
waits (a staged command that was applied in the night) is verified, kept and spooled all the same.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Connection

from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.core.certificates import Kind
from vigil.core.clock import Clock
from vigil.core.ordered import OrderedSet
from vigil.core.statements.bodies import Outcome, Receipt
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Reason, Refused, refused
from vigil.feed.evidence import EvidenceSpool
from vigil.gateway import command_store, domain
from vigil.gateway.command_store import CommandRow, KeptReceipt
from vigil.gateway.device_sessions import Session
from vigil.gateway.directory import Directory
from vigil.gateway.reports import REPORTED, Reports
from vigil.gateway.trust import Trust
from vigil.rpc import status
from vigil.storage import Database

MAX_RECEIPTS = 64
"""As many as one command has numbers for."""

QUERY_S = 3.0
"""How long a device may take to look a request up."""

_DEVICE = frozenset({Kind.DEVICE})


@dataclass(eq=False, slots=True)
class InFlight:
    """One command that was forwarded and waits for its device."""

    intent: bytes
    device_id: str
    call_id: int
    request_id: bytes
    answered: asyncio.Future[None]
    receipts: dict[bytes, KeptReceipt] = field(default_factory=dict)

    def bodies(self) -> list[Receipt]:
        """What the receipts say."""
        return [receipt.statement.body for receipt in self.receipts.values()]


class Receipts:
    """Takes what devices send, verifies it and brings it to whoever waits or to the record."""

    def __init__(
        self,
        *,
        database: Database,
        spool: EvidenceSpool,
        reports: Reports,
        directory: Directory,
        trust: Trust,
        clock: Clock,
        organization_id: str,
        site_id: str,
    ) -> None:
        self._database = database
        self._spool = spool
        self._reports = reports
        self._directory = directory
        self._trust = trust
        self._clock = clock
        self._organization_id = organization_id
        self._site_id = site_id
        self._waiting: dict[tuple[bytes, str], OrderedSet[InFlight]] = {}
        self._log = structlog.get_logger("vigil.gateway.receipts")

    def expect(self, waiting: InFlight) -> None:
        """Bring receipts of this intent on this device here from now on."""
        self._waiting.setdefault((waiting.intent, waiting.device_id), OrderedSet()).add(waiting)

    def done(self, waiting: InFlight) -> None:
        """Stop waiting: what comes later goes straight to the record."""
        known = self._waiting.get((waiting.intent, waiting.device_id), OrderedSet())
        known.discard(waiting)
        if not known:
            self._waiting.pop((waiting.intent, waiting.device_id), None)

    def requests_under_way(self, device_id: str) -> list[bytes]:
        """Request ids that somebody waits for on this device."""
        return [
            one.request_id for key, found in self._waiting.items() if key[1] == device_id for one in found
        ]

    async def query(self, session: Session, request_id: bytes) -> gateway_pb2.DeviceReceipt:
        """Ask a device what became of a request; its receipts are kept when this returns. Raises DEVICE_OFFLINE.

        A device takes what comes over its link in order, and what came over an earlier link is gone with that: if it
        has no record of the request now, it did nothing of it, and no command of it is unknown any longer.
        """

        def ask(call_id: int) -> gateway_pb2.ConnectResponse:
            query = gateway_pb2.ReceiptQuery(call_id=call_id, request_id=request_id)
            return gateway_pb2.ConnectResponse(receipt_query=query)

        reply: gateway_pb2.DeviceReceipt = await session.ask(ask, seconds=QUERY_S)
        if not reply.receipts and reply.HasField("error"):
            refusal = status.from_status(reply.error)
            if refusal.reason is Reason.RESOURCE_NOT_FOUND:
                await self._never_begun(session.device_id, request_id)
        return reply

    async def _never_begun(self, device_id: str, request_id: bytes) -> None:
        refusal = refused(
            Reason.RESOURCE_NOT_FOUND,
            "The device has no record of this request: it did nothing of it.",
            lifted_by="a new command",
            who="the requester",
        )
        said, now = status.to_status(refusal).SerializeToString(), self._clock.now()

        def write(connection: Connection) -> None:
            command_store.never_begun(
                connection,
                device=device_id,
                request_id=request_id,
                reason=str(refusal.reason),
                status=said,
                now=now,
            )

        await self._database.write(write, vital=True)

    async def take(self, session: Session, message: gateway_pb2.DeviceReceipt) -> None:
        """One message of a device: receipts of one request, or why there is none."""
        kept = []
        for data in message.receipts[:MAX_RECEIPTS]:
            try:
                kept.append(KeptReceipt(self.verify(session, data), self._clock.now()))
            except Refused as refusal:
                # The device's word without its signature is worth nothing: it is dropped and said so.
                self._log.warning("receipt_invalid", device=session.device_id, reason=str(refusal))
        late = [receipt for receipt in kept if not self._deliver(receipt)]
        if late:
            await self.keep(late)
            confirm(session, late)
        session.settle(message.call_id, message)
        if message.HasField("error"):
            self._fail(session.device_id, message)

    def verify(self, session: Session, data: bytes) -> Statement[Receipt]:
        """A receipt signed by the attestation key of the device on this stream. Raises its refusal."""
        receipt = read(data, Receipt)
        chain = receipt.chain or tuple(session.hello.attestation_chain)
        # A device past its operational end still does S1, so its receipts are taken in grace.
        signer = self._trust.verifier.verify(chain, at=self._clock.now(), kinds=_DEVICE, grace=True)
        check(receipt, signer)
        if signer.id != session.device_id or receipt.body.device != session.device_id:
            raise refused(Reason.SIGNATURE_INVALID, "the receipt is another device's")
        return receipt

    async def keep(self, late: Sequence[KeptReceipt]) -> None:
        """Make receipts durable that no command waits for. Raises STORAGE_UNAVAILABLE."""
        now = self._clock.now()

        def write(connection: Connection) -> None:
            for fresh in self.write(connection, late, command=None):
                command_store.follow_receipts(connection, fresh, now=now)

        await self._database.write(write, vital=True)

    def write(
        self, connection: Connection, receipts: Iterable[KeptReceipt], *, command: CommandRow | None
    ) -> list[Statement[Receipt]]:
        """Inside a write function: keep receipts; new ones go to evidence and, of safety actions, to identity."""
        fresh = command_store.put_receipts(connection, tuple(receipts))
        for receipt in fresh:
            body = receipt.body
            self._spool.put(
                connection,
                receipt.data,
                subjects=(f"device/{body.device}",),
                organization_id=self._organization_id,
                site_id=self._site_id,
            )
            row = command or command_store.find_by_request(
                connection, device=body.device, request_id=body.request_id
            )
            if row is not None and row.intent == body.intent and self._is_reported(body):
                self._reports.put(
                    connection,
                    identity_pb2.DeviceReport(
                        device_id=body.device,
                        receipt=receipt.data,
                        intent=row.intent_statement,
                        approvals=row.approvals,
                    ),
                )
        return fresh

    def _is_reported(self, receipt: Receipt) -> bool:
        if receipt.outcome is not Outcome.APPLIED:
            return False
        device = self._directory.device(receipt.device)
        model = self._directory.model(device.model) if device is not None else None
        action = model.actions.get(receipt.action) if model is not None else None
        return action is not None and action.effect in REPORTED

    def _deliver(self, receipt: KeptReceipt) -> bool:
        body = receipt.statement.body
        waiting = self._waiting.get((body.intent, body.device))
        if not waiting:
            return False
        for one in waiting:
            one.receipts[receipt.statement.digest] = receipt
            if domain.answers(one.bodies()) and not one.answered.done():
                one.answered.set_result(None)
        return True

    def _fail(self, device_id: str, message: gateway_pb2.DeviceReceipt) -> None:
        """The device refused a bundle without a receipt: its word, unsigned, for the command that it names."""
        refusal = status.from_status(message.error)
        for (_, device), found in self._waiting.items():
            for one in found:
                if device == device_id and one.call_id == message.call_id and not one.answered.done():
                    one.answered.set_exception(refusal)


def confirm(session: Session, receipts: Iterable[KeptReceipt]) -> None:
    """Tell a device which of its receipts are durable here; it says the others again."""
    newest: dict[bytes, int] = {}
    for receipt in receipts:
        body = receipt.statement.body
        # A refusal is not journaled there, and its number is that of another attempt's receipt.
        if body.outcome is not Outcome.REFUSED:
            newest[body.request_id] = max(body.number, newest.get(body.request_id, 0))
    for request_id, number in newest.items():
        kept = gateway_pb2.ReceiptsKept(request_id=request_id, up_to=number)
        session.try_send(gateway_pb2.ConnectResponse(receipts_kept=kept))
