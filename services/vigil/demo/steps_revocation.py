"""Steps (i) to (k): a technician revoked, a build revoked, and the bus gone silent."""

import asyncio
import contextlib

from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.revocation.v1 import revocation_pb2
from vigil.cli.signing import sign_revocation
from vigil.core.statements.bodies import (
    Outcome,
    Revocation,
    RevocationEffect,
    RevocationReason,
    Scope,
)
from vigil.demo.result import Came, Different, expect
from vigil.demo.steps_command import pump_of, refusal_of, update
from vigil.demo.technician import Hand
from vigil.demo.world import World
from vigil.errors import Reason, Refused
from vigil.rpc.status import translated_stream

COVERED_S = 30.0


async def revoke(world: World, body: Revocation) -> tuple[int, float]:
    """Rita revokes; answers the epoch, and how long it took until every gateway enforced it (ms)."""
    rita = world.people["rita"]
    signed = sign_revocation(rita.scribe, body)
    began = rita.clock.monotonic()
    entry = await rita.call(
        "revocation", rita.revocations.Revoke, revocation_pb2.RevokeRequest(revocation=signed.data)
    )
    request = revocation_pb2.GetCoverageRequest(epoch=entry.epoch)
    while True:
        coverage = await rita.call("revocation", rita.revocations.GetCoverage, request)
        if coverage.known >= len(world.sites) and coverage.enforcing >= coverage.known:
            newest = max(one.enforced_time_ms for one in coverage.gateways)
            return entry.epoch, max(0.0, newest - entry.create_time_ms)
        if rita.clock.monotonic() - began > COVERED_S:
            raise Different(
                f"only {coverage.enforcing} of {coverage.known} gateways enforce epoch {entry.epoch}"
            )
        await asyncio.sleep(0.05)


async def technician_revoked(world: World) -> Came:
    """(i) A technician is revoked: time to every gateway, live stream cut, next command refused."""
    pump, site = pump_of(world, 4), world.sites[0]
    eve = Hand(world, "eve", site)
    done = await eve.send(pump, "read-diagnostics")
    expect(done.outcome is Outcome.APPLIED, f"before the revocation Eve gets {done.outcome}")
    ended: list[Refused] = []
    started = asyncio.Event()
    following = asyncio.create_task(_follow(eve, pump.device_id, started, ended))
    await asyncio.wait_for(started.wait(), 10)
    body = Revocation(
        scope=Scope.CREDENTIAL,
        ids=("principal/p-eve",),
        effect=RevocationEffect.DENY,
        reason=RevocationReason.LEAVER,
    )
    epoch, milliseconds = await revoke(world, body)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(following, 5)
    expect(bool(ended), "Eve's live stream goes on")
    expect(ended[0].reason is Reason.CREDENTIAL_REVOKED, f"her stream ended for {ended[0].reason}")
    refused = await refusal_of(eve.send(pump, "read-diagnostics"))
    expect(refused.reason is Reason.CREDENTIAL_REVOKED, f"her next command was refused for {refused.reason}")
    return Came(
        Reason.CREDENTIAL_REVOKED,
        f"epoch {epoch} enforced by all {len(world.sites)} gateways after {milliseconds:.0f} ms; stream cut",
    )


async def _follow(hand: Hand, device_id: str, started: asyncio.Event, ended: list[Refused]) -> None:
    request = gateway_pb2.FollowDeviceRequest(device_id=device_id)
    try:
        async for _ in translated_stream(hand.end.devices.FollowDevice(request, timeout=60)):
            started.set()
    except Refused as refusal:
        ended.append(refusal)


async def build_revoked(world: World) -> Came:
    """(j) The old build is revoked, corrective only: changes refused on it, the update allowed."""
    pump, site = pump_of(world, 5), world.sites[0]
    ada = Hand(world, "ada", site)
    old, new = world.builds
    body = Revocation(
        scope=Scope.BUILD,
        ids=(old.digest.hex(),),
        effect=RevocationEffect.CORRECTIVE_ONLY,
        reason=RevocationReason.DEFECT,
    )
    _, milliseconds = await revoke(world, body)
    refused = await refusal_of(ada.send(pump, "set-occlusion-pressure", {"occlusion_pressure": 280}))
    while refused.reason is Reason.DEVICE_OFFLINE:
        # Every pump persists and acknowledges the revocation at once; one that is busy with it is asked again.
        refused = await refusal_of(ada.send(pump, "set-occlusion-pressure", {"occlusion_pressure": 280}))
    reasons = [one.reason for one in refused.refusals]
    expect(Reason.FIRMWARE_REVOKED in reasons, f"changes were refused for {reasons}")
    await update(world, pump, "ada")
    return Came(
        Reason.FIRMWARE_REVOKED,
        f"every gateway after {milliseconds:.0f} ms; changes refused on {old.version}, updated to {new.version}",
    )


async def bus_silent(world: World) -> Came:
    """(k) Redis hangs: revocations still arrive, by the edges' own exchange each second."""
    world.installation.freeze("redis")
    try:
        body = Revocation(
            scope=Scope.DEVICE,
            ids=("dev-zzzzzzzzzzzzzzzz",),
            effect=RevocationEffect.DENY,
            reason=RevocationReason.LOST,
        )
        epoch, milliseconds = await revoke(world, body)
    finally:
        world.installation.thaw("redis")
    return Came("", f"with the bus hanging, epoch {epoch} reached every gateway after {milliseconds:.0f} ms")
