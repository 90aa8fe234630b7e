"""Data on stdout, words on stderr: tables for people, JSON for machines."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from vigil.cli.options import OutputMode
from vigil.errors import Reason, Refusal, Refused

DONE, OTHER, USAGE, REFUSED, UNKNOWN = 0, 1, 2, 3, 4
"""Exit codes (docs/cli.md)."""

_NOT_REFUSED: Final = frozenset(
    {
        Reason.SERVICE_UNAVAILABLE,
        Reason.DEADLINE_EXCEEDED,
        Reason.STORAGE_UNAVAILABLE,
        Reason.INTERNAL,
    }
)
"""Nobody said no: something did not work."""
WIDE: Final = 240
"""Columns of a table that goes into a file or a pipe."""

Column = tuple[str, Callable[[Mapping[str, Any]], object]]


def exit_code(error: Refused) -> int:
    """0 done, 1 other, 2 usage, 3 refused, 4 outcome unknown."""
    if error.reason is Reason.OUTCOME_UNKNOWN:
        return UNKNOWN
    return OTHER if error.reason in _NOT_REFUSED else REFUSED


def printable(value: object) -> str:
    """Words from elsewhere, without anything that a terminal would obey."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(printable(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{printable(name)}={printable(item)}" for name, item in value.items())
    return "".join(letter if letter.isprintable() else "�" for letter in str(value))


class Output:
    """Where everything that a command says goes out."""

    def __init__(self, mode: OutputMode) -> None:
        self.mode = mode

    @property
    def json(self) -> bool:
        """Whether a machine reads."""
        return self.mode is OutputMode.JSON

    @property
    def terminal(self) -> bool:
        """Whether a person watches the progress."""
        return sys.stderr.isatty()

    def say(self, words: str) -> None:
        """Say something beside the data."""
        print("\n".join(printable(line) for line in words.split("\n")), file=sys.stderr, flush=True)

    def line(self, value: Mapping[str, Any]) -> None:
        """Write one object of a stream, on a line of its own."""
        print(json.dumps(value, ensure_ascii=False), flush=True)

    def value(self, value: object) -> None:
        """Write one JSON document."""
        print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)

    def record(self, value: Mapping[str, Any], *, title: str = "", hide: Sequence[str] = ()) -> None:
        """Write one thing: its members one by one, or the object."""
        if self.json:
            self.value(value)
            return
        if title:
            print(f"\n{printable(title)}")
        shown = [
            (name, item)
            for name, item in value.items()
            if name not in hide and item not in ("", [], {}, None)
        ]
        width = max((len(name) for name, _ in shown), default=0)
        for name, item in shown:
            print(f"{name.replace('_', ' '):<{width}}  {printable(item)}")

    def rows(
        self,
        name: str,
        items: Sequence[Mapping[str, Any]],
        columns: Sequence[Column],
        *,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Write several things: a table, or ``{name: [...]}`` with ``more`` beside it."""
        if self.json:
            self.value({name: list(items), **(more or {})})
            return
        if not items:
            self.say(f"no {name.replace('_', ' ')}")
            return
        self.table(
            [heading for heading, _ in columns], ([pick(item) for _, pick in columns] for item in items)
        )

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Draw a table on stdout."""
        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(table_of(headings, rows))

    def refusal(self, error: Refused) -> None:
        """Tell a refusal: to people on stderr, to machines as ``{"error": …}`` on stdout."""
        if self.json:
            self.value({"error": error_value(error)})
            return
        for place, refusal in enumerate(error.refusals):
            head = "error" if exit_code(error) == OTHER else "refused"
            self.say(f"{head if not place else 'also'}: {refusal.reason}: {refusal.sentence}")
            if refusal.lifted_by:
                who = f" ({refusal.who})" if refusal.who else ""
                self.say(f"  lifted by: {refusal.lifted_by}{who}")
        said_by = error.refusals[0].values.get("said_by")
        if said_by:
            self.say(f"  said by: {said_by}")

    def failure(self, status: str, sentence: str) -> None:
        """Tell what did not work without anybody refusing it."""
        if self.json:
            sentence = sentence.encode(errors="replace").decode()  # it may name what was typed
            error = {"status": status, "reason": status, "sentence": sentence}
            error_full = {**error, "lifted_by": "", "who": "", "values": {}}
            self.value({"error": {**error_full, "all": [error_full]}})
            return
        self.say(f"error: {sentence}")


def table_of(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Any:
    """Make a table; what stands in it is never read as markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def error_value(error: Refused) -> dict[str, Any]:
    """A refusal as JSON: the most fundamental one, and ``all`` of them."""
    each = [_refusal_value(refusal) for refusal in error.refusals]
    return {**each[0], "all": each}


def _refusal_value(refusal: Refusal) -> dict[str, Any]:
    return {
        "status": str(refusal.status),
        "reason": str(refusal.reason),
        "sentence": refusal.sentence,
        "lifted_by": refusal.lifted_by,
        "who": refusal.who,
        "values": dict(refusal.values),
    }


def field(name: str) -> Callable[[Mapping[str, Any]], object]:
    """Pick a member for a column."""
    return lambda item: item.get(name, "")


def short(name: str, length: int = 12) -> Callable[[Mapping[str, Any]], object]:
    """Pick the beginning of a long digest for a column."""
    return lambda item: str(item.get(name, ""))[:length]
