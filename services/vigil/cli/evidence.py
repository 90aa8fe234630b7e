"""`vigil evidence`: what is on record, proved."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.options import DeviceArgument, FromOption, LimitOption, PageOption, ToOption, group, options_of
from vigil.cli.perform import perform, plainly

if TYPE_CHECKING:
    from vigil.cli.output import Output
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
KnownOption = Annotated[
    Path | None,
    typer.Option(
        "--known",
        metavar="FILE",
        help="A checkpoint that you kept (`vigil evidence checkpoint --output json`): the proof must extend it.",
    ),
]
MaxAgeOption = Annotated[
    str,
    typer.Option(
        "--max-age",
        metavar="DURATION",
        help="Refuse what is older, such as 10m: by the witnesses' clocks.",
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
            metavar="SUBJECT",
            help="A device by any of its names, or device/<id>, person/<id>, build/<hex>, site/<id>, gateway/<id>.",
        ),
    ],
    *,
    since: FromOption = "",
    until: ToOption = "",
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Only such statements; repeatable.")
    ] = None,
    limit: LimitOption = 200,
    page: PageOption = "",
) -> None:
    """Show what happened to a subject, newest last: in words, in your own zone, gaps too; every signature verified."""

    async def work(session: "Session") -> int:
        from vigil.cli.timeline import show_history

        return await show_history(
            session, subject, kinds=kind or [], since=since, until=until, page=page, limit=limit
        )

    perform(ctx, work)


@app.command()
def find(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT=VALUE",
            help="request, intent, command, decision, evidence, revocation, body with hex; epoch with a number; "
            "kind with a kind of statements.",
        ),
    ],
    *,
    since: FromOption = "",
    until: ToOption = "",
    limit: LimitOption = 200,
    page: PageOption = "",
) -> None:
    """Find records by what they refer to, or by their kind and their own time; every signature verified."""

    async def work(session: "Session") -> int:
        from vigil.cli.timeline import find_records

        return await find_records(session, what, since=since, until=until, page=page, limit=limit)

    perform(ctx, work)


@app.command()
def at(
    ctx: typer.Context,
    device: DeviceArgument,
    when: Annotated[
        str,
        typer.Argument(
            metavar="TIME",
            help="2026-09-14T03:12 in your own zone, or with an offset; how long ago, such as 90m; or now.",
        ),
    ],
    *,
    as_of: Annotated[
        str, typer.Option("--as-of", metavar="TIME", help="Only what the log had taken by then.")
    ] = "",
    policy: PolicyOption = None,
    proof: Annotated[
        Path | None,
        typer.Option("--proof", metavar="FILE", help="Write all of it for `vigil evidence check`, offline."),
    ] = None,
) -> None:
    """Show what a device ran at one moment, each fact with its proved record, and how sure it is."""

    async def work(session: "Session") -> int:
        from vigil.cli.moment import show_state

        return await show_state(session, device, when, as_of=as_of, policy=policy, proof=proof)

    perform(ctx, work)


@app.command()
def show(ctx: typer.Context, record: RecordArgument) -> None:
    """Show one record: what was signed, by whom, when the log took it."""

    async def work(session: "Session") -> int:
        from vigil.cli.logbook import show_entry

        return await show_entry(session, record)

    perform(ctx, work)


@app.command()
def prove(
    ctx: typer.Context,
    records: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Records: an index, or a statement's digest in hex."),
    ] = None,
    *,
    subject: Annotated[
        list[str] | None,
        typer.Option(
            "--subject",
            metavar="SUBJECT",
            help="That all records of it are there, or that it has none, by the newest census; repeatable.",
        ),
    ] = None,
    first: Annotated[
        int,
        typer.Option(
            "--from",
            metavar="NUMBER",
            min=1,
            max=2**63 - 1,
            help="With --subject: its records from this one.",
        ),
    ] = 1,
    cose: Annotated[
        Path | None,
        typer.Option("--cose", metavar="FILE", help="Write a COSE Receipt (RFC 9942) of the one record too."),
    ] = None,
    known: KnownOption = None,
    policy: PolicyOption = None,
) -> None:
    """Prove records, or whole subjects, under one checkpoint. The JSON is a proof to take away, for `check`."""

    async def work(session: "Session") -> int:
        from vigil.cli.proving import Asked
        from vigil.cli.proving import prove as prove_all

        asked = Asked(
            records=records or (), subjects=subject or (), first=first, policy=policy, known=known, cose=cose
        )
        return await prove_all(session, asked)

    perform(ctx, work)


@app.command()
def check(
    ctx: typer.Context,
    proof: Annotated[Path, typer.Argument(metavar="PROOF", help="A file that `prove` wrote.")],
    *,
    trust: Annotated[
        Path,
        typer.Option("--trust", metavar="FILE", help="The trust bundle that is believed (trust.json)."),
    ],
    log: Annotated[
        str,
        typer.Option(
            "--log",
            metavar="KEY",
            help="The log's verifier key, or a file with it; by default the policy's only log, else the one that a "
            "census in the proof names.",
        ),
    ] = "",
    tiles: Annotated[
        str,
        typer.Option(
            "--tiles",
            metavar="URL",
            help="Count the log's subjects again from its tiles, and hold the censuses in the proof against that.",
        ),
    ] = "",
    known: KnownOption = None,
    policy: PolicyOption = None,
) -> None:
    """Check a proof with no network: what holds, what does not, and what it does not prove."""

    def work(output: "Output") -> int:
        from vigil.cli.proving import believed
        from vigil.cli.proving import check as check_proof

        believes = believed(trust, log_key=log, policy=policy, known=known)
        return check_proof(output, proof, believes, tiles=tiles)

    plainly(ctx, work)


@app.command()
def checkpoint(ctx: typer.Context, *, policy: PolicyOption = None, max_age: MaxAgeOption = "") -> None:
    """Take the newest checkpoint and prove that the log only grew since the last one seen here."""

    async def work(session: "Session") -> int:
        from vigil.cli.durations import milliseconds
        from vigil.cli.logbook import show_checkpoint

        age = milliseconds(max_age) if max_age else None
        return await show_checkpoint(session, policy=policy, max_age=age)

    perform(ctx, work)


@app.command()
def erase(
    ctx: typer.Context,
    records: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Records: an index, or a statement's digest in hex."),
    ] = None,
    *,
    subject: Annotated[
        str, typer.Option("--subject", metavar="SUBJECT", help="All of its records that can be erased.")
    ] = "",
    reason: Annotated[
        str, typer.Option("--reason", help="request, retention, mistake or order; signed and on record.")
    ] = "request",
    reference: Annotated[
        str, typer.Option("--reference", metavar="CASE", help="A case number; never a name: it stays.")
    ] = "",
    bodies: Annotated[
        bool, typer.Option("--bodies", help="Only what is kept beside the statements, not these.")
    ] = False,
    half: Annotated[
        Path | None, typer.Option("--with", metavar="FILE", help="Complete what another person began.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where the first person's half goes.")
    ] = Path("erasure.json"),
) -> None:
    """Erase records; proofs still hold. One administrator begins, another completes it --with the first one's file."""

    async def work(session: "Session") -> int:
        from vigil.cli.erasing import Ask
        from vigil.cli.erasing import erase as run

        ask = Ask(
            records=tuple(records or ()),
            subject=subject,
            reason=reason,
            reference=reference,
            bodies_only=bodies,
            half=half,
            out=out,
        )
        return await run(session, ask)

    perform(ctx, work)


