"""``python -m tests.model``: explore schedules, replay one, or show that broken variants are found.

--schedules N --first S     N seeds from S on; failing ones are printed; --record writes docs/reliability.md,
                            --record --more goes on behind the seeds on record, and adds to them
--seed S                    one schedule, told step by step
--mutants                   each variant that is broken on purpose, until it is found
"""

import argparse
import contextlib
import hashlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.model import chance, golden
from tests.model.ledger import PROPERTIES
from tests.model.mutants import MUTANTS
from tests.model.play import play, quiet
from tests.reliability import report

MUTANT_SEEDS: Final = 60
"""Within so many schedules a broken variant has to be found."""
SHOWN: Final = (
    "steps",
    "messages",
    "commits",
    "crashes",
    "cuts",
    "leases lost",
    "slow links",
    "delayed messages",
    "connections lost",
    "pauses",
    "disk faults",
    "failed commits",
    "bus faults",
    "bus repeats",
    "clock steps",
    "duplicates",
    "repeats",
    "attempts",
    "commands accepted",
    "effects",
    "safety actions",
    "safety actions undisturbed",
    "revocations",
    "reinstatements",
    "decisions",
    "statements recorded",
)


def main() -> int:
    """Parse, make the world, play; 1 when something was found, or a broken variant was not."""
    arguments = _parser().parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets of texts is part of a schedule.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.model", *sys.argv[1:]], environment)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    quiet()
    chance.fix()
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="vigil-model-") as name:
        folder = Path(name)
        world = golden.build(folder / "golden")
        if arguments.seed is not None:
            return _replay(world, arguments.seed, folder, arguments.mutant)
        if arguments.mutants:
            return _mutants(world, folder, arguments.jobs)
        return _explore(world, arguments, folder)


def _replay(world: golden.Golden, seed: int, folder: Path, mutant: str) -> int:
    (outcome,) = play(world, [seed], folder, jobs=1, mutant=mutant)
    _say("\n".join(outcome["trace"]))
    _say(f"seed {seed}, {outcome['seconds']:.1f} s of virtual time, trace {outcome['digest']}")
    for finding in outcome["findings"]:
        _say(f"FOUND {finding}")
    return 1 if outcome["findings"] else 0


def _mutants(world: golden.Golden, folder: Path, jobs: int) -> int:
    missed = 0
    for name, (_, broken) in MUTANTS.items():
        played, found = 0, ""
        for outcome in play(world, range(1, MUTANT_SEEDS + 1), folder, jobs=jobs, mutant=name):
            played += 1
            found = next((one for one in outcome["findings"] if one.startswith(f"{broken}:")), "")
            if found:
                _say(f"{name}: found by seed {outcome['seed']} after {played} schedules: {found}")
                break
        if not found:
            missed += 1
            _say(f"{name}: NOT FOUND in {played} schedules")
    return 1 if missed else 0


def _explore(world: golden.Golden, arguments: argparse.Namespace, folder: Path) -> int:
    counts: Counter[str] = Counter()
    told: dict[int, str] = {}
    failing: list[int] = []
    began, seconds, done = time.monotonic(), 0.0, 0
    before = report.kept_of("model") if arguments.more else None
    first = before["next"] if before else arguments.first
    seeds = range(first, first + arguments.schedules)
    columns = (TextColumn("schedules"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stdout.isatty(), transient=True) as progress:
        bar = progress.add_task("schedules", total=len(seeds))
        with contextlib.suppress(KeyboardInterrupt):  # what was explored until somebody had enough, counts
            for outcome in play(world, seeds, folder, jobs=arguments.jobs):
                done += 1
                seconds += outcome["seconds"]
                counts.update(outcome["counts"])
                told[outcome["seed"]] = outcome["digest"]
                progress.advance(bar)
                if outcome["findings"]:
                    failing.append(outcome["seed"])
                    words = "\n    ".join(outcome["findings"])
                    again = f"`make model SEED={outcome['seed']}` replays it"
                    progress.console.out(f"seed {outcome['seed']} fails; {again}\n    {words}")
                    sys.stdout.flush()
    spent = time.monotonic() - began
    _say(
        f"{done} schedules, {seconds / 3600:.1f} hours of virtual time in {spent:.0f} s; {len(failing)} fail"
    )
    whole = hashlib.sha256("".join(told[seed] for seed in sorted(told)).encode()).hexdigest()[:16]
    _say(f"what happened in all of them: {whole}")
    for name in SHOWN:
        _say(f"{counts[name]:>14,}  {name}")
    if arguments.record:
        _record(done, seconds, counts, failing, following=max(told, default=first - 1) + 1, before=before)
    return 1 if failing else 0


def _record(
    done: int,
    seconds: float,
    counts: Counter[str],
    failing: list[int],
    *,
    following: int,
    before: Mapping[str, Any] | None,
) -> None:
    """Write the section down. ``following``: the seed after these; ``before``: what an earlier run came to."""
    if before is not None:
        done, seconds = done + before["done"], seconds + before["seconds"]
        counts, failing = counts + Counter(before["counts"]), [*before["failing"], *failing]
    table: list[dict[str, Any]] = [{"what": "schedules explored", "how many": done}]
    table += [{"what": name, "how many": counts[name]} for name in SHOWN]
    table.append({"what": "failing seeds", "how many": ", ".join(map(str, failing)) or "none"})
    report.record(
        "model",
        title="Schedules of the path, explored",
        command=f"make model SCHEDULES={done}",
        words=(
            f"The real services, gateways, edges and pumps ran {done:,} random schedules under a seeded "
            f"scheduler, network, bus and disks, {seconds / 3600:,.1f} hours of virtual time in all. After each, "
            f"everything was healed and all had to agree; after {len(failing)} they did not."
        ),
        table=table,
        notes=[f"Checked in every schedule: {words}." for words in PROPERTIES.values()],
        kept={
            "done": done,
            "seconds": seconds,
            "counts": {name: counts[name] for name in SHOWN},
            "failing": failing,
            "next": following,
        },
    )


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--mutant", default="", choices=("", *MUTANTS), help="with --seed: a broken variant")
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--more", action="store_true", help="with --record: go on where the record ends")
    return parser


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except Exception:  # noqa: BLE001 - the outermost edge: told, and then the process ends without unwinding
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # What stands still in the world is never unwound.
    os._exit(code)
