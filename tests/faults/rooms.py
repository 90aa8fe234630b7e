"""Each room that keeps something: where it lies, one write and one read that people make of it."""

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.acts import newcomer, revoke_credential, set_pressure
from tests.support.stack import Stack, eventually
from vigil.api.attestation.v1 import attestation_pb2
from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.api.release.v1 import release_pb2
from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.baselines import content_of_settings
from vigil.demo.places import HOSPITALS
from vigil.demo.publishing import demo_file, publish_baseline
from vigil.demo.world import PumpAt
from vigil.errors import Reason, refused

Ask = Callable[[Stack], Awaitable[None]]


@dataclass(frozen=True)
class Room:
    """``write`` raises what refuses it, and is something else each time; ``read`` asserts that it was answered."""

    name: str
    file: Callable[[Stack], Path]
    write: Ask
    read: Ask

    def path(self, stack: Stack) -> str:
        """A part of the path of every file of its database, and of no other's."""
        return str(self.file(stack))

    def intact(self, stack: Stack) -> None:
        """What lies on the disk is a whole database."""
        with sqlite3.connect(f"file:{self.file(stack)}?mode=ro", uri=True, timeout=20.0) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def pump_of(stack: Stack) -> PumpAt:
    return stack.pumps(stack.first)[0]


def _service(name: str) -> Callable[[Stack], Path]:
    return lambda stack: stack.folder.path / name / f"{name}.db"


async def _make_site(stack: Stack) -> None:
    admin = stack.world.people["admin"]
    site = identity_pb2.Site(
        site_id=f"site-{os.urandom(4).hex()}",
        organization_id=HOSPITALS,
        display_name="Another",
        time_zone="Europe/Berlin",
    )
    await admin.call("identity", admin.registry.CreateSite, identity_pb2.CreateSiteRequest(site=site))


async def _read_site(stack: Stack) -> None:
    admin = stack.world.people["admin"]
    request = identity_pb2.GetSiteRequest(site_id=stack.first)
    assert (await admin.call("identity", admin.registry.GetSite, request)).site_id == stack.first


async def _publish(stack: Stack) -> None:
    content = content_of_settings(demo_file("baseline-configuration.json").decode())
    await publish_baseline(
        stack.world.people["bea"], content, site=stack.first, name=f"ward-{os.urandom(4).hex()}"
    )


async def _read_baselines(stack: Stack) -> None:
    bea = stack.world.people["bea"]
    request = release_pb2.ListBaselinesRequest(site_id=stack.first)
    assert await bea.every("release", bea.releases.ListBaselines, request, "baselines")


async def _revoke(stack: Stack) -> None:
    # Whom is of no matter here: a thumbprint that nobody has, and that the operator may revoke.
    await revoke_credential(stack, await newcomer(stack))


async def _read_revocations(stack: Stack) -> None:
    rita = stack.world.people["rita"]
    request = revocation_pb2.GetCoverageRequest()
    assert (await rita.call("revocation", rita.revocations.GetCoverage, request)).known


async def command(stack: Stack) -> None:
    """Class C; whatever is not 'applied' is a refusal, but for a pump whose last change is not attested yet."""
    for _ in range(20):
        done = await set_pressure(stack, pump_of(stack), 100 + int.from_bytes(os.urandom(2), "big") % 400)
        if done.reason != Reason.ATTESTATION_STALE:
            break
        await asyncio.sleep(0.3)
    if done.reason:
        raise refused(Reason(done.reason), "the pump refused")


async def _read_log(stack: Stack) -> None:
    """What is public: of what somebody may see of others, the reading itself must be on record first."""
    otto, size = stack.world.people["otto"], await stack.log_size()
    request = evidence_pb2.GetInclusionProofRequest(index=size - 1)
    assert (await otto.call("evidence", otto.evidence.GetInclusionProof, request)).path


async def _read_commands(stack: Stack) -> None:
    hand = stack.hand("ada", stack.first)
    request = gateway_pb2.ListCommandsRequest(device_id=pump_of(stack).device_id)
    await hand.session.call(hand.end.whom, hand.end.commands.ListCommands, request)


async def _read_pump(stack: Stack) -> None:
    assert "applied_actions" in await stack.status(pump_of(stack))


async def result_of(stack: Stack, pump: PumpAt) -> attestation_pb2.DeviceTrust:
    """What attestation calls a pump."""
    otto = stack.world.people["otto"]
    request = attestation_pb2.GetResultRequest(device_id=pump.device_id)
    return await otto.call("attestation", otto.attestation.GetResult, request)


async def _read_result(stack: Stack) -> None:
    assert (await result_of(stack, pump_of(stack))).device_id == pump_of(stack).device_id


async def _attest(stack: Stack) -> None:
    """A change at the pump leads to evidence, and evidence to a newer result; none within a while is a refusal."""
    before = await result_of(stack, pump_of(stack))
    await command(stack)

    async def newer() -> bool:
        return (await result_of(stack, pump_of(stack))).result != before.result

    try:
        await eventually(newer, what="a newer result", seconds=4.0)
    except AssertionError:
        raise refused(Reason.STORAGE_UNAVAILABLE, "no newer result was kept") from None


def _gateway_file(stack: Stack) -> Path:
    return stack.folder.gateway(stack.world.gateways[stack.first]) / "data" / "gateway.db"


def _pump_file(stack: Stack) -> Path:
    return stack.home / "pumps" / pump_of(stack).name / "pump.db"


IDENTITY = Room("identity", _service("identity"), _make_site, _read_site)
RELEASE = Room("release", _service("release"), _publish, _read_baselines)
ATTESTATION = Room("attestation", _service("attestation"), _attest, _read_result)
REVOCATION = Room("revocation", _service("revocation"), _revoke, _read_revocations)
EVIDENCE = Room("evidence", _service("evidence"), command, _read_log)
GATEWAY = Room("gateway", _gateway_file, command, _read_commands)
PUMP = Room("pump", _pump_file, command, _read_pump)

SERVICES = (IDENTITY, RELEASE, ATTESTATION, REVOCATION, EVIDENCE, GATEWAY)
ROOMS = (*SERVICES, PUMP)
