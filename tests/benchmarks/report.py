"""From what was measured to docs/benchmarks.json, docs/benchmarks.md and the table on the terminal."""

import json
import os
import platform
import sqlite3
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.benchmarks import flame_parts
from tests.benchmarks.result import Result, Row

LIBRARIES = ("grpcio", "cryptography", "protobuf", "uvloop", "sqlalchemy", "wasmtime", "cwt")

INTRODUCTION = """\
# Benchmarks

Written by `make bench` (`python -m tests.benchmarks`), which measures each floor in the same run: absolute figures
drift from run to run and from machine to machine, ratios to a floor less so. Everything measured is real: processes,
mTLS, signatures, checks, durable records. Nothing fails on time.

A **floor** is the same work with everything taken away that Vigil adds to it. For a command it is the *frozen echo*:
the same hops between five processes over mTLS with messages of the same sizes, nothing verified, decided, signed or
kept.
"""


def machine() -> dict[str, str]:
    """What the figures depend on, and no name of the machine."""
    return {
        "cores": str(os.cpu_count()),
        "processor": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in LIBRARIES},
    }


def merged(path: Path, measured: Mapping[str, Any], *, order: Sequence[str]) -> dict[str, Any]:
    """What was measured now, and before where it was not measured now."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        before = {}
    found = {**before, **measured}
    return {name: found[name] for name in order if name in found}


def markdown(
    document: Mapping[str, Any],
    *,
    pictures: Sequence[str] = (),
    parts: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """The page. ``pictures``: processes whose flame graph lies in docs/flames/; ``parts``: their CPU by kind."""
    lines = [INTRODUCTION]
    if pictures:
        links = ", ".join(f"[{name}](flames/{name}.svg)" for name in pictures)
        lines += [f"Flame graphs of a command's processes under load, drawn by `make flames`: {links}.", ""]
    if parts:
        lines += [
            "Where the CPU of a command goes, from the same samples:",
            "",
            *flame_parts.markdown(parts),
            "",
        ]
    for one in document.values():
        lines += [f"## {one['title']}", "", _when(one), ""]
        lines += ["| work | figure | floor | ratio | target | met |", "|---|---|---|---|---|---|"]
        result = Result.from_json(one)
        lines += [f"| {' | '.join(_cells(row))} |" for row in result.rows]
        notes = [f"- {row.work}: {row.note}." for row in result.rows if row.note]
        notes += [f"- {part}." for part in result.parts]
        lines += ["", *notes, ""] if notes else [""]
    return "\n".join([*lines, *_growth(document)])


def _growth(document: Mapping[str, Any]) -> list[str]:
    """How costs grow: one table of all benchmarks; nothing where none measured it."""
    lines = []
    for one in document.values():
        for grown in Result.from_json(one).growth:
            small, large = f"{_number(grown.small)} {grown.unit}", f"{_number(grown.large)} {grown.unit}"
            cells = (one["title"], grown.what, small, large, f"{grown.ratio:.2f}", grown.reading)
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return []
    return [
        "## Growth",
        "",
        "The same work with ten times more of one thing, both sizes measured in one run. Ratio: large to small.",
        "",
        "| benchmark | what grows | small | large | ratio | reading |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
    ]


def table(document: Mapping[str, Any], names: Sequence[str]) -> Table:
    """The rows of these benchmarks."""
    shown = Table(title="Benchmarks", title_justify="left")
    for heading in ("work", "figure", "floor", "ratio", "target", "met?"):
        shown.add_column(heading, justify="left" if heading in ("work", "target", "met?") else "right")
    for name in names:
        if name not in document:
            continue
        shown.add_section()
        shown.add_row(f"[bold]{document[name]['title']}")
        for row in Result.from_json(document[name]).rows:
            work, figure, floor, ratio, target, met = _cells(row, words=False)
            shown.add_row(work, figure, floor, ratio, target, met)
            if row.met is False and row.note:
                shown.add_row(f"  [dim]{row.note}")
        for grown in Result.from_json(document[name]).growth:
            large, small = f"{_number(grown.large)} {grown.unit}", _number(grown.small)
            shown.add_row(f"growth: {grown.what}", large, small, f"{grown.ratio:.2f}", "", "")
    return shown


def _when(one: Mapping[str, Any]) -> str:
    on = one["machine"]
    libraries = ", ".join(f"{name} {on[name]}" for name in LIBRARIES)
    short = ", a short run" if one["quick"] else ""
    return (
        f"Measured {one['measured'][:10]}{short} on {on['cores']} cores ({on['processor']}, {on['system']}),"
        f" Python {on['python']}, SQLite {on['sqlite']}, {libraries}."
    )


def _cells(row: Row, *, words: bool = True) -> tuple[str, ...]:
    floor = "" if row.floor is None else f"{_number(row.floor)}"
    if floor and words:
        floor += f" ({row.floor_is})"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = "" if row.met is None else ("yes" if row.met else "**no**" if words else "[bold]no")
    return row.work, f"{_number(row.figure)} {row.unit}", floor, ratio, _target(row), met


def _target(row: Row) -> str:
    target = row.target
    if target is None:
        return ""
    bound = f"{target.bound:g} x" if target.of_ratio else f"{target.bound:g} {row.unit}"
    return f"at least {bound}" if target.at_least else f"under {bound}"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
