"""Calls over pooled, coalesced streams beside a bare bidi echo of the same bytes, both over mTLS on loopback."""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from tests.support.pki import TestPki
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.core.clock import SystemClock
from vigil.rpc.channel import Channels
from vigil.rpc.server import GrpcServer
from vigil.rpc.status import translated
from vigil.rpc.streams import Exchange, serve_exchange
from vigil.rpc.tls import TlsFiles

SERVICE = "vigil.api.evidence.v1.EvidenceLogService"
PAYLOAD = os.urandom(600)
STREAMS = 16
CALLERS = 64
SECONDS = 2.0


class _EchoServicer(evidence_pb2_grpc.EvidenceLogServiceServicer):
    def Append(self, requests: Any, _context: Any) -> Any:  # noqa: N802 - the contract's name
        return serve_exchange(
            requests,
            self._answer,
            unpack=lambda request: request.items,
            pack=lambda items: evidence_pb2.AppendResponse(items=items),
            failed=lambda call_id, error: evidence_pb2.AppendOutcome(call_id=call_id, error=error),
        )

    async def _answer(self, item: Any) -> Any:
        return evidence_pb2.AppendOutcome(recorded=evidence_pb2.RecordedItem(recorded=item.statement))


async def _rate(call: Callable[[], Awaitable[Any]], callers: int) -> tuple[float, float]:
    """Calls a second and the median latency in ms, with that many callers in a closed loop."""
    latencies: list[float] = []
    end = time.perf_counter() + SECONDS

    async def caller() -> None:
        while (started := time.perf_counter()) < end:
            await call()
            latencies.append(time.perf_counter() - started)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    latencies.sort()
    return len(latencies) / (time.perf_counter() - began), latencies[len(latencies) // 2] * 1000


async def _bare_echo(files: TlsFiles, client: TlsFiles, root: bytes) -> tuple[float, float]:
    """The floor: one message in flight on each of CALLERS bare streams, nothing checked."""

    async def echo(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    server = grpc.aio.server()
    handlers = {"Echo": grpc.stream_stream_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", handlers),))
    credentials = grpc.ssl_server_credentials(
        [(files.key.read_bytes(), files.certificate.read_bytes())], root, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    channel = grpc.aio.secure_channel(
        f"127.0.0.1:{port}",
        grpc.ssl_channel_credentials(root, client.key.read_bytes(), client.certificate.read_bytes()),
        options=[("grpc.ssl_target_name_override", "evidence.vigil.test")],
    )
    free = [channel.stream_stream("/bare/Echo")() for _ in range(CALLERS)]

    async def call() -> None:
        stream = free.pop()
        await stream.write(PAYLOAD)
        await stream.read()
        free.append(stream)

    await call()
    measured = await _rate(call, CALLERS)
    await channel.close()
    await server.stop(None)
    return measured


async def run() -> dict[str, float]:
    """Measure; figures a second, latencies in ms, ratios to the bare echo of this very run."""
    with tempfile.TemporaryDirectory() as folder:
        pki = TestPki(Path(folder))
        served, caller = (
            TlsFiles(each.certificate, each.key, each.trust)
            for each in (pki.service("evidence").tls_files, pki.service("policy").tls_files)
        )
        floor, floor_p50 = await _bare_echo(served, caller, pki.bundle.root_pem)
        clock = SystemClock()
        server = GrpcServer(
            role="evidence",
            tls=served,
            clock=clock,
            listen="127.0.0.1:0",
            servicers=[
                (evidence_pb2_grpc.add_EvidenceLogServiceServicer_to_server, _EchoServicer(), SERVICE)
            ],
        )
        port = await server.start()
        channels = Channels(tls=caller, trust_domain=pki.trust_domain, clock=clock)
        stub: Any = evidence_pb2_grpc.EvidenceLogServiceStub(
            channels.service(f"127.0.0.1:{port}", "evidence")
        )
        figures = {"bare_echo_per_s": floor, "bare_echo_p50_ms": floor_p50}
        async with Exchange[Any, Any](
            name="evidence",
            open_stream=stub.Append,
            pack=lambda items: evidence_pb2.AppendRequest(items=items),
            unpack=lambda response: response.items,
            entropy=os.urandom,
            streams=STREAMS,
        ) as exchange:

            async def call() -> None:
                await translated(exchange.call(evidence_pb2.AppendItem(statement=PAYLOAD)))

            await call()
            for callers in (1, CALLERS, 8 * CALLERS):
                rate, median = await _rate(call, callers)
                figures[f"exchange_{callers}_callers_per_s"] = rate
                figures[f"exchange_{callers}_callers_p50_ms"] = median
        figures["ratio_to_bare_echo"] = figures[f"exchange_{CALLERS}_callers_per_s"] / floor
        await channels.close()
        await server.stop(0.5)
        return figures
