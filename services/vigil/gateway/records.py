"""What the gateway remembers of commands: written in one transaction with their receipts, before anybody is told."""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

import structlog
from google.rpc import status_pb2  # type: ignore[import-untyped]
from sqlalchemy import Connection

from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.core.certificates import Identity
from vigil.core.clock import Clock
from vigil.core.statements.bodies import ActionClass, Command, Intent, Outcome, Receipt
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Reason, Refused, refused
from vigil.feed.evidence import EvidenceSpool
from vigil.gateway import command_store, domain, intent_store
from vigil.gateway.command_store import RECENT, CommandRow, KeptReceipt
from vigil.gateway.device_sessions import DeviceSessions
from vigil.gateway.facts import Target
from vigil.gateway.intent_store import IntentRow
from vigil.gateway.receipts import Receipts, confirm
from vigil.rpc import status
from vigil.storage import Database

OWED_S: Final = 1.0
"""Between two attempts to keep what a failing disk did not take."""
MAX_OWED: Final = 1_024
"""Receipts held for that; the devices have all of them."""


class Submitted(Protocol):
    """What of a submission is kept."""

    @property
    def intent(self) -> Statement[Intent]: ...
    @property
    def command(self) -> Statement[Command]: ...
    @property
    def approvals(self) -> tuple[bytes, ...]: ...


