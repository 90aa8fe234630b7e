"""The registry of devices: found by any of their names, counted, held and freed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, func, insert, select, update

from vigil.core import udi
from vigil.core.certificates import Identity
from vigil.core.certificates.grant import DEVICE_ID
from vigil.core.classes import MAX_CLOCK_SKEW_MS
from vigil.core.commands import person_of
from vigil.core.statements import bodies
from vigil.core.statements.envelope import Statement, read
from vigil.errors import Reason, Refused, refused
from vigil.identity import domain, refusals, store
from vigil.identity.domain import Device, DeviceState, Hold
from vigil.identity.ports import Ports, publish, unknown
from vigil.rpc.access import not_permitted
from vigil.rpc.caller import require_site, scope_filtered
from vigil.rpc.paging import after_of, page_size, token_after

MAX_CANDIDATES: Final = 10
"""Devices named when a serial or tag fits several."""


class Devices:
    """The use cases of DeviceService, but for the gateways' reports."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def device(self, caller: Identity, name: str) -> Device:
        """Find a device by its id, UDI (any carrier), serial or asset tag, in the caller's scope.

        Raises NOT_IN_SCOPE, FIELD_INVALID when several fit.
        """
        if not name or len(name) > udi.MAX_CARRIER:
            raise refusals.invalid("device_id", f"it has 1 to {udi.MAX_CARRIER} characters")
        condition = and_(_named(name), store.visible_at_sites(store.DEVICE, caller))
        found = await self._ports.database.read(
            lambda connection: store.find(connection, Device, condition, limit=MAX_CANDIDATES)
        )
        if not found:
            raise unknown()
        for one in found:
            require_site(caller, one.organization_id, one.site_id)
        if len(found) > 1:
            candidates = ", ".join(one.device_id for one in found)
            raise refusals.invalid(
                "device_id", f"several devices have this serial or tag: {candidates}", candidates=candidates
            )
        return found[0]

    async def devices(
        self, caller: Identity, size: int, token: str, *, site_id: str, state: DeviceState | None, model: str
    ) -> tuple[list[Device], str]:
        """List the devices in the caller's scope."""
        scope_filtered(caller)
        asked = ("Device", site_id, state or "", model)
        after, rows = after_of(token, *asked), page_size(size)
        conditions = [store.visible_at_sites(store.DEVICE, caller)]
        for column, value in (("site_id", site_id), ("state", state), ("model", model)):
            if value:
                conditions.append(store.DEVICE.c[column] == value)
        found, last = await self._ports.database.read(
            lambda connection: store.page(connection, Device, *conditions, after=after, size=rows)
        )
        return found, token_after(last, *asked)

    async def count(self, caller: Identity) -> dict[str, int]:
        """Count the devices in the caller's scope by state; every state is there."""
        scope_filtered(caller)
        table = store.DEVICE
        query = (
            select(table.c.state, func.count())
            .where(store.visible_at_sites(table, caller))
            .group_by(table.c.state)
        )
        found = await self._ports.database.read(
            lambda connection: {str(state): int(number) for state, number in connection.execute(query)}
        )
        return {str(state): found.get(str(state), 0) for state in DeviceState}

    async def place_hold(self, caller: Identity, device_id: str, data: bytes) -> Device:
        """Place a hold: one person, one statement; the same one again changes nothing.

        Raises NOT_IN_SCOPE, SIGNER_NOT_CALLER, ROLE_NOT_PERMITTED, STATEMENT_MALFORMED, SIGNATURE_INVALID,
        NOT_IN_TARGET, FIELD_INVALID, QUOTA_EXCEEDED.
        """
        found = await self._in_scope(caller, device_id)
        statement, signer = self._read(data, found, bodies.HoldAction.PLACE)
        if signer.id != caller.id:
            raise _not_caller()
        now = self._ports.clock.now()
        expires = statement.body.expires or 0
        if statement.body.expires is not None and expires <= now:
            raise refusals.invalid("hold", "it has ended already")
        hold = Hold(
            digest=statement.digest,
            device_id=device_id,
            placed_by=signer.id,
            issued_at=statement.issued_at * 1000,
            expires=expires,
            lifted_at=0,
            log_size=0,
        )

        def run(connection: Connection) -> Device:
            device = _present(connection, device_id)
            if store.get(connection, Hold, hold.digest) is not None:
                return device
            if device.holds >= domain.MAX_HOLDS:
                raise refused(Reason.QUOTA_EXCEEDED, f"A device bears at most {domain.MAX_HOLDS} holds.")
            store.add(connection, hold, {})
            self._record(connection, device, statement, signer)
            return recount(self._ports, connection, device)

        return await self._ports.database.write(run)

    async def lift_hold(self, caller: Identity, device_id: str, lifts: Sequence[bytes]) -> Device:
        """Lift every hold on a device: two persons, one of them calling, a statement by each, used once.

        The same two statements again change nothing. Raises SECOND_PERSON_REQUIRED, APPROVER_NOT_DISTINCT,
        REQUEST_ID_REUSED, STATE_CONFLICT, and as `place_hold`.
        """
        found = await self._in_scope(caller, device_id)
        if len(lifts) != 2:
            raise refusals.second_person(
                "Two people lift a hold, each with a statement.", "the people of the site"
            )
        read_all = [self._read(data, found, bodies.HoldAction.LIFT) for data in lifts]
        persons = [signer.id for _, signer in read_all]
        if caller.id not in persons:
            raise _not_caller()
        if len(set(persons)) != 2:
            raise refused(
                Reason.APPROVER_NOT_DISTINCT,
                "Both statements were signed by one person.",
                lifted_by="a statement by somebody else",
                who="the people of the site",
            )

        def run(connection: Connection) -> Device:
            device = _present(connection, device_id)
            now = self._ports.clock.now()
            used = [_used(connection, statement.digest) for statement, _ in read_all]
            if all(used):
                return device
            if any(used):
                raise _reused()
            for statement, signer in read_all:
                self._use_up(connection, device, statement, signer)
            held = [hold for hold in active_holds(connection, device_id) if domain.in_force(hold, now=now)]
            if not held:
                raise refusals.conflict("There is no hold on this device.")
            signed = min(statement.issued_at * 1000 for statement, _ in read_all)
            if any(hold.issued_at > signed + MAX_CLOCK_SKEW_MS for hold in held):
                raise refusals.conflict(
                    "A hold was placed after these statements were signed.",
                    lifted_by="new statements by two people",
                )
            lift_all(connection, device_id, held, now=now)
            return recount(self._ports, connection, device)

        return await self._ports.database.write(run)

    async def sweep_holds(self) -> int:
        """End the holds whose time is over; answers how many."""
        now = self._ports.clock.now()
        columns = store.HOLD.c
        over = and_(columns.lifted_at == 0, columns.expires > 0, columns.expires <= now)
        if not await self._ports.database.read(
            lambda connection: store.find(connection, Hold, over, limit=1)
        ):
            return 0

        def run(connection: Connection) -> int:
            ended = store.find(connection, Hold, over)
            for hold in ended:
                store.change(connection, Hold, hold.digest, lifted_at=hold.expires)
            for device_id in {hold.device_id for hold in ended}:
                recount(self._ports, connection, _present(connection, device_id))
            return len(ended)

        return await self._ports.database.write(run)

    async def _in_scope(self, caller: Identity, device_id: str) -> Device:
        found = await self._ports.database.read(lambda connection: store.get(connection, Device, device_id))
        if found is None:
            raise unknown()
        require_site(caller, found.organization_id, found.site_id)
        return found

    def _read(
        self, data: bytes, device: Device, action: bodies.HoldAction
    ) -> tuple[Statement[bodies.Hold], Identity]:
        """A hold's statement for this device, by somebody who may sign it here and now."""
        statement = read(data, bodies.Hold)
        signer = person_of(statement, self._ports.trust.verifier, at=self._ports.clock.now())
        if not signer.has_role(*domain.HOLDERS):
            raise not_permitted()
        if not signer.covers_site(device.organization_id, device.site_id):
            raise unknown()
        if statement.body.device != device.device_id:
            raise refused(Reason.NOT_IN_TARGET, "The statement names another device.")
        if statement.body.action is not action:
            raise refusals.invalid(
                "hold", f"its action is {statement.body.action}, where {action} is asked for"
            )
        return statement, signer

    def _use_up(
        self, connection: Connection, device: Device, statement: Statement[bodies.Hold], signer: Identity
    ) -> None:
        connection.execute(
            insert(store.LIFT).values(
                digest=statement.digest,
                device_id=device.device_id,
                person=signer.id,
                create_time=self._ports.clock.now(),
            )
        )
        self._record(connection, device, statement, signer)

    def _record(
        self, connection: Connection, device: Device, statement: Statement[bodies.Hold], signer: Identity
    ) -> None:
        self._ports.spool.put(
            connection,
            statement.data,
            subjects=(f"device/{device.device_id}", f"person/{signer.id}"),
            organization_id=device.organization_id,
            site_id=device.site_id,
        )


