"""What the offline root is brought back for: the yearly signers, and first administrators who waited too long."""

import os
from dataclasses import dataclass
from pathlib import Path

from vigil.core.certificates import ChainVerifier, load_pair
from vigil.core.clock import SystemClock
from vigil.errors import Reason, refused
from vigil.identity import ceremony
from vigil.run.layout import DataFolder


@dataclass(frozen=True, slots=True)
class Made:
    """A certificate that a ceremony made: its file, and until when it signs (ms)."""

    name: str
    certificate: Path
    operational_until: int


def renew_signers(folder: DataFolder, *, root: Path | None, passphrase: Path | None) -> list[Made]:
    """Make the services' signers anew. Raises FIELD_INVALID for a root that does not open, STATE_CONFLICT, OSError."""
    bundle = ceremony.renew_signers(
        folder.path,
        root=ceremony.open_root(*_brought_back(folder, root, passphrase)),
        clock=SystemClock(),
        entropy=os.urandom,
    )
    verifier = ChainVerifier(bundle)
    return [
        _made(path.stem, path, verifier) for path in sorted((folder.path / "pki" / "signers").glob("*.pem"))
    ]


def renew_admin(folder: DataFolder, person_id: str, *, root: Path | None, passphrase: Path | None) -> Made:
    """Make a first administrator's credential anew. Raises as `renew_signers`."""
    made = ceremony.renew_admin(
        folder.path,
        person_id,
        root=ceremony.open_root(*_brought_back(folder, root, passphrase)),
        clock=SystemClock(),
        entropy=os.urandom,
    )
    return _made(person_id, made / "tls.pem", ChainVerifier(ceremony.read_bundle(folder.path)))


def _brought_back(folder: DataFolder, root: Path | None, passphrase: Path | None) -> tuple[Path, bytes]:
    """Where the root is, and what opens it. Raises FIELD_INVALID where one of its files is missing, OSError."""
    place = root or folder.path / "pki" / "root"
    words = passphrase or place / "passphrase"
    for needed in (folder.path / "pki" / "trust.json", place / "root.pem", place / "root.key", words):
        if not needed.is_file():
            raise refused(
                Reason.FIELD_INVALID,
                f"There is no {needed}.",
                lifted_by="the offline root, brought back: --root DIR and --passphrase FILE say where it is",
                who="the operator",
                field="root",
            )
    return place, ceremony.read_passphrase(words)


def _made(name: str, certificate: Path, verifier: ChainVerifier) -> Made:
    chain = load_pair(certificate, certificate.with_suffix(".key")).chain_der
    identity = verifier.verify(chain, at=SystemClock().now())
    return Made(name, certificate, identity.operational_until)
