"""What a certificate says about its holder: the names, and the grant in a private extension.

The grant is deterministic CBOR (RFC 8949 4.2.1) of a map, in a non-critical extension (``cryptography``
refuses chains with unknown critical ones), every label present::

    {1: kind, 2: subject id, 3: organization, 4: [sites], 5: [roles], 6: [statements], 7: authenticated,
     8: operational until (ms)}

The names beside it say the same thing to tools that do not know Vigil: one SPIFFE URI, and for the kinds that
speak TLS one DNS name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509

from vigil.core import cbor
from vigil.errors import Reason, Refused, refused


class Kind(StrEnum):
    """The kinds of holders; each has an intermediate of its own, a signer hangs directly under a root."""

    SERVICE = "service"
    GATEWAY = "gateway"
    PERSON = "person"
    DEVICE = "device"
    SIGNER = "signer"


TLS_KINDS = (Kind.SERVICE, Kind.GATEWAY, Kind.PERSON, Kind.DEVICE)
"""The kinds that present their certificate in a handshake, each through its own intermediate."""

GRANT_OID = x509.ObjectIdentifier("1.2.840.113556.1.8000.2554.33639.22054.791.20035.42912.10835740.14617849")
"""UUID 83675626-0317-4e43-a7a0-a5571cdf0cf9 under the arc that Microsoft keeps for GUIDs in parts of at most 24
bits: nobody's register to ask. Under 2.25 (ITU-T X.667) it would be one number of 128 bits, and Go refuses every
certificate in which a number of an OID is longer than 31 bits."""

STATEMENT_SIGNING_OID = x509.ObjectIdentifier(
    "1.2.840.113556.1.8000.2554.16122.20624.40355.20099.39499.9660355.3254425"
)
"""The only extended key usage of a certificate that names statements: a TLS stack, which wants clientAuth or
serverAuth, refuses it. UUID 3efa5090-9da3-4e83-9a4b-9367c331a899, in the same way."""

EVERY = "*"
"""As a site: every one of the organization. As an organization: every one (services, the operator)."""

MANUFACTURER_STATEMENTS = frozenset({"voucher", "profile", "release", "downgrade"})
"""Statements that a manufacturer's root vouches for, and no other root does."""

DEVICE_STATEMENTS = frozenset({"evidence", "receipt", "acknowledgement"})
"""Statements of a device's attestation key; its certificate names them, the one of its TLS key names none."""

OWN_ROOT_STATEMENTS = ("era", "root-list")
"""Statements that the offline root signs itself."""

MAX_SITES = 32
"""With MAX_ROLES the largest certificate stays below the 4,096 bytes of an x5chain member."""

MAX_ROLES = 12

MAX_STATEMENTS = 4

MAX_GRANT_BYTES = 3584
"""MAX_SITES and MAX_ROLES slugs of 63 bytes with the other members, rounded up to half a kibibyte."""

SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
DEVICE_ID = re.compile(r"dev-[a-z2-7]{16}")
PERSON_ID = re.compile(r"p-[a-z0-9-]{1,61}")
DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
TRUST_DOMAIN = re.compile(
    r"(?=.{1,64}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+"
)
"""A DNS name of at most 64 bytes: it stands in a certificate twice, and MAX_SITES counts on that."""

