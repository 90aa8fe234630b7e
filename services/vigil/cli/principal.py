"""`vigil principal`: people, and what they may do."""

from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.options import LimitOption, group
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.cli.session import Session

app = group("People, their roles and their sites. Privileged roles take two administrators.")

PrincipalArgument = Annotated[str, typer.Argument(metavar="PRINCIPAL", help="The person's id, p-…")]


@app.command()
def create(
    ctx: typer.Context,
    *,
    name: Annotated[str, typer.Option("--name", help="The person's name, as it is shown.")],
    role: Annotated[
        list[str],
        typer.Option(
            "--role",
            help="May be repeated: admin, enroller, technician, approver, safety, recall, auditor, publisher, "
            "baseline-signer, psirt, policy-editor.",
        ),
    ],
    site: Annotated[list[str], typer.Option("--site", help="May be repeated; * stands for every site.")],
    organization: Annotated[
        str, typer.Option("--organization", help="Whose person; by default your own organization.")
    ] = "",
    principal: Annotated[str, typer.Option("--id", help="The id to be, p-…; made at random else.")] = "",
) -> None:
    """Register a person. A privileged role waits for `vigil principal approve` by another administrator."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.messages import plain

        asked = pb.Principal(
            principal_id=principal,
            organization_id=organization or session.person.organization,
            display_name=name,
            roles=role,
            site_ids=site,
        )
        request = pb.CreatePrincipalRequest(principal=asked)
        made = await session.call("identity", session.registry.CreatePrincipal, request)
        session.output.record(plain(made))
        if made.state == pb.PRINCIPAL_STATE_PENDING:
            session.output.say(
                f"waits for another administrator: vigil principal approve {made.principal_id}"
            )

    perform(ctx, work)


@app.command("list")
def list_all(ctx: typer.Context, *, limit: LimitOption = 2000) -> None:
    """List the people of your organization."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.messages import plain
        from vigil.cli.output import field

        found = await session.every(
            "identity", session.registry.ListPrincipals, pb.ListPrincipalsRequest(), "principals", limit=limit
        )
        columns = [
            ("principal", field("principal_id")),
            ("name", field("display_name")),
            ("organization", field("organization_id")),
            ("roles", field("roles")),
            ("sites", field("site_ids")),
            ("state", field("state")),
        ]
        session.output.rows("principals", [plain(one) for one in found], columns)

    perform(ctx, work)


@app.command()
def show(ctx: typer.Context, principal: PrincipalArgument) -> None:
    """Show one person."""
    _one(ctx, "GetPrincipal", "GetPrincipalRequest", principal)


@app.command()
def approve(ctx: typer.Context, principal: PrincipalArgument) -> None:
    """Approve a person's privileged role, as another administrator than the one who registered them."""
    _one(ctx, "ApprovePrincipal", "ApprovePrincipalRequest", principal)


@app.command()
def disable(ctx: typer.Context, principal: PrincipalArgument) -> None:
    """Give a person no new credential. Those already out are revoked with `vigil revoke credential`."""
    _one(ctx, "DisablePrincipal", "DisablePrincipalRequest", principal)


def _one(ctx: typer.Context, method: str, request: str, principal: str) -> None:
    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.messages import plain

        message = getattr(pb, request)(principal_id=principal)
        found = await session.call("identity", getattr(session.registry, method), message)
        session.output.record(plain(found))

    perform(ctx, work)
