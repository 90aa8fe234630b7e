"""Another project's checker reads the log unchanged: fsck of Tessera, over HTTP and HTTPS, with our verifier key.

A log in which one byte was changed, wherever it lies, must not pass: a checker that always nods would show nothing.
"""

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.evidence import EvidenceProcess, HoldWriter
from tests.support.pki import ORGANIZATION, SITE, Credential, TestPki
from tests.support.stack import Stack
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.core.clock import SystemClock
from vigil.core.merkle import leaf_hash, root_of_path, tree_root
from vigil.evidence.domain import open_note, parse_checkpoint_text, parse_verifier_key
from vigil.evidence.service import LogKey
from vigil.feed.evidence import EvidenceAppender, Record
from vigil.rpc.channel import Channels
from vigil.run.layout import TILES

FSCK = shutil.which("tessera-fsck")
needs_fsck = pytest.mark.skipif(
    FSCK is None, reason="Tessera's fsck is not installed: `make tools` builds it where there is Go"
)
ENTRIES = 600
"""Two full tiles, one of 88, and a second level of two."""


async def fsck(url: str, key: str, *, folder: Path, **environment: str) -> tuple[bool, str]:
    """Whether fsck says that the log is whole, and all that it said. Its exit code says nothing in v1.0.4."""
    assert FSCK is not None
    public_key = folder / "log.pub"
    public_key.write_text(key)
    done = await asyncio.to_thread(
        subprocess.run,
        (FSCK, "--storage_url", f"{url}/", "--public_key", str(public_key), "--ui=false"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    whole = "Successfully fsck'd log" in done.stderr
    assert whole != ("fsck failed" in done.stderr), done.stderr
    return whole and done.returncode == 0, done.stderr


class ServedLog:
    """An evidence service with tiles, filled through its own interface."""

    def __init__(self, folder: Path, *, scheme: str = "http") -> None:
        self.pki = TestPki(folder)
        self.folder = folder
        self.process = EvidenceProcess(self.pki, folder, tiles=scheme)
        self.digests: list[bytes] = []

    @asynccontextmanager
    async def channel(self, caller: Credential) -> AsyncIterator[grpc.aio.Channel]:
        channels = Channels(tls=caller.tls_files, trust_domain=self.pki.trust_domain, clock=SystemClock())
        try:
            yield channels.service(self.process.address, "evidence")
        finally:
            await channels.close()

    async def append(self, count: int) -> None:
        writer = HoldWriter(self.pki.person("p-safety", "safety"))
        statements = [writer.hold() for _ in range(count)]
        async with self.channel(self.pki.service("policy")) as channel:
            appender = EvidenceAppender(channel=channel, entropy=os.urandom, streams=2)
            await appender.append_all(
                Record(statement=one.data, organization_id=ORGANIZATION, site_id=SITE) for one in statements
            )
            await appender.close()
        self.digests += [one.digest for one in statements]

    async def checkpoint(self, *, covering: int) -> evidence_pb2.Checkpoint:
        """The newest checkpoint once it covers so many entries."""
        async with self.channel(self.pki.person("p-reader", "auditor")) as channel:
            stub = evidence_pb2_grpc.EvidenceReadServiceStub(channel)
            proof = await stub.GetInclusionProof(
                evidence_pb2.GetInclusionProofRequest(index=covering - 1), timeout=30
            )
            return proof.checkpoint

    async def fsck(self, key: str, *, url: str = "", **environment: str) -> tuple[bool, str]:
        return await fsck(url or self.process.tiles, key, folder=self.folder, **environment)

    async def get(self, path: str) -> bytes:
        def read() -> bytes:
            with urlopen(f"{self.process.tiles}{path}", timeout=30) as answer:
                return bytes(answer.read())

        return await asyncio.to_thread(read)

    def change(self, statement: str, *values: object) -> None:
        """What an operator can do behind the service's back: one row, in its tables."""
        with sqlite3.connect(self.process.data / "evidence.db", timeout=30) as database:
            assert database.execute(statement, values).rowcount == 1


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[ServedLog]:
    log = ServedLog(tmp_path)
    await log.process.start()
    yield log
    await log.process.stop()


@needs_fsck
async def test_fsck_reads_the_log_at_every_kind_of_size(log: ServedLog) -> None:
    size = 0
    for more in (
        1,
        254,
        1,
        1,
        ENTRIES - 257,
    ):  # one entry, a partial tile, a full one, one past it, two levels
        await log.append(more)
        size += more
        checkpoint = await log.checkpoint(covering=size)
        assert checkpoint.size == size
        whole, words = await log.fsck(checkpoint.verifier_key)
        assert whole, words
        assert f"with size {size} " in words


@asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[str]:
    """An HTTP proxy (CONNECT) through which every name is the service; answers its URL."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"CONNECT ")
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pump(reader, outer), pump(inner, writer), return_exceptions=True)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@needs_fsck
async def test_fsck_reads_it_over_https_after_a_kill(tmp_path: Path) -> None:
    log = ServedLog(tmp_path, scheme="https")
    root = tmp_path / "root.pem"
    root.write_bytes(log.pki.bundle.root_pem)
    await log.process.start()
    try:
        await log.append(300)
        await log.checkpoint(covering=300)
        await log.process.kill()
        await log.process.start()
        checkpoint = await log.checkpoint(covering=300)
        trusting = {"SSL_CERT_FILE": str(root)}
        # The certificate is for a name, which fsck is led to by a proxy; by its address alone it is not believed.
        whole, words = await log.fsck(checkpoint.verifier_key, **trusting)
        assert not whole
        assert "x509: cannot validate certificate for 127.0.0.1" in words
        async with proxy_to(log.process.tiles_port) as proxy:
            whole, words = await log.fsck(
                checkpoint.verifier_key, url="https://evidence.vigil.test", HTTPS_PROXY=proxy, **trusting
            )
        assert whole, words
    finally:
        await log.process.stop()


def change_entry(log: ServedLog) -> None:
    last = "CAST(substr(leaf, 1, length(leaf) - 1) || x'07' AS BLOB)"
    log.change(f"UPDATE entry SET leaf = {last} WHERE idx = 300")


def change_leaf_order(log: ServedLog) -> None:
    with sqlite3.connect(log.process.data / "evidence.db", timeout=30) as database:
        for was, becomes in ((10, -1), (11, 10), (-1, 11)):
            assert database.execute("UPDATE entry SET idx = ? WHERE idx = ?", (becomes, was)).rowcount == 1


def change_hash(log: ServedLog) -> None:
    log.change("UPDATE node SET hash = zeroblob(32) WHERE level = 8 AND position = 1")


@needs_fsck
@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        (change_entry, "/tile/entries/001", "expected"),
        (change_leaf_order, "/tile/entries/000", "expected"),
        (change_hash, "/tile/1/000.p/2", "expected"),
    ],
)
async def test_fsck_finds_one_wrong_byte(
    log: ServedLog,
    injected: Callable[[int], None],
    change: Callable[[ServedLog], None],
    path: str,
    words: str,
) -> None:
    await log.append(ENTRIES)
    checkpoint = await log.checkpoint(covering=ENTRIES)
    assert (await log.fsck(checkpoint.verifier_key))[0]
    before = await log.get(path)
    change(log)
    after = await log.get(path)
    assert (after != before, len(after)) == (True, len(before))
    injected(1)
    whole, said = await log.fsck(checkpoint.verifier_key)
    assert not whole
    assert words in said


@needs_fsck
async def test_fsck_takes_no_other_key(log: ServedLog) -> None:
    await log.append(3)
    await log.checkpoint(covering=3)
    other = LogKey(Ed25519PrivateKey.generate(), origin="vigil.test/evidence")
    whole, words = await log.fsck(other.verifier_key)
    assert not whole
    assert "no verifiable signatures" in words


@needs_fsck
@pytest.mark.asyncio(loop_scope="session")
async def test_fsck_reads_the_log_of_an_installation_at_work(stack: Stack, tmp_path: Path) -> None:
    """What `vigil up` serves, while pumps attest and the log grows under the reader."""
    size = await stack.log_size()
    checkpoint = await stack.checkpoint()
    whole, words = await fsck(f"http://{stack.address(TILES)}", checkpoint.verifier_key, folder=tmp_path)
    assert whole, words
    assert size > 0


async def test_anybody_proves_an_entry_from_the_tiles_alone(log: ServedLog) -> None:
    """What a reader does with the files and the key: checkpoint, tiles, path; our code hashes, no service helps."""
    await log.append(ENTRIES)
    signed = await log.checkpoint(covering=ENTRIES)
    name, _ = parse_verifier_key(signed.verifier_key)
    note = (await log.get("/checkpoint")).decode()
    origin, size, root = parse_checkpoint_text(open_note(note, signed.verifier_key))
    assert (origin, size) == (name, ENTRIES)
    tiles = [await log.get(f"/tile/0/{path}") for path in ("000", "001", "002.p/88")]
    hashes = [tile[at : at + 32] for tile in tiles for at in range(0, len(tile), 32)]
    assert len(hashes) == size
    assert tree_root(hashes) == root
    above = [tree_root(hashes[at : at + 256]) for at in (0, 256)]
    assert await log.get("/tile/1/000.p/2") == b"".join(above)
    bundle = await log.get("/tile/entries/001")
    entries = []
    while bundle:
        length = int.from_bytes(bundle[:2], "big")
        entries.append(bundle[2 : 2 + length])
        bundle = bundle[2 + length :]
    assert [leaf_hash(entry) for entry in entries] == hashes[256:512]
    index = 256 + 17
    async with log.channel(log.pki.person("p-reader", "auditor")) as channel:
        stub = evidence_pb2_grpc.EvidenceReadServiceStub(channel)
        proof = await stub.GetInclusionProof(evidence_pb2.GetInclusionProofRequest(index=index, size=size))
    assert root_of_path(leaf=leaf_hash(entries[17]), index=index, size=size, path=list(proof.path)) == root
