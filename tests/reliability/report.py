"""What long runs found: docs/reliability.json and, for reading, docs/reliability.md. Each replaces its own section."""

import datetime as dt
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).parents[2] / "docs"
ORDER: Final = ("faults", "captured", "model", "load", "append", "append-postgresql", "fuzz")
"""The sections, as the page shows them; another name is refused."""

INTRODUCTION: Final = """\
# Reliability

What was done to Vigil, how often, and what came of it. Each section is written by the run that it names, on real
processes, sockets, disks and keys; nothing here is typed by hand. How the faults are made stands in
[`tests/faults/`](../tests/faults), what each captured part can do alone in the [threat model](threat-model.md).
"""


def record(
    section: str,
    *,
    title: str,
    command: str,
    words: str,
    table: Sequence[Mapping[str, str | int | float]],
    notes: Sequence[str] = (),
    kept: Mapping[str, Any] | None = None,
    docs: Path = DOCS,
) -> None:
    """Replace one section. ``table``: rows with the same keys in the same order; its keys are the headings.

    ``kept``: what a later run of the same section needs, in the JSON alone (`kept_of`). Raises ValueError for an
    unknown section.
    """
    if section not in ORDER:
        raise ValueError(f"no section is called {section}; there are {', '.join(ORDER)}")
    document = _read(docs)
    document[section] = {
        "title": title,
        "command": command,
        "measured": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        "words": words,
        "table": [dict(row) for row in table],
        "notes": list(notes),
        **({} if kept is None else {"kept": dict(kept)}),
    }
    ordered: dict[str, Any] = {name: document[name] for name in ORDER if name in document}
    (docs / "reliability.json").write_text(
        json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (docs / "reliability.md").write_text(markdown(ordered), encoding="utf-8")


def kept_of(section: str, *, docs: Path = DOCS) -> Mapping[str, Any] | None:
    """What the newest run of a section kept for a later one; None where it kept nothing, or there was none."""
    found: Mapping[str, Any] | None = _read(docs).get(section, {}).get("kept")
    return found


def _read(docs: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((docs / "reliability.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return document


def markdown(document: Mapping[str, Any]) -> str:
    """The page."""
    parts = [INTRODUCTION]
    for one in document.values():
        parts.append(f"## {one['title']}\n")
        parts.append(f"`{one['command']}`, {one['measured']}, {one['machine']}. {one['words']}\n")
        if one["table"]:
            headings = list(one["table"][0])
            lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
            lines += [f"| {' | '.join(_cell(row[name]) for name in headings)} |" for row in one["table"]]
            parts.append("\n".join(lines) + "\n")
        if one["notes"]:
            parts.append("\n".join(f"- {note}" for note in one["notes"]) + "\n")
    return "\n".join(parts)


def _cell(value: str | float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"
    return value.replace("|", "\\|")
