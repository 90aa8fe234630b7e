"""A signer's certificate and key, opened for the one kind of statement that they were made for."""

from dataclasses import dataclass
from pathlib import Path

from vigil.core.certificates import ChainVerifier, Identity, Kind, Pair, load_pair
from vigil.core.clock import Clock, Entropy
from vigil.core.statements.envelope import Scribe
from vigil.errors import Reason, refused


@dataclass(frozen=True, slots=True)
class OpenedSigner:
    """A signer of statements, as it lies on disk and as its certificate says."""

    pair: Pair
    identity: Identity

    def scribe(self, *, clock: Clock, entropy: Entropy) -> Scribe:
        """Open a new numbered series."""
        return Scribe(
            signer=self.pair.signer,
            issuer=f"{self.identity.kind}/{self.identity.id}",
            clock=clock,
            entropy=entropy,
            numbered=True,
        )


def open_signer(
    certificate: Path, key: Path, *statements: str, verifier: ChainVerifier, at: int
) -> OpenedSigner:
    """Load and verify. Raises CERTIFICATE_INVALID when the certificate was not made for one of these statements."""
    pair = load_pair(certificate, key)
    signer = verifier.verify(pair.chain_der, at=at, kinds=frozenset({Kind.SIGNER}))
    for statement in statements:
        if not signer.may_sign(statement):
            raise refused(
                Reason.CERTIFICATE_INVALID,
                f"The signer's certificate {certificate} was not made for `{statement}`.",
                lifted_by="`vigil ceremony signers`, with the offline root brought back",
                who="the operator",
            )
    return OpenedSigner(pair, signer)
