"""`vigil site`: the places where devices stand."""

from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.options import LimitOption, group
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.cli.session import Session

app = group("Sites: the places where devices stand and people work.")

SiteArgument = Annotated[str, typer.Argument(metavar="SITE", help="Its id, a slug.")]


@app.command()
def create(
    ctx: typer.Context,
    site: SiteArgument,
    *,
    organization: Annotated[
        str, typer.Option("--organization", help="Whose it is; by default your own organization.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Its name for people.")] = "",
    time_zone: Annotated[
        str, typer.Option("--time-zone", help="IANA time zone, as maintenance windows mean it.")
    ] = "UTC",
) -> None:
    """Register a site."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.messages import plain

        asked = pb.Site(
            site_id=site,
            organization_id=organization or session.person.organization,
            display_name=name or site,
            time_zone=time_zone,
        )
        made = await session.call("identity", session.registry.CreateSite, pb.CreateSiteRequest(site=asked))
        session.output.record(plain(made))

    perform(ctx, work)


@app.command("list")
def list_all(ctx: typer.Context, *, limit: LimitOption = 1000) -> None:
    """List the sites in your scope."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.messages import plain
        from vigil.cli.output import field

        found = await session.every(
            "identity", session.registry.ListSites, pb.ListSitesRequest(), "sites", limit=limit
        )
        columns = [
            ("site", field("site_id")),
            ("organization", field("organization_id")),
            ("name", field("display_name")),
            ("time zone", field("time_zone")),
            ("since", field("create_time")),
        ]
        session.output.rows("sites", [plain(one) for one in found], columns)

    perform(ctx, work)


@app.command()
def show(ctx: typer.Context, site: SiteArgument) -> None:
    """Show one site."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.messages import plain

        found = await session.call("identity", session.registry.GetSite, pb.GetSiteRequest(site_id=site))
        session.output.record(plain(found))

    perform(ctx, work)
