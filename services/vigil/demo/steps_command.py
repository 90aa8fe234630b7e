"""Steps (a) to (f): a command applied, the refusals, an update with approvals, a receipt that was swallowed."""

import asyncio
from collections.abc import Awaitable

from vigil.api.attestation.v1 import attestation_pb2
from vigil.api.evidence.v1 import evidence_pb2
from vigil.core.statements.bodies import Outcome
from vigil.demo.proof import prove_entry
from vigil.demo.relay import Relay
from vigil.demo.result import Came, Different, expect
from vigil.demo.technician import Done, Hand
from vigil.demo.world import PumpAt, World
from vigil.errors import Reason, Refused, refused

WAIT_S = 20.0


def pump_of(world: World, place: int, *, site: int = 0) -> PumpAt:
    """A pump of a site, by its place there. Each step takes its own."""
    return world.pumps[world.sites[site]][place]


async def refusal_of(attempt: Awaitable[Done]) -> Refused:
    """What refused it: the gateway's or policy's word, or the pump's own signed one. Raises Different."""
    try:
        done = await attempt
    except Refused as error:
        return error
    if done.outcome is Outcome.REFUSED:
        return refused(Reason(done.reason), "the pump itself refused, and signed that it did")
    raise Different(f"it was {done.outcome} instead of refused")


async def status_of(pump: PumpAt) -> dict[str, object]:
    """The pump's own report, at the bedside."""
    return await pump.fleet.do("status", pump.name)


async def until_status(pump: PumpAt, words: str, *, seconds: float = WAIT_S, **wanted: object) -> None:
    """Wait until the pump reports these values. Raises Different."""
    for _ in range(round(seconds / 0.2)):
        status = await status_of(pump)
        if all(status.get(name) == value for name, value in wanted.items()):
            return
        await asyncio.sleep(0.2)
    raise Different(f"{words}: the pump says {[status.get(name) for name in wanted]}")


async def trust_of(world: World, pump: PumpAt) -> attestation_pb2.DeviceTrust:
    """What attestation makes of a pump now."""
    otto = world.people["otto"]
    request = attestation_pb2.GetResultRequest(device_id=pump.device_id)
    return await otto.call("attestation", otto.attestation.GetResult, request)


async def until_trust(
    world: World, pump: PumpAt, *, status: str, firmware: bytes | None = None, seconds: float = WAIT_S
) -> attestation_pb2.DeviceTrust:
    """Wait until attestation calls it so. Raises Different."""
    for _ in range(round(seconds / 0.2)):
        trust = await trust_of(world, pump)
        if trust.status == status and firmware in (None, trust.firmware):
            return trust
        await asyncio.sleep(0.2)
    raise Different(f"attestation says {trust.status} {list(trust.reasons)}, not {status}")


async def released(world: World, pump: PumpAt) -> None:
    """Somebody at the bedside says that no patient is connected, and the pump attests it. Raises Different."""
    await pump.fleet.do("bedside-release", pump.name)
    for _ in range(100):
        trust = await trust_of(world, pump)
        if trust.patient_state == "disconnected":
            return
        await asyncio.sleep(0.1)
    raise Different(f"attestation says that the patient is {trust.patient_state}")


async def entry_of(world: World, digest: bytes) -> evidence_pb2.Entry:
    """A record by its statement's digest, once the log has it. Raises what the log refuses."""
    otto = world.people["otto"]
    request = evidence_pb2.GetEntryRequest(digest=digest)
    for _ in range(50):
        try:
            return await otto.call("evidence", otto.evidence.GetEntry, request)
        except Refused:
            await asyncio.sleep(0.2)
    return await otto.call("evidence", otto.evidence.GetEntry, request)


async def applied_and_proved(world: World) -> Came:
    """(a) An occlusion-pressure change is applied; its receipt verified, its inclusion proved."""
    pump, ada = pump_of(world, 0), Hand(world, "ada", world.sites[0])
    done = await ada.send(pump, "set-occlusion-pressure", {"occlusion_pressure": 350})
    expect(done.outcome is Outcome.APPLIED, f"the pump says {done.outcome} {done.reason}")
    entry = await entry_of(world, done.receipt.digest)
    size = await prove_entry(world, entry)
    return Came(
        "", f"the pump signed 'applied'; its receipt is record {entry.index} of {size}, inclusion proved"
    )


async def above_the_limit(world: World) -> Came:
    """(b) The same above its hard limit."""
    pump, ada = pump_of(world, 0), Hand(world, "ada", world.sites[0])
    refusal = await refusal_of(ada.send(pump, "set-occlusion-pressure", {"occlusion_pressure": 900}))
    return _because(refusal, Reason.PARAMETER_OUT_OF_RANGE)


async def therapy_action(world: World) -> Came:
    """(c) A therapy action, refused for being one."""
    pump, ada = pump_of(world, 0), Hand(world, "ada", world.sites[0])
    refusal = await refusal_of(ada.send(pump, "set-rate", {"rate": 1000}))
    return _because(refusal, Reason.THERAPY_NOT_ENABLED)


async def another_sites_technician(world: World) -> Came:
    """(d) Another site's technician learns nothing, not even that the pump exists."""
    pump, ben = pump_of(world, 0), Hand(world, "ben", world.sites[0])
    refusal = await refusal_of(ben.send(pump, "set-occlusion-pressure", {"occlusion_pressure": 300}))
    nobody = PumpAt(name="", device_id="dev-aaaaaaaaaaaaaaaa", udi="", site=pump.site, fleet=pump.fleet)
    other = await refusal_of(ben.send(nobody, "set-occlusion-pressure", {"occlusion_pressure": 300}))
    same = [one.sentence for one in refusal.refusals] == [one.sentence for one in other.refusals]
    expect(same, "the answer differs from the one for a pump that does not exist")
    return _because(refusal, Reason.NOT_IN_SCOPE)


