"""`vigil backup` and `vigil restore`, for the operator of a data folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.options import options_of
from vigil.cli.perform import plainly

if TYPE_CHECKING:
    from vigil.cli.output import Output
    from vigil.run.backup import Progress

ArchiveArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The archive.")]


def backup(
    ctx: typer.Context,
    archive: ArchiveArgument,
    *,
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Keys and passphrases too: guard it like the folder itself.")
    ] = False,
) -> None:
    """Copy the whole data folder into one archive, while everything runs."""

    def work(output: "Output") -> None:
        from vigil.cli.session import data_folder
        from vigil.core.clock import SystemClock
        from vigil.run.backup import back_up

        folder = data_folder(options_of(ctx))
        with _bar(output) as progress:
            made = back_up(folder, archive, with_keys=with_keys, clock=SystemClock(), progress=progress)
        output.record(
            {
                "archive": str(archive),
                "size": archive.stat().st_size,
                "databases": made.databases,
                "files": made.files,
                "log_size": made.log_size,
                "left_out": made.left_out,
                "elsewhere": made.elsewhere,
            }
        )
        for name in made.elsewhere:
            output.say(f"{name} lies in PostgreSQL: back it up with pg_dump or pg_basebackup, after this")

    plainly(ctx, work)


def restore(
    ctx: typer.Context,
    archive: ArchiveArgument,
    *,
    log: Annotated[
        str, typer.Option("--log", metavar="KEY", help="The log's verifier key; else the one in the archive.")
    ] = "",
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="Whom to ask; else the archive's witness-policy."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="FILE", help="A checkpoint that the log must still hold."),
    ] = None,
    unwitnessed: Annotated[
        bool, typer.Option("--unwitnessed", help="Ask nobody: what was recorded since may be signed twice.")
    ] = False,
    new_log: Annotated[
        bool, typer.Option("--new-log", help="Begin another log, and keep this one beside it as it was.")
    ] = False,
) -> None:
    """Put an archive back into an empty --data folder; refused when a witness holds more than its log."""

    def work(output: "Output") -> None:
        from vigil.cli.session import data_folder
        from vigil.run.restore import Ask
        from vigil.run.restore import restore as run

        ask = Ask(
            archive=archive,
            log_key=log,
            policy=policy,
            checkpoint=checkpoint,
            unwitnessed=unwitnessed,
            new_log=new_log,
        )
        folder = data_folder(options_of(ctx))
        with _bar(output) as progress:
            done = run(folder, ask, progress)
        found = done.log or {"size": None, "checked_against": "", "witnesses": []}
        output.record(
            {
                "data": str(folder.path),
                "log_size": found["size"],
                "checked_against": found["checked_against"],
                "witnesses": found["witnesses"],
                "missing": done.missing,
                "new_log": new_log,
            }
        )
        if done.missing:
            output.say(f"put {len(done.missing)} keys in place before `vigil up`; the archive has none")

    plainly(ctx, work)


@contextmanager
def _bar(output: "Output") -> "Iterator[Progress]":
    """A bar for a person who waits."""
    if not output.terminal:
        yield lambda _what, _done, _size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, size: bar.update(task, description=what, completed=done, total=size)
