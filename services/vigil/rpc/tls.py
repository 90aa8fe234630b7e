"""The files behind one end of a mutual TLS connection, read again when they change."""

import logging
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from vigil.core.certificates import Kind, TrustBundle, load_pair
from vigil.core.clock import Clock
from vigil.errors import VigilError

RECHECK_SECONDS = 1.0
"""How often the files are looked at, at most: a rotated certificate is used a second later."""

_LOG = logging.getLogger(__name__)


class TlsFilesError(VigilError):
    """The certificate, the key or the trust bundle cannot be used."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where one end keeps its certificate chain (PEM, leaf first), its key (PEM), the trust bundle (JSON)."""

    certificate: Path
    key: Path
    trust: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """What stood in the files at one moment; certificate and key belong together."""

    certificate_pem: bytes
    key_pem: bytes
    bundle: TrustBundle

    def anchors_pem(self, kind: Kind) -> bytes:
        """Give the intermediates of one kind, the only anchors for a peer that must be of that kind."""
        return b"".join(
            certificate.public_bytes(Encoding.PEM) for certificate in self.bundle.intermediates.get(kind, ())
        )


def load(files: TlsFiles) -> TlsMaterial:
    """Read the files; raise TlsFilesError when one is missing, malformed or the key is another's."""
    try:
        pair = load_pair(files.certificate, files.key)
        bundle = TrustBundle.from_json(files.trust.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, VigilError) as error:
        raise TlsFilesError(
            f"{files.certificate}, its key or {files.trust} cannot be used: {error}"
        ) from error
    return TlsMaterial(certificate_pem=pair.certificate_pem, key_pem=pair.key_pem, bundle=bundle)


class TlsWatcher:
    """Gives the newest usable material; files that cannot be used leave the former in use.

    Raises TlsFilesError from the constructor alone.
    """

    def __init__(self, *, files: TlsFiles, clock: Clock) -> None:
        self._files = files
        self._clock = clock
        self._signature = self._stat()
        self._material = load(files)
        self._checked = clock.monotonic()
        self._complained: object = None

    def current(self, *, now: bool = False) -> TlsMaterial:
        """Look at the files if that is due (or ``now``) and give what is to be used."""
        moment = self._clock.monotonic()
        if now or moment - self._checked >= RECHECK_SECONDS:
            self._checked = moment
            self._reload()
        return self._material

    def _reload(self) -> None:
        # The state is read before the files: a change in between shows as one more change.
        signature = self._stat()
        if signature == self._signature:
            return
        try:
            self._material = load(self._files)
        except TlsFilesError as error:
            if self._complained != signature:
                self._complained = signature
                _LOG.warning("keeping the former certificate: %s", error)
        else:
            self._signature = signature

    def _stat(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_stat(path) for path in (self._files.certificate, self._files.key, self._files.trust))


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)