async def update_with_approvals(world: World) -> Came:
    """(e) An update: refused without approvals, staged while a patient is connected, applied after the release."""
    pump, site = pump_of(world, 1), world.sites[0]
    ada, cleo = Hand(world, "ada", site), Hand(world, "cleo", site)
    new = world.builds[1]
    intent = ada.intent(pump, "update-firmware", {"firmware": new.digest})
    refusal = await refusal_of(ada.finish(pump, intent))
    expect(refusal.reason is Reason.APPROVALS_MISSING, f"refused for {refusal.reason}")
    await ada.create_intent(pump, intent)
    await cleo.approve(intent)
    await pump.fleet.do("start-therapy", pump.name, rate_ml_per_h=80)
    done = await ada.finish(pump, intent)
    expect(done.outcome is Outcome.STAGED, f"with a patient connected the pump says {done.outcome}")
    during = await status_of(pump)
    expect(during["therapy_state"] == "delivering", "the therapy did not go on")
    expect(during["firmware_version"] == world.builds[0].version, "it was activated under a patient")
    await pump.fleet.do("stop-therapy", pump.name)
    await pump.fleet.do("bedside-release", pump.name)
    await until_status(pump, "the update was not activated", firmware_version=new.version)
    await until_trust(world, pump, status="affirming", firmware=new.digest)
    final = await _final(ada, pump, done)
    moved = len(new.image) // 1000
    return Came(
        Reason.APPROVALS_MISSING,
        f"refused, approved by another, {moved} kB moved, staged under therapy, then {final}; re-attested affirming",
    )


async def update(world: World, pump: PumpAt, who: str) -> None:
    """Bring a pump to the new build, with an approval, and wait until it is attested. Raises Different."""
    new = world.builds[1]
    hand, cleo = Hand(world, who, pump.site), Hand(world, "cleo", pump.site)
    intent = hand.intent(pump, "update-firmware", {"firmware": new.digest})
    await hand.create_intent(pump, intent)
    await cleo.approve(intent)
    done = await hand.finish(pump, intent)
    expect(done.outcome in (Outcome.STAGED, Outcome.APPLIED), f"the update was {done.outcome} {done.reason}")
    await until_status(pump, "the update was not activated", firmware_version=new.version)
    await until_trust(world, pump, status="affirming", firmware=new.digest)
    await released(world, pump)


async def _final(hand: Hand, pump: PumpAt, done: Done) -> Outcome:
    for _ in range(50):
        again = await hand.ask_again(pump, done.intent)
        if again.outcome is Outcome.APPLIED:
            return again.outcome
        await asyncio.sleep(0.2)
    raise Different(f"the receipt of the update still says {again.outcome}")


async def swallowed_receipt(world: World) -> Came:
    """(f) A receipt is lost on the wire and the command asked again: executed once."""
    pump, ada = pump_of(world, 2), Hand(world, "ada", world.sites[0])
    address = world.folder.read_endpoints()[world.gateways[pump.site]]
    wire = Relay(address)
    through = await wire.start()
    try:
        await pump.fleet.do("dial", pump.name, address=through, gateway_id=world.gateways[pump.site])
        await _online(pump)
        # A restart leaves the patient's state unknown: somebody looks and says so again.
        await released(world, pump)
        before = (await status_of(pump))["applied_actions"]
        intent = ada.intent(pump, "set-occlusion-pressure", {"occlusion_pressure": 275})
        lost = await refusal_of(ada.finish(pump, intent, seconds=4.0, before_submit=wire.swallow_answers))
        expect(lost.reason in (Reason.OUTCOME_UNKNOWN, Reason.DEADLINE_EXCEEDED), f"came {lost.reason}")
        expect(wire.dropped_bytes > 0, "the wire swallowed nothing")
        wire.speak()
        await _online(pump)
        again = await _retried(ada, pump, intent)
        expect(again.outcome is Outcome.APPLIED, f"the retry says {again.outcome}")
        after = (await status_of(pump))["applied_actions"]
        expect(after == int(str(before)) + 1, f"the pump counts {before}, then {after}")
    finally:
        await pump.fleet.do("dial", pump.name, address=address, gateway_id=world.gateways[pump.site])
        await wire.stop()
    return Came(
        lost.reason, f"{wire.dropped_bytes} bytes swallowed; asked again: the stored receipt, executed once"
    )


async def _retried(hand: Hand, pump: PumpAt, intent: object) -> Done:
    for attempt in range(40):
        try:
            return await hand.finish(pump, intent)  # type: ignore[arg-type]
        except Refused as refusal:
            if refusal.reason is not Reason.DEVICE_OFFLINE or attempt == 39:
                raise
            await asyncio.sleep(0.25)
    raise Different("the pump did not come back")


async def _online(pump: PumpAt) -> None:
    for _ in range(100):
        status = await status_of(pump)
        line = status["status"]
        if isinstance(line, dict) and line.get("online"):
            return
        await asyncio.sleep(0.1)
    raise Different("the pump did not connect")


def _because(refusal: Refused, reason: Reason) -> Came:
    expect(refusal.reason is reason, f"refused for {refusal.reason}: {refusal.refusals[0].sentence}")
    return Came(reason, refusal.refusals[0].sentence)
