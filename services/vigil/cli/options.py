"""The global options, and the shapes of options that several commands share. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NewType

import typer


class OutputMode(StrEnum):
    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was said before, or beside, the command. ``timeout`` in seconds, for each call."""

    data: Path | None = None
    context: str | None = None
    output: OutputMode = OutputMode.TABLE
    timeout: float = 10.0


class UsageError(Exception):
    """What was typed cannot be meant; exit code 2."""


Device = NewType("Device", str)

GatewayOption = Annotated[
    str,
    typer.Option(
        "--gateway",
        metavar="ID[=HOST:PORT]",
        help="Ask this gateway; by default the one of the device's site.",
    ),
]
DeviceArgument = Annotated[
    str, typer.Argument(metavar="DEVICE", help="A device's id, UDI, serial number or asset tag.")
]
SignerOption = Annotated[
    Path,
    typer.Option(
        "--signer",
        metavar="DIR",
        help="The manufacturer's folder, as `vigil manufacturer init` made it.",
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, in a few words; signed with it.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
FromOption = Annotated[
    str, typer.Option("--from", metavar="TIME", help="Only what the log took from then on.")
]
ToOption = Annotated[str, typer.Option("--to", metavar="TIME", help="Only what the log took up to then.")]
PageOption = Annotated[
    str, typer.Option("--page", metavar="TOKEN", help="Go on where an answer of before ended (`next`).")
]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="At most this many.")]


def group(help_text: str) -> typer.Typer:
    """Make the group of a noun's commands."""
    return typer.Typer(
        help=help_text, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )


def one_of(value: str, choices: Sequence[str], name: str) -> str:
    """Hold a word against the words that are known. Raises UsageError."""
    if value not in choices:
        raise UsageError(f"{name} is one of: {', '.join(choices)}")
    return value


def options_of(context: typer.Context) -> Options:
    """Give the global options of this run."""
    found: Any = context.obj
    return found if isinstance(found, Options) else Options()
