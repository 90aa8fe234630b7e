"""What a person waits for at the prompt: `vigil --help`, beside the bare interpreter."""

import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.result import Progress, Result, Row, under

TITLE = "The command line's start"

ROUNDS = 15
QUICK_ROUNDS = 5
VIGIL = str(Path(sys.executable).with_name("vigil"))


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """The median of some starts; the first one, which reads the disk, is not counted."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    floor = _median([sys.executable, "-c", "pass"], rounds)
    progress(0.3)
    typer = _median([sys.executable, "-c", "import typer, rich.table"], rounds)
    progress(0.6)
    rows = []
    for words in ("--help", "command send --help"):
        rows.append(
            Row(
                work=f"`vigil {words}`",
                figure=_median([VIGIL, *words.split()], rounds),
                unit="s",
                floor=floor,
                floor_is="the bare interpreter",
                target=under(0.3) if words == "--help" else None,
            )
        )
        progress(0.6 + 0.2 * len(rows))
    return Result(rows=tuple(rows), parts=(f"the interpreter with typer and rich alone: {typer:.2f} s",))


def _median(arguments: list[str], rounds: int) -> float:
    found = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found.append(time.perf_counter() - began)
    return sorted(found[1:])[rounds // 2]
