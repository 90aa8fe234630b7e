"""Steps (l) to (n): a gateway cut off, evidence stopped, and one pump's whole story."""

import asyncio

from vigil.core.statements.bodies import Outcome
from vigil.demo.places import CUT_SITE
from vigil.demo.proof import prove_story
from vigil.demo.result import Came, Different, expect
from vigil.demo.steps_command import pump_of, refusal_of, released, status_of, update
from vigil.demo.technician import Hand
from vigil.demo.world import PumpAt, World
from vigil.errors import Reason, Refused

LEASE_WAIT_S = 25.0
RECOVER_S = 40.0
DOWN = frozenset({Reason.EVIDENCE_UNAVAILABLE, Reason.POLICY_UNAVAILABLE})


async def gateway_cut_off(world: World) -> Came:
    """(l) A gateway is cut off: it refuses after its lease, quarantine still works, it recovers by itself."""
    changed, calmed = pump_of(world, 0, site=CUT_SITE), pump_of(world, 1, site=CUT_SITE)
    site = world.sites[CUT_SITE]
    dan, sia = Hand(world, "dan", site), Hand(world, "sia", site)
    await update(world, changed, "dan")  # the old build is revoked by now
    before = await dan.send(changed, "set-occlusion-pressure", {"occlusion_pressure": 300})
    expect(before.outcome is Outcome.APPLIED, f"before the cut it was {before.outcome} {before.reason}")
    for relay in world.relays.values():
        relay.silence()
    began = dan.session.clock.monotonic()
    refused = await _until_refused(dan, changed, Reason.LEASE_EXPIRED)
    lease = dan.session.clock.monotonic() - began
    dropped = sum(relay.dropped_bytes for relay in world.relays.values())
    expect(dropped > 0, "nothing was lost on the cut wire")
    safe = await sia.send(calmed, "quarantine")
    expect(safe.outcome is Outcome.APPLIED, f"quarantine was {safe.outcome} {safe.reason}")
    for relay in world.relays.values():
        relay.speak()
    await _until_applied(dan, changed)
    return Came(
        refused.reason,
        f"refused {lease:.1f} s after the cut for {refused.reason}; quarantine worked meanwhile; recovered by itself",
    )


async def _until_refused(hand: Hand, pump: PumpAt, reason: Reason) -> Refused:
    """While the lease runs policy is merely out of reach; then the gateway itself says no."""
    deadline = hand.session.clock.monotonic() + LEASE_WAIT_S
    while True:
        refused = await refusal_of(hand.send(pump, "set-occlusion-pressure", {"occlusion_pressure": 301}))
        if refused.reason is reason:
            return refused
        if hand.session.clock.monotonic() > deadline:
            raise Different(f"after {LEASE_WAIT_S:.0f} s it is still refused for {refused.reason}")
        await asyncio.sleep(0.5)


async def _until_applied(hand: Hand, pump: PumpAt) -> None:
    deadline = hand.session.clock.monotonic() + RECOVER_S
    while True:
        try:
            done = await hand.send(pump, "set-occlusion-pressure", {"occlusion_pressure": 302})
            came = f"{done.outcome} {done.reason}"
        except Refused as refused:
            came = str(refused)
        else:
            if done.outcome is Outcome.APPLIED:
                return
        if hand.session.clock.monotonic() > deadline:
            raise Different(f"it did not recover: {came}")
        await asyncio.sleep(0.5)


async def evidence_stopped(world: World) -> Came:
    """(m) The evidence service hangs: refused, and nothing moved."""
    pump, ada = pump_of(world, 1), Hand(world, "ada", world.sites[0])  # it runs the new build since (e)
    await released(world, pump)
    before = (await status_of(pump))["applied_actions"]
    world.installation.freeze("evidence")
    try:
        refused = await refusal_of(ada.send(pump, "set-occlusion-pressure", {"occlusion_pressure": 290}))
    finally:
        world.installation.thaw("evidence")
    expect(refused.reason in DOWN, f"refused for {refused.reason}")
    after = (await status_of(pump))["applied_actions"]
    expect(after == before, f"the pump counts {after} actions, {before} before")
    return Came(refused.reason, refused.refusals[0].sentence)


async def one_pumps_story(world: World) -> Came:
    """(n) One pump's story, every proof verified offline."""
    pump = pump_of(world, 1)
    count, kinds = await prove_story(world, f"device/{pump.device_id}")
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return Came("", f"{count} records, numbered without a gap, each signed, promised and included: {told}")
