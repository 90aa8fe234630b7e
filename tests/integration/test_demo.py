"""The main job, at a small size: every step comes out as it promises, and says so in its documented form."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from vigil.demo.main import STEPS
from vigil.demo.result import Word

SECONDS = 280


@pytest.mark.holds("malicious-gateway")
async def test_every_step_of_the_demonstration_is_as_expected(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIGIL_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vigil.cli", "demo", "--output", "json", "--exit"),
        *("--pumps", "28", "--sites", "4"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**environment, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
    )
    out, words = await asyncio.wait_for(process.communicate(), SECONDS)
    results = [json.loads(line) for line in out.splitlines() if line.startswith(b'{"step"')]
    assert [result["step"] for result in results] == [step.letter for step in STEPS], words.decode()
    for result in results:
        assert result["expected"] in set(Word)
        assert result["outcome"] == result["expected"], result
        assert result["elapsed_ms"] >= 0
    assert process.returncode == 0
    assert not [name for name in os.listdir(tmp_path) if name.startswith("vigil-demo-")], (
        "a folder was left behind"
    )
