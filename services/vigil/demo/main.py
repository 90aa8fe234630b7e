"""`vigil demo`: brings a world up, shows every promise, and says whether what came was what was expected."""

import asyncio
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from vigil.core.clock import SystemClock
from vigil.demo import steps_attack, steps_command, steps_moment, steps_outage, steps_revocation
from vigil.demo.installation import RunningInstallation
from vigil.demo.result import Came, Different, StepResult, Word
from vigil.demo.steps_command import pump_of
from vigil.demo.world import PumpAt, World, build_world
from vigil.errors import Refused
from vigil.run.layout import DEFAULT_TRUST_DOMAIN, DataFolder

PUMPS, SITES = 240, 12
FIRST_PORT, PORTS = 10_000, 20_000
LEAST_SITES, LEAST_PUMPS_A_SITE = 4, 7
"""Each step takes a pump of its own at the first site."""


@dataclass(frozen=True, slots=True)
class Step:
    """One promise: its letter, what is shown, the word that is expected, and the showing."""

    letter: str
    title: str
    expected: Word
    show: Callable[[World], Awaitable[Came]]


STEPS = (
    Step(
        "a",
        "a change applied, receipt verified, inclusion proved",
        Word.APPLIED,
        steps_command.applied_and_proved,
    ),
    Step("b", "the same above its hard limit", Word.REFUSED, steps_command.above_the_limit),
    Step("c", "a therapy action", Word.REFUSED, steps_command.therapy_action),
    Step("d", "another site's technician", Word.REFUSED, steps_command.another_sites_technician),
    Step(
        "e",
        "an update: approvals, bytes, patient, re-attestation",
        Word.APPLIED,
        steps_command.update_with_approvals,
    ),
    Step("f", "a receipt swallowed, the command asked again", Word.ONCE, steps_command.swallowed_receipt),
    Step("g", "a captured gateway replays, alters, invents", Word.REFUSED, steps_attack.hostile_gateway),
    Step("h", "tampered firmware", Word.CONTAINED, steps_attack.tampered_firmware),
    Step("i", "a technician revoked", Word.REVOKED, steps_revocation.technician_revoked),
    Step("j", "the old build revoked, corrective only", Word.CONTAINED, steps_revocation.build_revoked),
    Step("k", "the bus silent", Word.DELIVERED, steps_revocation.bus_silent),
    Step("l", "a gateway cut off", Word.RECOVERED, steps_outage.gateway_cut_off),
    Step("m", "evidence stopped", Word.REFUSED, steps_outage.evidence_stopped),
    Step("n", "one pump's story", Word.PROVED, steps_outage.one_pumps_story),
    Step("o", "what did that pump run before its update?", Word.PROVED, steps_moment.what_it_ran),
)


def run(data: Path | None, *, output: str, stay: bool, pumps: int = PUMPS, sites: int = SITES) -> int:
    """Show everything; returns 0 when every step went as expected, else 1. Owns its event loop.

    ``data``: where the demonstration's folder is made and left; None: in a temporary one, removed at the end. Never
    in an installation that is there already. Raises what keeps it from beginning.
    """
    home = Path(tempfile.mkdtemp(prefix="vigil-demo-")) if data is None else _fresh(data.absolute())
    try:
        return asyncio.run(_demo(home, output=output, stay=stay, pumps=pumps, sites=sites))
    finally:
        if data is None:
            shutil.rmtree(home, ignore_errors=True)


def _fresh(data: Path) -> Path:
    for number in itertools.count(1):
        home = data / f"demo-{number}"
        if not home.exists():
            return home
    raise AssertionError("numbers do not end")


