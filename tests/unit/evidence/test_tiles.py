"""The log as tiles: every width, every level, only what is signed; and the server in front of them."""

import asyncio
import gzip
import http.client
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from prometheus_client import CollectorRegistry

from tests.support.pki import TestPki
from tests.support.stack import eventually
from tests.unit.evidence.conftest import Log, World, submission
from tests.unit.evidence.grown import grow
from vigil.core.clock import SystemClock
from vigil.core.merkle import leaf_hash, tree_root
from vigil.core.notes import Cosignature, cosign, cosigner_key
from vigil.core.salted import unsalted
from vigil.core.tiles import Tile, encode_bundle
from vigil.core.witness_policy import WitnessPolicy, parse_witness_policy
from vigil.errors import Reason, Refused
from vigil.evidence import store, tile_server, tiles
from vigil.evidence.domain import open_note, parse_checkpoint_text
from vigil.evidence.metrics import LogMetrics, TileMetrics
from vigil.evidence.tables import ENTRY, METADATA
from vigil.evidence.tile_server import ServerTls, TileServer
from vigil.evidence.tiles import TileReader
from vigil.evidence.witness_book import WitnessBook
from vigil.rpc import plain_http
from vigil.rpc.network import ListenError
from vigil.rpc.tls import TlsFiles, TlsWatcher
from vigil.storage import open_database

FOREVER = "public, max-age=31536000, immutable"


def grown(world: World, count: int) -> tuple[Log, list[bytes]]:
    """Open a log that has just grown by `count` entries."""
    for log in world.opened:
        log.database.close()
    database = open_database(
        world.folder / "evidence.db", metadata=METADATA, migrations="vigil.evidence.migrations"
    )
    leaves = grow(database, world.pki, count=count, clock=world.clock)
    database.close()
    return world.open(started=False), leaves


def book_of(log: Log, policy: WitnessPolicy | None = None) -> WitnessBook:
    return WitnessBook(
        database=log.database, policy=policy or WitnessPolicy(), metrics=LogMetrics(CollectorRegistry())
    )


def reader_of(log: Log, book: WitnessBook | None = None) -> TileReader:
    return TileReader(database=log.database, checkpointer=log.checkpointer, book=book or book_of(log))


async def reason_of(reader: TileReader, path: str) -> Reason:
    with pytest.raises(Refused) as caught:
        await reader.read(path)
    return caught.value.reason


async def test_the_empty_log_has_a_checkpoint_and_no_tile(world: World) -> None:
    reader = reader_of(world.open(started=False))
    assert open_note((await reader.read("/checkpoint")).content.decode(), world.key.verifier_key)
    for path in ("/tile/0/000", "/tile/0/000.p/1", "/tile/1/000.p/1", "/tile/entries/000.p/1"):
        assert await reason_of(reader, path) is Reason.RESOURCE_NOT_FOUND


async def test_a_checkpoint_comes_with_its_witnesses(world: World) -> None:
    witness = Ed25519PrivateKey.generate()
    public = witness.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    key = cosigner_key("witness.test/w", public)
    log, _ = grown(world, 3)
    book = book_of(log, parse_witness_policy(f"witness w {key}\nquorum w"))
    reader = reader_of(log, book)
    checkpoint = await log.checkpointer.sign()
    assert (await reader.read("/checkpoint")).content.decode() == checkpoint.note
    text = open_note(checkpoint.note, world.key.verifier_key)
    line = cosign(text, time=1_790_000_000, name="witness.test/w", public_key=public, sign=witness.sign)
    await book.keep(checkpoint, key, Cosignature("witness.test/w", 1_790_000_000, line))
    note = (await reader.read("/checkpoint")).content.decode()
    assert note == checkpoint.note + line
    assert open_note(note, world.key.verifier_key) == text


