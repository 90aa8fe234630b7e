"""Calls over pooled, coalesced streams beside a bare bidi echo of the same bytes, both over mTLS on loopback."""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from tests.benchmarks.result import Progress, Result, Row, percentile, ratio_at_least
from tests.support.pki import TestPki
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.core.clock import SystemClock
from vigil.rpc.channel import Channels
from vigil.rpc.server import GrpcServer
from vigil.rpc.status import translated
from vigil.rpc.stream_server import serve_exchange
from vigil.rpc.streams import Exchange
from vigil.rpc.tls import TlsFiles

TITLE = "Calls over pooled streams"

SERVICE = "vigil.api.evidence.v1.EvidenceLogService"
PAYLOAD = os.urandom(600)
STREAMS = 16
CALLERS = 64
LOADS = (1, CALLERS, 8 * CALLERS)
SECONDS = 2.0
QUICK_SECONDS = 0.5


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


async def _rate(call: Callable[[], Awaitable[Any]], callers: int, seconds: float) -> tuple[float, float]:
    """Calls a second and the median latency in ms, with that many callers in a closed loop."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while (started := time.perf_counter()) < end:
            await call()
            latencies.append(time.perf_counter() - started)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return len(latencies) / (time.perf_counter() - began), percentile(latencies, 0.5) * 1000


async def _bare_echo(files: TlsFiles, client: TlsFiles, root: bytes, seconds: float) -> tuple[float, float]:
    """The floor: one message in flight on each of CALLERS bare streams, nothing checked."""

    async def echo(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    server = grpc.aio.server()
    handlers: Any = {"Echo": grpc.stream_stream_rpc_method_handler(echo)}
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
    free: list[Any] = [channel.stream_stream("/bare/Echo")() for _ in range(CALLERS)]

    async def call() -> None:
        stream = free.pop()
        await stream.write(PAYLOAD)
        await stream.read()
        free.append(stream)

    await call()
    measured = await _rate(call, CALLERS, seconds)
    await channel.close()
    await server.stop(None)
    return measured


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """Measure beside the bare echo of this very run."""
    figures = await _figures(QUICK_SECONDS if quick else SECONDS, progress)
    bare = "a bare bidi echo of the same bytes, one message in flight on each of 64 streams"
    return Result(
        rows=tuple(
            Row(
                work=f"{callers} callers",
                figure=figures[f"exchange_{callers}_callers_per_s"],
                unit="calls/s",
                floor=figures["bare_echo_per_s"] if callers == CALLERS else None,
                floor_is=bare if callers == CALLERS else "",
                target=ratio_at_least(1.0) if callers == CALLERS else None,
                note=f"p50 {figures[f'exchange_{callers}_callers_p50_ms']:.2f} ms",
            )
            for callers in LOADS
        )
    )


async def _figures(seconds: float, progress: Progress) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        pki = TestPki(Path(folder))
        served, caller = (
            TlsFiles(each.certificate, each.key, each.trust)
            for each in (pki.service("evidence").tls_files, pki.service("policy").tls_files)
        )
        floor, floor_p50 = await _bare_echo(served, caller, pki.bundle.root_pem, seconds)
        progress(0.25)
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
            for place, callers in enumerate(LOADS):
                rate, median = await _rate(call, callers, seconds)
                figures[f"exchange_{callers}_callers_per_s"] = rate
                figures[f"exchange_{callers}_callers_p50_ms"] = median
                progress(0.25 * (place + 2))
        await channels.close()
        await server.stop(0.5)
        return figures
