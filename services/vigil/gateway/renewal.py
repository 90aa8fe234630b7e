"""The gateway renews its own certificate when a third of its ordinary life is left, with a fresh key."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from vigil.api.identity.v1 import identity_pb2, identity_pb2_grpc
from vigil.core.certificates import Identity, make_request, read_chain, store_pair
from vigil.core.clock import Clock, Entropy
from vigil.core.keys import KeySigner, new_private_key
from vigil.errors import Refused
from vigil.gateway.own_key import OwnKey
from vigil.gateway.trust import Trust
from vigil.rpc import status
from vigil.rpc.tls import TlsFiles

ORDINARY_LIFE_MS: Final = 7 * 86_400_000
"""A gateway's operational life (docs/protocol.md, Classes: gateway 7 days)."""
CALL_S: Final = 10.0
LONGEST_SLEEP_S: Final = 3_600.0
"""The wall clock may step meanwhile."""
FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 600.0


class Renewal:
    """``run`` is the task."""

    def __init__(
        self,
        *,
        gateway_id: str,
        stub: "identity_pb2_grpc.CertificateServiceAsyncStub",
        tls: TlsFiles,
        key: OwnKey,
        trust: Trust,
        on_renewed: Callable[[], None],
        clock: Clock,
        entropy: Entropy,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._gateway_id = gateway_id
        self._stub = stub
        self._tls = tls
        self._key = key
        self._trust = trust
        self._on_renewed = on_renewed
        self._clock = clock
        self._entropy = entropy
        self._sleep = sleep
        self._renewed_at: int | None = None
        self._log = structlog.get_logger("vigil.gateway.renewal")

    async def run(self) -> None:
        """Renew in time, and keep trying until it worked, until cancelled."""
        pause = FIRST_PAUSE_S
        while True:
            left = (renewal_due(self._key.identity, renewed_at=self._renewed_at) - self._clock.now()) / 1000
            if left > 0:
                await self._sleep(min(left, LONGEST_SLEEP_S))
                continue
            try:
                await self.renew()
                pause = FIRST_PAUSE_S
            except (Refused, OSError) as error:
                self._log.warning("renewal_failed", error=str(error))
                await self._sleep(pause * (0.5 + int.from_bytes(self._entropy(2), "big") / 0x20000))
                pause = min(LAST_PAUSE_S, pause * 2)

    async def renew(self) -> None:
        """One renewal: new key, certificate, files in place of the former. Raises what refuses it, OSError."""
        private_key = new_private_key()
        request = identity_pb2.RenewGatewayCertificateRequest(
            gateway_id=self._gateway_id, csr_pem=make_request(private_key).decode()
        )
        answer = await status.translated(self._stub.RenewGatewayCertificate(request, timeout=CALL_S))
        self._trust.take(answer.trust_json)
        chain_pem = answer.certificate_pem.encode()
        # A certificate for another key would lock the gateway out of its own files: refused before they change.
        KeySigner(private_key, read_chain(chain_pem))
        await asyncio.to_thread(
            store_pair, self._tls.certificate, self._tls.key, chain_pem=chain_pem, private_key=private_key
        )
        self._key.reload()
        self._renewed_at = self._clock.now()
        self._on_renewed()
        self._log.info("renewed", operational_until=self._key.identity.operational_until)


def renewal_due(identity: Identity, *, renewed_at: int | None) -> int:
    """When a third of the ordinary life is left (ms).

    A gateway's notBefore is the root's and says nothing; before this process has renewed once, the life is taken to
    be the seven days that identity grants.
    """
    life = ORDINARY_LIFE_MS
    if renewed_at is not None:
        life = min(life, max(0, identity.operational_until - renewed_at))
    return identity.operational_until - life // 3