async def test_every_partial_width(world: World) -> None:
    log, leaves = grown(world, 256 + 255)
    await log.checkpointer.sign()
    reader = reader_of(log)
    hashes = [leaf_hash(leaf) for leaf in leaves]
    for width in range(1, 256):
        tile = await reader.read(f"/tile/0/001.p/{width}")
        assert tile.content == b"".join(hashes[256 : 256 + width])
        bundle = await reader.read(f"/tile/entries/001.p/{width}")
        assert bundle.content == encode_bundle(leaves[256 : 256 + width])
        # Of a tile that is full by now, an earlier checkpoint's part is still to be had.
        assert (await reader.read(f"/tile/0/000.p/{width}")).content == b"".join(hashes[:width])
        assert {tile.caching, bundle.caching} == {"public, max-age=60"}
    assert (await reader.read("/tile/0/000")).content == b"".join(hashes[:256])
    assert (await reader.read("/tile/entries/000")).caching == FOREVER
    assert (await reader.read("/tile/1/000.p/1")).content == tree_root(hashes[:256])
    for path in ("/tile/0/001", "/tile/entries/001", "/tile/1/000.p/2", "/tile/1/000", "/tile/2/000.p/1"):
        assert await reason_of(reader, path) is Reason.RESOURCE_NOT_FOUND


async def test_three_levels(world: World) -> None:
    """The specification's tree of 70,000: 112, 17 and 1 hashes at the right edge."""
    log, leaves = grown(world, 70_000)
    await log.checkpointer.sign()
    reader = reader_of(log)
    hashes = [leaf_hash(leaf) for leaf in leaves]
    above = [tree_root(hashes[at : at + 256]) for at in range(0, 273 * 256, 256)]
    assert (await reader.read("/tile/0/272")).content == b"".join(hashes[272 * 256 : 273 * 256])
    assert (await reader.read("/tile/0/273.p/112")).content == b"".join(hashes[273 * 256 :])
    assert (await reader.read("/tile/entries/273.p/112")).content == encode_bundle(leaves[273 * 256 :])
    assert (await reader.read("/tile/1/000")).content == b"".join(above[:256])
    assert (await reader.read("/tile/1/001.p/17")).content == b"".join(above[256:])
    assert (await reader.read("/tile/2/000.p/1")).content == tree_root(above[:256])
    for path in (
        *("/tile/0/273", "/tile/0/273.p/113", "/tile/0/274.p/1", "/tile/1/001", "/tile/1/001.p/18"),
        *("/tile/2/000.p/2", "/tile/2/000", "/tile/3/000.p/1", "/tile/63/000", "/tile/63/000.p/1"),
        *("/tile/entries/274.p/1", "/tile/0/x001/000", Tile(0, 10**21 - 1).path),
    ):
        assert await reason_of(reader, path) is Reason.RESOURCE_NOT_FOUND, path


async def test_only_what_a_checkpoint_covers_is_served(world: World) -> None:
    log, _ = grown(world, 3)
    await log.checkpointer.sign()
    log.start()
    reader = reader_of(log)
    await log.sequencer.append(submission(world.writer().hold()))
    assert (await log.sequencer.state()).size == 4  # durable, and not signed
    assert await reason_of(reader, "/tile/0/000.p/4") is Reason.RESOURCE_NOT_FOUND
    assert await reason_of(reader, "/tile/entries/000.p/4") is Reason.RESOURCE_NOT_FOUND
    await log.checkpointer.sign()
    text = open_note((await reader.read("/checkpoint")).content.decode(), world.key.verifier_key)
    hashes = (await reader.read("/tile/0/000.p/4")).content
    assert parse_checkpoint_text(text)[1:] == (
        4,
        tree_root([hashes[at : at + 32] for at in range(0, 128, 32)]),
    )