_ID_OF = {
    Kind.SERVICE: DNS_LABEL,
    Kind.GATEWAY: DNS_LABEL,
    Kind.PERSON: PERSON_ID,
    Kind.DEVICE: DEVICE_ID,
    Kind.SIGNER: SLUG,
}
_AUTHENTICATED = re.compile(r"[a-z0-9-]{0,63}")
_MAX_MILLISECONDS = 253_402_300_799_000
"""9999-12-31T23:59:59Z, the last instant that X.509 can name (RFC 5280 4.1.2.5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the issuer grants to the holder. Raises FIELD_INVALID when it cannot be granted to this kind.

    ``sites`` and ``roles`` and ``statements`` are kept sorted, so that a grant has one encoding.
    ``operational_until`` is in ms since the epoch; 0 means the end of the certificate.
    """

    kind: Kind
    subject_id: str
    organization: str
    sites: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    authenticated: str = ""
    operational_until: int = 0

    def __post_init__(self) -> None:
        for name in ("sites", "roles", "statements"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
        problem = _problem(self)
        if problem:
            raise refused(Reason.FIELD_INVALID, f"This grant cannot be made: {problem}.", field="grant")


def _problem(grant: Grant) -> str:
    """Name the first thing that is wrong with a grant, or an empty string."""
    for values, limit, name in (
        (grant.sites, MAX_SITES, "sites"),
        (grant.roles, MAX_ROLES, "roles"),
        (grant.statements, MAX_STATEMENTS, "statements"),
    ):
        if len(values) > limit:
            return f"it has more than {limit} {name}"
        if len(set(values)) != len(values):
            return f"one of its {name} stands there twice"
        if not all(SLUG.fullmatch(value) or (name == "sites" and value == EVERY) for value in values):
            return f"one of its {name} is not a lowercase slug"
    if EVERY in grant.sites and len(grant.sites) > 1:
        return "it has every site and named sites"
    if not (grant.organization == EVERY or SLUG.fullmatch(grant.organization)):
        return "its organization is not a lowercase slug"
    if not _AUTHENTICATED.fullmatch(grant.authenticated):
        return "the way of authentication is not a lowercase word"
    if not 0 <= grant.operational_until <= _MAX_MILLISECONDS:
        return "its operational end is no instant"
    return _problem_of_kind(grant)


def _problem_of_kind(grant: Grant) -> str:
    if grant.kind not in {Kind.SIGNER, Kind.DEVICE} and grant.statements:
        return "only signers and devices are granted statements"
    if grant.kind in {Kind.GATEWAY, Kind.DEVICE} and grant.organization == EVERY:
        return f"a {grant.kind} belongs to one organization"
    if not _ID_OF[grant.kind].fullmatch(grant.subject_id):
        return f"its id is not that of a {grant.kind}"
    match grant.kind:
        case Kind.SERVICE if grant.subject_id in set(Kind):
            # <role>.<trust domain> would be the name of another kind's DNS subtree.
            return "a service's role is not the name of a kind"
        case Kind.GATEWAY if not grant.sites or EVERY in grant.sites:
            return "a gateway serves named sites"
        case Kind.DEVICE if len(grant.sites) != 1 or EVERY in grant.sites:
            return "a device has one custodian site"
        case Kind.DEVICE if not DEVICE_STATEMENTS.issuperset(grant.statements):
            return "a device's attestation key signs evidence, receipts and acknowledgements"
        case Kind.SIGNER:
            return _problem_of_signer(grant)
    return ""


def _problem_of_signer(grant: Grant) -> str:
    if not grant.statements:  # empty means deny
        return "a signer signs named kinds of statements"
    if grant.roles or grant.sites:
        return "a signer has no roles and no sites"
    ours = MANUFACTURER_STATEMENTS.intersection(grant.statements)
    if ours and len(ours) != len(grant.statements):
        return "a signer signs a manufacturer's statements or the operator's, never both"
    if ours and grant.organization == EVERY:
        return "a manufacturer's signer belongs to one organization"
    if set(OWN_ROOT_STATEMENTS).intersection(grant.statements):
        return "the root signs these statements itself"
    return ""


def encode_grant(grant: Grant) -> bytes:
    """Encode a grant for the extension (see the module's docstring)."""
    return cbor.encode(
        {
            1: str(grant.kind),
            2: grant.subject_id,
            3: grant.organization,
            4: list(grant.sites),
            5: list(grant.roles),
            6: list(grant.statements),
            7: grant.authenticated,
            8: grant.operational_until,
        }
    )


def decode_grant(data: bytes) -> Grant:
    """Decode the extension's value; anything but the one encoding of a sound grant is CERTIFICATE_INVALID."""
    try:
        value = cbor.decode(data, max_bytes=MAX_GRANT_BYTES, max_depth=3)
        grant = _grant_of(value)
    except Refused as error:
        raise _invalid("its grant is malformed") from error
    if encode_grant(grant) != data:
        raise _invalid("its grant is not in its one encoding")
    return grant


def _grant_of(value: object) -> Grant:
    if not isinstance(value, Mapping) or set(value) != set(range(1, 9)):
        raise _invalid("its grant has other members")
    kind, subject_id, organization, sites, roles, statements, authenticated, until = (
        value[label] for label in range(1, 9)
    )
    texts = (kind, subject_id, organization, authenticated)
    if not all(isinstance(text, str) for text in texts) or kind not in set(Kind):
        raise _invalid("its grant has a member of another type")
    if isinstance(until, bool) or not isinstance(until, int):
        raise _invalid("its operational end is no instant")
    return Grant(
        kind=Kind(kind),
        subject_id=subject_id,
        organization=organization,
        sites=_texts(sites),
        roles=_texts(roles),
        statements=_texts(statements),
        authenticated=authenticated,
        operational_until=until,
    )


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _invalid("its grant has a member of another type")
    return tuple(value)


def spiffe_id(trust_domain: str, kind: Kind, subject_id: str) -> str:
    """Name a holder as SPIFFE-ID 2 does: ``spiffe://<trust domain>/<kind>/<id>``."""
    return f"spiffe://{trust_domain}/{kind}/{subject_id}"


def dns_name(trust_domain: str, kind: Kind, subject_id: str) -> str | None:
    """Name a holder as clients check it, by target name; None for a signer, which speaks no TLS."""
    match kind:
        case Kind.SERVICE:
            return f"{subject_id}.{trust_domain}"
        case Kind.GATEWAY:
            return f"{subject_id}.{Kind.GATEWAY}.{trust_domain}"
        case Kind.PERSON | Kind.DEVICE:
            return f"{kind}.{trust_domain}"
        case Kind.SIGNER:
            return None


def name_constraints(trust_domain: str, kind: Kind) -> x509.NameConstraints:
    """Confine a kind's intermediate to its DNS subtree (RFC 5280 4.2.1.10).

    URI constraints would say more, but ``cryptography.x509.verification`` refuses chains that have them
    ("unsupported name constraint"), so the SPIFFE URI is held against the grant and the kind by hand.
    """
    if kind is Kind.SERVICE:
        others = [x509.DNSName(f"{other}.{trust_domain}") for other in TLS_KINDS if other is not Kind.SERVICE]
        return x509.NameConstraints([x509.DNSName(trust_domain)], others)
    return x509.NameConstraints([x509.DNSName(f"{kind}.{trust_domain}")], None)


def _invalid(sentence: str) -> Refused:
    return refused(Reason.CERTIFICATE_INVALID, f"The certificate is not accepted: {sentence}.")
