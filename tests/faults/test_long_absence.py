"""The control plane is away for three days and longer than certificates live: S1 works as bounded, the rest refuses."""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509

from tests.faults.acts import SAFETY
from tests.support import clocks
from tests.support.clocks import DAY
from tests.support.stack import PRESSURE, Stack, eventually
from vigil.core.certificates import Identity, Kind, load_pair, milliseconds, store_pair
from vigil.core.clock import SystemClock
from vigil.core.statements.bodies import Outcome, Receipt
from vigil.core.statements.envelope import Statement
from vigil.demo.people import session_of
from vigil.demo.technician import Hand
from vigil.demo.world import PumpAt
from vigil.errors import Reason, Refused
from vigil.identity import pki
from vigil.run.layout import SERVICES

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.thorough]

Injected = Callable[[int], None]
HOURS: Final = 3_600
ENDED: Final = (Reason.CERTIFICATE_EXPIRED, Reason.SERVICE_UNAVAILABLE)
"""A certificate past its grace fails in the handshake already."""


@dataclass(frozen=True)
class Shifted:
    """The clock of a person whose machine says the same as everybody's in the test: so many seconds from now."""

    seconds: int

    def now(self) -> int:
        return SystemClock().now() + self.seconds * 1000

    def monotonic(self) -> float:
        return SystemClock().monotonic()


class ShiftedHand(Hand):
    """A person's hand on a gateway, at another time."""

    def __init__(self, stack: Stack, who: str, site: str, *, seconds: int) -> None:
        super().__init__(stack.world, who, site)
        former = self.session
        self.session = session_of(former.folder, former.context)
        self.session.clock = Shifted(seconds)  # type: ignore[assignment]
        gateway_id = stack.world.gateways[site]
        self.end = self.session.gateway_end(gateway_id, stack.address(gateway_id), site)

    async def alert(self, stack: Stack, pump: PumpAt) -> Statement[Receipt]:
        """Class S1."""
        message = f"look at me {os.urandom(4).hex()}"
        done = await self.send(pump, "local-alert", {"message": message})
        assert done.outcome is Outcome.APPLIED
        assert (await stack.status(pump))["alert"] == message
        return done.receipt


async def refusal_of(hand: ShiftedHand, pump: PumpAt, action: str, **parameters: str) -> Reason:
    with pytest.raises(Refused) as raised:
        await hand.send(pump, action, parameters)
    return raised.value.reason


@pytest.mark.holds("expired-everywhere")
async def test_three_days_without_identity(injected: Injected) -> None:
    """S1 works as bounded, the rest refuses, and all comes back by itself, by renewing what has ended.

    An installation of its own: what has been three days on does not go back.
    """
    clocks.required()
    stack = await Stack.start()
    try:
        until = await _cut_off(stack, injected)
        await _back(stack, injected, seconds=until)
    finally:
        await stack.stop()


