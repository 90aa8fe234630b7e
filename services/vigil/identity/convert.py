"""Between the contract's messages and the room's values."""

from typing import Final

from vigil.api.identity.v1 import identity_pb2 as pb
from vigil.errors import Refused
from vigil.identity import domain, refusals
from vigil.identity.ca import Issued
from vigil.identity.domain import DeviceState, PrincipalState

_PRINCIPAL_STATE: Final = {
    PrincipalState.PENDING: pb.PRINCIPAL_STATE_PENDING,
    PrincipalState.ACTIVE: pb.PRINCIPAL_STATE_ACTIVE,
    PrincipalState.DISABLED: pb.PRINCIPAL_STATE_DISABLED,
}
_DEVICE_STATE: Final = {
    DeviceState.PENDING: pb.DEVICE_STATE_PENDING,
    DeviceState.ACTIVE: pb.DEVICE_STATE_ACTIVE,
    DeviceState.QUARANTINED: pb.DEVICE_STATE_QUARANTINED,
    DeviceState.BANNED: pb.DEVICE_STATE_BANNED,
    DeviceState.STORED: pb.DEVICE_STATE_STORED,
    DeviceState.RETIRED: pb.DEVICE_STATE_RETIRED,
}
_STATE_OF: Final = {message: state for state, message in _DEVICE_STATE.items()}


def organization_to(value: domain.Organization) -> pb.Organization:
    return pb.Organization(
        organization_id=value.organization_id,
        display_name=value.display_name,
        manufacturer_root_pem=value.manufacturer_root_pem,
        create_time_ms=value.create_time,
    )


def organization_from(message: pb.Organization) -> domain.Organization:
    return domain.Organization(
        organization_id=message.organization_id,
        display_name=message.display_name,
        manufacturer_root_pem=message.manufacturer_root_pem,
    )


def site_to(value: domain.Site) -> pb.Site:
    return pb.Site(
        site_id=value.site_id,
        organization_id=value.organization_id,
        display_name=value.display_name,
        time_zone=value.time_zone,
        create_time_ms=value.create_time,
    )


def site_from(message: pb.Site) -> domain.Site:
    return domain.Site(
        site_id=message.site_id,
        organization_id=message.organization_id,
        display_name=message.display_name,
        time_zone=message.time_zone,
    )


def gateway_to(value: domain.Gateway) -> pb.Gateway:
    return pb.Gateway(
        gateway_id=value.gateway_id,
        organization_id=value.organization_id,
        site_id=value.site_id,
        address=value.address,
        certificate_thumbprint=value.certificate_thumbprint,
        create_time_ms=value.create_time,
    )


def gateway_from(message: pb.Gateway) -> domain.Gateway:
    return domain.Gateway(
        gateway_id=message.gateway_id,
        organization_id=message.organization_id,
        site_id=message.site_id,
        address=message.address,
    )


def principal_to(value: domain.Principal) -> pb.Principal:
    return pb.Principal(
        principal_id=value.principal_id,
        organization_id=value.organization_id,
        display_name=value.display_name,
        roles=value.roles,
        site_ids=value.site_ids,
        state=_PRINCIPAL_STATE[value.state],
        created_by=value.created_by,
        approved_by=value.approved_by,
        create_time_ms=value.create_time,
    )


def principal_from(message: pb.Principal) -> domain.Principal:
    return domain.Principal(
        principal_id=message.principal_id,
        organization_id=message.organization_id,
        display_name=message.display_name,
        roles=tuple(sorted(message.roles)),
        site_ids=tuple(sorted(message.site_ids)),
    )


def credential_to(value: domain.Credential, *, with_certificate: bool = True) -> pb.Credential:
    """Make the message; readers of the feed get no certificate."""
    return pb.Credential(
        thumbprint=value.thumbprint,
        principal_id=value.principal_id,
        organization_id=value.organization_id,
        roles=value.roles,
        site_ids=value.site_ids,
        certificate_pem=value.certificate_pem if with_certificate else "",
        operational_until_ms=value.operational_until,
        not_after_ms=value.not_after,
        create_time_ms=value.create_time,
        issued_by=value.issued_by,
    )


def certificate_to(issued: Issued, trust_json: str) -> pb.Certificate:
    return pb.Certificate(
        certificate_pem=issued.chain_pem.decode(),
        operational_until_ms=issued.identity.operational_until,
        not_after_ms=issued.identity.not_after,
        trust_json=trust_json,
    )


def device_to(value: domain.Device) -> pb.Device:
    return pb.Device(
        device_id=value.device_id,
        udi=value.udi,
        udi_di=value.udi_di,
        serial=value.serial,
        asset_tag=value.asset_tag,
        model=value.model,
        organization_id=value.organization_id,
        site_id=value.site_id,
        observed_gateway_id=value.observed_gateway_id,
        state=_DEVICE_STATE[value.state],
        holds=value.holds,
        identity_key=value.identity_key,
        attestation_certificate=value.attestation_certificate,
        enrolled_by=value.enrolled_by,
        activated_by=value.activated_by,
        create_time_ms=value.create_time,
        update_time_ms=value.update_time,
        attestation_chain=value.attestation_chain,
    )


def device_state_from(message: pb.DeviceState.ValueType) -> DeviceState | None:
    """Read the state asked for; None for any. Raises FIELD_INVALID."""
    if message == pb.DEVICE_STATE_UNSPECIFIED:
        return None
    try:
        return _STATE_OF[message]
    except KeyError:
        raise refusals.invalid("state", "there is no such state") from None


def possession_from(message: pb.DevicePossession) -> domain.Possession:
    return domain.Possession(
        nonce=message.nonce,
        identity_public_key=message.identity_public_key,
        tls_csr_pem=message.tls_csr_pem,
        attestation_csr_pem=message.attestation_csr_pem,
        signature=message.signature,
    )


def reports_from(message: pb.ReportDevicesRequest) -> tuple[domain.Report, ...]:
    return tuple(
        domain.Report(
            device_id=one.device_id, receipt=one.receipt, intent=one.intent, approvals=tuple(one.approvals)
        )
        for one in message.reports
    )


def refused_report_to(device_id: str, refusal: Refused) -> pb.RefusedReport:
    return pb.RefusedReport(
        device_id=device_id, reason=refusal.reason.value, sentence=refusal.refusals[0].sentence
    )