@app.command()
def reindex(
    ctx: typer.Context,
    *,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Hold the index against the log, and change nothing; 3 when it differs."
        ),
    ] = False,
) -> None:
    """Make the log's index again from the log alone, for the operator of this data folder; running or not."""

    def work(output: "Output") -> int:
        from vigil.cli.reindexing import reindex_folder

        return reindex_folder(output, options_of(ctx), check=check)

    plainly(ctx, work)


@app.command()
def monitor(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What it remembers: checkpoints, heads, contradictions.")
    ],
    *,
    url: Annotated[str, typer.Option("--url", metavar="URL", help="Where the log's tiles are.")],
    log: Annotated[
        str, typer.Option("--log", metavar="KEY", help="The log's verifier key, or a file with it.")
    ] = "",
    policy: PolicyOption = None,
    max_age: MaxAgeOption = "",
    follow: Annotated[
        bool, typer.Option("--follow", help="Look again and again, until it is wrong.")
    ] = False,
    every: Annotated[str, typer.Option("--every", metavar="DURATION", help="With --follow.")] = "10s",
    authority: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="PEM: whom to believe over HTTPS.")
    ] = None,
) -> None:
    """Follow a log from outside: it only grew, its chains are whole. Exit 3 when not, 1 when it cannot be read."""

    def work(output: "Output") -> int:
        from vigil.cli.durations import milliseconds, seconds
        from vigil.cli.monitoring import Watch
        from vigil.cli.monitoring import monitor as run

        watch = Watch(
            folder=folder,
            url=url,
            log=log,
            policy=policy,
            max_age=milliseconds(max_age) if max_age else None,
            follow=follow,
            every=seconds(every),
            authority=authority,
        )
        return run(output, watch)

    plainly(ctx, work)
