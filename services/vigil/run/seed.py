"""The first site and gateway of a new installation, through the same calls that an administrator makes."""

from pathlib import Path

from vigil.api.identity.v1 import identity_pb2, identity_pb2_grpc
from vigil.core.certificates import make_request
from vigil.core.clock import SystemClock
from vigil.core.keys import new_private_key
from vigil.errors import Reason, Refused
from vigil.identity.ceremony import FIRST_ADMINS
from vigil.rpc.channel import Channels
from vigil.rpc.status import translated
from vigil.rpc.tls import TlsFiles
from vigil.run.gateways import choose_address, write_gateway
from vigil.run.layout import DEFAULT_OPERATOR, DataFolder

SITE = "home"
GATEWAY = "gw-home"


async def seed_first_gateway(folder: DataFolder, *, trust_domain: str) -> None:
    """Register the operator's organisation, the site ``home`` and its gateway. What exists already stays."""
    home = folder.path / "people" / FIRST_ADMINS[0]
    tls = TlsFiles(home / "tls.pem", home / "tls.key", home / "trust.json")
    channels = Channels(tls=tls, trust_domain=trust_domain, clock=SystemClock())
    try:
        channel = channels.service(folder.read_endpoints()["identity"], "identity")
        registry = identity_pb2_grpc.RegistryServiceStub(channel)
        await _create_organization(registry)
        await _create_site(registry)
        if not (folder.gateway(GATEWAY) / "gateway.toml").exists():
            await _create_gateway(registry, folder, trust_domain)
    finally:
        await channels.close()


async def _create_organization(registry: "identity_pb2_grpc.RegistryServiceAsyncStub") -> None:
    organization = identity_pb2.Organization(organization_id=DEFAULT_OPERATOR, display_name="The operator")
    request = identity_pb2.CreateOrganizationRequest(organization=organization)
    await _unless_it_exists(registry, "CreateOrganization", request)


async def _create_site(registry: "identity_pb2_grpc.RegistryServiceAsyncStub") -> None:
    site = identity_pb2.Site(
        site_id=SITE, organization_id=DEFAULT_OPERATOR, display_name="This machine", time_zone="UTC"
    )
    await _unless_it_exists(registry, "CreateSite", identity_pb2.CreateSiteRequest(site=site))


async def _unless_it_exists(
    registry: "identity_pb2_grpc.RegistryServiceAsyncStub", method: str, request: object
) -> None:
    try:
        await translated(getattr(registry, method)(request, timeout=10))
    except Refused as error:
        if error.reason is not Reason.RESOURCE_EXISTS:
            raise


async def _create_gateway(
    registry: "identity_pb2_grpc.RegistryServiceAsyncStub", folder: DataFolder, trust_domain: str
) -> Path:
    private_key = new_private_key()
    address = choose_address(folder)
    gateway = identity_pb2.Gateway(
        gateway_id=GATEWAY, organization_id=DEFAULT_OPERATOR, site_id=SITE, address=address
    )
    request = identity_pb2.CreateGatewayRequest(gateway=gateway, csr_pem=make_request(private_key).decode())
    made = await translated(registry.CreateGateway(request, timeout=10))
    return write_gateway(
        folder,
        gateway_id=GATEWAY,
        site_id=SITE,
        organization_id=DEFAULT_OPERATOR,
        address=address,
        trust_domain=trust_domain,
        certificate_pem=made.certificate.certificate_pem,
        trust_json=made.certificate.trust_json,
        private_key=private_key,
    )
