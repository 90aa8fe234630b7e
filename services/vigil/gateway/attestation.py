"""Between the devices and the attestation service: relays what a device says under its own id, keeps what came back."""

import asyncio
from typing import Final

import structlog

from vigil.api.attestation.v1 import attestation_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.core.certificates import Kind
from vigil.core.clock import Clock
from vigil.core.ordered import OrderedSet
from vigil.core.revocations import RevocationState
from vigil.core.statements.bodies import Result
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Reason, Refused, refused
from vigil.gateway.device_sessions import Session
from vigil.gateway.trust import Trust
from vigil.rpc import status
from vigil.rpc.streams import Exchange

RELAY_S: Final = 10.0
"""How long the attestation service may take for one message of a device."""
ATTEST_NOW_S: Final = 3.0
"""How long a prepare waits for the device: evidence, appraisal and the way there and back take about 20 ms."""


class Attestation:
    """Relays attestation items; remembers each device's newest verified result."""

    def __init__(
        self,
        *,
        exchange: Exchange[attestation_pb2.AttestItem, attestation_pb2.AttestOutcome],
        trust: Trust,
        revocations: RevocationState,
        clock: Clock,
    ) -> None:
        self._exchange = exchange
        self._trust = trust
        self._revocations = revocations
        self._clock = clock
        self._newest: dict[str, Statement[Result]] = {}
        self._waiting: dict[str, OrderedSet[asyncio.Future[None]]] = {}
        self._log = structlog.get_logger("vigil.gateway.attestation")

    def newest(self, device_id: str) -> Statement[Result] | None:
        """The newest verified result about a device."""
        return self._newest.get(device_id)

    async def serve(self, session: Session, item: attestation_pb2.AttestItem) -> None:
        """Relay one item and send the outcome, whatever it is, back to the device."""
        try:
            outcome = await self._relay(session.device_id, item)
        except Refused as refusal:
            outcome = attestation_pb2.AttestOutcome(error=status.to_status(refusal))
        outcome.call_id = item.call_id
        session.try_send(gateway_pb2.ConnectResponse(attest=outcome))

    async def refresh(self, session: Session) -> None:
        """Have a device attest now and wait for its result; what it came to is policy's to judge."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(session.device_id, OrderedSet())
        waiting.add(future)
        try:
            if len(waiting) == 1:
                session.send(
                    gateway_pb2.ConnectResponse(attest_now=gateway_pb2.AttestNow(call_id=session.call_id()))
                )
            async with asyncio.timeout(ATTEST_NOW_S):
                await future
        except TimeoutError:
            self._log.info("attestation_late", device=session.device_id)
        finally:
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(session.device_id, None)

    async def _relay(self, device_id: str, item: attestation_pb2.AttestItem) -> attestation_pb2.AttestOutcome:
        # A device speaks for itself alone, whatever its item names.
        if item.device_id not in ("", device_id):
            raise refused(Reason.NOT_IN_SCOPE, "a device attests for itself alone")
        upward = attestation_pb2.AttestItem()
        upward.CopyFrom(item)
        upward.device_id = device_id
        try:
            outcome = await self._exchange.call(upward, timeout=RELAY_S)
            if outcome.WhichOneof("message") == "result":
                self._take(device_id, outcome.result)
                self._wake(device_id)
        except Refused:
            # Nothing more is to come of this attempt: whoever waits goes on with what there is.
            self._wake(device_id)
            raise
        return outcome

    def _take(self, device_id: str, data: bytes) -> None:
        result = read(data, Result)
        signer = self._trust.verifier.verify(
            result.chain, at=self._clock.now(), kinds=frozenset({Kind.SIGNER})
        )
        check(result, signer)
        revoked = self._revocations.identity_refusal(signer, at=self._clock.now())
        if revoked is not None:
            raise refused(revoked, "the signer of attestation results is revoked")
        if result.body.device != device_id:
            raise refused(Reason.SIGNATURE_INVALID, "the attestation result is about another device")
        known = self._newest.get(device_id)
        if known is None or known.body.appraised_at <= result.body.appraised_at:
            self._newest[device_id] = result

    def _wake(self, device_id: str) -> None:
        for future in self._waiting.get(device_id, ()):
            if not future.done():
                future.set_result(None)
