"""The registry's rules: who may hold what, who sees what, how a device is named, proved and moves from state to state.

Values in, values out. Instants in ms since the epoch; digests raw SHA-256; ids as they stand in statements.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from vigil.core.certificates import EVERY, Identity
from vigil.core.certificates.grant import DNS_LABEL, MAX_ROLES, MAX_SITES, PERSON_ID, SLUG
from vigil.core.digest import sha256
from vigil.errors import Reason, refused
from vigil.identity.refusals import conflict, invalid, second_person, voucher_invalid

MINUTE: Final = 60_000
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

ENROLMENT_LIFE: Final = 10 * MINUTE
"""An enrolment station has the pump on its bench; ten minutes cover a slow key derivation and a cup of coffee."""
RENEWAL_FRESHNESS: Final = 5 * MINUTE
"""How far a device's clock may stand from ours when it proves its key for a renewal (Kerberos' tolerance, RFC 4120)."""
SHIFT: Final = 12 * HOUR
"""The ordinary use of a person's credential (ARCHITECTURE, Trust: person, hours)."""
LONGEST: Final = 30 * DAY
"""What may be asked for, without a privileged or a safety role."""
MAX_NAME: Final = 128
"""Characters of a display name."""
MAX_TAG: Final = 64
"""Characters of an asset tag: what fits on a label."""
MAX_HOLDS: Final = 1024
"""The bound of `holds` in evidence and results."""

ROLES: Final = frozenset(
    {
        "admin",
        "enroller",
        "technician",
        "approver",
        "safety",
        "recall",
        "auditor",
        "publisher",
        "baseline-signer",
        "psirt",
        "policy-editor",
    }
)
PRIVILEGED: Final = frozenset({"admin", "recall", "publisher", "approver", "policy-editor"})
"""Granted by two people (ARCHITECTURE, First start)."""
SAFETY: Final = "safety"
HOLDERS: Final = ("safety", "technician", "approver", "recall")
"""Who may place and lift a hold."""

_CONTEXT: Final = b"vigil device possession v1"
_ADDRESS = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):([0-9]{1,5})")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class PrincipalState(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    DISABLED = "disabled"


