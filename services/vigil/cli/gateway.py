"""`vigil gateway`: the enforcement points in the hospitals."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.options import LimitOption, group
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.api.identity.v1 import identity_pb2
    from vigil.cli.session import Session

app = group("Gateways: where people's commands and devices meet.")

GatewayArgument = Annotated[str, typer.Argument(metavar="GATEWAY", help="Its id, a DNS label.")]


@app.command()
def create(
    ctx: typer.Context,
    gateway: GatewayArgument,
    *,
    site: Annotated[str, typer.Option("--site", help="Where it stands.")],
    address: Annotated[
        str,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            help="Where devices and people dial it; by default a free port of this machine.",
        ),
    ] = "",
) -> None:
    """Register a gateway: its key is made here, and `vigil up` on this data folder starts it."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.contexts import KnownGateway, remember_gateways
        from vigil.core.certificates import make_request
        from vigil.core.keys import new_private_key
        from vigil.run.gateways import choose_address, write_gateway

        registered = await session.call("identity", session.registry.GetSite, pb.GetSiteRequest(site_id=site))
        private_key = new_private_key()
        asked = pb.Gateway(
            gateway_id=gateway,
            organization_id=registered.organization_id,
            site_id=site,
            address=address or choose_address(session.folder),
        )
        request = pb.CreateGatewayRequest(gateway=asked, csr_pem=make_request(private_key).decode())
        made = await session.call("identity", session.registry.CreateGateway, request)
        config = write_gateway(
            session.folder,
            gateway_id=gateway,
            site_id=site,
            organization_id=registered.organization_id,
            address=asked.address,
            trust_domain=session.context.trust_domain,
            certificate_pem=made.certificate.certificate_pem,
            trust_json=made.certificate.trust_json,
            private_key=private_key,
        )
        remember_gateways(session.folder, session.context.name, {gateway: KnownGateway(asked.address, site)})
        session.output.record({**gateway_value(made.gateway), "config": str(config)})

    perform(ctx, work)


@app.command("list")
def list_all(
    ctx: typer.Context,
    *,
    site: Annotated[str, typer.Option("--site", help="Only those of this site.")] = "",
    limit: LimitOption = 2000,
) -> None:
    """List the gateways in your scope."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.contexts import KnownGateway, remember_gateways
        from vigil.cli.output import field, short

        found = await session.every(
            "identity",
            session.registry.ListGateways,
            pb.ListGatewaysRequest(site_id=site),
            "gateways",
            limit=limit,
        )
        known = {one.gateway_id: KnownGateway(one.address, one.site_id) for one in found}
        remember_gateways(session.folder, session.context.name, known)
        columns = [
            ("gateway", field("gateway_id")),
            ("site", field("site_id")),
            ("organization", field("organization_id")),
            ("address", field("address")),
            ("certificate", short("certificate_thumbprint")),
            ("since", field("create_time")),
        ]
        session.output.rows("gateways", [gateway_value(one) for one in found], columns)

    perform(ctx, work)


@app.command()
def show(ctx: typer.Context, gateway: GatewayArgument) -> None:
    """Show one gateway, and what it says of itself when it can be reached."""

    async def work(session: "Session") -> None:
        from vigil.api.gateway.v1 import gateway_pb2
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.messages import plain
        from vigil.errors import Refused

        request = pb.GetGatewayRequest(gateway_id=gateway)
        found = await session.call("identity", session.registry.GetGateway, request)
        end = session.gateway_end(found.gateway_id, found.address, found.site_id)
        live: dict[str, Any] | None
        try:
            asked = gateway_pb2.GetGatewayStatusRequest()
            live = plain(await session.call(end.whom, end.devices.GetGatewayStatus, asked, timeout=3.0))
        except Refused as error:
            session.output.say(error.refusals[0].sentence)
            live = None
        session.output.record({**gateway_value(found), "live": live})

    perform(ctx, work)


def gateway_value(message: "identity_pb2.Gateway") -> dict[str, Any]:
    """A gateway as JSON."""
    from vigil.cli.messages import plain

    return plain(message)
