"""`vigil evidence monitor`: one look at a log, or one after another; what is wrong is said and its proof kept."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vigil.cli.logbook import read_policy
from vigil.cli.messages import instant
from vigil.cli.options import UsageError
from vigil.cli.output import DONE, OTHER, REFUSED, Output
from vigil.core.certificates import replace_file
from vigil.core.clock import Clock, SystemClock
from vigil.core.notes import parse_verifier_key
from vigil.core.witness_policy import WitnessPolicy
from vigil.errors import Refused
from vigil.monitor.domain import Wrong
from vigil.monitor.reader import TileClient, UnreadableError
from vigil.monitor.service import Look, Monitor
from vigil.monitor.store import METADATA
from vigil.storage import open_database

SHOWN_PROGRESS: Final = 4096
"""Entries from which a person sees a bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What was typed; ages in ms, ``every`` in seconds."""

    folder: Path
    url: str
    log: str
    policy: Path | None
    max_age: int | None
    follow: bool
    every: int
    authority: Path | None


def monitor(output: Output, watch: Watch) -> int:
    """Look at the log; exit 3 when something is wrong, 1 when it cannot be read."""
    if not watch.url.startswith(("http://", "https://")):
        raise UsageError("--url begins with http:// or https://")
    policy = None if watch.policy is None else read_policy(watch.policy)
    key = _key(watch.log, policy)
    return asyncio.run(_run(output, watch, key, policy, SystemClock()))


async def _run(output: Output, watch: Watch, key: str, policy: WitnessPolicy | None, clock: Clock) -> int:
    database = open_database(
        watch.folder / "monitor.db", metadata=METADATA, migrations="vigil.monitor.migrations"
    )
    try:
        with _progress(output) as progress:
            async with TileClient(watch.url, authority=watch.authority) as source:
                watcher = Monitor(
                    database=database,
                    source=source,
                    key=key,
                    policy=policy,
                    max_age=watch.max_age,
                    clock=clock,
                    progress=progress,
                )
                while True:
                    code = await _look(output, watch, watcher, clock)
                    if not watch.follow or code == REFUSED:
                        return code
                    await asyncio.sleep(watch.every)
    finally:
        database.close()


async def _look(output: Output, watch: Watch, watcher: Monitor, clock: Clock) -> int:
    try:
        look = await watcher.look()
    except Wrong as wrong:
        notes = (watcher.held, watcher.shown)
        file = _keep(watch.folder, wrong, log=watcher.key, notes=notes, at=clock.now())
        value = _value(None, wrong={"what": wrong.what, "sentence": str(wrong), "file": str(file)})
        _show(output, value, follow=watch.follow)
        return REFUSED
    except (UnreadableError, Refused) as error:
        if not watch.follow:
            raise
        output.say(str(error))
        return OTHER
    _show(output, _value(look, wrong=None), follow=watch.follow)
    return DONE


def _keep(folder: Path, wrong: Wrong, *, log: str, notes: tuple[str, str], at: int) -> Path:
    """Write down what contradicts: both notes are signed by the log, so the file proves it to anybody."""
    numbers = (path.stem.partition("-")[2] for path in folder.glob("contradiction-*.json"))
    number = max((int(one) for one in numbers if one.isascii() and one.isdecimal()), default=0) + 1
    path = folder / f"contradiction-{number}.json"
    value = {
        "what": wrong.what,
        "sentence": str(wrong),
        "found": instant(at),
        "log": log,
        "kept": notes[0],
        "shown": notes[1],
        "index": wrong.index,
        "entry": base64.b64encode(wrong.entry).decode(),
    }
    replace_file(path, (json.dumps(value, indent=1) + "\n").encode(), mode=0o600)
    return path


def _value(look: Look | None, *, wrong: dict[str, str] | None) -> dict[str, Any]:
    if look is None:
        nothing = dict.fromkeys(("size", "root", "new", "newest_record", "subjects", "missing_numbers"))
        return {"right": False, **nothing, "witnesses": [], "wrong": wrong}
    return {
        "right": True,
        "size": look.signed.size,
        "root": look.signed.root.hex(),
        "new": look.signed.size - look.before,
        "newest_record": instant(look.time),
        "subjects": look.subjects,
        "missing_numbers": look.missing,
        "witnesses": [
            {"name": name, "time": instant(one.time * 1000)} for name, one in sorted(look.witnesses.items())
        ],
        "wrong": None,
    }


def _show(output: Output, value: dict[str, Any], *, follow: bool) -> None:
    if output.json:
        (output.line if follow else output.value)(value)
    elif value["wrong"]:
        output.say(f"WRONG: {value['wrong']['sentence']} (kept in {value['wrong']['file']})")
    elif follow:
        if value["new"]:
            output.say(f"{value['size']} records, {value['new']} new, all of it follows")
    else:
        output.record({name: item for name, item in value.items() if name != "wrong"})


def _key(text: str, policy: WitnessPolicy | None) -> str:
    """The log's verifier key: itself, a file with it, or the policy's only log. Raises UsageError, FIELD_INVALID."""
    key = text
    if key and "+" not in key:
        try:
            key = Path(key).read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            raise UsageError(f"{key!r} is not a text in UTF-8") from None
    if not key and policy is not None and len(policy.logs) == 1:
        key = policy.logs[0]
    if not key:
        raise UsageError("--log names the log's verifier key, from somebody you believe")
    parse_verifier_key(key)
    return key


@contextmanager
def _progress(output: Output) -> Iterator[Callable[[int, int], None]]:
    """A bar for people who wait for many entries."""
    if not output.terminal:
        yield lambda _done, _size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading the log", total=None, visible=False)
        yield lambda done, size: progress.update(
            task, completed=done, total=size, visible=size > SHOWN_PROGRESS
        )