async def _cut_off(stack: Stack, injected: Injected) -> int:
    """Gateway and pumps go on in time while the control plane stands still; answers by how much (s)."""
    gateway_id, pump = stack.world.gateways[stack.first], stack.pumps(stack.first)[0]
    end = stack.world.people[SAFETY].person.operational_until
    until = (end - SystemClock().now()) // 1000 + 71 * HOURS
    async with (
        stack.stopped("redis", *SERVICES),
        clocks.of(stack, gateway_id, clocks.FLEET, seconds=until, serving=False) as moved,
    ):
        sam = ShiftedHand(stack, SAFETY, stack.first, seconds=until)

        async def alerted() -> Statement[Receipt]:
            return await sam.alert(stack, pump)

        receipt = await eventually(alerted, what="S1 works after 71 hours", pause=0.5)
        # The pump says when it was, by a clock of its own: the shift is real.
        assert abs(receipt.issued_at - SystemClock().now() // 1000 - until) < 120
        assert receipt.issued_at * 1000 > end + 70 * HOURS * 1000
        injected(2)
        ada = ShiftedHand(stack, "ada", stack.first, seconds=until)
        assert await refusal_of(ada, pump, "local-alert", message="hello") in ENDED
        assert await refusal_of(sam, pump, PRESSURE, occlusion_pressure="311") in (
            *ENDED,
            Reason.ROLE_NOT_PERMITTED,
            Reason.LEASE_EXPIRED,
        )
        until += 2 * HOURS
        for clock in moved.values():
            clock.step(until)
        late = ShiftedHand(stack, SAFETY, stack.first, seconds=until)

        async def refused_for_good() -> bool:
            try:
                await late.alert(stack, pump)
            except Refused as refusal:
                return refusal.reason in ENDED
            return False

        await eventually(
            refused_for_good, what="after 73 hours the safety credential is at its end", pause=0.5
        )
    return until


async def _back(stack: Stack, injected: Injected, *, seconds: int) -> None:
    """Everything starts again, that much later and after the end of every certificate but those of the root."""
    for site, gateway_id in stack.world.gateways.items():
        _ends_soon(stack, gateway_id, site)
    names = ("up", *SERVICES, *stack.world.gateways.values(), clocks.FLEET)
    for name in names:
        clocks.Moved(stack.clocks / name).step(seconds)
    for fleet in stack.world.fleets:
        await fleet.stop()
    await stack.installation.stop()
    with stack.besides_ours():
        await stack.installation.start()
        for fleet in stack.world.fleets:
            await fleet.start()
    injected(len(names))
    # We are three days behind and no client of theirs: what they did lies on their disks.
    later = SystemClock().now() + 2 * DAY * 1000
    services = stack.folder.path / "pki" / "services"
    for name in SERVICES:
        pair = load_pair(services / name / "tls.pem", services / name / "tls.key")
        begin = x509.load_der_x509_certificate(pair.chain_der[0]).not_valid_before_utc
        # Made anew, and by a clock three days on: the shift is real.
        assert milliseconds(begin) > later

    def attested() -> bool:
        query = f"SELECT count(*) FROM device WHERE status = 'affirming' AND stale_at > {later}"
        return _counted(stack.folder.path / "attestation" / "attestation.db", query) == len(stack.pumps())

    await eventually(attested, what="every pump has attested anew", seconds=240, pause=0.5)
    for gateway_id in stack.world.gateways.values():
        await eventually(
            lambda gateway_id=gateway_id: _operational_until(stack, gateway_id) > later,
            what=f"{gateway_id} has renewed its certificate",
            seconds=240,
        )
        await eventually(
            lambda gateway_id=gateway_id: (
                not _counted(
                    stack.folder.gateway(gateway_id) / "data" / "gateway.db",
                    "SELECT count(*) FROM evidence_spool",
                )
            ),
            what=f"what {gateway_id} did meanwhile is on record",
            seconds=240,
        )


def _counted(database: Path, query: str) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return int(connection.execute(query).fetchone()[0])


def _ends_soon(stack: Stack, gateway_id: str, site: str) -> None:
    """A gateway's certificate whose ordinary use ends in an hour; its grace is the usual one."""
    home, now = stack.folder.gateway(gateway_id), SystemClock().now()
    made = stack.issue(
        Kind.GATEWAY,
        gateway_id,
        organization=stack.world.people["ada"].person.organization,
        sites=(site,),
        operational_until=now + HOURS * 1000,
        not_after=now + 30 * pki.DAY,
    )
    pair = load_pair(made.tls_files.certificate, made.tls_files.key)
    store_pair(
        home / "tls.pem", home / "tls.key", chain_pem=pair.certificate_pem, private_key=pair.private_key
    )


def _operational_until(stack: Stack, gateway_id: str) -> int:
    home = stack.folder.gateway(gateway_id)
    chain = load_pair(home / "tls.pem", home / "tls.key").chain_der
    identity: Identity = stack.world.people["admin"].verifier.remember(chain)
    return identity.operational_until
