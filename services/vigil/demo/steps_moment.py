"""Step (o): the question that all of the evidence is for."""

from vigil.api.evidence.v1 import evidence_pb2
from vigil.cli.moment import answer_of, document_of, local
from vigil.core import cose
from vigil.core.statements.bodies import Result
from vigil.core.statements.envelope import read
from vigil.demo.proof import tree_of
from vigil.demo.result import Came, expect
from vigil.demo.steps_command import pump_of
from vigil.demo.world import World
from vigil.verify import document_from_json, document_to_json, verify_document
from vigil.verify.facts import facts_of
from vigil.verify.moment import Sure, work_out


async def what_it_ran(world: World) -> Came:
    """(o) What did the pump run just before its update? Answered, proved, and checked again with no network."""
    pump, otto, old = pump_of(world, 1), world.people["otto"], world.builds[0]
    moment = await _last_of(world, pump.device_id, old.digest) + 1
    request = evidence_pb2.GetStateAtRequest(device_id=pump.device_id, time_ms=moment)
    state = await otto.call("evidence", otto.evidence.GetStateAt, request)
    answer = answer_of(state)
    found = work_out(answer, tree=tree_of(world, state.checkpoint), verifier=otto.verifier)
    expect(found.holds, "something in the answer does not hold")
    firmware = next(one for one in facts_of(found) if one.name == "firmware")
    expect(firmware.more.get("digest") == old.digest.hex(), f"it says {firmware.value}")
    expect(found.sure["firmware"] is Sure.CHANGED_BETWEEN, f"it is {found.sure['firmware']}")
    done = {f"{body.action} {body.outcome}" for _, body in found.between.receipts}
    expect("update-firmware applied" in done, f"in between there was {sorted(done)}")
    document = document_of(answer, note=state.checkpoint.note, trust_domain=world.installation.trust_domain)
    taken = document_from_json(document_to_json(document))
    report = verify_document(taken, verifier=otto.verifier, verifier_key=state.checkpoint.verifier_key)
    expect(report.holds, "the proof that was taken away does not hold")
    return Came(
        "",
        f"at {local(moment)} it ran {firmware.value} (record {firmware.index}), and another one at its next "
        f"measurement: in between update-firmware was applied; {len(found.seen)} records proved, none left out "
        "between the two, and all of it again from the file alone",
    )


async def _last_of(world: World, device_id: str, firmware: bytes) -> int:
    """When the log took the last result that names this firmware (ms)."""
    otto = world.people["otto"]
    request = evidence_pb2.ListHistoryRequest(subject=f"device/{device_id}", kinds=["result"])
    entries = await otto.every("evidence", otto.evidence.ListHistory, request, "entries")
    times = [
        int(one.log_time_ms)
        for one in entries
        if read(cose.with_chain(one.statement, tuple(one.chain)), Result).body.measurements.firmware
        == firmware
    ]
    expect(bool(times), "the old firmware was never measured")
    return max(times)
