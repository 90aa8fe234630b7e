"""A campaign: every harness its share of the time, on every core, and what came of it."""

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.fuzz.harness import FOUND, Harness, attempt, inputs_of
from tests.fuzz.mutate import mutated
from tests.fuzz.target import available

ROOT: Final = Path(__file__).parents[2]
WORK: Final = ROOT / ".fuzz"
"""Inputs that reached new code stay here for the next campaign; not committed."""
UNIT_S: Final = 300
"""After this much wall time libFuzzer calls an input a hang: far beyond what a busy machine does to 20 s of CPU."""
RSS_MB: Final = 3_072
NO_ATHERIS: Final = (
    "atheris has no wheel for this platform or Python: inputs are mutated without looking at coverage."
)

_EXECUTED = re.compile(r"stat::number_of_executed_units:\s+(\d+)")
_STATUS = re.compile(r"^#(\d+)\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)/", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one harness did in its time."""

    harness: Harness
    inputs: int
    corpus: int
    edges: int
    seconds: float
    findings: tuple[Path, ...] = ()
    words: str = field(default="", compare=False)


def fuzz(harness: Harness, seconds: int) -> Outcome:
    """Run one harness for so long; at least its kept inputs."""
    return _atheris(harness, seconds) if available() else _fallback(harness, seconds)


def campaign(harnesses: Sequence[Harness], seconds: int, *, report: bool = True) -> list[Outcome]:
    """Divide the time over all harnesses and cores. Prints each as it ends."""
    cores = os.cpu_count() or 1
    share = max(1, seconds * cores // len(harnesses))
    if report:
        print(f"{len(harnesses)} harnesses, {share} s each, {cores} at a time", flush=True)
        if not available():
            print(NO_ATHERIS, flush=True)
    outcomes = []
    with ThreadPoolExecutor(cores) as pool:
        for place, outcome in enumerate(pool.map(lambda one: fuzz(one, share), harnesses), 1):
            outcomes.append(outcome)
            if report:
                _tell(place, len(harnesses), outcome)
    return outcomes


def _tell(place: int, of: int, outcome: Outcome) -> None:
    edges = f"{outcome.edges:,} edges" if outcome.edges else "no coverage"
    state = f"{len(outcome.findings)} FOUND" if outcome.findings else "held"
    print(
        f"[{place:2}/{of}] {outcome.harness.name:20} {outcome.inputs:10,} inputs  {outcome.corpus:5,} kept  "
        f"{edges:>14}  {state}",
        flush=True,
    )
    for path in outcome.findings:
        print(outcome.words, file=sys.stderr)
        print(f"replay: python -m tests.fuzz {outcome.harness.name} --replay {path}", flush=True)


def _atheris(harness: Harness, seconds: int) -> Outcome:
    work = WORK / harness.name
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vigil-fuzz-") as name:
        seeds, artifacts = Path(name, "seeds"), Path(name, "artifacts")
        seeds.mkdir()
        artifacts.mkdir()
        write_inputs(seeds, inputs_of(harness))
        arguments = [
            *(sys.executable, "-m", "tests.fuzz.target", harness.name),
            *(f"-max_total_time={seconds}", f"-max_len={harness.max_bytes}", f"-timeout={UNIT_S}"),
            *(f"-rss_limit_mb={RSS_MB}", f"-artifact_prefix={artifacts}/", "-print_final_stats=1", "-seed=0"),
            *_dictionary(harness, Path(name)),
            *(str(work), str(seeds)),
        ]
        began = time.monotonic()
        environment = {**os.environ, "TMPDIR": name, "PYTHONWARNINGS": "ignore", "GRPC_VERBOSITY": "NONE"}
        finished = subprocess.run(
            arguments,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        spent = time.monotonic() - began
        output = finished.stderr + finished.stdout
        findings = tuple(keep(harness, path.read_bytes()) for path in sorted(artifacts.iterdir()))
    if finished.returncode and not findings:
        raise RuntimeError(f"{harness.name} did not run:\n{output[-4_000:]}")
    lines = _STATUS.findall(output)
    executed = _EXECUTED.search(output)
    count, edges, _, corpus = map(int, lines[-1]) if lines else (0, 0, 0, 0)
    return Outcome(
        harness=harness,
        inputs=int(executed[1]) if executed else count,
        corpus=corpus,
        edges=edges,
        seconds=spent,
        findings=findings,
        words=output[-3_000:] if findings else "",
    )


def _dictionary(harness: Harness, folder: Path) -> list[str]:
    if not harness.words:
        return []
    path = folder / "words"
    escaped = ("".join(rf"\x{byte:02x}" for byte in word) for word in harness.words)
    path.write_text("".join(f'"{word}"\n' for word in escaped))
    return [f"-dict={path}"]


def write_inputs(folder: Path, inputs: Iterable[bytes]) -> None:
    """As files named after their digests."""
    for data in inputs:
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def keep(harness: Harness, data: bytes) -> Path:
    """A found input stays, and `make test` replays it from then on."""
    path = FOUND / harness.name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.relative_to(ROOT)


def _fallback(harness: Harness, seconds: int) -> Outcome:
    run, inputs, chance = harness.prepare(), list(inputs_of(harness)), random.Random(0)
    began, count = time.monotonic(), 0
    findings: tuple[Path, ...] = ()
    words = ""
    while time.monotonic() - began < seconds and not findings:
        data = mutated(chance, inputs, harness.max_bytes)
        count += 1
        try:
            attempt(run, data)
        except Exception as error:  # noqa: BLE001 - whatever comes out is what is looked for
            findings, words = (keep(harness, data),), repr(error)
    return Outcome(
        harness=harness,
        inputs=count,
        corpus=len(inputs),
        edges=0,
        seconds=time.monotonic() - began,
        findings=findings,
        words=words,
    )


def forget() -> None:
    """Begin the next campaign from the committed inputs alone."""
    shutil.rmtree(WORK, ignore_errors=True)
