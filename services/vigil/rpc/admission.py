"""From a connection's certificate to a verified caller, on each call and each message.

A connection outlives its certificate and gRPC has no revocation lists, so the handshake proves possession of
the key and nothing that lasts: chain, kind, validity and revocation are judged again here, at every message.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vigil.core.certificates import TLS_KINDS, ChainVerifier, Identity, Standing
from vigil.core.clock import Clock
from vigil.core.keys import UNREADABLE
from vigil.errors import Reason, Refused, refused
from vigil.rpc.tls import TlsWatcher

RevocationCheck = Callable[[Identity], Reason | None]
"""Why a caller is revoked, or None; answered from memory."""
Authorizer = Callable[[Identity, str], None]
"""A service's own bar before a method (its full path); raises Refused."""

TLS_1_3 = b"TLSv1.3"
MAX_CHAINS = 65_536
"""Chains kept decoded, by their PEM text: the working size's callers of one server."""

_KINDS = frozenset(TLS_KINDS)


@dataclass(slots=True)
class Credential:
    """What a connection presented, leaf first (DER), and what the newest verifier made of it."""

    chain: tuple[bytes, ...]
    verified_by: ChainVerifier | None = None
    standing: Standing | None = None


class Admission:
    """Knows the callers of one server; holds no state about calls."""

    def __init__(
        self,
        *,
        tls: TlsWatcher,
        clock: Clock,
        revocation_check: RevocationCheck | None,
        authorizer: Authorizer | None,
        grace_methods: Collection[str],
    ) -> None:
        self._tls = tls
        self._clock = clock
        self._revocation_check = revocation_check
        self._authorizer = authorizer
        self._grace_methods = frozenset(grace_methods)
        self._verifier = ChainVerifier(tls.current().bundle)
        self._chains: OrderedDict[tuple[bytes, ...], Credential] = OrderedDict()

    def credential(self, context: grpc.aio.ServicerContext[Any, Any]) -> Credential:
        """Read what the peer presented. Raises TLS_VERSION, CERTIFICATE_INVALID."""
        auth = context.auth_context()
        # No option of gRPC forbids TLS 1.2, so the call is refused by the version that was negotiated.
        if list(auth.get("ssl_tls_version", ())) != [TLS_1_3]:
            raise refused(
                Reason.TLS_VERSION,
                "This connection does not use TLS 1.3.",
                lifted_by="a client that speaks TLS 1.3",
                who="the operator of the client",
            )
        pem = (*auth.get("x509_pem_cert", ()), *auth.get("x509_pem_cert_chain", ()))
        known = self._chains.get(pem)
        if known is None:
            known = Credential(_decoded(pem))
            while len(self._chains) >= MAX_CHAINS:
                self._chains.popitem(last=False)
            self._chains[pem] = known
        return known

    def identify(self, credential: Credential, method: str) -> Identity:
        """Verify the caller as of now. Raises CERTIFICATE_INVALID, CERTIFICATE_EXPIRED, *_REVOKED."""
        bundle = self._tls.current().bundle
        if bundle is not self._verifier.bundle:
            self._verifier = ChainVerifier(bundle)
        standing, now = credential.standing, self._clock.now()
        if standing is None or credential.verified_by is not self._verifier or not standing.ordinary(now):
            # Whatever is not plainly inside its ordinary use is verified from the beginning, and refused in words.
            caller = self._verifier.verify(
                credential.chain, at=now, kinds=_KINDS, grace=method in self._grace_methods
            )
            credential.standing = self._verifier.standing(credential.chain)
            credential.verified_by = self._verifier
        else:
            caller = standing.identity
        if self._revocation_check is not None:
            reason = self._revocation_check(caller)
            if reason is not None:
                raise revoked(reason)
        return caller

    def authorize(self, caller: Identity, method: str) -> None:
        """Ask the service's own bar. Raises what it raises."""
        if self._authorizer is not None:
            self._authorizer(caller, method)


def revoked(reason: Reason) -> Refused:
    """Refuse a caller that is known revoked."""
    return refused(
        reason,
        "The credential that this connection was made with is revoked.",
        lifted_by="a new credential",
        who="an administrator of your organization",
    )


def _decoded(pem: tuple[bytes, ...]) -> tuple[bytes, ...]:
    try:
        chain = [
            certificate.public_bytes(Encoding.DER)
            for text in pem
            for certificate in x509.load_pem_x509_certificates(text)
        ]
    except UNREADABLE as error:
        raise refused(Reason.CERTIFICATE_INVALID, "The caller's certificate cannot be read.") from error
    if not chain:
        raise refused(Reason.CERTIFICATE_INVALID, "The caller presented no certificate.")
    return tuple(dict.fromkeys(chain))
