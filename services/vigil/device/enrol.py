"""The device's side of enrolment and renewal: proving the PUF-derived identity key, taking certificates.

An enrolment station asks for `possession` over the nonce that identity gave it and brings back the certificates with
`install`; this is a local call at the device, not something that a network reaches.
"""

from collections.abc import Sequence

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vigil.core import keys
from vigil.core.certificates import Identity, make_request
from vigil.core.digest import sha256
from vigil.device.hardware import Hardware
from vigil.device.messages import Certificates, Possession
from vigil.device.trust import store_enrolment
from vigil.errors import Reason, refused

CONTEXT = b"vigil device possession v1"


def possession(hardware: Hardware, nonce: bytes) -> Possession:
    """Sign the nonce and both signing requests with the identity key (identity.proto, DevicePossession)."""
    if not 16 <= len(nonce) <= 64:
        raise refused(Reason.FIELD_INVALID, "a nonce has 16 to 64 bytes", field="nonce")
    tls = make_request(hardware.secure_element.pending_tls_key())
    attestation = make_request(hardware.attestation_key)
    signature = keys.sign(hardware.identity_key, CONTEXT + nonce + sha256(tls) + sha256(attestation))
    point = hardware.identity_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return Possession(
        nonce=nonce,
        identity_public_key=point,
        tls_csr_pem=tls.decode(),
        attestation_csr_pem=attestation.decode(),
        signature=signature,
    )


def install(hardware: Hardware, certificates: Certificates) -> Identity:
    """Take the first certificates and the roots. Raises CERTIFICATE_INVALID, DEVICE_ALREADY_ENROLLED."""
    _check_own(hardware, certificates.attestation_chain)
    identity = store_enrolment(
        hardware.store,
        hardware.trust_file,
        chain=certificates.attestation_chain,
        trust_json=certificates.trust_json,
    )
    hardware.secure_element.install_tls(certificates.tls_chain)
    return identity


def _check_own(hardware: Hardware, chain: Sequence[bytes]) -> None:
    """The certificate is for this device's attestation key. Raises CERTIFICATE_INVALID."""
    keys.KeySigner(hardware.attestation_key, chain)