@pytest.mark.holds("strangers")
async def test_a_tile_holds_neither_statement_nor_body_nor_owner(world: World) -> None:
    log = world.open()
    statement = world.writer().hold(reason="patient-Ottilie")
    body = b"what the pump's screen said"
    await log.sequencer.append(
        submission(statement, bodies=(body,), organization="org-secret", site="site-secret")
    )
    await log.checkpointer.sign()
    bundle = (await reader_of(log).read("/tile/entries/000.p/1")).content
    stored = await log.database.read(
        lambda connection: store.load_entry(connection, 0, store.CommitReader(connection))
    )
    assert stored is not None
    assert [unsalted(kept) for kept in stored.bodies] == [body]
    assert (b"patient-Ottilie" in stored.statement, stored.organization) == (True, "org-secret")
    for hidden in (b"patient-Ottilie", body, b"org-secret", b"site-secret", statement.data[-64:]):
        assert hidden not in bundle
    assert statement.digest in bundle


async def test_a_hole_is_never_answered_with_less(world: World) -> None:
    log, _ = grown(world, 300)
    await log.checkpointer.sign()
    with_hole = ENTRY.delete().where(ENTRY.c.idx == 17)
    await log.database.write(lambda connection: connection.execute(with_hole))
    reader = reader_of(log)
    with pytest.raises(LookupError):
        await reader.read("/tile/entries/000")
    async with served(reader) as server:
        answer = await server.get("/tile/0/000")
        assert (answer.status, answer.headers["Cache-Control"]) == (500, "no-store")
        assert answer.body == b"This part of the log cannot be read.\n"
        assert (await server.get("/tile/0/001.p/44")).status == 200


