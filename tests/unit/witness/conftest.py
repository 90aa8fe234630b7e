"""A witness on a real database and a real port, and a log that is nothing but its leaves and its key."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from prometheus_client import CollectorRegistry

from vigil.core import merkle, notes
from vigil.core.clock import ManualClock
from vigil.rpc.plain_http import PlainHttpServer
from vigil.storage import Database
from vigil.witness.domain import KnownLogs
from vigil.witness.founding import WitnessKey, found, open_witness
from vigil.witness.metrics import WitnessMetrics
from vigil.witness.service import Witness
from vigil.witness.servicer import WitnessServicer

ORIGIN = "vigil.test/evidence"
NAME = "witness.test/one"


@dataclass
class SmallLog:
    """Leaves under a key. ``fork`` has the same key and another future."""

    leaves: list[bytes] = field(default_factory=list)
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    origin: str = ORIGIN

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def verifier_key(self) -> str:
        return notes.verifier_key(self.origin, self.public)

    def grow(self, *texts: str) -> "SmallLog":
        self.leaves += [merkle.leaf_hash(text.encode()) for text in texts]
        return self

    def fork(self, size: int) -> "SmallLog":
        return SmallLog(self.leaves[:size], self.key, self.origin)

    def text(self, size: int | None = None) -> str:
        leaves = self.leaves[:size]
        return notes.checkpoint_text(self.origin, len(leaves), merkle.tree_root(leaves))

    def note(self, size: int | None = None) -> str:
        return notes.sign_note(self.text(size), name=self.origin, public_key=self.public, sign=self.key.sign)

    def proof(self, old: int, size: int | None = None) -> list[bytes]:
        return merkle.consistency_path(self.leaves[:size], old)

    def request(self, old: int, size: int | None = None) -> bytes:
        return request(old, self.proof(old, size), self.note(size))


def request(old: int | str, proof: list[bytes], note: str) -> bytes:
    """A body of add-checkpoint, as tlog-witness says."""
    lines = [f"old {old}", *(base64_of(one) for one in proof), "", note]
    return "\n".join(lines).encode()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass
class RunningWitness:
    """A witness on its folder; stopped and started again with ``again``."""

    folder: Path
    logs: list[str]
    clock: ManualClock = field(default_factory=ManualClock)
    port: int = 0
    database: Database | None = None
    key: WitnessKey | None = None
    server: PlainHttpServer | None = None

    async def start(self) -> None:
        key, memory = self.folder / "witness.key", self.folder / "witness.db"
        if not key.exists():
            found(key, memory, name=NAME, generate=Ed25519PrivateKey.generate)
        self.key, self.database = open_witness(key, memory, name=NAME)
        witness = Witness(key=self.key, logs=KnownLogs(self.logs), database=self.database, clock=self.clock)
        servicer = WitnessServicer(witness=witness, metrics=WitnessMetrics(CollectorRegistry()))
        self.server = PlainHttpServer(listen="127.0.0.1:0", routes=servicer.routes, what="witness")
        self.port = await self.server.start()

    async def stop(self) -> None:
        if self.server is not None and self.database is not None:
            await self.server.stop()
            self.database.close()
            self.server = None

    async def post(
        self, body: bytes, *, path: str = "/add-checkpoint", method: str = "POST"
    ) -> tuple[int, str, str]:
        """Status, Content-Type as it was sent, and body of the answer."""
        url = f"http://127.0.0.1:{self.port}{path}"
        async with aiohttp.ClientSession() as session, session.request(method, url, data=body) as response:
            return response.status, response.headers["Content-Type"], await response.text()

    def cosigned(self, text: str, line: str) -> notes.Cosignature:
        assert self.key is not None
        cosignature = notes.find_cosignature(text, notes.parse_signatures(line), self.key.verifier_key)
        assert cosignature is not None
        return cosignature


@pytest.fixture
def log() -> SmallLog:
    return SmallLog().grow("one", "two", "three")


@pytest.fixture
async def witness(tmp_path: Path, log: SmallLog) -> AsyncIterator[RunningWitness]:
    witness = RunningWitness(tmp_path, [log.verifier_key])
    await witness.start()
    yield witness
    await witness.stop()
    await asyncio.sleep(0)
