"""Who signed a statement: from the certificates beside it, or from those that the log already keeps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from vigil.core.certificates import ChainVerifier, Identity, Kind, TrustBundle
from vigil.core.digest import sha256
from vigil.core.statements.envelope import Statement
from vigil.errors import Reason, refused
from vigil.evidence import store
from vigil.storage import Database

MAX_KNOWN = 131_072
"""Thumbprints remembered as kept: more than the signers of the working size; 100 bytes each."""


@dataclass(frozen=True, slots=True)
class Signed:
    """Who signed, and the chain to keep (leaf first, without the root); None where the log has it already."""

    identity: Identity
    chain: tuple[bytes, ...] | None


class Signers:
    """Finds signers' identities. ``verifier`` answers the one for the trust bundle in force.

    A certificate is judged at the moment of signing: what was signed while it was valid stays evidence when it
    is valid no more. Revocation is not asked here: what a revoked signer says is to be on record as well, and a
    reader sees both.
    """

    def __init__(self, *, database: Database, verifier: Callable[[], ChainVerifier]) -> None:
        self._database = database
        self._verifier = verifier
        self._kept: dict[bytes, None] = {}

    async def identify(self, statement: Statement[Any], *, now: int) -> Signed:
        """Answer who signed, valid when it was signed. Raises CERTIFICATE_INVALID, CERTIFICATE_EXPIRED."""
        verifier = self._verifier()
        # A date ahead of the log's clock cannot make a certificate valid that is not valid yet.
        at = min(statement.issued_at * 1000, now)
        thumbprint = statement.signer
        identity = verifier.valid_at(thumbprint, at=at, grace=True)
        if identity is not None and thumbprint in self._kept:
            return Signed(identity, None)
        kept = await self._database.read(lambda connection: store.load_chain(connection, thumbprint))
        chain = kept or statement.chain or _of_bundle(verifier.bundle, thumbprint)
        if not chain:
            raise refused(
                Reason.CERTIFICATE_INVALID,
                f"The log does not know the certificate of {statement.issuer}, and it did not come along.",
                lifted_by="the same statement with its certificates beside it",
                who="the sender",
            )
        if identity is None:
            identity = verifier.verify(chain, at=at, grace=True)
        if kept:
            self.keep((thumbprint,))
            return Signed(identity, None)
        return Signed(identity, _path(chain[0], identity.kind, verifier.bundle))

    def keep(self, thumbprints: tuple[bytes, ...]) -> None:
        """Note that the log keeps these signers' chains."""
        for thumbprint in thumbprints:
            self._kept[thumbprint] = None
        while len(self._kept) > MAX_KNOWN:
            del self._kept[next(iter(self._kept))]


def _path(leaf: bytes, kind: Kind, bundle: TrustBundle) -> tuple[bytes, ...]:
    """The certificates between a verified leaf and its root, from the bundle: never what a sender put there."""
    certificate = x509.load_der_x509_certificate(leaf)
    for intermediate in bundle.intermediates.get(kind, ()):
        try:
            certificate.verify_directly_issued_by(intermediate)
        except (InvalidSignature, ValueError, TypeError):
            continue
        return leaf, intermediate.public_bytes(Encoding.DER)
    return (leaf,)


def _of_bundle(bundle: TrustBundle, thumbprint: bytes) -> tuple[bytes, ...]:
    """A signer that everybody holds needs no certificate beside its statements; the root neither."""
    for certificate in (*bundle.signers, bundle.root):
        encoded = certificate.public_bytes(Encoding.DER)
        if sha256(encoded) == thumbprint:
            return (encoded,)
    return ()
