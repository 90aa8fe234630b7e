"""The tree of commands. Every module here is cheap to import, so that `--help` is quick at every level."""

import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import typer.main

from vigil.cli import (
    backup,
    baseline,
    ceremony,
    command,
    context,
    credential,
    device,
    evidence,
    gateway,
    manufacturer,
    model,
    organization,
    policy,
    principal,
    release,
    revocation,
    revoke,
    running,
    site,
    status,
    witness,
)
from vigil.cli.options import Options, OutputMode

GLOBAL: Final = ("--data", "--context", "--output", "--timeout")
"""Options that may stand anywhere on the line."""

app = typer.Typer(
    name="vigil",
    help="Vigil, a zero-trust control plane for fielded medical devices.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 other, 2 usage, 3 refused, 4 outcome unknown.",
)


@app.callback()
def _begin(
    ctx: typer.Context,
    *,
    data: Annotated[
        Path | None, typer.Option("--data", envvar="VIGIL_DATA", metavar="DIR", help="The data folder.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--context", envvar="VIGIL_CONTEXT", metavar="NAME", help="Act as this context."),
    ] = None,
    output: Annotated[
        OutputMode, typer.Option("--output", help="Tables for people, JSON for machines.")
    ] = OutputMode.TABLE,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long one call may take.")
    ] = 10.0,
) -> None:
    ctx.obj = Options(data=data, context=name, output=output, timeout=timeout)


for _name, _group in (
    ("command", command.app),
    ("device", device.app),
    ("status", None),
    ("evidence", evidence.app),
    ("revocation", revocation.app),
    ("revoke", revoke.app),
    ("organization", organization.app),
    ("site", site.app),
    ("gateway", gateway.app),
    ("principal", principal.app),
    ("credential", credential.app),
    ("model", model.app),
    ("release", release.app),
    ("baseline", baseline.app),
    ("manufacturer", manufacturer.app),
    ("voucher", manufacturer.voucher_app),
    ("ceremony", ceremony.app),
    ("context", context.app),
    ("policy", policy.app),
    ("witness", witness.app),
):
    if _group is not None:
        app.add_typer(_group, name=_name)

app.command("status")(status.status)
app.command("reinstate")(revoke.reinstate)
app.command("up")(running.up)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("demo")(running.demo)
app.command("version")(running.version)


def hoisted(arguments: list[str]) -> list[str]:
    """Bring global options to the front, where they are parsed, from wherever they were typed."""
    front: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            rest += [argument, *left]
        elif argument in GLOBAL:
            front.append(argument)
            front += [value for _, value in zip(range(1), left, strict=False)]
        elif argument.startswith(tuple(f"{name}=" for name in GLOBAL)):
            front.append(argument)
        else:
            rest.append(argument)
    return front + rest


def help_text(arguments: list[str]) -> str | None:
    """The help that is asked for, found without reading any option: what typer reads options with is slow to load."""
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--help" not in before or "_VIGIL_COMPLETE" in os.environ:
        return None
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="vigil")
    values = {place + 1 for place, word in enumerate(before) if word in GLOBAL}
    for place, word in enumerate(before[: before.index("--help")]):
        if word.startswith("-") or place in values:
            continue
        found = getattr(command, "commands", {}).get(word)
        if found is None:
            # An argument of a command, or nothing that is known: the first shows the command's help.
            return None if hasattr(command, "commands") else str(command.get_help(context))
        command = found
        context = command.context_class(command, info_name=word, parent=context)
    return str(command.get_help(context))
