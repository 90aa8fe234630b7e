"""A flame graph as one small SVG file without a script: the wider a bar, the more samples had that call on the stack.

Stacks grow downwards from the event loop. The name of a bar too narrow for text shows when the pointer rests on it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 1200.0
ROW: Final = 16
LEAST: Final = 0.0025
"""A bar below this part of all samples is left out."""
LETTER: Final = 6.1
"""Pixels of one letter at 10 px, about."""
COLOURS: Final = {"ours": "#f2a65a", "storage": "#8fb8de", "grpc": "#a5c882", "library": "#d9d4cc"}
_ROOM_OF: Final = (("vigil/", "ours"), ("tests/", "ours"), ("sqlalchemy/", "storage"), ("grpc/", "grpc"))
_FRAME: Final = re.compile(r"^(?P<name>.*) \((?P<file>[^()]*?)(?::\d+)?\)$")
_BEFORE_PACKAGES: Final = re.compile(r"^.*/(?:site-packages|lib/python3\.\d+|services)/")
_START: Final = (
    "<module>",
    "_run_code",
    "_run_module_as_main",
    "main",
    "run",
    "_bootstrap",
    "_bootstrap_inner",
)
"""How every stack begins; said once by the title."""

Stacks = Mapping[tuple[str, ...], int]
"""Samples by stack, outermost call first."""


@dataclass(slots=True)
class Bar:
    """One call, with what it called."""

    samples: int = 0
    inside: dict[str, "Bar"] = field(default_factory=dict)


def stacks_of(lines: Iterable[str]) -> dict[tuple[str, ...], int]:
    """Read the raw form of py-spy: frames between semicolons, then a count. Lines of code and paths are left out."""
    found: dict[tuple[str, ...], int] = {}
    for line in lines:
        frames, _, count = line.rpartition(" ")
        if not count.strip().isdigit():
            continue
        names = [_name(frame) for frame in frames.split(";")]
        while len(names) > 1 and names[0].partition(" ")[0].rpartition(".")[2] in _START:
            del names[0]
        key = tuple(names)
        found[key] = found.get(key, 0) + int(count)
    return found


def svg(title: str, stacks: Stacks) -> str:
    """Draw them."""
    root = Bar()
    for stack, samples in stacks.items():
        root.samples += samples
        bar = root
        for name in stack:
            bar = bar.inside.setdefault(name, Bar())
            bar.samples += samples
    drawn: list[str] = []
    depth = _draw(root, 0.0, 0, root.samples or 1, drawn)
    height = (depth + 2) * ROW + 8
    colours = "".join(f".{name}{{fill:{colour}}}" for name, colour in COLOURS.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height}" font-family="monospace"'
        f' font-size="10"><style>{colours}rect{{stroke:#fff;stroke-width:.5}}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/><text x="4" y="14" font-size="12">{escape(title)}</text>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


def _draw(bar: Bar, left: float, depth: int, total: int, drawn: list[str]) -> int:
    """Draw what is inside a bar, widest first; answers how deep it went."""
    deepest = depth
    for name, one in sorted(bar.inside.items(), key=lambda item: (-item[1].samples, item[0])):
        part = one.samples / total
        if part < LEAST:
            break
        width, top = part * WIDTH, (depth + 1) * ROW + 8
        words = escape(name)
        text = ""
        if (letters := int((width - 4) / LETTER)) >= 4:
            text = (
                f'<text x="{left + 2:.1f}" y="{top + 12}">{escape(name.partition(" ")[0][:letters])}</text>'
            )
        drawn.append(
            f'<g><title>{words}: {100 * part:.1f} %</title><rect class="{_room(name)}" x="{left:.1f}" y="{top}"'
            f' width="{width:.1f}" height="{ROW - 1}"/>{text}</g>'
        )
        deepest = max(deepest, _draw(one, left, depth + 1, total, drawn))
        left += width
    return deepest


def _name(frame: str) -> str:
    """``function file``, with nothing of the machine in the file's name."""
    match = _FRAME.match(frame)
    if match is None:
        return frame
    return f"{match['name'].replace(' ', '')} {_BEFORE_PACKAGES.sub('', match['file']).lstrip('/')}"


def _room(name: str) -> str:
    file = name.partition(" ")[2]
    return next((room for start, room in _ROOM_OF if file.startswith(start)), "library")
