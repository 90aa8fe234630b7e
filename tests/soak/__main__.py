"""``make soak``: long load, overload and a log that is killed again and again; writes docs/reliability.md.

MINUTES=10 TECHNICIANS=64 PUMPS=2000 APPENDS=100000 DATABASE=sqlite (or postgresql) by default. Stops by itself, speaks
to the loopback interface alone, and leaves no process behind. Exits 1 when something did not hold.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.reliability import report
from tests.soak import append, load, words
from tests.support.databases import KINDS

T = TypeVar("T")
NAMES = ("load", "append")


def main() -> None:
    """Run what was named, or everything, one after the other."""
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--minutes", type=float, default=_number("MINUTES", 10.0))
    parser.add_argument("--technicians", type=int, default=int(_number("TECHNICIANS", 64)))
    parser.add_argument("--pumps", type=int, default=int(_number("PUMPS", 2_000)))
    parser.add_argument("--flood", type=float, default=_number("FLOOD", load.FLOOD_S), help="seconds")
    parser.add_argument("--appends", type=int, default=int(_number("APPENDS", 100_000)))
    parser.add_argument(
        "--database",
        choices=KINDS,
        default=os.environ.get("DATABASE", "sqlite"),
        help="of the log that is killed",
    )
    parser.add_argument("--docs", type=Path, default=report.DOCS, metavar="DIR", help="where to write")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(NAMES)):
        parser.error(f"nothing is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    wrong: list[str] = []
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        if not arguments.names or "load" in arguments.names:
            size = load.Size(arguments.minutes, arguments.technicians, arguments.pumps, arguments.flood)
            found = _until_stopped(lambda: load.run(size, _bar(bars)))
            wrong += found.wrong
            words.record(found, arguments.docs)
        if not arguments.names or "append" in arguments.names:
            appended = _until_stopped(
                lambda: append.run(arguments.appends, _bar(bars), kind=arguments.database)
            )
            wrong += appended.wrong
            append.record(appended, arguments.docs)
    for fault in wrong:
        sys.stderr.write(f"does not hold: {fault}\n")
    sys.exit(1 if wrong else 0)


def _bar(bars: Progress) -> load.Progress:
    task = bars.add_task("setting up", total=1.0)
    told = ""

    def tell(words: str, part: float) -> None:
        nonlocal told
        if words != told and not bars.console.is_terminal:
            # A log shows no bar, so it shows where the run is.
            bars.console.print(f"{100 * part:3.0f} % {words}")
        told = words
        bars.update(task, description=words, completed=part)

    return tell


def _until_stopped(work: Callable[[], Awaitable[T]]) -> T:
    """Run to the end; SIGTERM and SIGINT end it in order, with everything that it started."""

    async def running() -> T:
        task = asyncio.ensure_future(work())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await task

    return uvloop.run(running())


def _number(name: str, default: float) -> float:
    return float(os.environ.get(name, default))


if __name__ == "__main__":
    main()
