"""The commands against everything running, as people type them: from an empty folder to a revoked build."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import free_base
from tests.unit.cli.support import conforms
from vigil.cli import sending
from vigil.cli.options import Options, OutputMode
from vigil.cli.output import Output
from vigil.cli.session import open_session
from vigil.errors import Reason, Refused

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DATA = ROOT / "services" / "vigil" / "demo" / "data"
UDI = "(01)09504000059118(21)SN-0001"
READY_S = 120.0


@dataclass(frozen=True)
class World:
    """A data folder with everything running on it, and a pump at the ward."""

    folder: Path
    maker: Path
    pumps: Path
    model: str
    fleet: "subprocess.Popen[str]"

    def run(self, person: str, *words: object, code: int = 0, shape: str = "") -> Any:
        """One command as a person, in a process of its own; its JSON conforms to the documented shape."""
        done = vigil(self.folder, "--context", person, *words)
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        value = json.loads(done.stdout)
        conforms(value, shape or ("error" if code else "version"))
        return value

    def at_the_pump(self, **what: object) -> dict[str, Any]:
        """Hands at the bedside."""
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(self.pumps / "control.sock"))
            link.sendall(json.dumps({"pump": "p1", **what}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(link.makefile().readline())
        assert answer["ok"], answer
        return answer


def vigil(folder: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "vigil.cli", "--data", str(folder), "--output", "json", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def started(line: list[str], log: Path) -> "subprocess.Popen[str]":
    """A child that says one line of JSON when it is ready."""
    with log.open("w") as words:
        child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=words, text=True)
    assert child.stdout is not None
    ready = child.stdout.readline()
    if not ready:
        ended(child)
        pytest.fail(log.read_text())
    assert json.loads(ready)["ready"]
    return child


def ended(child: "subprocess.Popen[str] | None") -> None:
    """Stop a child in order, also one that was halted."""
    if child is None:
        return
    child.send_signal(signal.SIGCONT)
    child.send_signal(signal.SIGTERM)
    child.wait(timeout=60)
    if child.stdout is not None:
        child.stdout.close()


def people(folder: Path) -> None:
    """A hospital's people and a manufacturer's, each with a credential; privileged roles by two administrators."""

    def made(*words: object) -> Any:
        done = vigil(folder, *words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    for name, role, organization, site in (
        ("tech", "technician", "hospital", "ward"),
        ("enroller", "enroller", "hospital", "ward"),
        ("pharmacist", "baseline-signer", "hospital", "ward"),
        ("nurse", "safety", "hospital", "ward"),
        ("auditor", "auditor", "hospital", "ward"),
        ("approver", "approver", "hospital", "ward"),
        ("publisher", "publisher", "maker", "*"),
        ("recall-1", "recall", "operator", "*"),
        ("recall-2", "recall", "operator", "*"),
    ):
        value = made(
            *("principal", "create", "--id", f"p-{name}", "--name", name, "--role", role),
            *("--site", site, "--organization", organization),
        )
        conforms(value, "principal")
        if value["state"] == "pending":
            again = vigil(folder, "principal", "approve", f"p-{name}")
            assert json.loads(again.stdout)["error"]["reason"] == "SECOND_PERSON_REQUIRED"
            conforms(made("--context", "admin-2", "principal", "approve", f"p-{name}"), "principal")
        conforms(made("credential", "issue", f"p-{name}"), "credential-issued")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    base = tmp_path_factory.mktemp("cli")
    folder, maker, pumps = base / "data", base / "maker", base / "pumps"
    up = started(
        [
            *(sys.executable, "-m", "vigil.cli", "up", "--data", str(folder)),
            *("--base-port", str(free_base()), "--output", "json"),
        ],
        base / "up.log",
    )
    fleet = None
    try:
        model = json.loads((DATA / "pump-profile.json").read_text())["model"]
        prepare(folder, maker)
        people(folder)
        publish(folder, maker, base, model)
        pumps.mkdir()
        make_pump(base, pumps / "p1", model)
        enrol(folder, maker, pumps / "p1")
        fleet = started([sys.executable, "-m", "vigil.device", "--fleet", str(pumps)], base / "fleet.log")
        world = World(folder, maker, pumps, model, fleet)
        wait_connected(world)
        yield world
    finally:
        ended(fleet)
        ended(up)


def prepare(folder: Path, maker: Path) -> None:
    for words, shape in (
        (("manufacturer", "init", "maker", maker), "manufacturer"),
        (
            ("organization", "create", "maker", "--manufacturer-root", maker / "root" / "root.pem"),
            "organization",
        ),
        (("organization", "create", "hospital", "--name", "General Hospital"), "organization"),
        (("site", "create", "ward", "--organization", "hospital", "--time-zone", "Europe/Berlin"), "site"),
        (("gateway", "create", "gw-ward", "--site", "ward"), "gateway-created"),
    ):
        done = vigil(folder, *words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        conforms(json.loads(done.stdout), shape)


def publish(folder: Path, maker: Path, base: Path, model: str) -> None:
    (base / "fw1").write_bytes(os.urandom(300_000))
    (base / "fw2").write_bytes(os.urandom(300_000))

    def by(person: str, shape: str, *words: object) -> None:
        done = vigil(folder, "--context", person, *words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        conforms(json.loads(done.stdout), shape)

    by("publisher", "model-published", "model", "publish", DATA / "pump-profile.json", "--signer", maker)
    for version, security, image in (("1.6.3", 1, "fw1"), ("1.8.0", 2, "fw2")):
        by(
            "publisher",
            "release-published",
            *("release", "publish", "--model", model, "--version", version, "--security-version", security),
            *("--firmware", base / image, "--sbom", DATA / f"proton-bridge-v{version}.cdx.json"),
            *("--udi-di", "09504000059118", "--signer", maker),
        )
    for file in ("baseline-configuration.json", "drug-library.json"):
        by("pharmacist", "baseline", "baseline", "publish", DATA / file, "--site", "ward")


def make_pump(base: Path, pump: Path, model: str) -> None:
    settings = json.loads((DATA / "baseline-configuration.json").read_text())["settings"]
    line = [sys.executable, "-m", "vigil.device", "make", pump, "--udi", UDI, "--model", model]
    line += ["--manufacturer", "maker", "--firmware", base / "fw1", "--version", "1.6.3"]
    line += ["--sbom", DATA / "proton-bridge-v1.6.3.cdx.json", "--settings", json.dumps(settings)]
    subprocess.run([str(one) for one in line], check=True, capture_output=True)


def enrol(folder: Path, maker: Path, pump: Path) -> None:
    for person, shape, words in (
        ("admin-1", "voucher", ("voucher", "sign", pump, "--signer", maker)),
        ("enroller", "device-enrolled", ("device", "enrol", pump, "--site", "ward", "--asset-tag", "A-17")),
        ("approver", "device-activated", ("device", "activate", "SN-0001")),
    ):
        done = vigil(folder, "--context", person, *words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        conforms(json.loads(done.stdout), shape)


def wait_connected(world: World) -> None:
    for _ in range(60):
        seen = world.run("tech", "device", "show", "A-17", shape="device")
        if seen["live"] and seen["live"]["connected"] and seen["attestation"]:
            assert seen["attestation"]["verified"]
            return
    pytest.fail("the pump did not connect")


def test_everything_is_listed_as_documented(world: World) -> None:
    for person, shape, words in (
        ("admin-1", "status", ("status",)),
        ("admin-1", "policy", ("policy", "show")),
        ("admin-1", "organizations", ("organization", "list")),
        ("admin-1", "organization", ("organization", "show", "hospital")),
        ("tech", "sites", ("site", "list")),
        ("tech", "site", ("site", "show", "ward")),
        ("tech", "gateways", ("gateway", "list")),
        ("tech", "gateway", ("gateway", "show", "gw-ward")),
        ("admin-1", "principals", ("principal", "list")),
        ("tech", "principal", ("principal", "show", "p-tech")),
        ("admin-1", "credentials", ("credential", "list")),
        ("tech", "credential", ("credential", "show")),
        ("tech", "models", ("model", "list")),
        ("tech", "model", ("model", "show", world.model)),
        ("tech", "releases", ("release", "list")),
        ("tech", "release", ("release", "show", f"{world.model}@1.8.0")),
        ("tech", "baselines", ("baseline", "list")),
        ("tech", "devices", ("device", "list")),
        ("tech", "device-report", ("device", "follow", "SN-0001", "--count", "1")),
        ("tech", "context", ("context", "show")),
    ):
        value = world.run(person, *words, shape=shape)
        assert value, words
    assert world.run("admin-1", "status", shape="status")["ready"] is True
    assert [one["site_id"] for one in world.run("tech", "site", "list", shape="sites")["sites"]] == ["ward"]


def test_a_change_is_refused_and_then_done(world: World) -> None:
    change = ("command", "send", "SN-0001", "set-occlusion-pressure", "-p")
    refusal = world.run("tech", *change, "occlusion_pressure=300", "-w", "WO-1", code=3)["error"]
    assert refusal["reason"] == "PATIENT_CONNECTED"
    assert refusal["lifted_by"]
    world.at_the_pump(do="bedside-release")
    refusal = world.run("tech", *change, "occlusion_pressure=9000", "-w", "WO-1", code=3)["error"]
    assert refusal["reason"] == "PARAMETER_OUT_OF_RANGE"
    preview = world.run("tech", *change, "occlusion_pressure=301", "--dry-run", code=3)["error"]
    assert [one["reason"] for one in preview["all"]] == ["WORK_ORDER_MISSING"]
    allowed = world.run(
        "tech", *change, "occlusion_pressure=301", "-w", "WO-1", "--dry-run", shape="command-preview"
    )
    assert allowed["allowed"] is True
    done = world.run("tech", *change, "occlusion_pressure=301", "-w", "WO-1", shape="command-done")
    assert done["outcome"] == "applied"
    assert {proof["what"] for proof in done["proofs"]} == {"receipt", "decision", "recorded"}
    assert all(proof["holds"] for proof in done["proofs"])
    shown = world.run("tech", "command", "show", done["command_id"][:12], shape="command")
    assert shown["receipts"][0]["work_order"] == "WO-1"
    commands = world.run("tech", "command", "list", "--device", "SN-0001", shape="commands")["commands"]
    assert commands[0]["outcome"] == "applied"

    again = world.run(
        "tech", "command", "send", "SN-0001", "--request-id", done["request_id"], shape="command-done"
    )
    assert again["receipt"] == done["receipt"]
    asked = world.run("tech", "command", "receipt", "SN-0001", done["request_id"], shape="command-done")
    assert asked["receipt"] == done["receipt"]


def test_what_no_approval_lifts_is_told_at_once(world: World) -> None:
    line = ("command", "send", "SN-0001", "set-rate", "-p", "rate=12.5", "-w", "WO-1")
    reasons = [one["reason"] for one in world.run("tech", *line, code=3)["error"]["all"]]
    assert "THERAPY_NOT_ENABLED" in reasons
    assert world.run("approver", "command", "pending", shape="intents")["intents"] == []


def test_an_update_needs_another_person(world: World) -> None:
    world.at_the_pump(do="bedside-release")
    line = (
        "command",
        "send",
        "A-17",
        "update-firmware",
        "-p",
        "firmware=1.8.0",
        "-w",
        "WO-2",
        "--when",
        "idle",
    )
    missing = world.run("tech", *line, "--expires", "8h", code=3)["error"]
    assert missing["reason"] == "APPROVALS_MISSING"
    intent = missing["values"]["intent_id"]
    waiting = world.run("approver", "command", "pending", shape="intents")["intents"]
    assert [one["intent_id"] for one in waiting] == [intent]
    assert world.run("approver", "command", "show", intent, shape="intent")["state"] == "pending"
    assert world.run("tech", "command", "send", "A-17", "--intent", intent, code=3)["error"]["reason"] == (
        "APPROVALS_MISSING"
    )
    assert world.run("tech", "command", "approve", intent, "--yes", code=3)["error"]["reason"] == (
        "ROLE_NOT_PERMITTED"
    )
    assert world.run("approver", "command", "approve", intent, code=2)["error"]["reason"] == "USAGE"
    approved = world.run("approver", "command", "approve", intent[:10], "--yes", shape="intent-approved")
    assert approved["signed"]["action"] == "update-firmware"
    assert approved["state"] == "approved"
    done = world.run("tech", "command", "send", "A-17", "--intent", intent, shape="command-done")
    assert done["outcome"] in ("staged", "applied")
    for _ in range(60):
        shown = world.run("tech", "command", "show", intent, shape="command")
        if shown["outcome"] == "applied":
            break
    assert shown["outcome"] == "applied"
    assert [one["what"] for one in shown["proofs"]].count("approval") == 1
    wait_connected(world)

    line = ("command", "send", "A-17", "factory-reset", "-w", "WO-9")
    intent = world.run("tech", *line, code=3)["error"]["values"]["intent_id"]
    assert world.run("tech", "command", "cancel", intent, shape="intent-cancelled")["state"] == "cancelled"


async def test_silence_is_an_unknown_outcome_and_the_action_happens_once(world: World) -> None:
    world.at_the_pump(do="bedside-release")
    options = Options(data=world.folder, context="tech", output=OutputMode.JSON)
    session = open_session(options, Output(OutputMode.JSON))
    try:
        before = world.at_the_pump(do="status")["applied_actions"]
        target = await sending.find_target(session, "SN-0001", "")
        ask = sending.Ask(device="SN-0001", action="local-alert", texts=(("message", "hello"),))
        intent, _ = await sending.make_intent(session, target, ask)
        prepared = await sending.prepare(session, target, "local-alert")
        world.fleet.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(Refused) as caught:
                await sending.submit(session, target, intent, [target.device_id], prepared, wait_s=2.0)
        finally:
            world.fleet.send_signal(signal.SIGCONT)
    finally:
        await session.close()
    assert caught.value.reason is Reason.OUTCOME_UNKNOWN
    words = caught.value.refusals[0].lifted_by.split()
    assert words[:2] == ["vigil", "command"]
    for _ in range(30):
        done = vigil(world.folder, "--context", "tech", *words[1:])
        if done.returncode == 0:
            break
        assert done.returncode == 4, done.stdout
        conforms(json.loads(done.stdout), "error")
    conforms(json.loads(done.stdout), "command-done")
    assert json.loads(done.stdout)["outcome"] == "applied"
    again = world.run(
        "tech",
        "command",
        "send",
        "SN-0001",
        "--request-id",
        intent.body.request_id.hex(),
        shape="command-done",
    )
    assert again["receipt"] == json.loads(done.stdout)["receipt"]
    assert world.at_the_pump(do="status")["applied_actions"] == before + 1


def test_hold_and_quarantine_take_one_person_and_lifting_takes_two(world: World) -> None:
    assert world.run("nurse", "device", "hold", "SN-0001", shape="command-done")["outcome"] == "applied"
    assert world.run("nurse", "device", "quarantine", "SN-0001", shape="command-done")["outcome"] == "applied"
    for verb in ("release", "lift"):
        world.at_the_pump(do="bedside-release")
        line = ("device", verb, "SN-0001")
        intent = world.run("tech", *line, "-w", "WO-3", code=3)["error"]["values"]["intent_id"]
        world.run("approver", "command", "approve", intent, "--yes", shape="intent-approved")
        done = world.run("tech", *line, "--intent", intent, shape="command-done")
        assert done["outcome"] == "applied"
    status = world.at_the_pump(do="status")
    assert (status["quarantined"], status["holds"]) == (False, 0)


@pytest.mark.holds("insider-evidence")
def test_what_happened_is_on_record_and_proved(world: World) -> None:
    line = ("command", "send", "SN-0001", "local-alert", "-p", "message=look here", "-w", "WO-7")
    world.run("nurse", *line, shape="command-done")
    first = world.run("auditor", "evidence", "checkpoint", shape="checkpoint")
    assert first["consistent"] is None
    records = world.run("auditor", "device", "history", "SN-0001", shape="records")
    assert [one["number"] for one in records["records"]] == list(range(1, len(records["records"]) + 1))
    assert all(one["verified"] for one in records["records"])
    receipts = world.run(
        "auditor", "evidence", "history", records["subject"], "--kind", "receipt", shape="records"
    )["records"]
    assert receipts
    proof = world.run("auditor", "evidence", "prove", receipts[0]["digest"], shape="proof")
    assert [one["index"] for one in proof["records"]] == [receipts[0]["index"]]
    file = world.folder / "proof.json"
    file.write_text(json.dumps(proof))
    believes = ("--trust", world.folder / "pki" / "trust.json", "--log", first["verifier_key"])
    checked = world.run("auditor", "evidence", "check", file, *believes, shape="proof-checked")
    assert checked["holds"] is True
    assert world.run("auditor", "evidence", "show", receipts[0]["index"], shape="record")["kind"] == "receipt"
    assert world.run("auditor", "evidence", "checkpoint", shape="checkpoint")["consistent"] is True

    told = world.run("auditor", "evidence", "history", "SN-0001", "--from", "1h", shape="records")
    assert {one["words"] for one in told["records"]} >= {"local-alert applied, for p-nurse"}
    first_page = world.run("auditor", "evidence", "history", "SN-0001", "--limit", 2, shape="records")
    second = world.run(
        "auditor", "evidence", "history", "SN-0001", "--page", first_page["next"], shape="records"
    )
    assert second["records"][0]["number"] == 3
    for window in (("--from", "2030-01-01"), ("--from", "1h", "--to", "2h"), ("--from", "yesterday")):
        refused = vigil(world.folder, "--context", "auditor", "evidence", "history", "SN-0001", *window)
        assert refused.returncode in (2, 3), refused.stdout

    kept = world.folder / "checkpoint.json"
    value = json.loads(kept.read_text())
    name, _, _ = value["verifier_key"].partition("+")
    kept.write_text(json.dumps({**value, "verifier_key": f"{name}+00000000+AAAA"}))
    refusal = world.run("auditor", "evidence", "checkpoint", code=3)["error"]
    assert refusal["reason"] == "SIGNATURE_INVALID"
    kept.unlink()


def test_two_administrators_erase_and_the_rest_is_still_proved(world: World, tmp_path: Path) -> None:
    line = ("command", "send", "SN-0001", "local-alert", "-p", "message=call Ms K", "-w", "WO-8")
    done = world.run("nurse", *line, "--expires", "5s", shape="command-done")
    device = world.run("auditor", "device", "show", "SN-0001", shape="device")["device_id"]
    history = ("evidence", "history", f"device/{device}", "--kind", "receipt")
    receipt = world.run("auditor", *history, shape="records")["records"][-1]
    assert receipt["says"]["request_id"] == done["request_id"]
    half = tmp_path / "half.json"
    erase = ("evidence", "erase", receipt["digest"], "--reference", "case-7", "--out", half)
    begun = world.run("admin-1", *erase, shape="erasure-begun")
    assert (begun["records"], begun["complete"]) == ([receipt["index"]], False)
    own = world.run("admin-1", "evidence", "erase", "--with", half, code=3)["error"]
    assert own["reason"] == "APPROVER_NOT_DISTINCT"
    assert world.run("auditor", *erase, shape="erasure-begun")["complete"] is False
    assert world.run("admin-2", "evidence", "erase", "--with", half, code=3)["error"]["reason"] in (
        "ROLE_NOT_PERMITTED",
        "STATE_CONFLICT",
    )
    world.run("admin-1", *erase, shape="erasure-begun")
    for _ in range(60):
        gone = vigil(world.folder, "--context", "admin-2", "evidence", "erase", "--with", half)
        if gone.returncode == 0:
            break
        assert json.loads(gone.stdout)["error"]["reason"] == "STATE_CONFLICT", gone.stdout
        time.sleep(0.5)  # its intent has not ended
    value = json.loads(gone.stdout)
    conforms(value, "erasure")
    assert value["people"] == ["p-admin-1", "p-admin-2"]
    shown = world.run("auditor", "evidence", "show", receipt["index"], shape="record")
    assert (shown["says"], shown["verified"]) == (None, None)
    assert shown["erased"]["reference"] == "case-7"
    for index in shown["erased"]["records"]:
        told = world.run("auditor", "evidence", "show", index, shape="record")
        assert told["says"]["records"] == [receipt["digest"]]
        assert told["verified"] is True
    proof = world.run("auditor", "evidence", "prove", receipt["index"], shape="proof")
    assert proof["records"]


@pytest.mark.holds("insider-evidence")
def test_what_a_pump_ran_at_a_moment_is_answered_and_proved(world: World) -> None:
    """The question that all of this is for."""
    change = ("command", "send", "SN-0001", "set-occlusion-pressure", "-p", "occlusion_pressure=302")
    vigil(world.folder, "--context", "tech", *change, "-w", "WO-9")  # allowed or refused: it is decided
    file = world.folder / "moment.json"
    for _ in range(60):
        value = world.run("auditor", "evidence", "at", "SN-0001", "now", "--proof", file, shape="moment")
        if all(fact["value"] for fact in value["facts"] if fact["name"] == "policy"):
            break
        time.sleep(0.5)  # the next checkpoint is at most a second away
    log = world.run("auditor", "evidence", "checkpoint", shape="checkpoint")["verifier_key"]
    believes = ("--trust", world.folder / "pki" / "trust.json", "--log", log)
    assert world.run("auditor", "evidence", "check", file, *believes, shape="proof-checked")["holds"] is True
    damaged = json.loads(file.read_text())
    damaged["subjects"][0]["leaves"].pop(0)
    file.write_text(json.dumps(damaged))
    assert vigil(world.folder, "evidence", "check", file, *believes).returncode == 3
    assert (value["holds"], value["evidence"]) == (True, True)
    facts = {fact["name"]: fact for fact in value["facts"]}
    release = world.run("tech", "device", "show", "SN-0001", shape="device")["attestation"]
    assert facts["firmware"]["more"]["digest"] == release["firmware"]
    assert facts["custodian"]["value"] == "ward of hospital"
    assert facts["device"]["more"]["udi"] == UDI
    assert facts["trust"]["more"]["basis"] == "attested"
    assert facts["credential"]["more"]["standing"] == "valid"
    assert facts["policy"]["value"]
    assert all(
        fact["record"] is not None for name, fact in facts.items() if fact["value"] and name == "firmware"
    )
    shown = {one["index"] for one in value["records"]}
    assert {fact["record"] for fact in facts.values() if fact["record"] is not None} <= shown
    assert all(one["holds"] is not False for record in value["records"] for one in record["findings"])

    before = world.run("auditor", "evidence", "at", "SN-0001", "300d", shape="moment")
    assert (before["holds"], before["before"], before["quiet"]["before"]) == (True, None, None)
    assert before["quiet"]["proved"] is True
    assert {
        fact["value"] for fact in before["facts"] if fact["name"] in ("firmware", "trust", "custodian")
    } == {""}

    for when, reason in (("2040-01-01", "FIELD_INVALID"), ("1960-01-01", "FIELD_INVALID")):
        asked = world.run("auditor", "evidence", "at", "SN-0001", when, code=3)
        assert asked["error"]["reason"] == reason
    stranger = world.run("auditor", "evidence", "at", "dev-aaaaaaaaaaaaaaaa", "now", code=3)
    assert stranger["error"]["reason"] == "NOT_IN_SCOPE"
    checked = vigil(world.folder, "evidence", "reindex", "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    conforms(json.loads(checked.stdout), "index-checked")


def test_revoking_is_previewed_done_watched_and_taken_back_by_two(world: World, tmp_path: Path) -> None:
    build = ("revoke", "build", f"{world.model}@1.6.3", "--reason", "defect")
    preview = world.run("recall-1", *build, "--dry-run", shape="revocation-preview")
    assert preview["hits"]["devices"] >= 0
    made = world.run("recall-1", *build, shape="revocation")
    assert (made["effect"], made["verified"]) == ("corrective_only", True)
    coverage = world.run("recall-1", "revocation", "coverage", made["epoch"], shape="coverage")
    assert coverage["known"] == 2
    half = tmp_path / "half.json"
    begun = world.run(
        "recall-1", "reinstate", made["epoch"], "--reason", "the wrong build", "--out", half,
        shape="reinstatement-begun",
    )  # fmt: skip
    assert begun["complete"] is False
    own = world.run("recall-1", "reinstate", made["epoch"], "--with", half, code=3)["error"]
    assert own["reason"] == "APPROVER_NOT_DISTINCT"
    back = world.run("recall-2", "reinstate", made["epoch"], "--with", half, shape="reinstatement")
    assert back["signed_by"] == ["p-recall-1", "p-recall-2"]
    listed = world.run("recall-1", "revocation", "list", shape="revocations")
    assert [one["kind"] for one in listed["revocations"]] == ["revocation", "reinstatement"]
    assert world.run("tech", *build, code=3)["error"]["reason"] == "ROLE_NOT_PERMITTED"


def test_a_remote_person_brings_their_own_key(world: World, tmp_path: Path) -> None:
    away = tmp_path / "away"
    done = vigil(world.folder, "credential", "request", away)
    conforms(json.loads(done.stdout), "credential-requested")
    line = ("credential", "issue", "p-auditor", "--csr", away / "request.pem", "--out", away / "tls.pem")
    world.run("admin-1", *line, shape="credential-issued")
    elsewhere = tmp_path / "elsewhere"
    assert vigil(elsewhere, "context", "import", away).returncode == 0
    listed = json.loads(vigil(elsewhere, "device", "list").stdout)
    assert [one["serial"] for one in listed["devices"]] == ["SN-0001"]
    assert vigil(elsewhere, "credential", "renew").returncode == 0
    assert vigil(elsewhere, "device", "list").returncode == 0


@pytest.mark.holds("strangers")
def test_a_stranger_learns_nothing(world: World) -> None:
    vigil(world.folder, "site", "create", "other", "--organization", "hospital")
    line = ("--id", "p-other", "--name", "other", "--role", "technician", "--site", "other")
    vigil(world.folder, "principal", "create", *line, "--organization", "hospital")
    vigil(world.folder, "credential", "issue", "p-other")
    send = ("command", "send", "SN-0001", "read-diagnostics")
    known = world.run("other", *send, code=3)["error"]
    unknown = world.run("other", "command", "send", "SN-9999", "read-diagnostics", code=3)["error"]
    assert known == unknown
    assert known["reason"] == "NOT_IN_SCOPE"


@pytest.mark.holds("stolen-technician")
def test_a_banned_device_and_a_revoked_person_are_refused(world: World) -> None:
    assert world.run("recall-1", "device", "ban", "SN-0001", shape="revocation")["effect"] == "deny"
    line = ("revoke", "credential", "p-nurse", "--reason", "leaver")
    epoch = world.run("recall-1", *line, shape="revocation")["epoch"]
    for _ in range(30):
        coverage = world.run("recall-1", "revocation", "coverage", epoch, shape="coverage")
        if coverage["enforcing"] == coverage["known"]:
            break
    refusal = world.run("tech", "command", "send", "SN-0001", "read-diagnostics", code=3)["error"]
    assert refusal["reason"] == "DEVICE_REVOKED"
    refusal = world.run("nurse", "device", "hold", "SN-0001", code=3)["error"]
    assert refusal["reason"] == "CREDENTIAL_REVOKED"
