"""`vigil organization`: hospitals, servicers, manufacturers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.options import LimitOption, group
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.api.identity.v1 import identity_pb2
    from vigil.cli.session import Session

app = group("Organizations: hospitals, independent servicers, manufacturers.")


@app.command()
def create(
    ctx: typer.Context,
    organization: Annotated[str, typer.Argument(metavar="ORGANIZATION", help="Its id, a slug.")],
    *,
    name: Annotated[str, typer.Option("--name", help="Its name for people.")] = "",
    manufacturer_root: Annotated[
        Path | None,
        typer.Option("--manufacturer-root", metavar="FILE", help="PEM of the root of its own signers."),
    ] = None,
) -> None:
    """Register an organization; a manufacturer with its root."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb

        asked = pb.Organization(
            organization_id=organization,
            display_name=name or organization,
            manufacturer_root_pem=manufacturer_root.read_text() if manufacturer_root else "",
        )
        request = pb.CreateOrganizationRequest(organization=asked)
        made = await session.call("identity", session.registry.CreateOrganization, request)
        session.output.record(organization_value(made))

    perform(ctx, work)


@app.command("list")
def list_all(ctx: typer.Context, *, limit: LimitOption = 1000) -> None:
    """List the organizations that you may see."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.output import field

        found = await session.every(
            "identity",
            session.registry.ListOrganizations,
            pb.ListOrganizationsRequest(),
            "organizations",
            limit=limit,
        )
        columns = [
            ("organization", field("organization_id")),
            ("name", field("display_name")),
            ("manufacturer", field("manufacturer")),
            ("since", field("create_time")),
        ]
        session.output.rows("organizations", [organization_value(one) for one in found], columns)

    perform(ctx, work)


@app.command()
def show(
    ctx: typer.Context, organization: Annotated[str, typer.Argument(metavar="ORGANIZATION", help="Its id.")]
) -> None:
    """Show one organization."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb

        request = pb.GetOrganizationRequest(organization_id=organization)
        found = await session.call("identity", session.registry.GetOrganization, request)
        session.output.record(organization_value(found))

    perform(ctx, work)


def organization_value(message: "identity_pb2.Organization") -> dict[str, Any]:
    """An organization as JSON."""
    from vigil.cli.messages import plain

    return {**plain(message), "manufacturer": bool(message.manufacturer_root_pem)}
