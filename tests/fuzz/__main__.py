"""Fuzz: ``python -m tests.fuzz [NAME …] [--seconds N]``, or give one input again: ``NAME --replay FILE``.

`make fuzz DURATION=600` runs all of them and every method of a whole installation, and writes down what came of it.
Ends with 1 when something was found.
"""

import argparse
import sys
from pathlib import Path

from tests.fuzz.campaign import NO_ATHERIS, Outcome, campaign
from tests.fuzz.harness import attempt
from tests.fuzz.registry import HARNESSES
from tests.fuzz.target import available
from tests.reliability.report import record

RPC_SHARE = 0.2
"""Of the time, for the methods of a running installation."""


def main() -> int:
    """Answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(HARNESSES)}, rpc")
    parser.add_argument("--seconds", type=int, default=60, help="for all of them together")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="give one input to the one harness named")
    parser.add_argument("--seed", type=int, help="call every method once from this seed (rpc)")
    parser.add_argument("--record", action="store_true", help="write docs/reliability.md")
    given = parser.parse_args()
    unknown = set(given.names) - {*HARNESSES, "rpc"}
    if unknown or (given.replay and len(given.names) != 1):
        parser.error(f"no harness is called {', '.join(sorted(unknown))}" if unknown else "name one harness")
    if given.replay:
        accepted = attempt(HARNESSES[given.names[0]].prepare(), given.replay.read_bytes())
        print("accepted" if accepted else "refused")
        return 0
    if given.seed is not None:
        from tests.fuzz.rpc import fuzz_installation

        return 1 if fuzz_installation(0, seed=given.seed).findings else 0
    return _fuzz(given.names or [*HARNESSES, "rpc"], given.seconds, write=given.record)


def _fuzz(names: list[str], seconds: int, *, write: bool) -> int:
    rows: list[dict[str, str | int]] = []
    chosen = [HARNESSES[name] for name in names if name in HARNESSES]
    found = 0
    if "rpc" in names:
        from tests.fuzz.rpc import fuzz_installation

        share = int(seconds * RPC_SHARE) if chosen else seconds
        outcome = fuzz_installation(max(1, share))
        seconds -= share
        rows.append(outcome.row())
        found += len(outcome.findings)
    outcomes = campaign(chosen, seconds) if chosen else []
    found += sum(len(one.findings) for one in outcomes)
    rows = [*map(_row, outcomes), *rows]
    total = sum(int(row["inputs"]) for row in rows)
    print(f"{total:,} inputs, {found} findings")
    if write:
        _record(rows, total, found)
    return 1 if found else 0


def _row(outcome: Outcome) -> dict[str, str | int]:
    return {
        "harness": outcome.harness.name,
        "reads": outcome.harness.reads,
        "inputs": outcome.inputs,
        "kept": outcome.corpus,
        "edges": outcome.edges,
        "found": len(outcome.findings),
    }


def _record(rows: list[dict[str, str | int]], total: int, found: int) -> None:
    record(
        "fuzz",
        title="Fuzzing",
        command="make fuzz",
        words=(
            f"{total:,} inputs to {len(rows)} harnesses, each of which reads what somebody else may have "
            f"written; {found} did what none may do. Nothing but a refusal with a reason came out, in bounded time and "
            "memory, and what was accepted has one encoding."
        ),
        table=rows,
        notes=(
            *(() if available() else (NO_ATHERIS,)),
            "*kept*: inputs that reached code that none before had; *edges*: its branches that were reached (atheris).",
            "Inputs that once failed are in `tests/fuzz/found/`, and `make test` replays them.",
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
