"""Bare grpc.aio: a server and a channel over mTLS, and a pool of streams with one message in flight on each."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from tests.support.pki import TRUST_DOMAIN, TestPki

STREAMS = 16
Answer = Callable[[bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Ends:
    """Where one process finds its certificate and its peers (``host:port``)."""

    certificate: str
    key: str
    root: str
    peers: dict[str, str]

    @classmethod
    def of(cls, pki: TestPki, role: str, peers: dict[str, str]) -> "Ends":
        files = pki.service(f"echo-{role}").tls_files
        root = pki.tmp_path / "root.pem"
        root.write_bytes(pki.bundle.root_pem)
        return cls(str(files.certificate), str(files.key), str(root), peers)

    def to_line(self) -> str:
        return json.dumps(asdict(self))

    def _pems(self) -> tuple[bytes, bytes, bytes]:
        return (
            Path(self.root).read_bytes(),
            Path(self.key).read_bytes(),
            Path(self.certificate).read_bytes(),
        )

    def channel(self, role: str) -> grpc.aio.Channel:
        """A connection of its own to a peer."""
        return grpc.aio.secure_channel(
            self.peers[role],
            grpc.ssl_channel_credentials(*self._pems()),
            options=[
                ("grpc.ssl_target_name_override", f"echo-{role}.{TRUST_DOMAIN}"),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    async def serve(self, handlers: dict[str, Any]) -> tuple[grpc.aio.Server, int]:
        """Serve methods of ``/echo/``; answers the port."""
        root, key, certificate = self._pems()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", handlers),))
        credentials = grpc.ssl_server_credentials([(key, certificate)], root, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        return server, port


class Pool:
    """Streams that are free; a call takes one, writes, reads, and gives it back."""

    def __init__(self) -> None:
        self._free: asyncio.Queue[Any] = asyncio.Queue()

    async def dial(self, channel: grpc.aio.Channel, method: str) -> "Pool":
        """Open the streams from this end."""
        for _ in range(STREAMS):
            call: Any = channel.stream_stream(method)()
            await call.wait_for_connection()
            self.add(call)
        return self

    def add(self, stream: Any) -> None:
        """A stream, of a call or of a server's context: both read and write."""
        self._free.put_nowait(stream)

    @property
    def size(self) -> int:
        return self._free.qsize()

    async def call(self, message: bytes) -> bytes:
        stream = await self._free.get()
        await stream.write(message)
        answer: bytes = await stream.read()
        self._free.put_nowait(stream)
        return answer


def stream_of(answer: Answer) -> Any:
    """A method that answers each message of a stream."""

    async def serve(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await answer(request)

    return grpc.stream_stream_rpc_method_handler(serve)
