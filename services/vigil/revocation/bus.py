"""The bus: hints that are verified before anyone acts on them. Redis can delay and lose them, never forge."""

import asyncio
from typing import Final

import redis.asyncio
import structlog
from prometheus_client import CollectorRegistry, Counter
from redis.exceptions import RedisError

from vigil.api.revocation.v1 import revocation_pb2
from vigil.errors import Refused
from vigil.revocation.heads import HeadSigner

CHANNEL: Final = "vigil.revocations"
PUBLISH_S: Final = 1.0
"""A bus that takes longer is passed over: the edges' poll is there in a second anyway."""
MAX_BYTES: Final = 1 << 20
"""Entries of one message; when there are more, the head alone tells the edges to fetch them."""


def connect(url: str) -> redis.asyncio.Redis:
    """A client of the bus; connects when it is used."""
    client: redis.asyncio.Redis = redis.asyncio.from_url(
        url, socket_timeout=PUBLISH_S, socket_connect_timeout=PUBLISH_S
    )
    return client


class Publisher:
    """Publishes new entries with a fresh head, at once; what fails is counted and forgotten."""

    def __init__(
        self, *, client: redis.asyncio.Redis, signer: HeadSigner, metrics: CollectorRegistry
    ) -> None:
        self._client = client
        self._signer = signer
        self._entries: list[bytes] = []
        self._wake = asyncio.Event()
        self._log = structlog.get_logger("vigil.revocation.bus")
        self._published = Counter(
            "vigil_revocation_published", "Messages that the bus took.", registry=metrics
        )
        self._failed = Counter(
            "vigil_revocation_publish_failed", "Messages that the bus did not take.", registry=metrics
        )

    def taken(self, _epoch: int, value: bytes) -> None:
        """A step became durable: it goes out with the next message."""
        self._entries.append(value)
        self._wake.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                entries, self._entries = self._entries, []
                await self._publish(entries)
        finally:
            await self._client.aclose()

    async def _publish(self, entries: list[bytes]) -> None:
        if sum(map(len, entries)) > MAX_BYTES:
            entries = []
        try:
            message = revocation_pb2.BusMessage(
                entries=[revocation_pb2.RevocationEntry.FromString(value) for value in entries],
                head=self._signer.sign(),
            )
            async with asyncio.timeout(PUBLISH_S):
                await self._client.publish(CHANNEL, message.SerializeToString())
        except (RedisError, OSError, TimeoutError, Refused) as error:
            self._failed.inc()
            self._log.warning("not_published", reason=str(error) or repr(error))
        else:
            self._published.inc()
