"""``python -m tests.benchmarks [NAME …] [--quick | --flames]``: every figure beside its floor of the same run.

Each benchmark runs in a fresh interpreter, so that none inherits another's threads or memory. What was measured goes
to docs/benchmarks.json and, for reading, to docs/benchmarks.md; benchmarks that were not named keep their figures of
before. No figure fails a run, however slow; a benchmark that breaks does. ``--flames`` draws docs/flames/ instead.
"""

import argparse
import asyncio
import datetime as dt
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.benchmarks import flames, report
from tests.benchmarks.result import Result

NAMES: Final = (
    "command",
    "decisions",
    "attestation",
    "evidence",
    "tessera",
    "moment",
    "census",
    "revocation",
    "fleet",
    "streams",
    "start",
    "cli",
)
DOCS: Final = Path(__file__).parents[2] / "docs"
REPORT_FD: Final = "VIGIL_BENCHMARK_FD"
"""Where the child that runs one benchmark tells its progress and its result, a line of JSON each."""


def main() -> None:
    """Run what was named, or everything."""
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="a few minutes in all, with fewer of everything")
    parser.add_argument(
        "--flames", action="store_true", help="draw where the time of a command goes, and measure nothing"
    )
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if arguments.flames:
        _draw()
        return
    if REPORT_FD in os.environ:
        _measure(arguments.names[0], quick=arguments.quick, descriptor=int(os.environ[REPORT_FD]))
        return
    chosen = [name for name in NAMES if not arguments.names or name in arguments.names]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    failed = _run(chosen, quick=arguments.quick)
    document = report.merged(DOCS / "benchmarks.json", {}, order=NAMES)
    Console(width=None if sys.stdout.isatty() else 160).print(report.table(document, chosen))
    for name, words in failed.items():
        sys.stderr.write(f"{name} broke:\n{words}\n")
    sys.exit(1 if failed else 0)


def _keep(name: str, measured: Mapping[str, Any]) -> None:
    """Write down what one benchmark measured; the others' figures stay."""
    document = report.merged(DOCS / "benchmarks.json", {name: measured}, order=NAMES)
    (DOCS / "benchmarks.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _write_page(document)


def _write_page(document: Mapping[str, Any]) -> None:
    pictures = sorted(path.stem for path in (DOCS / "flames").glob("*.svg"))
    kept = DOCS / "flames" / flames.PARTS
    parts = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    page = report.markdown(document, pictures=pictures, parts=parts)
    (DOCS / "benchmarks.md").write_text(page, encoding="utf-8")


def _draw() -> None:
    with Progress(
        TextColumn("flames"), BarColumn(), TimeElapsedColumn(), console=Console(stderr=True)
    ) as shown:
        task = shown.add_task("flames", total=1.0)
        uvloop.run(flames.record(DOCS / "flames", lambda part: shown.update(task, completed=part)))
    _write_page(report.merged(DOCS / "benchmarks.json", {}, order=NAMES))


def _run(names: Sequence[str], *, quick: bool) -> Mapping[str, str]:
    """Run each and keep what it measured as soon as it is there; answers what those said that broke."""
    failed: dict[str, str] = {}
    columns = (TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {name: progress.add_task(name, total=1.0, start=False) for name in names}
        for name in names:
            task = tasks[name]
            progress.start_task(task)
            result, words = _child(name, quick, lambda part, task=task: progress.update(task, completed=part))
            progress.stop_task(task)
            if result is None:
                failed[name] = words
                continue
            measured = {
                "title": importlib.import_module(f"tests.benchmarks.bench_{name}").TITLE,
                "measured": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                "quick": quick,
                "machine": report.machine(),
                **result,
            }
            _keep(name, measured)
    return failed


def _child(name: str, quick: bool, progress: Any) -> tuple[dict[str, Any] | None, str]:
    """Run one benchmark in a process of its own; answers its result, or what it said before it broke."""
    reading, writing = os.pipe()
    result: dict[str, Any] | None = None
    with tempfile.TemporaryFile("w+") as words:
        arguments = [sys.executable, "-m", "tests.benchmarks", name, *(["--quick"] if quick else [])]
        child = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            pass_fds=(writing,),
            env={**os.environ, REPORT_FD: str(writing), "GRPC_VERBOSITY": "NONE"},
        )
        os.close(writing)
        try:
            with os.fdopen(reading) as lines:
                for line in lines:
                    told = json.loads(line)
                    if "part" in told:
                        progress(told["part"])
                    else:
                        result = told["result"]
            code = child.wait()
        except BaseException:
            # Stopped by somebody: what the child started ends in order.
            child.terminate()
            child.wait()
            raise
        words.seek(0)
        said = words.read()
    return (result if code == 0 else None), said[-4_000:]


def _measure(name: str, *, quick: bool, descriptor: int) -> None:
    """In the child: measure, and tell."""
    # Its own children inherit neither the pipe nor the name of it.
    del os.environ[REPORT_FD]
    os.set_inheritable(descriptor, False)
    module = importlib.import_module(f"tests.benchmarks.bench_{name}")
    with os.fdopen(descriptor, "w", buffering=1) as out:

        def tell(**what: Any) -> None:
            out.write(json.dumps(what) + "\n")

        async def measure() -> Result:
            result: Result = await module.run(lambda part: tell(part=part), quick=quick)
            # What was opened last is let go before the loop ends.
            await asyncio.sleep(0)
            return result

        async def until_stopped() -> Result:
            running = asyncio.ensure_future(measure())
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
            return await running

        tell(result=uvloop.run(until_stopped()).to_json())


if __name__ == "__main__":
    main()
