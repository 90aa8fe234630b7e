"""What people do in the middle of a fault, and how it is undone."""

import os
from collections.abc import Collection

import pytest

from tests.support import revoking
from tests.support.stack import PRESSURE, Issued, Stack, eventually
from vigil.api.revocation.v1 import revocation_pb2
from vigil.cli.session import Session
from vigil.core.certificates import EVERY, Kind
from vigil.core.clock import SystemClock
from vigil.core.digest import hex_digest
from vigil.core.statements.bodies import (
    Outcome,
    Receipt,
)
from vigil.core.statements.envelope import read
from vigil.demo.people import Cast, appoint
from vigil.demo.places import HOSPITALS, OPERATOR
from vigil.demo.technician import Done
from vigil.demo.world import PumpAt
from vigil.errors import Reason, Refused

SAFETY = "sam"
"""At the first site."""


def technician_of(stack: Stack, pump: PumpAt) -> str:
    return "ada" if pump.site == stack.first else "ben"


async def set_pressure(stack: Stack, pump: PumpAt, pressure: int, *, who: str = "") -> Done:
    """Class C."""
    hand = stack.hand(who or technician_of(stack, pump), pump.site)
    return await hand.send(pump, PRESSURE, {"occlusion_pressure": pressure})


async def is_refused(stack: Stack, pump: PumpAt, reasons: Collection[Reason], *, who: str = "") -> None:
    """A class C command is refused for one of these reasons, and the pump has done nothing."""
    before = await stack.applied(pump)
    with pytest.raises(Refused) as raised:
        await set_pressure(stack, pump, 321, who=who)
    assert {one.reason for one in raised.value.refusals} & set(reasons), raised.value.refusals
    assert await stack.applied(pump) == before


async def works_again(stack: Stack, pump: PumpAt, pressure: int) -> None:
    """Class C goes through, by itself and without anybody's help."""
    before = await stack.applied(pump)

    async def sent() -> bool:
        done = await set_pressure(stack, pump, pressure)
        return done.outcome is Outcome.APPLIED

    await eventually(sent, what="a class C command goes through again", pause=0.5)
    assert await stack.applied(pump) == before + 1
    assert (await stack.status(pump))["settings"]["occlusion_pressure"] == str(pressure)


async def alert(stack: Stack, pump: PumpAt) -> bytes:
    """Class S1, by the safety officer: the pump shows a message. Answers the request id."""
    message = f"look at me {os.urandom(4).hex()}"
    done = await stack.hand(SAFETY, pump.site).send(pump, "local-alert", {"message": message})
    assert done.outcome is Outcome.APPLIED
    assert done.permit is None
    assert (await stack.status(pump))["alert"] == message
    return done.receipt.body.request_id


async def recorded(stack: Stack, pump: PumpAt, request_id: bytes) -> None:
    """The receipt of a request comes to the record by itself, once."""

    async def found() -> list[Receipt]:
        receipts = [read(entry.statement, Receipt).body for entry in await stack.history(pump, "receipt")]
        return [one for one in receipts if one.request_id == request_id]

    assert len(await eventually(found, what="the receipt is on record")) == 1


async def release_quarantine(stack: Stack, pump: PumpAt) -> None:
    """Out of quarantine: a technician's intent and an approver's word."""
    technician = stack.hand(technician_of(stack, pump), pump.site)
    intent = technician.intent(pump, "release-quarantine", {})
    await technician.create_intent(pump, intent)
    await stack.hand("cleo", pump.site).approve(intent)
    done = await technician.finish(pump, intent)
    assert done.outcome is Outcome.APPLIED
    assert not (await stack.status(pump))["quarantined"]


async def released(stack: Stack, pump: PumpAt) -> None:
    """Somebody looks and says that nobody hangs on it; a pump that was just switched on does not know."""

    async def known() -> bool:
        await pump.fleet.do("bedside-release", pump.device_id)
        return bool((await stack.status(pump))["patient_state"] == "disconnected")

    await eventually(known, what="the pump knows that nobody hangs on it")


async def all_released(stack: Stack) -> None:
    """Every pump that no therapy runs on; what a test before switched off and on does not know."""
    for pump in stack.pumps():
        status = await stack.status(pump)
        if status["patient_state"] != "disconnected" and status["therapy_state"] == "idle":
            await released(stack, pump)


async def newcomer(stack: Stack) -> str:
    """Another technician of the first site, whose credential a test may revoke; answers the name."""
    name = f"tim-{os.urandom(4).hex()}"
    people = stack.world.people
    people[name] = await appoint(
        stack.folder,
        Cast(
            name=name,
            display_name="Tim",
            organization=HOSPITALS,
            roles=("technician",),
            sites=(stack.first,),
        ),
        admin=people["admin"],
        second=people["admin-2"],
        trust_domain=stack.installation.trust_domain,
    )
    return name


async def recaller(stack: Stack) -> Session:
    """Another one of the recall team: what one person may revoke alone in ten minutes is not used up yet."""
    people = stack.world.people
    return await appoint(
        stack.folder,
        Cast(
            name=f"rex-{os.urandom(4).hex()}",
            display_name="Rex",
            organization=OPERATOR,
            roles=("recall",),
            sites=(EVERY,),
            privileged=True,
        ),
        admin=people["admin"],
        second=people["admin-2"],
        trust_domain=stack.installation.trust_domain,
    )


async def revoke_credential(stack: Stack, name: str) -> int:
    """By the recall team; answers the epoch."""
    people = stack.world.people
    thumbprint = hex_digest(people[name].person.thumbprint)
    try:
        return await revoking.revoke_credential(people["rita"], thumbprint)
    except Refused as refusal:
        if refusal.reason is not Reason.SECOND_PERSON_REQUIRED:
            raise
    # Tests before this one have had what one person may revoke alone in ten minutes.
    return await revoking.revoke_credential(people["raj"], thumbprint)


def short_lived(stack: Stack, *, life_ms: int) -> tuple[Issued, int]:
    """Another certificate of ada's, and when it ends (ms)."""
    until = SystemClock().now() + life_ms
    ada = stack.world.people["ada"]
    short = stack.issue(
        Kind.PERSON,
        "p-ada",
        organization=ada.person.organization,
        sites=(stack.first,),
        roles=("technician",),
        not_after=until,
    )
    # X.509 knows whole seconds.
    return short, until // 1000 * 1000


async def enforced_everywhere(stack: Stack, epoch: int) -> None:
    """Every gateway and every pump has acknowledged the epoch."""
    rita = stack.world.people["rita"]

    async def covered() -> bool:
        request = revocation_pb2.GetCoverageRequest(epoch=epoch)
        coverage = await rita.call("revocation", rita.revocations.GetCoverage, request)
        assert coverage.known == len(stack.world.gateways)
        return coverage.enforcing == coverage.known and coverage.devices == len(stack.pumps())

    await eventually(covered, what=f"every gateway enforces epoch {epoch}")
