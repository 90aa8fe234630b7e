"""What people look at: commands, receipts, connected devices, the gateway itself, and one device live (class R)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.core.certificates import Identity
from vigil.core.clock import Clock
from vigil.core.statements.bodies import ActionClass
from vigil.errors import Reason, Refused, refused
from vigil.gateway import command_store, domain, pages
from vigil.gateway.attestation import Attestation
from vigil.gateway.command_store import CommandRow
from vigil.gateway.device_sessions import Session
from vigil.gateway.facts import Facts
from vigil.gateway.intents import Home
from vigil.gateway.own_key import OwnKey
from vigil.gateway.quotas import Quotas
from vigil.gateway.receipts import Receipts
from vigil.gateway.records import Records, outcome_unknown
from vigil.rpc.access import not_in_scope
from vigil.rpc.caller import require_site, scope_filtered
from vigil.storage import Database

STATUS_INTERVAL_MS: Final = 1_000
"""How often a followed device reports itself."""
FOLLOW_CHECK_S: Final = 2.0
"""How often lease and revocation are held against an open stream that is otherwise silent."""
_STATES: Final = {
    value: name.removeprefix("DEVICE_STATE_").lower() for name, value in identity_pb2.DeviceState.items()
}


class Queries:
    """Reads, and class R's live stream."""

    def __init__(
        self,
        *,
        facts: Facts,
        quotas: Quotas,
        attestation: Attestation,
        receipts: Receipts,
        records: Records,
        database: Database,
        key: OwnKey,
        clock: Clock,
        home: Home,
        gateway_id: str,
        replica_ages: Callable[[], Mapping[str, float]],
        spooled: Callable[[], Awaitable[int]],
    ) -> None:
        self._facts = facts
        self._quotas = quotas
        self._attestation = attestation
        self._receipts = receipts
        self._records = records
        self._database = database
        self._key = key
        self._clock = clock
        self._home = home
        self._gateway_id = gateway_id
        self._replica_ages = replica_ages
        self._spooled = spooled

    async def receipt(
        self, caller: Identity, request: gateway_pb2.GetReceiptRequest
    ) -> gateway_pb2.SubmitCommandResponse:
        """Ask the device again what became of a request. Raises OUTCOME_UNKNOWN, RESOURCE_NOT_FOUND, DEVICE_OFFLINE."""
        device = self._facts.device(caller, request.device_id)
        refusal = domain.asker_refusal(
            caller, now=self._clock.now(), lease_age_s=self._facts.revocations.lease_age()
        )
        if refusal is not None:
            raise Refused([refusal])
        self._quotas.take(caller.thumbprint, "reads")
        if len(request.request_id) != 16:
            raise refused(Reason.FIELD_INVALID, "a request id has 16 bytes", field="request_id")
        session = self._facts.sessions.get(device.device_id)
        silence = domain.offline()
        if session is not None:
            try:
                await self._receipts.query(session, request.request_id)
            except Refused as unanswered:
                # Who did not answer has not said that it knows nothing.
                session, silence = None, unanswered.refusals[0]
        name, request_id = device.device_id, request.request_id
        row = await self._database.read(
            partial(command_store.find_by_request, device=name, request_id=request_id)
        )
        statements = await self._database.read(
            partial(command_store.receipts_of_request, device=name, request_id=request_id)
        )
        if statements:
            response = gateway_pb2.SubmitCommandResponse(receipts=statements)
            if row is not None:
                response = await self._records.response(row)
            return response
        if row is not None and row.outcome in domain.UNSETTLED:
            raise outcome_unknown(row)
        if session is None:
            raise Refused([silence])
        raise refused(Reason.RESOURCE_NOT_FOUND, "Neither the device nor the gateway knows this request.")

    async def command(self, caller: Identity, command_id: str) -> gateway_pb2.CommandRecord:
        """One command by its id or its intent's, or the beginning of either. Raises NOT_IN_SCOPE."""
        rows = await self._database.read(partial(command_store.find_by_prefix, prefix=command_id))
        if not rows or len({row.digest for row in rows}) > 1:
            raise not_in_scope()
        self._require_device(caller, rows[0].device)
        self._quotas.take(caller.thumbprint, "reads")
        return _record(rows[0], await self._records.receipts(rows[0]))

    async def commands(
        self, caller: Identity, request: gateway_pb2.ListCommandsRequest
    ) -> gateway_pb2.ListCommandsResponse:
        """A page of commands, newest first, without the statements. Raises FIELD_INVALID."""
        scope_filtered(caller)
        self._quotas.take(caller.thumbprint, "reads")
        if not caller.covers_site(self._home.organization_id, self._home.site_id):
            return gateway_pb2.ListCommandsResponse()
        device_id = ""
        if request.device_id:
            device_id = self._facts.device(caller, request.device_id).device_id
        size = pages.size_of(request.page_size)
        rows = await self._database.read(
            partial(
                command_store.list_commands,
                before=pages.place_of(request.page_token),
                limit=size,
                device=device_id,
            )
        )
        return gateway_pb2.ListCommandsResponse(
            commands=[_summary(row) for _, row in rows],
            next_page_token=pages.token_of(rows[-1][0]) if len(rows) == size else "",
        )

    def device(self, caller: Identity, name: str) -> gateway_pb2.ConnectedDevice:
        """One device as it is seen here. Raises NOT_IN_SCOPE."""
        device = self._facts.device(caller, name)
        self._quotas.take(caller.thumbprint, "reads")
        return self._connected(device)

    def devices(
        self, caller: Identity, request: gateway_pb2.ListConnectedDevicesRequest
    ) -> gateway_pb2.ListConnectedDevicesResponse:
        """A page of the site's devices by id, connected or not. Raises FIELD_INVALID."""
        scope_filtered(caller)
        self._quotas.take(caller.thumbprint, "reads")
        size = pages.size_of(request.page_size)
        visible = [
            device
            for device in self._facts.directory.devices()
            if device.device_id > request.page_token
            and caller.covers_site(device.organization_id, device.site_id)
        ]
        return gateway_pb2.ListConnectedDevicesResponse(
            devices=[self._connected(device) for device in visible[:size]],
            next_page_token=visible[size - 1].device_id if len(visible) > size else "",
        )

    async def gateway(self, caller: Identity) -> gateway_pb2.GatewayStatus:
        """The gateway itself; how many devices it has and how fresh it is."""
        self._quotas.take(caller.thumbprint, "reads")
        view = self._facts.revocations
        return gateway_pb2.GatewayStatus(
            gateway_id=self._gateway_id,
            site_id=self._home.site_id,
            connected_devices=len(self._facts.sessions),
            revocation_epoch=view.state.epoch,
            lease_left_ms=view.lease_left_ms(),
            spool_length=await self._spooled(),
            replica_age_ms={
                name: -1 if age == float("inf") else int(age * 1000)
                for name, age in self._replica_ages().items()
            },
            certificate_operational_until_ms=self._key.identity.operational_until,
        )

    async def follow(self, caller: Identity, name: str) -> AsyncIterator[gateway_pb2.FollowDeviceResponse]:
        """Class R, live: reports while lease and credential last. Raises what refuses it, also in the middle."""
        device = self._facts.device(caller, name)
        self._quotas.take(caller.thumbprint, "reads")
        self._require_readable(caller)
        session = self._facts.sessions.require(device.device_id)
        event = asyncio.Event()
        with self._quotas.under_way(caller.thumbprint, "streams"):
            if session.follow(event):
                session.send(_interval(STATUS_INTERVAL_MS))
            try:
                async for report in self._reports(caller, session, event):
                    yield report
            finally:
                if session.unfollow(event):
                    session.try_send(_interval(0))

    async def _reports(
        self, caller: Identity, session: Session, event: asyncio.Event
    ) -> AsyncIterator[gateway_pb2.FollowDeviceResponse]:
        while not session.ended:
            event.clear()
            try:
                async with asyncio.timeout(FOLLOW_CHECK_S):
                    await event.wait()
            except TimeoutError:
                # Nothing to show, but what permits the stream may have gone.
                self._require_readable(caller)
                continue
            self._require_readable(caller)
            if session.status is not None and not session.ended:
                yield gateway_pb2.FollowDeviceResponse(
                    status=session.status,
                    degraded=domain.is_degraded(lease_age_s=self._facts.revocations.lease_age()),
                    trust_status=self._trust(session.device_id)[0],
                )
        raise Refused([domain.offline()])

    def _require_readable(self, caller: Identity) -> None:
        """Class R: credential, role, revocation, and the lease with its ten minutes."""
        now, view = self._clock.now(), self._facts.revocations
        age = view.lease_age()
        first = domain.caller_refusal(caller, ActionClass.R, now=now, lease_age_s=age)
        if first is not None:
            raise Refused([first])
        reason = view.state.identity_refusal(caller, at=now)
        refusals = [] if reason is None else [domain.revoked_caller(reason)]
        lease = domain.lease_refusal(ActionClass.R, lease_age_s=age)
        if lease is not None:
            refusals.append(lease)
        if refusals:
            raise Refused(refusals)

    def _require_device(self, caller: Identity, device_id: str) -> None:
        device = self._facts.directory.device(device_id)
        organization = self._home.organization_id if device is None else device.organization_id
        require_site(caller, organization, self._home.site_id)

    def _trust(self, device_id: str) -> tuple[str, int]:
        result = self._attestation.newest(device_id)
        if result is None:
            return "none", 0
        return str(result.body.status), result.body.stale_at

    def _connected(self, device: identity_pb2.Device) -> gateway_pb2.ConnectedDevice:
        session = self._facts.sessions.get(device.device_id)
        trust, stale = self._trust(device.device_id)
        message = gateway_pb2.ConnectedDevice(
            device_id=device.device_id,
            udi=device.udi,
            connected=session is not None,
            model=device.model,
            state=_STATES.get(device.state, "unspecified"),
            trust_status=trust,
            trust_stale_time_ms=stale,
        )
        if session is not None:
            message.connect_time_ms = session.connect_time
            message.software_version = session.hello.firmware_version
            message.revocation_epoch = session.revocation_epoch
            if session.status is not None:
                message.status.CopyFrom(session.status)
        return message


def _interval(interval_ms: int) -> gateway_pb2.ConnectResponse:
    return gateway_pb2.ConnectResponse(status_interval=gateway_pb2.StatusInterval(interval_ms=interval_ms))


def _summary(row: CommandRow) -> gateway_pb2.CommandRecord:
    return gateway_pb2.CommandRecord(
        command_id=row.digest.hex(),
        intent_id=row.intent.hex(),
        device_id=row.device,
        action=row.action,
        requester=row.requester,
        outcome=row.outcome,
        reason=row.reason,
        create_time_ms=row.create_time,
        update_time_ms=row.update_time,
        work_order=row.work_order,
    )


def _record(row: CommandRow, receipts: list[bytes]) -> gateway_pb2.CommandRecord:
    record = _summary(row)
    record.intent = row.intent_statement
    record.approvals.extend(row.approvals)
    record.command = row.statement
    record.decision = row.decision
    if row.recorded:
        record.recorded.CopyFrom(evidence_pb2.RecordedItem.FromString(row.recorded))
    record.receipts.extend(receipts)
    return record
