"""`vigil evidence`: what is on record, proved."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.options import LimitOption, group
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.cli.session import Session

app = group("The evidence log: histories, records, proofs, checkpoints. Everything is verified here.")

PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="Take only what enough witnesses hold, by this policy (C2SP tlog-policy).",
    ),
]
RecordArgument = Annotated[
    str, typer.Argument(metavar="ID", help="A record's index, or its statement's digest in hex.")
]


@app.command()
def history(
    ctx: typer.Context,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT", help="device/<id>, person/<id>, build/<hex>, site/<id>, gateway/<id>."
        ),
    ],
    *,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Only such statements; repeatable.")
    ] = None,
    limit: LimitOption = 200,
) -> None:
    """Show a subject's records, newest last."""

    async def work(session: "Session") -> int:
        from vigil.cli.logbook import show_history

        return await show_history(session, subject, kinds=kind or [], limit=limit)

    perform(ctx, work)


@app.command()
def show(ctx: typer.Context, record: RecordArgument) -> None:
    """Show one record: what was signed, by whom, when the log took it."""

    async def work(session: "Session") -> int:
        from vigil.cli.logbook import show_entry

        return await show_entry(session, record)

    perform(ctx, work)


@app.command()
def prove(ctx: typer.Context, record: RecordArgument, *, policy: PolicyOption = None) -> None:
    """Prove one record: signature, the log's promise, inclusion under the newest checkpoint, bodies."""

    async def work(session: "Session") -> int:
        from vigil.cli.logbook import prove_entry

        return await prove_entry(session, record, policy=policy)

    perform(ctx, work)


@app.command()
def checkpoint(ctx: typer.Context, *, policy: PolicyOption = None) -> None:
    """Take the newest checkpoint and prove that the log only grew since the last one seen here."""

    async def work(session: "Session") -> int:
        from vigil.cli.logbook import show_checkpoint

        return await show_checkpoint(session, policy=policy)

    perform(ctx, work)
