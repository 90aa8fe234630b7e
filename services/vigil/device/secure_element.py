"""The secure element: a counter that no reset turns back, and the TLS key. The port, and a simulated one in files.

The identity and attestation keys are not here: they are derived from the PUF at each start and never stored.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from vigil.core.certificates import store_pair
from vigil.core.keys import UNREADABLE, PrivateKey, load_private_key, new_private_key, store_private_key
from vigil.errors import Reason, refused

_SLOT_BYTES = 8


class SecureElement(Protocol):
    """What the device asks of its secure element."""

    @property
    def counter(self) -> int:
        """The monotonic counter."""
        ...

    def increment(self) -> int:
        """Raise the counter by one, durably, and answer it. Raises STORAGE_UNAVAILABLE."""
        ...

    def pending_tls_key(self) -> PrivateKey:
        """The random key that the next TLS certificate will be for; the same until it is installed."""
        ...

    def install_tls(self, chain: Sequence[bytes]) -> None:
        """Put a chain (DER, leaf first) for the pending key in use. Raises CERTIFICATE_INVALID."""
        ...


class SimulatedSecureElement:
    """Files in a 0700 folder: ``counter``, ``tls.key`` and ``tls.pem`` in use, ``next.key`` pending.

    The counter is written to two places in turn, so that a write torn by a power cut leaves the other one.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self.certificate = directory / "tls.pem"
        self.key = directory / "tls.key"
        self._pending = directory / "next.key"
        self._path = directory / "counter"
        if not self._path.exists():
            self._write(bytes(2 * _SLOT_BYTES), 0)
        stored = self._path.read_bytes()
        self._counter = max(int.from_bytes(stored[:_SLOT_BYTES]), int.from_bytes(stored[_SLOT_BYTES:]))

    @property
    def counter(self) -> int:
        return self._counter

    def increment(self) -> int:
        value = self._counter + 1
        try:
            self._write(value.to_bytes(_SLOT_BYTES), value % 2 * _SLOT_BYTES)
        except OSError as error:
            raise refused(Reason.STORAGE_UNAVAILABLE, "the secure element cannot keep its counter") from error
        self._counter = value
        return value

    def pending_tls_key(self) -> ec.EllipticCurvePrivateKey:
        if not self._pending.exists():
            store_private_key(self._pending, new_private_key())
        key = load_private_key(self._pending)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise refused(Reason.CERTIFICATE_INVALID, "the pending TLS key is not on P-256")
        return key

    def install_tls(self, chain: Sequence[bytes]) -> None:
        key = self.pending_tls_key()
        try:
            certificates = [x509.load_der_x509_certificate(one) for one in chain]
            certified = certificates[0].public_key() if certificates else None
        except UNREADABLE as error:
            raise refused(Reason.CERTIFICATE_INVALID, "the TLS certificate cannot be read") from error
        if certified != key.public_key():
            raise refused(Reason.CERTIFICATE_INVALID, "the TLS certificate is for another key")
        pem = b"".join(one.public_bytes(Encoding.PEM) for one in certificates)
        store_pair(self.certificate, self.key, chain_pem=pem, private_key=key)
        self._pending.unlink()

    def _write(self, data: bytes, offset: int) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, data, offset)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
