# ruff: noqa: N802 - the contract's names
"""gRPC handlers: convert, call, convert."""

from typing import Any

import grpc

from vigil.api.identity.v1 import identity_pb2 as pb
from vigil.api.identity.v1 import identity_pb2_grpc
from vigil.identity import convert
from vigil.identity.ca import Issued
from vigil.identity.service import IdentityService
from vigil.rpc.caller import caller_of

Context = grpc.aio.ServicerContext[Any, Any]


class RegistryServicer(identity_pb2_grpc.RegistryServiceServicer):
    """Organizations, sites, gateways, people."""

    def __init__(self, service: IdentityService) -> None:
        self._registry = service.registry
        self._trust = service.ports.trust

    async def CreateOrganization(
        self, request: pb.CreateOrganizationRequest, context: Context
    ) -> pb.Organization:
        asked = convert.organization_from(request.organization)
        return convert.organization_to(await self._registry.create_organization(caller_of(context), asked))

    async def GetOrganization(self, request: pb.GetOrganizationRequest, context: Context) -> pb.Organization:
        found = await self._registry.organization(caller_of(context), request.organization_id)
        return convert.organization_to(found)

    async def ListOrganizations(
        self, request: pb.ListOrganizationsRequest, context: Context
    ) -> pb.ListOrganizationsResponse:
        found, token = await self._registry.organizations(
            caller_of(context), request.page_size, request.page_token
        )
        return pb.ListOrganizationsResponse(
            organizations=map(convert.organization_to, found), next_page_token=token
        )

    async def CreateSite(self, request: pb.CreateSiteRequest, context: Context) -> pb.Site:
        asked = convert.site_from(request.site)
        return convert.site_to(await self._registry.create_site(caller_of(context), asked))

    async def GetSite(self, request: pb.GetSiteRequest, context: Context) -> pb.Site:
        return convert.site_to(await self._registry.site(caller_of(context), request.site_id))

    async def ListSites(self, request: pb.ListSitesRequest, context: Context) -> pb.ListSitesResponse:
        found, token = await self._registry.sites(caller_of(context), request.page_size, request.page_token)
        return pb.ListSitesResponse(sites=map(convert.site_to, found), next_page_token=token)

    async def CreateGateway(
        self, request: pb.CreateGatewayRequest, context: Context
    ) -> pb.CreateGatewayResponse:
        asked = convert.gateway_from(request.gateway)
        made, issued = await self._registry.create_gateway(caller_of(context), asked, request.csr_pem)
        return pb.CreateGatewayResponse(
            gateway=convert.gateway_to(made),
            certificate=convert.certificate_to(issued, self._trust.bundle.to_json()),
        )

    async def GetGateway(self, request: pb.GetGatewayRequest, context: Context) -> pb.Gateway:
        return convert.gateway_to(await self._registry.gateway(caller_of(context), request.gateway_id))

    async def ListGateways(
        self, request: pb.ListGatewaysRequest, context: Context
    ) -> pb.ListGatewaysResponse:
        found, token = await self._registry.gateways(
            caller_of(context), request.page_size, request.page_token, request.site_id
        )
        return pb.ListGatewaysResponse(gateways=map(convert.gateway_to, found), next_page_token=token)

    async def CreatePrincipal(self, request: pb.CreatePrincipalRequest, context: Context) -> pb.Principal:
        asked = convert.principal_from(request.principal)
        return convert.principal_to(await self._registry.create_principal(caller_of(context), asked))

    async def ApprovePrincipal(self, request: pb.ApprovePrincipalRequest, context: Context) -> pb.Principal:
        made = await self._registry.approve_principal(caller_of(context), request.principal_id)
        return convert.principal_to(made)

    async def GetPrincipal(self, request: pb.GetPrincipalRequest, context: Context) -> pb.Principal:
        return convert.principal_to(await self._registry.principal(caller_of(context), request.principal_id))

    async def ListPrincipals(
        self, request: pb.ListPrincipalsRequest, context: Context
    ) -> pb.ListPrincipalsResponse:
        found, token = await self._registry.principals(
            caller_of(context), request.page_size, request.page_token
        )
        return pb.ListPrincipalsResponse(principals=map(convert.principal_to, found), next_page_token=token)

    async def DisablePrincipal(self, request: pb.DisablePrincipalRequest, context: Context) -> pb.Principal:
        made = await self._registry.disable_principal(caller_of(context), request.principal_id)
        return convert.principal_to(made)


