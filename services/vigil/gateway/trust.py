"""Whom the gateway trusts: its copy of trust.json, which identity extends when a manufacturer joins."""

from pathlib import Path

from cryptography import x509

from vigil.core.certificates import ChainVerifier, TrustBundle, replace_file
from vigil.core.clock import Clock
from vigil.core.keys import UNREADABLE
from vigil.errors import Refused

RECHECK_S = 1.0
"""How often the file is looked at, at most."""


class Trust:
    """The newest usable bundle. Raises CERTIFICATE_INVALID or OSError when made, never later."""

    def __init__(self, *, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._text = path.read_text(encoding="utf-8")
        self._stamp = _stamp(path)
        self._verifier = ChainVerifier(TrustBundle.from_json(self._text))
        self._checked = clock.monotonic()

    @property
    def verifier(self) -> ChainVerifier:
        """Verifies chains against the bundle as it is now."""
        moment = self._clock.monotonic()
        if moment - self._checked >= RECHECK_S:
            self._checked = moment
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._reload(stamp)
        return self._verifier

    @property
    def text(self) -> str:
        """The bundle as it travels to devices."""
        return self._text

    def take(self, text: str) -> bool:
        """Keep a newer bundle of the same trust domain and root; answers whether it changed. Raises OSError."""
        if not text or text == self._text:
            return False
        try:
            bundle = TrustBundle.from_json(text)
        except Refused:
            return False
        ours = self._verifier.bundle
        # A root is replaced by hand, never by a message: whoever could send one would own everything below it.
        if bundle.trust_domain != ours.trust_domain or bundle.root != ours.root:
            return False
        self._write(bundle)
        return True

    def add_manufacturer(self, organization: str, root_pem: str) -> bool:
        """Trust a manufacturer's root that the registry names; answers whether it is new. Raises OSError."""
        bundle = self._verifier.bundle
        try:
            root = x509.load_pem_x509_certificate(root_pem.encode())
            if bundle.manufacturers.get(organization) == root:
                return False
            self._write(bundle.with_manufacturer(organization, root))
        except (*UNREADABLE, Refused):
            return False
        return True

    def _write(self, bundle: TrustBundle) -> None:
        text = bundle.to_json()
        replace_file(self._path, text.encode())
        self._text, self._stamp, self._verifier = text, _stamp(self._path), ChainVerifier(bundle)

    def _reload(self, stamp: tuple[int, int, int]) -> None:
        try:
            text = self._path.read_text(encoding="utf-8")
            verifier = ChainVerifier(TrustBundle.from_json(text))
        except (OSError, ValueError, Refused):
            # Half-written or unreadable: the former bundle stays in use, and the next look finds the whole one.
            return
        self._text, self._verifier, self._stamp = text, verifier, stamp


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)