class Records:
    """Commands and their answers."""

    def __init__(
        self,
        *,
        database: Database,
        receipts: Receipts,
        spool: EvidenceSpool,
        sessions: DeviceSessions,
        clock: Clock,
        organization_id: str,
        site_id: str,
    ) -> None:
        self._database = database
        self._receipts = receipts
        self._spool = spool
        self._sessions = sessions
        self._clock = clock
        self._organization_id = organization_id
        self._site_id = site_id
        self._settled: OrderedDict[bytes, None] = OrderedDict.fromkeys(
            database.read_now(command_store.settled_digests)
        )
        self._intents: dict[bytes, None] = dict.fromkeys(database.read_now(intent_store.known_digests))
        self._owed: deque[tuple[CommandRow, Sequence[KeptReceipt]]] = deque()
        self._owing = asyncio.Event()
        self._log = structlog.get_logger("vigil.gateway.records")

    def open(self, caller: Identity, target: Target, submitted: Submitted) -> CommandRow:
        """The row of a command that has just come. Raises SIGNATURE_INVALID: what nobody signed is nobody's word."""
        # Gateway check 2: the signer is the caller, and did sign.
        check(submitted.command, caller)
        intent, command, now = submitted.intent, submitted.command, self._clock.now()
        return CommandRow(
            digest=command.digest,
            intent=intent.digest,
            device=target.device.device_id,
            action=intent.body.action,
            action_class=str(target.spec.action_class),
            requester=caller.id,
            credential=caller.thumbprint,
            alone=False,
            request_id=intent.body.request_id,
            work_order=intent.body.work_order or "",
            outcome=domain.REFUSED,
            reason="",
            settled=False,
            status=b"",
            statement=command.data,
            intent_statement=intent.data,
            approvals=tuple(submitted.approvals),
            decision=b"",
            recorded=b"",
            create_time=now,
            update_time=now,
        )

    def intent_kept(self, digest: bytes) -> None:
        """An intent was recorded here."""
        self._intents[digest] = None

    async def intent(self, digest: bytes) -> IntentRow | None:
        """The row of an intent that was recorded here; memory says at once that there is none."""
        if digest not in self._intents:
            return None
        return await self._database.read(lambda conn: intent_store.find_intent(conn, digest))

    async def answer_of(self, digest: bytes) -> gateway_pb2.SubmitCommandResponse | None:
        """The answer that this very command got before; None for a new one. Raises what refused it."""
        if digest not in self._settled:
            return None
        row = await self._database.read(lambda conn: command_store.find_command(conn, digest))
        if row is None:
            return None
        if row.outcome in (domain.UNKNOWN, domain.FORWARDED):
            # Its nonce is spent: the device is asked what it did, and never told to do it again.
            session = self._sessions.get(row.device)
            if session is not None:
                with contextlib.suppress(Refused):
                    await self._receipts.query(session, row.request_id)
            row = await self._database.read(lambda conn: command_store.find_command(conn, digest)) or row
        if row.status:
            raise status.from_status(status_pb2.Status.FromString(row.status))
        if row.outcome in (domain.UNKNOWN, domain.FORWARDED):
            raise outcome_unknown(row)
        return await self.response(row)

    async def refused(self, row: CommandRow, refusal: Refused) -> None:
        """Keep how a command was refused, by the gateway, by policy or by the device."""
        row = replace(
            row,
            outcome=domain.REFUSED,
            reason=str(refusal.reason),
            status=status.to_status(refusal).SerializeToString(),
            update_time=self._clock.now(),
        )

        def write(connection: Connection) -> None:
            command_store.put_command(connection, row)
            if not row.decision:
                # The gateway's own refusal, or the device's: policy records its own. What was asked, and the answer.
                self._spool.put(
                    connection,
                    row.statement,
                    subjects=(f"device/{row.device}", f"person/{row.requester}"),
                    bodies=(row.status,),
                    organization_id=self._organization_id,
                    site_id=self._site_id,
                )

        await self._database.write(write)
        if row.settled:
            self._remember(row.digest)

    async def unknown(self, row: CommandRow) -> None:
        """Keep that a command was forwarded and not answered in time."""
        row = replace(row, outcome=domain.UNKNOWN, update_time=self._clock.now())
        await self._database.write(lambda conn: self._write(conn, row, ()), vital=True)
        self._remember(row.digest)

    async def answered(
        self, row: CommandRow, receipts: Sequence[KeptReceipt]
    ) -> gateway_pb2.SubmitCommandResponse:
        """Keep a command with its receipts, then make the answer of them. Raises STORAGE_UNAVAILABLE.

        A disk that fails does not hold up S1: the answer is the device's own signed word, which lies in the device.
        Whatever could not be kept is kept when the disk allows it.
        """
        newest = domain.outcome_of(receipt.statement.body for receipt in receipts)
        if newest is None:
            raise ValueError("a command is answered by at least one receipt")
        row = replace(
            row,
            outcome=str(newest.outcome),
            reason=newest.reason or "",
            settled=True,
            update_time=self._clock.now(),
        )
        try:
            await self._keep(row, receipts)
        except Refused as refusal:
            self._owe(row, receipts, refusal)
            if row.action_class != ActionClass.S1:
                raise
        ordered = sorted(receipts, key=lambda receipt: receipt.statement.body.number)
        return _response(row, [receipt.statement.data for receipt in ordered])

    def require_room(self) -> None:
        """Raises STORAGE_UNAVAILABLE while what is left of the disk is kept for safety actions and revocations."""
        self._database.require_room()

    async def run(self) -> None:
        """Keep what a failing disk did not take, as soon as it does; until cancelled."""
        while True:
            await self._owing.wait()
            await asyncio.sleep(OWED_S)
            try:
                while self._owed:
                    await self._keep(*self._owed[0], owed=True)
                    self._owed.popleft()
            except Refused as refusal:
                self._log.warning("records_owed", count=len(self._owed), reason=str(refusal))
            else:
                self._owing.clear()

    async def _keep(self, row: CommandRow, receipts: Sequence[KeptReceipt], *, owed: bool = False) -> None:
        def write(connection: Connection) -> None:
            self._write(connection, row, receipts)
            # An owed row is older than what the device has said since. And where receipts of an earlier command of
            # the intent answer this one, that one's row follows them too.
            if owed or any(receipt.statement.body.command != row.digest for receipt in receipts):
                newest = receipts[-1].statement
                command_store.follow_receipts(connection, newest, now=self._clock.now())

        await self._database.write(write, vital=True)
        self._remember(row.digest)
        session = self._sessions.get(row.device)
        if session is not None:
            confirm(session, receipts)

    def _owe(self, row: CommandRow, receipts: Sequence[KeptReceipt], refusal: Refused) -> None:
        self._log.error("receipts_not_kept", command=row.digest.hex(), reason=str(refusal))
        if len(self._owed) < MAX_OWED:
            self._owed.append((row, receipts))
            self._owing.set()

    async def response(self, row: CommandRow) -> gateway_pb2.SubmitCommandResponse:
        """The answer as it stands in the record now."""
        return _response(row, await self.receipts(row))

    async def receipts(self, row: CommandRow) -> list[bytes]:
        """The receipts that answer a command, oldest first; refusals of other attempts at its intent are theirs."""
        statements = await self._database.read(
            lambda conn: command_store.receipts_of(conn, intent=row.intent, device=row.device)
        )
        bodies = ((data, read(data, Receipt).body) for data in statements)
        return [
            data for data, body in bodies if body.outcome is not Outcome.REFUSED or body.command == row.digest
        ]

    def _write(self, connection: Connection, row: CommandRow, receipts: Sequence[KeptReceipt]) -> None:
        command_store.put_command(connection, row)
        if row.intent in self._intents:
            intent_store.use_intent(connection, row.intent, row.device)
        if row.action_class == ActionClass.S1:
            # S1 is recorded afterwards: with what was signed, not only with the receipt.
            for statement in (row.intent_statement, *row.approvals, row.statement):
                self._spool.put(
                    connection,
                    statement,
                    subjects=(f"device/{row.device}", f"person/{row.requester}"),
                    organization_id=self._organization_id,
                    site_id=self._site_id,
                )
        self._receipts.write(connection, receipts, command=row)

    def _remember(self, digest: bytes) -> None:
        self._settled[digest] = None
        while len(self._settled) > RECENT:
            self._settled.popitem(last=False)


def outcome_unknown(row: CommandRow) -> Refused:
    """The device has the command, or may have it, and has not said what it did."""
    return refused(
        Reason.OUTCOME_UNKNOWN,
        "The command was handed to the device, and no receipt has come back in time.",
        lifted_by="`vigil command receipt` with the same request id: it asks the device again",
        who="the requester",
        command_id=row.digest.hex(),
        request_id=row.request_id.hex(),
    )


def _response(row: CommandRow, receipts: Sequence[bytes]) -> gateway_pb2.SubmitCommandResponse:
    response = gateway_pb2.SubmitCommandResponse(
        command_id=row.digest.hex(), receipts=receipts, decision=row.decision
    )
    if row.recorded:
        response.recorded.CopyFrom(evidence_pb2.RecordedItem.FromString(row.recorded))
    return response