async def test_strangers_wait_for_two_reads_and_not_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _ = grown(world, 1)
    await log.checkpointer.sign()
    blocked, running, most = asyncio.Event(), 0, 0
    read = log.database.read

    async def slowly(run: object) -> object:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await blocked.wait()
        running -= 1
        return await read(run)  # type: ignore[arg-type]

    monkeypatch.setattr(log.database, "read", slowly)
    reader = reader_of(log)
    asked = [asyncio.create_task(reader.read("/tile/0/000.p/1")) for _ in range(tiles.WAITING)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await reason_of(reader, "/tile/0/000.p/1") is Reason.QUOTA_EXCEEDED
    async with served(reader) as server:
        answer = await server.get("/tile/0/000.p/1")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    blocked.set()
    assert len({resource.content for resource in await asyncio.gather(*asked)}) == 1
    assert most == tiles.READS_AT_ONCE
    assert (await reader.read("/tile/0/000.p/1")).content


# --- over HTTP


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Served:
    port: int
    server: TileServer

    def connections(self) -> list[object]:
        assert self.server._server._http is not None
        return list(self.server._server._http.connections)

    async def get(self, target: str, method: str = "GET", **headers: str) -> Answer:
        return await asyncio.to_thread(self._get, target, method, headers)

    def _get(self, target: str, method: str, headers: Mapping[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    async def raw(self, data: bytes) -> bytes:
        """Send bytes and read until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(30):
                return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


@asynccontextmanager
async def served(reader: tile_server.Reader, tls: ServerTls | None = None) -> AsyncIterator[Served]:
    server = TileServer(
        reader=reader, listen="127.0.0.1:0", tls=tls, metrics=TileMetrics(CollectorRegistry())
    )
    port = await server.start()
    try:
        yield Served(port, server)
    finally:
        await server.stop()


async def test_headers_say_what_may_be_kept(world: World) -> None:
    log, leaves = grown(world, 300)
    note = (await log.checkpointer.sign()).note
    async with served(reader_of(log)) as server:
        checkpoint = await server.get("/checkpoint")
        assert checkpoint.body == note.encode()
        assert checkpoint.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert checkpoint.headers["Cache-Control"] == "public, max-age=1"
        for path, caching, size in (
            ("/tile/0/000", FOREVER, 8192),
            ("/tile/0/001.p/44", "public, max-age=60", 44 * 32),
            ("/tile/1/000.p/1", "public, max-age=60", 32),
            ("/tile/entries/000", FOREVER, len(encode_bundle(leaves[:256]))),
            ("/tile/entries/001.p/44", "public, max-age=60", len(encode_bundle(leaves[256:]))),
        ):
            answer = await server.get(path)
            assert (answer.status, len(answer.body)) == (200, size)
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert answer.headers["Cache-Control"] == caching
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Server"] == "vigil"
            assert answer.headers.get("Content-Encoding") is None
            head = await server.get(path, "HEAD")
            assert (head.status, head.body) == (200, b"")
            assert head.headers["Content-Length"] == str(size)
            assert head.headers["Cache-Control"] == caching


async def test_bundles_are_compressed_for_those_who_take_it(world: World) -> None:
    log, leaves = grown(world, 256)
    await log.checkpointer.sign()
    async with served(reader_of(log)) as server:
        plain = encode_bundle(leaves)
        for accepted in ("gzip", "deflate, GZIP;q=0.5", "identity;q=1, gzip;q=1.0"):
            answer = await server.get("/tile/entries/000", Accept_Encoding=accepted)
            assert answer.headers["Content-Encoding"] == "gzip"
            assert len(answer.body) < len(plain) == len(gzip.decompress(answer.body))
            assert answer.headers["Vary"] == "Accept-Encoding"
        for accepted in ("gzip;q=0", "gzip; q=0.000", "identity", "br", ""):
            answer = await server.get("/tile/entries/000", Accept_Encoding=accepted)
            assert answer.headers.get("Content-Encoding") is None
            assert (answer.body, answer.headers["Vary"]) == (plain, "Accept-Encoding")
        assert (await server.get("/tile/0/000", Accept_Encoding="gzip")).headers.get(
            "Content-Encoding"
        ) is None


@pytest.mark.holds("strangers")
async def test_bad_paths_are_told_why_and_never_kept(world: World) -> None:
    log, _ = grown(world, 3)
    await log.checkpointer.sign()
    async with served(reader_of(log)) as server:
        for path, status, word in (
            ("/", 404, "read at /checkpoint"),
            ("/evidence.db", 404, "read at /checkpoint"),
            ("/checkpoint/", 404, "read at /checkpoint"),
            ("/checkpoint?size=1", 404, "read at /checkpoint"),
            ("/../log.key", 404, "read at /checkpoint"),
            ("/tile/../../log.key", 400, "groups of three"),
            ("/tile/0/%2e%2e/log.key", 400, "groups of three"),
            ("/tile/0/-01", 400, "groups of three"),
            ("/tile/0/x000/000", 400, "group of zeros"),
            ("/tile/64/000", 400, "level is above 63"),
            ("/tile/0/000.p/256", 400, "1 to 255"),
            ("/tile/0/000.p/0", 400, "1 to 255"),
            ("/tile/0/000?x", 400, "groups of three"),
            ("/tile/0/" + "x001/" * 150 + "001", 400, "groups of three"),
            ("/tile/0/000.p/4", 404, "covers 3 entries"),
            ("/tile/0/000", 404, "covers 3 entries"),
            ("/tile/entries/999", 404, "covers 3 entries"),
        ):
            answer = await server.get(path)
            assert (answer.status, word in answer.body.decode()) == (status, True), (path, answer)
            assert answer.headers["Cache-Control"] == "no-store"
            head = await server.get(path, "HEAD")
            assert (head.status, head.body) == (status, b"")
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"):
            answer = await server.get("/checkpoint", method)
            assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


async def test_what_is_not_http_is_refused_and_the_server_serves_on(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    log, _ = grown(world, 3)
    await log.checkpointer.sign()
    async with served(reader_of(log)) as server:
        for data in (
            b"GET /checkpoint\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
            b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /checkpoint HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 5000 + b"\r\n\r\n",
            b"GET /checkpoint HTTP/1.1\r\n" + b"X: a\r\n" * 500 + b"\r\n",
            b"GET /check\x00point HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /checkpoint HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"GET /checkpoint HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ):
            answer = await server.raw(data)
            assert not answer or answer.split(b" ", 2)[1] in {b"400", b"505"}, (data[:60], answer)
        absolute = b"GET http://vigil.test/checkpoint HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await server.raw(absolute)).split(b" ", 2)[1] == b"404"
        for path in (b"/checkpoint", b"/tile/0/000.p/3"):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            writer.transport.abort()
        await eventually(lambda: not server.connections(), what="those who left are gone")
        assert (await server.get("/checkpoint")).status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_connection_that_does_not_ask_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_server, "IDLE_S", 0.2)
    async with served(reader_of(world.open(started=False))) as server:
        assert await server.raw(b"") == b""
        assert await server.raw(b"GET /checkpoint HTT") == b""


async def test_a_reader_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_server, "ANSWER_S", 0.2)
    much = bytes(64 << 20)

    class Much:
        async def read(self, path: str) -> tiles.Resource:
            assert path == "/tile/0/000"
            return tiles.Resource(much, tiles.BYTES, tiles.A_SECOND)

    async with served(Much()) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /tile/0/000 HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: bool(server.connections()), what="the connection is open")
        await eventually(lambda: not server.connections(), what="the connection is dropped")
        writer.close()


async def test_so_many_connections_and_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_http, "MAX_CONNECTIONS", 2)
    async with served(reader_of(world.open(started=False))) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        for _, writer in held:
            writer.write(b"GET /checkpoint HTTP/1.1\r\nHost: x\r\n\r\n")
        for reader, _ in held:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert await server.raw(b"GET /checkpoint HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        for _, writer in held:
            writer.close()


async def test_a_port_in_use_is_told(world: World) -> None:
    reader = reader_of(world.open(started=False))
    async with served(reader) as server:
        with pytest.raises(ListenError, match=f"127.0.0.1:{server.port}"):
            await TileServer(
                reader=reader,
                listen=f"127.0.0.1:{server.port}",
                tls=None,
                metrics=TileMetrics(CollectorRegistry()),
            ).start()


async def test_over_tls_with_the_services_certificate_and_its_successor(world: World) -> None:
    log, _ = grown(world, 3)
    note = (await log.checkpointer.sign()).note
    pki = TestPki(world.folder, clock=SystemClock())  # OpenSSL knows no other clock
    first, second = (pki.service("evidence").tls_files for _ in range(2))
    used = world.folder / "tls.pem", world.folder / "tls.key"
    for path, new in zip(used, (first.certificate, first.key), strict=True):
        path.write_bytes(new.read_bytes())
    files = TlsFiles(*used, first.trust)
    tls = ServerTls(files=files, watcher=TlsWatcher(files=files, clock=world.clock))
    trusting = ssl.create_default_context(cadata=pki.bundle.root_pem.decode())

    async def ask() -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=trusting, server_hostname="evidence.vigil.test"
        )
        writer.write(b"GET /checkpoint HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return answer, shown

    async with served(reader_of(log), tls) as server:
        answer, before = await ask()
        assert answer.endswith(note.encode())
        assert await server.raw(b"GET /checkpoint HTTP/1.1\r\n\r\n") in {b"", b"\x15\x03\x01\x00\x02\x02\x46"}
        for path, new in zip(used, (second.certificate, second.key), strict=True):
            path.write_bytes(new.read_bytes())
        world.clock.advance(5)
        answer, after = await ask()
        assert answer.endswith(note.encode())
        assert before != after


async def test_what_is_asked_for_is_counted_in_words_of_ours(world: World) -> None:
    log = world.open()
    await log.sequencer.append(submission(world.writer().hold()))
    await log.checkpointer.sign()
    registry = CollectorRegistry()
    server = TileServer(reader=reader_of(log), listen="127.0.0.1:0", tls=None, metrics=TileMetrics(registry))
    served_at = Served(await server.start(), server)
    try:
        for path in ("/checkpoint", "/tile/0/000.p/1", "/tile/entries/000.p/1", "/tile/0/001", "/x?y=z"):
            await served_at.get(path)
    finally:
        await server.stop()
    found = {
        (sample.labels["resource"], sample.labels["status"]): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    assert found == {
        ("checkpoint", "200"): 1,
        ("hashes", "200"): 1,
        ("entries", "200"): 1,
        ("hashes", "404"): 1,
        ("other", "404"): 1,
    }
