"""The gateway's own certificate: one key for mutual TLS and for its acknowledgements."""

from vigil.core.certificates import Identity, Kind, load_pair
from vigil.core.clock import Clock, Entropy
from vigil.core.statements.envelope import Scribe
from vigil.gateway.trust import Trust
from vigil.rpc.tls import TlsFiles


class OwnKey:
    """Read again after each renewal. Raises CERTIFICATE_INVALID, FIELD_INVALID or OSError when made."""

    def __init__(
        self, *, gateway_id: str, tls: TlsFiles, trust: Trust, clock: Clock, entropy: Entropy
    ) -> None:
        self._gateway_id = gateway_id
        self._tls = tls
        self._trust = trust
        self._clock = clock
        self._entropy = entropy
        self.reload()

    @property
    def scribe(self) -> Scribe:
        """Signs acknowledgements."""
        return self._scribe

    @property
    def identity(self) -> Identity:
        """Who this gateway is, by its newest certificate."""
        return self._identity

    def reload(self) -> None:
        """Read the files again."""
        pair = load_pair(self._tls.certificate, self._tls.key)
        self._identity = self._trust.verifier.remember(pair.chain_der)
        self._scribe = Scribe(
            signer=pair.signer,
            issuer=f"{Kind.GATEWAY}/{self._gateway_id}",
            clock=self._clock,
            entropy=self._entropy,
            numbered=False,
        )
