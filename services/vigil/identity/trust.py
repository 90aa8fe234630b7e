"""The trust bundle on disk: read again when it changes, extended by manufacturers' roots."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509

from vigil.core.certificates import ChainVerifier, TrustBundle
from vigil.core.keys import UNREADABLE
from vigil.errors import Refused
from vigil.identity import ceremony
from vigil.identity.refusals import invalid


class Trust:
    """``<data>/pki/trust.json``. Raises CERTIFICATE_INVALID or OSError when it cannot be used at the start."""

    def __init__(self, pki: Path) -> None:
        self._data = pki.parent
        self._path = pki / "trust.json"
        self._lock = asyncio.Lock()
        self._stamp = self._stat()
        self._verifier = ChainVerifier(ceremony.read_bundle(self._data))

    @property
    def verifier(self) -> ChainVerifier:
        """A verifier over the newest usable bundle."""
        stamp = self._stat()
        if stamp != self._stamp:
            try:
                self._verifier = ChainVerifier(ceremony.read_bundle(self._data))
            except (Refused, OSError):
                # Replaced by rename, so never half: a file that cannot be used leaves the former in use.
                return self._verifier
            self._stamp = stamp
        return self._verifier

    @property
    def bundle(self) -> TrustBundle:
        """The newest usable bundle."""
        return self.verifier.bundle

    async def add(self, roots: Mapping[str, x509.Certificate]) -> None:
        """Trust these manufacturers' roots, by organization, if they are not trusted yet. Raises OSError."""
        async with self._lock:
            for organization, root in roots.items():
                if self.bundle.manufacturers.get(organization) != root:
                    await asyncio.to_thread(ceremony.trust_manufacturer, self._data, organization, root)

    def _stat(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_ino, found.st_size


def read_root(pem: str, organization: str, bundle: TrustBundle) -> x509.Certificate:
    """Read a manufacturer's root and try it in the bundle. Raises FIELD_INVALID."""
    field = "organization.manufacturer_root_pem"
    try:
        root = x509.load_pem_x509_certificate(pem.encode())
        bundle.with_manufacturer(organization, root)
    except UNREADABLE as error:
        raise invalid(field, "it is no PEM certificate") from error
    except Refused as error:
        raise invalid(field, error.refusals[0].sentence.rstrip(".")) from error
    return root