class DeviceState(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    QUARANTINED = "quarantined"
    BANNED = "banned"
    STORED = "stored"
    RETIRED = "retired"


class SafetyAction(StrEnum):
    """Actions whose receipts the registry follows."""

    QUARANTINE = "quarantine"
    RELEASE_QUARANTINE = "release-quarantine"
    HOLD = "hold"
    LIFT_HOLD = "lift-hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    organization_id: str
    display_name: str
    manufacturer_root_pem: str = ""
    create_time: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    site_id: str
    organization_id: str
    display_name: str
    time_zone: str
    create_time: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    gateway_id: str
    organization_id: str
    site_id: str
    address: str
    certificate_thumbprint: str = ""
    create_time: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A person. ``cleared_by`` is the admin who agreed to the next credential, while the roles are privileged."""

    principal_id: str
    organization_id: str
    display_name: str
    roles: tuple[str, ...]
    site_ids: tuple[str, ...]
    state: PrincipalState = PrincipalState.PENDING
    created_by: str = ""
    approved_by: str = ""
    cleared_by: str = ""
    create_time: int = 0

    @property
    def privileged(self) -> bool:
        """Whether it takes two people to grant these roles."""
        return not PRIVILEGED.isdisjoint(self.roles)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    thumbprint: str
    principal_id: str
    organization_id: str
    roles: tuple[str, ...]
    site_ids: tuple[str, ...]
    certificate_pem: str
    operational_until: int
    not_after: int
    issued_by: str
    create_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device as registered. ``resumes`` is the state that a release from quarantine leads back to.

    ``quarantine_log`` and ``lift_log`` are the sizes of the device's log at the newest receipt that changed its
    quarantine, or lifted its holds: an older receipt that comes later changes nothing.
    """

    device_id: str
    udi: str
    udi_issuer: str
    udi_di: str
    serial: str
    asset_tag: str
    model: str
    organization_id: str
    site_id: str
    observed_gateway_id: str
    state: DeviceState
    resumes: DeviceState
    holds: int
    identity_key: bytes
    attestation_key: bytes
    attestation_certificate: bytes
    attestation_chain: tuple[bytes, ...]
    enrolled_by: str
    activated_by: str
    quarantine_log: int
    lift_log: int
    renewed_at: int
    create_time: int
    update_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """One visit to an enrolment station. ``used_at`` is 0 until the nonce was presented."""

    enrolment_id: str
    nonce: bytes
    enroller: str
    organization_id: str
    site_id: str
    asset_tag: str
    voucher: bytes
    udi: str
    model: str
    identity_key: bytes
    expires: int
    used_at: int = 0
    possession: bytes = b""
    tls_chain: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """One hold on one device. ``log_size`` is that of the receipt it came with, 0 for a hold placed here."""

    digest: bytes
    device_id: str
    placed_by: str
    issued_at: int
    expires: int
    lifted_at: int
    log_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Possession:
    """What a device sends to prove its identity key; the signature is over `possession_message`."""

    nonce: bytes
    identity_public_key: bytes
    tls_csr_pem: str
    attestation_csr_pem: str
    signature: bytes

    @property
    def digest(self) -> bytes:
        """Tells a repeated proof from another one."""
        message = possession_message(self.nonce, self.tls_csr_pem, self.attestation_csr_pem)
        return sha256(sha256(message) + sha256(self.identity_public_key) + sha256(self.signature))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One device as its gateway sees it; ``receipt`` is empty for a mere sighting."""

    device_id: str
    receipt: bytes = b""
    intent: bytes = b""
    approvals: tuple[bytes, ...] = ()


def slug(value: str, field: str) -> str:
    """Give back an id of the form that certificates carry. Raises FIELD_INVALID."""
    if SLUG.fullmatch(value) is None:
        raise invalid(field, "it is a slug of lowercase letters, digits and hyphens, at most 63 long")
    return value


def display_name(value: str, field: str) -> str:
    """Give back a name that can be shown on one line. Raises FIELD_INVALID."""
    if not value.strip() or len(value) > MAX_NAME or not value.isprintable():
        raise invalid(field, f"a name has 1 to {MAX_NAME} printable characters")
    return value


def asset_tag(value: str) -> str:
    """Give back a tag, which may be empty. Raises FIELD_INVALID."""
    if len(value) > MAX_TAG or not value.isprintable() or value != value.strip():
        raise invalid("asset_tag", f"a tag has at most {MAX_TAG} printable characters")
    return value


def check_site(site: Site, time_zones: Iterable[str]) -> None:
    """Raise FIELD_INVALID for a site that cannot be registered."""
    slug(site.site_id, "site.site_id")
    display_name(site.display_name, "site.display_name")
    if site.time_zone not in time_zones:
        raise invalid("site.time_zone", "it is the name of an IANA time zone, such as Europe/Berlin")


def check_gateway(gateway: Gateway) -> None:
    """Raise FIELD_INVALID for a gateway that cannot be registered."""
    if DNS_LABEL.fullmatch(gateway.gateway_id) is None:
        raise invalid("gateway.gateway_id", "it is a DNS label: lowercase letters, digits, inner hyphens")
    match = _ADDRESS.fullmatch(gateway.address)
    if match is None or not 0 < int(match[3]) < 65536:
        raise invalid("gateway.address", "it is host:port, as devices and clients dial it")


def check_principal(principal: Principal) -> None:
    """Raise FIELD_INVALID for a person that cannot be registered."""
    if PERSON_ID.fullmatch(principal.principal_id) is None:
        raise invalid("principal.principal_id", "it is p- and then lowercase letters, digits and hyphens")
    display_name(principal.display_name, "principal.display_name")
    roles, sites = principal.roles, principal.site_ids
    if not roles or len(roles) > MAX_ROLES or len(set(roles)) != len(roles):
        raise invalid("principal.roles", f"a person has 1 to {MAX_ROLES} different roles")
    for role in roles:
        if role not in ROLES:
            raise invalid(
                "principal.roles", f"there is no role {role!r}; there are {', '.join(sorted(ROLES))}"
            )
    if not sites or len(sites) > MAX_SITES or len(set(sites)) != len(sites):
        raise invalid("principal.site_ids", f"a person works at 1 to {MAX_SITES} different sites, or at `*`")
    if EVERY in sites and len(sites) > 1:
        raise invalid("principal.site_ids", "`*` is every site, so no other stands beside it")
    # Classes, S1: a safety credential names one site; it lives on where nobody can be asked.
    if SAFETY in roles and (len(sites) != 1 or EVERY in sites):
        raise invalid("principal.site_ids", "a person with the role safety names exactly one site")


def approved(principal: Principal, approver: str) -> Principal:
    """Two people grant a privileged role; an approval clears one credential, which somebody else then issues.

    So whoever can issue alone cannot hand themselves another admin's credential. Raises STATE_CONFLICT,
    SECOND_PERSON_REQUIRED.
    """
    if principal.state is PrincipalState.DISABLED or not principal.privileged:
        raise conflict(f"The person is {principal.state} and waits for no approval.")
    if approver == principal.principal_id:
        raise second_person("Nobody approves themselves.", "another admin")
    if principal.state is PrincipalState.ACTIVE:
        return replace(principal, cleared_by=approver)
    if approver == principal.created_by:
        raise second_person("A privileged role is granted by two people.", "an admin other than its creator")
    return replace(principal, state=PrincipalState.ACTIVE, approved_by=approver, cleared_by=approver)


def may_be_issued(principal: Principal) -> None:
    """A pending or disabled person gets nothing. Raises STATE_CONFLICT."""
    if principal.state is not PrincipalState.ACTIVE:
        lifted = "approval by a second administrator" if principal.state is PrincipalState.PENDING else ""
        raise conflict(f"The person is {principal.state} and gets no credential.", lifted_by=lifted)


def issued_by(principal: Principal, issuer: str) -> Principal:
    """An admin issues a credential; for a privileged role with another admin's approval, which it uses up.

    Raises STATE_CONFLICT, SECOND_PERSON_REQUIRED.
    """
    may_be_issued(principal)
    if principal.privileged and principal.cleared_by in {"", issuer}:
        raise second_person(
            "A credential with a privileged role takes two people: one approves the person, another issues it.",
            "another admin: `vigil principal approve`",
        )
    return replace(principal, cleared_by="")


def lifetime(principal: Principal, asked_s: int) -> int:
    """The ordinary use of a new credential, ms. Raises FIELD_INVALID when more is asked for than the roles allow."""
    short = principal.privileged or SAFETY in principal.roles
    longest = SHIFT if short else LONGEST
    if asked_s == 0:
        return SHIFT
    if not 60 <= asked_s <= longest // 1000:
        raise invalid(
            "lifetime_s",
            f"with these roles a credential lives 60 to {longest // 1000} seconds",
        )
    return asked_s * 1000


def sees_site(caller: Identity, organization: str, site: str) -> bool:
    """Whether something at this site may be shown to the caller."""
    return caller.covers_site(organization, site)


def covers_sites(caller: Identity, organization: str, sites: Sequence[str]) -> bool:
    """Whether the caller may hand out these sites: nobody grants more than they have."""
    if not caller.covers_organization(organization):
        return False
    return all(EVERY in caller.sites or (site != EVERY and site in caller.sites) for site in sites)


def device_id(identity_key: bytes) -> str:
    """Name a device after its PUF-derived key: `dev-` and 16 base32 characters (80 bits) of the thumbprint's digest."""
    return "dev-" + base64.b32encode(sha256(identity_key)[:10]).decode().lower()


def principal_id(random: bytes) -> str:
    """Name a person by 10 random bytes: an opaque id."""
    return "p-" + base64.b32encode(random).decode().lower()


def enrolment_id(random: bytes) -> str:
    """Name an enrolment by 10 random bytes."""
    return "enr-" + base64.b32encode(random).decode().lower()


def possession_message(nonce: bytes, tls_csr_pem: str, attestation_csr_pem: str) -> bytes:
    """What a device signs with its identity key (ES256, so SHA-256 over it is taken by the signature).

    The context string, the nonce, then SHA-256 of each request's PEM text, TLS before attestation.
    """
    return _CONTEXT + nonce + sha256(tls_csr_pem.encode()) + sha256(attestation_csr_pem.encode())


def renewal_nonce(device: str, at: int) -> bytes:
    """What stands in for a nonce when a device renews: its id (UTF-8) and its time (ms, 8 bytes, big endian)."""
    return device.encode() + at.to_bytes(8, "big")


def check_renewal_nonce(nonce: bytes, device: Device, *, now: int) -> int:
    """The nonce's time: fresh, and later than that of the last renewal, so that none is used twice.

    Raises NONCE_UNKNOWN, NONCE_EXPIRED, NONCE_USED.
    """
    at = int.from_bytes(nonce[-8:], "big")
    if len(nonce) < 9 or at >= 2**63 or nonce != renewal_nonce(device.device_id, at):
        raise refused(Reason.NONCE_UNKNOWN, "A renewal's nonce is the device's id and its time.")
    if abs(now - at) > RENEWAL_FRESHNESS:
        raise refused(
            Reason.NONCE_EXPIRED,
            "The device's time in this renewal lies more than five minutes from ours.",
            lifted_by="the device taking its gateway's time and trying again",
            who="the gateway",
        )
    if at <= device.renewed_at:
        raise refused(Reason.NONCE_USED, "The device has already renewed with this nonce or a later one.")
    return at


def check_enrolment(enrolment: Enrolment, *, now: int) -> None:
    """Its nonce is alive and unused. Raises NONCE_USED, NONCE_EXPIRED."""
    again = {"lifted_by": "starting the enrolment again", "who": "the enroller"}
    if enrolment.used_at:
        raise refused(Reason.NONCE_USED, "The nonce of this enrolment was used.", **again)
    if now >= enrolment.expires:
        raise refused(Reason.NONCE_EXPIRED, "The nonce of this enrolment has expired.", **again)


def check_model(model: str) -> str:
    """Give back a model's name. Raises VOUCHER_INVALID."""
    if _MODEL.fullmatch(model) is None:
        raise voucher_invalid("its model is not a name")
    return model


def activated(device: Device, by: str) -> None:
    """Another person than the enroller makes a device active. Raises STATE_CONFLICT, SECOND_PERSON_REQUIRED."""
    if device.state is not DeviceState.PENDING:
        raise conflict(f"The device is {device.state}, not pending.")
    if by == device.enrolled_by:
        raise second_person("Whoever enrolled a device does not activate it.", "another admin or approver")


def may_renew(device: Device) -> None:
    """Raise DEVICE_REVOKED for a banned device, STATE_CONFLICT for a retired one."""
    if device.state is DeviceState.BANNED:
        raise refused(Reason.DEVICE_REVOKED, "The device is banned.", who="the recall team")
    if device.state is DeviceState.RETIRED:
        raise conflict("The device is retired and gets no certificate.")


def quarantined(device: Device) -> tuple[DeviceState, DeviceState] | None:
    """State and the state to come back to, once a device has closed its channel; None where nothing changes."""
    if device.state in {DeviceState.QUARANTINED, DeviceState.BANNED, DeviceState.RETIRED}:
        return None
    return DeviceState.QUARANTINED, device.state


def released(device: Device) -> tuple[DeviceState, DeviceState] | None:
    """State after leaving quarantine. A device that was pending is pending again: nobody activated it meanwhile."""
    if device.state is not DeviceState.QUARANTINED:
        return None
    return device.resumes, device.resumes


def count_holds(holds: Iterable[Hold], *, now: int) -> int:
    """How many holds are in force."""
    return sum(in_force(hold, now=now) for hold in holds)


def in_force(hold: Hold, *, now: int) -> bool:
    """Whether a hold is neither lifted nor over; ``expires`` 0 stands for never."""
    return not hold.lifted_at and (not hold.expires or now < hold.expires)
