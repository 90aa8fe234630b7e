"""`vigil revoke` and `vigil reinstate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.options import group
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.cli.session import Session

app = group("Revoke: in force when its transaction commits, everywhere within seconds.")

_REASONS = "compromise, leaver, superseded, defect, vulnerability, recall, lost, test"
Ids = Annotated[list[str], typer.Argument(metavar="ID...")]
Reason = Annotated[str, typer.Option("--reason", help=f"One of: {_REASONS}.")]
Effect = Annotated[
    str,
    typer.Option(
        "--effect", help="One of: flag, no_new, corrective_only, deny; by default as the kind has it."
    ),
]
Expires = Annotated[
    str,
    typer.Option("--expires", metavar="DURATION", help="Such as 2d; by default it stands until reinstated."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what it would hit, and revoke nothing.")]


@app.command()
def credential(
    ctx: typer.Context, ids: Ids, *, reason: Reason, expires: Expires = "", dry_run: DryRun = False
) -> None:
    """Revoke credentials by thumbprint, or all of a person's by p-… Streams are cut, nonces dropped."""
    _revoke(ctx, "credential", ids, reason=reason, effect="", expires=expires, dry_run=dry_run)


@app.command()
def device(
    ctx: typer.Context,
    ids: Ids,
    *,
    reason: Reason,
    effect: Effect = "",
    expires: Expires = "",
    dry_run: DryRun = False,
) -> None:
    """Revoke devices. By default corrective_only; with deny it is a ban."""
    _revoke(ctx, "device", ids, reason=reason, effect=effect, expires=expires, dry_run=dry_run)


@app.command()
def build(
    ctx: typer.Context,
    ids: Ids,
    *,
    reason: Reason,
    effect: Effect = "",
    expires: Expires = "",
    dry_run: DryRun = False,
) -> None:
    """Revoke firmware builds by digest or model@version. By default corrective_only."""
    _revoke(ctx, "build", ids, reason=reason, effect=effect, expires=expires, dry_run=dry_run)


@app.command()
def baseline(
    ctx: typer.Context,
    ids: Ids,
    *,
    reason: Reason,
    effect: Effect = "",
    expires: Expires = "",
    dry_run: DryRun = False,
) -> None:
    """Revoke configurations or drug libraries by digest. By default no_new."""
    _revoke(ctx, "baseline", ids, reason=reason, effect=effect, expires=expires, dry_run=dry_run)


@app.command()
def gateway(
    ctx: typer.Context, ids: Ids, *, reason: Reason, expires: Expires = "", dry_run: DryRun = False
) -> None:
    """Revoke gateways by id."""
    _revoke(ctx, "gateway", ids, reason=reason, effect="", expires=expires, dry_run=dry_run)


@app.command()
def signer(
    ctx: typer.Context, ids: Ids, *, reason: Reason, expires: Expires = "", dry_run: DryRun = False
) -> None:
    """Revoke signers' certificates by thumbprint; an administrator of the operator alone."""
    _revoke(ctx, "signer", ids, reason=reason, effect="", expires=expires, dry_run=dry_run)


def reinstate(
    ctx: typer.Context,
    epoch: Annotated[int, typer.Argument(metavar="EPOCH", min=1, help="The revocation's epoch.")],
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="By default all that it names.")
    ] = None,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why, in words; signed by both.")] = "",
    half: Annotated[
        Path | None, typer.Option("--with", metavar="FILE", help="Complete what another person began.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the first person's half goes.")
    ] = None,
) -> None:
    """Take ids out of a revocation: one person begins, another completes it --with the first one's file."""

    async def work(session: "Session") -> int:
        from vigil.cli.revoking import reinstate as run

        target = out or Path(f"reinstate-{epoch}.json")
        return await run(session, epoch, ids or [], reason=reason, half=half, out=target)

    perform(ctx, work)


def _revoke(
    ctx: typer.Context,
    scope: str,
    ids: list[str],
    *,
    reason: str,
    effect: str,
    expires: str,
    dry_run: bool,
) -> None:
    async def work(session: "Session") -> int:
        from vigil.cli.durations import milliseconds
        from vigil.cli.revoking import Draft, revoke

        draft = Draft(
            scope=scope,
            ids=tuple(ids),
            reason=reason,
            effect=effect,
            expires_ms=milliseconds(expires) if expires else 0,
            dry_run=dry_run,
        )
        return await revoke(session, draft)

    perform(ctx, work)
