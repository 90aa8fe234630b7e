"""`vigil revocation`: what is revoked, and how far it has come."""

from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.options import LimitOption, group
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.cli.session import Session

app = group("What is revoked, and how far it has come.")


@app.command("list")
def list_all(ctx: typer.Context, *, limit: LimitOption = 1000) -> None:
    """List revocations and reinstatements in your scope, each signature verified here."""

    async def work(session: "Session") -> int:
        from vigil.cli.output import field
        from vigil.cli.revoking import exit_of, list_entries

        rows, epoch = await list_entries(session, limit)
        columns = [
            ("epoch", field("epoch")),
            ("kind", field("kind")),
            ("scope", field("scope")),
            ("ids", field("ids")),
            ("effect", field("effect")),
            ("reason", field("reason")),
            ("signed by", field("signed_by")),
            ("at", field("create_time")),
            ("verified", field("verified")),
        ]
        session.output.rows("revocations", rows, columns, more={"epoch": epoch})
        return exit_of(rows)

    perform(ctx, work)


@app.command()
def show(ctx: typer.Context, epoch: Annotated[int, typer.Argument(metavar="EPOCH", min=1)]) -> None:
    """Show one step of the chain."""

    async def work(session: "Session") -> int:
        from vigil.api.revocation.v1 import revocation_pb2 as pb
        from vigil.cli.revoking import entry_value, exit_of

        request = pb.GetRevocationRequest(epoch=epoch)
        value = entry_value(
            session, await session.call("revocation", session.revocations.GetRevocation, request)
        )
        session.output.record(value)
        return exit_of([value])

    perform(ctx, work)


@app.command()
def coverage(
    ctx: typer.Context,
    epoch: Annotated[int, typer.Argument(metavar="EPOCH", min=0, help="By default the newest.")] = 0,
) -> None:
    """Show which gateways enforce an epoch, and how many devices acknowledged it."""

    async def work(session: "Session") -> None:
        from vigil.api.revocation.v1 import revocation_pb2 as pb
        from vigil.cli.messages import plain
        from vigil.cli.output import field

        request = pb.GetCoverageRequest(epoch=epoch)
        value = plain(await session.call("revocation", session.revocations.GetCoverage, request))
        if session.output.json:
            session.output.value(value)
            return
        words = f"{value['enforcing']} of {value['known']} gateways enforce epoch {value['epoch']}"
        print(f"{words}; {value['devices']} devices acknowledged it")
        columns = [
            ("gateway", field("gateway_id")),
            ("edge", field("edge")),
            ("epoch", field("epoch")),
            ("enforced", field("enforced_time")),
        ]
        session.output.rows("gateways", value["gateways"], columns)

    perform(ctx, work)