class CertificateServicer(identity_pb2_grpc.CertificateServiceServicer):
    """Certificates from signing requests."""

    def __init__(self, service: IdentityService) -> None:
        self._certificates = service.certificates
        self._trust = service.ports.trust

    async def IssueCredential(self, request: pb.IssueCredentialRequest, context: Context) -> pb.Credential:
        made = await self._certificates.issue(
            caller_of(context), request.principal_id, request.csr_pem, request.lifetime_s
        )
        return convert.credential_to(made)

    async def RenewCredential(self, request: pb.RenewCredentialRequest, context: Context) -> pb.Credential:
        made = await self._certificates.renew(caller_of(context), request.principal_id, request.csr_pem)
        return convert.credential_to(made)

    async def GetCredential(self, request: pb.GetCredentialRequest, context: Context) -> pb.Credential:
        return convert.credential_to(
            await self._certificates.credential(caller_of(context), request.thumbprint)
        )

    async def ListCredentials(
        self, request: pb.ListCredentialsRequest, context: Context
    ) -> pb.ListCredentialsResponse:
        found, token = await self._certificates.credentials(
            caller_of(context), request.page_size, request.page_token, request.principal_id
        )
        return pb.ListCredentialsResponse(
            credentials=map(convert.credential_to, found), next_page_token=token
        )

    async def RenewGatewayCertificate(
        self, request: pb.RenewGatewayCertificateRequest, context: Context
    ) -> pb.Certificate:
        return self._certificate(
            await self._certificates.renew_gateway(caller_of(context), request.gateway_id, request.csr_pem)
        )

    async def RenewServiceCertificate(
        self, request: pb.RenewServiceCertificateRequest, context: Context
    ) -> pb.Certificate:
        return self._certificate(
            await self._certificates.renew_service(caller_of(context), request.role, request.csr_pem)
        )

    async def RenewDeviceCertificates(
        self, request: pb.RenewDeviceCertificatesRequest, context: Context
    ) -> pb.DeviceCertificates:
        made = await self._certificates.renew_device(
            caller_of(context), request.device_id, convert.possession_from(request.possession)
        )
        return pb.DeviceCertificates(
            tls_chain=made.tls, attestation_chain=made.attestation, trust_json=self._trust.bundle.to_json()
        )

    def _certificate(self, issued: Issued) -> pb.Certificate:
        return convert.certificate_to(issued, self._trust.bundle.to_json())


class EnrolmentServicer(identity_pb2_grpc.EnrolmentServiceServicer):
    """Enrolment by voucher."""

    def __init__(self, service: IdentityService) -> None:
        self._enrolments = service.enrolments
        self._trust = service.ports.trust

    async def StartEnrolment(
        self, request: pb.StartEnrolmentRequest, context: Context
    ) -> pb.StartEnrolmentResponse:
        made = await self._enrolments.start(
            caller_of(context),
            voucher=request.voucher,
            organization_id=request.organization_id,
            site_id=request.site_id,
            asset_tag=request.asset_tag,
        )
        return pb.StartEnrolmentResponse(
            enrolment_id=made.enrolment_id, nonce=made.nonce, expire_time_ms=made.expires
        )

    async def CompleteEnrolment(
        self, request: pb.CompleteEnrolmentRequest, context: Context
    ) -> pb.CompleteEnrolmentResponse:
        made = await self._enrolments.complete(
            caller_of(context), request.enrolment_id, convert.possession_from(request.possession)
        )
        return pb.CompleteEnrolmentResponse(
            device=convert.device_to(made.device),
            certificates=pb.DeviceCertificates(
                tls_chain=made.tls_chain,
                attestation_chain=made.device.attestation_chain,
                trust_json=self._trust.bundle.to_json(),
            ),
        )

    async def ActivateDevice(self, request: pb.ActivateDeviceRequest, context: Context) -> pb.Device:
        return convert.device_to(await self._enrolments.activate(caller_of(context), request.device_id))


class DeviceServicer(identity_pb2_grpc.DeviceServiceServicer):
    """The registry of devices."""

    def __init__(self, service: IdentityService) -> None:
        self._devices = service.devices
        self._reports = service.reports

    async def GetDevice(self, request: pb.GetDeviceRequest, context: Context) -> pb.Device:
        return convert.device_to(await self._devices.device(caller_of(context), request.device_id))

    async def ListDevices(self, request: pb.ListDevicesRequest, context: Context) -> pb.ListDevicesResponse:
        found, token = await self._devices.devices(
            caller_of(context),
            request.page_size,
            request.page_token,
            site_id=request.site_id,
            state=convert.device_state_from(request.state),
            model=request.model,
        )
        return pb.ListDevicesResponse(devices=map(convert.device_to, found), next_page_token=token)

    async def CountDevices(
        self,
        request: pb.CountDevicesRequest,  # noqa: ARG002 - it has no fields
        context: Context,
    ) -> pb.CountDevicesResponse:
        return pb.CountDevicesResponse(by_state=await self._devices.count(caller_of(context)))

    async def PlaceHold(self, request: pb.PlaceHoldRequest, context: Context) -> pb.Device:
        return convert.device_to(
            await self._devices.place_hold(caller_of(context), request.device_id, request.hold)
        )

    async def LiftHold(self, request: pb.LiftHoldRequest, context: Context) -> pb.Device:
        return convert.device_to(
            await self._devices.lift_hold(caller_of(context), request.device_id, tuple(request.lifts))
        )

    async def ReportDevices(
        self, request: pb.ReportDevicesRequest, context: Context
    ) -> pb.ReportDevicesResponse:
        refusals = await self._reports.report(
            caller_of(context), request.gateway_id, convert.reports_from(request)
        )
        return pb.ReportDevicesResponse(
            refused=[convert.refused_report_to(device_id, refusal) for device_id, refusal in refusals]
        )
