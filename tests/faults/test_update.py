"""The power cut at each durable step of an update; and a pump that is taken into use while one is staged."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness.shim import Shim
from tests.support.pumps import FIRMWARE, NEW_FIRMWARE, PumpSite
from tests.unit.device.test_agent import challenge_of, of_kind, online, outcomes
from vigil.core.digest import sha256
from vigil.core.statements import bodies as b
from vigil.device import messages

pytestmark = pytest.mark.holds("update-power-cut")

ROOT = Path(__file__).parents[2]


def cut(folder: Path, cases: int) -> dict[str, int]:
    if Shim.missing():
        pytest.skip(Shim.missing())
    shim = Shim.build(folder / "shim")
    library, rules = shim.environment.values()
    environment = {
        **os.environ,
        **shim.environment,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'services'}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.power_cuts", str(folder), library, rules, str(cases)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_power_is_cut_here_and_there(tmp_path: Path, injected: Callable[[int], None]) -> None:
    found = cut(tmp_path, 10)
    injected(found["died"])
    assert found["died"] >= 7
    assert found["old"] > 0


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_power_is_cut_at_each_step(tmp_path: Path, injected: Callable[[int], None]) -> None:
    found = cut(tmp_path, 0)
    injected(found["died"])
    assert found["died"] >= found["steps"]
    assert found["old"] > 0
    assert found["new"] > 0


@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_a_pump_is_taken_into_use_while_an_update_comes(tmp_path: Path, pieces: int) -> None:
    """Whoever presses start gets a delivery at once; the update waits for the release, and the old build runs."""
    site = PumpSite(tmp_path)
    pump = site.pump()
    pump.release()
    online(pump)
    release = site.release(NEW_FIRMWARE)
    request_id = os.urandom(16)
    pump.command(
        "update-firmware",
        {"firmware": release.body.firmware},
        approvers=(site.approver,),
        release=release.data,
        request_id=request_id,
    )
    out = pump.agent.tick()
    for _ in range(pieces):
        (request, *_) = of_kind(out, messages.ArtifactRequest)
        piece = NEW_FIRMWARE[request.offset : request.offset + 200]
        out = pump.agent.handle(messages.ArtifactChunk(request.digest, request.offset, piece, None))
    pump.hardware.pump.start_therapy()
    assert pump.hardware.pump.therapy is b.TherapyState.DELIVERING
    while requests := of_kind(out, messages.ArtifactRequest):
        piece = NEW_FIRMWARE[requests[0].offset : requests[0].offset + 400]
        out = pump.agent.handle(messages.ArtifactChunk(requests[0].digest, requests[0].offset, piece, None))
        assert pump.hardware.pump.therapy is b.TherapyState.DELIVERING
    for _ in range(5):
        site.clock.advance(2)
        out += pump.agent.tick()
    assert not of_kind(out, messages.HeadChallenge)
    assert not pump.agent.restart_wanted
    assert pump.hardware.slots.measure() == sha256(FIRMWARE)
    # The power goes in the middle of it: the old build, and the update still waits for somebody's release.
    pump.restart()
    assert pump.hardware.slots.measure() == sha256(FIRMWARE)
    assert outcomes(pump, request_id) == [b.Outcome.STAGED]
    pump.release()
    online(pump)
    site.clock.advance(2)
    pump.answer_head(challenge_of(pump.agent.tick()))
    assert pump.agent.restart_wanted
    pump.restart()
    assert outcomes(pump, request_id)[-1] is b.Outcome.APPLIED
    assert pump.hardware.slots.measure() == sha256(NEW_FIRMWARE)
