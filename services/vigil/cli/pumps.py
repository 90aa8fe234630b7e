"""A simulated pump on the bench: what is printed on it, and the enrolment station's two touches."""

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vigil.api.identity.v1 import identity_pb2 as pb
from vigil.core.clock import SystemClock
from vigil.core.digest import sha256
from vigil.core.keys import key_thumbprint
from vigil.device import enrol
from vigil.device.hardware import Hardware, power_on
from vigil.device.messages import Certificates, Possession
from vigil.errors import Reason, refused

VOUCHER_FILE: Final = "voucher.cose"


@dataclass(frozen=True, slots=True)
class PumpLabel:
    udi: str
    model: str
    identity_key: bytes

    @property
    def device_id(self) -> str:
        """The id that follows from the key: `dev-` and 80 bits of its thumbprint's digest in base32."""
        return "dev-" + base64.b32encode(sha256(self.identity_key)[:10]).decode().lower()


def read_label(folder: Path) -> PumpLabel:
    """Switch the pump on, read what its voucher says, switch it off. Raises as `power_on`."""
    hardware = open_pump(folder)
    try:
        thumbprint = key_thumbprint(hardware.identity_key.public_key())
        return PumpLabel(hardware.label.udi, hardware.label.model, thumbprint)
    finally:
        hardware.power_off()


def open_pump(folder: Path) -> Hardware:
    """Switch a pump on. Raises FIELD_INVALID where there is none."""
    if not (folder / "device.json").exists():
        raise refused(
            Reason.FIELD_INVALID,
            f"{folder} is no pump's folder",
            lifted_by="`python -m vigil.device make`",
            who="you",
        )
    return power_on(folder, clock=SystemClock(), entropy=os.urandom)


def possession_to(made: Possession) -> pb.DevicePossession:
    """The proof as identity takes it."""
    return pb.DevicePossession(
        nonce=made.nonce,
        identity_public_key=made.identity_public_key,
        tls_csr_pem=made.tls_csr_pem,
        attestation_csr_pem=made.attestation_csr_pem,
        signature=made.signature,
    )


def install(hardware: Hardware, made: pb.DeviceCertificates) -> None:
    """Bring the certificates and the roots into the pump."""
    enrol.install(
        hardware,
        Certificates(tuple(made.tls_chain), tuple(made.attestation_chain), made.trust_json),
    )
