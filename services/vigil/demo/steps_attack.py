"""Steps (g) and (h): a captured gateway, and a pump whose firmware was tampered with."""

import os

from vigil.core.statements.bodies import Outcome
from vigil.demo.places import HOSTILE_SITE
from vigil.demo.result import Came, expect
from vigil.demo.steps_command import pump_of, refusal_of, status_of, until_status, until_trust
from vigil.demo.technician import Hand
from vigil.demo.world import PumpAt, World
from vigil.errors import Reason, Refused, refused

TWISTS = {
    "alter-parameter": (Reason.SIGNATURE_INVALID,),
    "swap-permit": (
        Reason.SIGNATURE_INVALID,
        Reason.NOT_RECORDED,
        Reason.NOT_IN_TARGET,
        Reason.NONCE_UNKNOWN,
    ),
    "drop-record": (Reason.NOT_RECORDED,),
    "invent-permit": (Reason.SIGNATURE_INVALID, Reason.NOT_RECORDED, Reason.CERTIFICATE_INVALID),
}
"""What the captured gateway does to a bundle, and what the pump may call it."""


async def hostile_gateway(world: World) -> Came:
    """(g) A captured gateway replays, alters and invents; the pump refuses each."""
    if world.tap is None:
        raise refused(Reason.STATE_CONFLICT, "the captured gateway is not running")
    pump, site = pump_of(world, 0, site=HOSTILE_SITE), world.sites[HOSTILE_SITE]
    hal = Hand(world, "hal", site)
    first = await hal.send(pump, "set-occlusion-pressure", {"occlusion_pressure": 310})
    expect(first.outcome is Outcome.APPLIED, f"the honest command was {first.outcome} {first.reason}")
    counted = (await status_of(pump))["applied_actions"]
    said = []
    replayed = await world.tap.do("replay", device=pump.device_id)
    expect(replayed["outcome"] == "refused", f"the replay was {replayed['outcome']}")
    said.append(f"replay: {replayed['reason']}")
    for how, reasons in TWISTS.items():
        await world.tap.do("twist", how=how)
        reason = await _refused_by_the_pump(hal, pump)
        expect(reason in reasons, f"{how}: the pump said {reason}")
        said.append(f"{how}: {reason}")
    after = (await status_of(pump))["applied_actions"]
    expect(after == counted, f"the pump counts {after} actions, {counted} before")
    return Came(Reason.SIGNATURE_INVALID, "; ".join(said))


async def _refused_by_the_pump(hand: Hand, pump: PumpAt) -> str:
    try:
        done = await hand.send(pump, "set-occlusion-pressure", {"occlusion_pressure": 320})
    except Refused as error:
        return str(error.reason)
    expect(done.outcome is Outcome.REFUSED, f"the twisted bundle was {done.outcome}")
    return done.reason


async def tampered_firmware(world: World) -> Came:
    """(h) Tampered firmware is measured; changes are refused, quarantine and the cure allowed, therapy untouched."""
    pump, site = pump_of(world, 3), world.sites[0]
    ada, sam, cleo = (Hand(world, who, site) for who in ("ada", "sam", "cleo"))
    await pump.fleet.do("start-therapy", pump.name, rate_ml_per_h=60)
    await until_trust(world, pump, status="affirming")
    await pump.fleet.do("tamper", pump.name, hex=os.urandom(4096).hex())
    trust = await until_trust(world, pump, status="contraindicated", seconds=60)
    refusal = await refusal_of(ada.send(pump, "set-network", {"network_ssid": "other"}))
    reasons = [one.reason for one in refusal.refusals]
    expect(Reason.ATTESTATION_CONTRAINDICATED in reasons, f"changes were refused for {reasons}")
    quarantined = await sam.send(pump, "quarantine")
    expect(quarantined.outcome is Outcome.APPLIED, f"quarantine was {quarantined.outcome}")
    cure = ada.intent(pump, "update-firmware", {"firmware": world.builds[1].digest})
    await ada.create_intent(pump, cure)
    await cleo.approve(cure)
    done = await ada.finish(pump, cure)
    expect(done.outcome is Outcome.STAGED, f"the cure was {done.outcome} {done.reason}")
    status = await status_of(pump)
    expect(status["therapy_state"] == "delivering", f"the therapy is {status['therapy_state']}")
    await pump.fleet.do("stop-therapy", pump.name)
    await pump.fleet.do("bedside-release", pump.name)
    await until_status(pump, "the cure was not activated", firmware_version=world.builds[1].version)
    await until_trust(world, pump, status="affirming", firmware=world.builds[1].digest)
    return Came(
        Reason.ATTESTATION_CONTRAINDICATED,
        f"{', '.join(trust.reasons)}; changes refused, quarantined, cured and affirming; therapy ran all the while",
    )