def active_holds(connection: Connection, device_id: str) -> list[Hold]:
    """Holds on a device that nobody lifted."""
    return store.find(
        connection, Hold, store.HOLD.c.device_id == device_id, store.HOLD.c.lifted_at == 0, limit=2000
    )


def lift_all(connection: Connection, device_id: str, holds: Sequence[Hold], *, now: int) -> None:
    """Note that these holds of a device are lifted."""
    table = store.HOLD
    digests = [hold.digest for hold in holds]
    connection.execute(
        update(table).where(table.c.device_id == device_id, table.c.digest.in_(digests)).values(lifted_at=now)
    )


def recount(ports: Ports, connection: Connection, device: Device) -> Device:
    """Count a device's holds anew, and tell."""
    now = ports.clock.now()
    holds = domain.count_holds(active_holds(connection, device.device_id), now=now)
    made = replace(device, holds=holds, update_time=now)
    store.change(connection, Device, device.device_id, holds=holds, update_time=now)
    publish(ports.outbox, connection, made)
    return made


def _named(name: str) -> ColumnElement[bool]:
    columns = store.DEVICE.c
    if DEVICE_ID.fullmatch(name):
        return columns.device_id == name
    try:
        named = udi.parse(name)
    except Refused:
        return store.by_names(name)
    return and_(
        columns.udi_issuer == named.issuer, columns.udi_di == named.di, columns.serial == named.serial
    )


def _present(connection: Connection, device_id: str) -> Device:
    found = store.get(connection, Device, device_id)
    if found is None:
        raise unknown()
    return found


def _used(connection: Connection, digest: bytes) -> bool:
    table = store.LIFT
    return connection.execute(select(table.c.digest).where(table.c.digest == digest)).first() is not None


def _reused() -> Refused:
    return refused(
        Reason.REQUEST_ID_REUSED,
        "One of these statements has lifted a hold before.",
        lifted_by="a new statement",
        who="its signer",
    )


def _not_caller() -> Refused:
    return refused(
        Reason.SIGNER_NOT_CALLER,
        "The caller did not sign this statement.",
        lifted_by="a call by its signer",
        who="the signer",
    )
