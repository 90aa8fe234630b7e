"""A device proves its PUF-derived key and is issued its two certificates."""

from dataclasses import dataclass, replace
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from vigil.core.certificates import DEVICE_STATEMENTS, Grant, Kind, read_request
from vigil.core.keys import ES256, PublicKey, key_thumbprint, verify
from vigil.identity import domain, pki, refusals
from vigil.identity.ca import CertificateAuthority
from vigil.identity.domain import Possession

_POINT: Final = 65
"""Bytes of an uncompressed P-256 point (SEC 1, 2.3.3)."""


@dataclass(frozen=True, slots=True)
class DeviceKeys:
    """The keys that a proof vouches for."""

    tls: PublicKey
    attestation: PublicKey


@dataclass(frozen=True, slots=True)
class DeviceChains:
    """What a device is given: DER, leaf first; and the attestation key's RFC 9679 thumbprint."""

    tls: tuple[bytes, ...]
    attestation: tuple[bytes, ...]
    attestation_key: bytes
    attestation_certificate: bytes


def prove(possession: Possession, *, nonce: bytes, identity_key: bytes) -> DeviceKeys:
    """Check that the holder of the identity key asks for these two keys. Raises POSSESSION_NOT_PROVED, FIELD_INVALID.

    ``identity_key`` is the thumbprint that the voucher, or the registry, names (RFC 9679).
    """
    if possession.nonce != nonce:
        raise refusals.not_proved("the nonce is another one")
    point = possession.identity_public_key
    if len(point) != _POINT:
        raise refusals.not_proved("its identity key is no uncompressed point of P-256")
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as error:
        raise refusals.not_proved("its identity key is no uncompressed point of P-256") from error
    if key_thumbprint(key) != identity_key:
        raise refusals.not_proved("its identity key is not the vouched one")
    message = domain.possession_message(nonce, possession.tls_csr_pem, possession.attestation_csr_pem)
    if not verify(key, ES256, message, possession.signature):
        raise refusals.not_proved("the signature does not verify")
    tls = read_request(possession.tls_csr_pem.encode())
    attestation = read_request(possession.attestation_csr_pem.encode())
    # ARCHITECTURE, Keys: an identity key, an attestation key and a TLS key, each for its own use.
    if len({key_thumbprint(one) for one in (key, tls, attestation)}) != 3:
        raise refusals.invalid("possession", "identity, attestation and TLS keys are three different keys")
    return DeviceKeys(tls, attestation)


def device_chains(
    authority: CertificateAuthority, keys: DeviceKeys, *, device_id: str, organization_id: str, site_id: str
) -> DeviceChains:
    """Issue both certificates; owner and custodian site stand in them."""
    tls_grant = Grant(kind=Kind.DEVICE, subject_id=device_id, organization=organization_id, sites=(site_id,))
    grant = replace(tls_grant, statements=tuple(sorted(DEVICE_STATEMENTS)))
    tls = authority.issue(keys.tls, tls_grant, pki.DEVICE)
    attestation = authority.issue(keys.attestation, grant, pki.DEVICE)
    return DeviceChains(
        tls=tls.chain_der,
        attestation=attestation.chain_der,
        attestation_key=attestation.identity.key_thumbprint,
        attestation_certificate=attestation.identity.thumbprint,
    )