async def _demo(home: Path, *, output: str, stay: bool, pumps: int, sites: int) -> int:
    stop = asyncio.Event()
    main = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        stop.set()
        if main is not None and not staying.is_set():
            main.cancel()

    staying = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    data = home / "data"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Somewhere in the registered ports, so that it disturbs neither an installation here nor another demonstration.
    base_port = FIRST_PORT + int.from_bytes(os.urandom(2)) % PORTS // 100 * 100
    installation = RunningInstallation(DataFolder(data), DEFAULT_TRUST_DOMAIN, base_port)
    sites = max(sites, LEAST_SITES)
    world = World(installation, home, [f"hospital-{place + 1:02}" for place in range(sites)])
    words = Console(stderr=True)
    try:
        await _set_up(world, words, pumps=max(pumps, sites * LEAST_PUMPS_A_SITE))
        results = [await _show(step, world, words) for step in STEPS]
        _summary(results, output)
        code = 0 if all(result.as_expected for result in results) else 1
        if stay:
            staying.set()
            _hints(words, data, pump_of(world, 1))
            await stop.wait()
        return code
    except asyncio.CancelledError:
        words.print("stopped")
        return 1
    finally:
        await world.close()
        await installation.stop()


async def _set_up(world: World, words: Console, *, pumps: int) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=words) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done, total=of)

        progress("services up", 0, 1)
        await world.installation.start()
        progress("services up", 1, 1)
        await build_world(world, pumps=pumps, progress=progress)


async def _show(step: Step, world: World, words: Console) -> StepResult:
    """One step, timed; whatever it raises becomes its outcome."""
    clock = SystemClock()
    began = clock.monotonic()
    outcome = step.expected
    try:
        came = await step.show(world)
    except Different as different:
        outcome, came = Word.DIFFERENT, Came("", str(different))
    except Refused as refused:
        outcome, came = Word.DIFFERENT, Came(str(refused.reason), refused.refusals[0].sentence)
    except TimeoutError:
        outcome, came = Word.DIFFERENT, Came("", "it took too long")
    result = StepResult(
        step=step.letter,
        title=step.title,
        expected=step.expected,
        outcome=outcome,
        reason=str(came.reason),
        detail=came.detail,
        elapsed_ms=round((clock.monotonic() - began) * 1000),
    )
    mark = "[green]as expected[/]" if result.as_expected else "[red]DIFFERENT[/]"
    words.print(
        f"({step.letter}) {step.title}: expected [bold]{step.expected}[/], {mark} ({result.elapsed_ms} ms)"
    )
    words.print(
        f"    {result.reason + ': ' if result.reason else ''}{result.detail}", highlight=False, style="dim"
    )
    return result


def _summary(results: list[StepResult], output: str) -> None:
    if output == "json":
        for result in results:
            print(json.dumps(result.to_value()))  # noqa: T201 - the result goes to stdout
        sys.stdout.flush()
        return
    table = Table(title="What was promised, and what came", title_justify="left")
    for heading in ("", "what", "expected", "outcome", "reason"):
        table.add_column(heading, no_wrap=heading != "what")
    table.add_column("ms", justify="right", no_wrap=True)
    for result in results:
        style = "" if result.as_expected else "red"
        table.add_row(
            result.step,
            result.title,
            str(result.expected),
            str(result.outcome),
            result.reason,
            str(result.elapsed_ms),
            style=style,
        )
    Console().print(table)


def _hints(words: Console, data: Path, pump: PumpAt) -> None:
    """What to try with a pump that runs a build which is not revoked, and has no patient."""
    words.print("\n[bold]Everything is still running. In another terminal:[/]", highlight=False)
    for line in (
        f"export VIGIL_DATA={data}",
        "vigil status",
        "vigil context list",
        "vigil --context ada device list",
        f"vigil --context ada command send {pump.tag} set-occlusion-pressure -p occlusion_pressure=300 -w WO-1",
        f"vigil --context otto evidence history {pump.tag}",
        f"vigil --context otto evidence at {pump.tag} 1m --proof moment.json",
        f"vigil evidence check moment.json --trust {DataFolder(data).trust}",
    ):
        words.print(f"  {line}", highlight=False, soft_wrap=True)
    words.print("Ctrl-C stops it.", highlight=False)
