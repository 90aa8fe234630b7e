"""A captured gateway: the real service with its real key, and an attacker's hand on both of its wires.

``python -m tests.support.captured_gateway --config gateway.toml`` wires `vigil.gateway` as its own ``__main__`` does
and lets whoever holds a local socket (its path in TAP) act in its place, a JSON object a line:

    {"do": "passed", "device": D}                the newest bundle that it sent to the pump
    {"do": "send", "device": D, "message": M}    send any ConnectResponse; the pump's reply to it
    {"do": "withhold", "kinds": [K, …]}          let messages of these kinds not reach any pump; how many so far
    {"do": "answer", "method": N, "response": R} answer the next call of that method with these bytes, and do nothing

Messages travel as hex. It is an attacker's program: the checks are those of the pump, the services and the client.
"""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from google.protobuf.message import Message

from vigil.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from vigil.errors import Refused
from vigil.gateway.__main__ import Gateway
from vigil.gateway.config import GatewayConfig
from vigil.gateway.servicer import Context
from vigil.rpc.caller import caller_of, scope_filtered
from vigil.rpc.server import Servicer
from vigil.rpc.service_main import Process, run

TAP: Final = "VIGIL_TEST_TAP"
REPLY_S: Final = 3.0
RESPONSES: Final[dict[str, type[Message]]] = {
    "PrepareCommand": gateway_pb2.PrepareCommandResponse,
    "SubmitCommand": gateway_pb2.SubmitCommandResponse,
    "GetReceipt": gateway_pb2.SubmitCommandResponse,
    "GetIntent": gateway_pb2.IntentRecord,
    "GetConnectedDevice": gateway_pb2.ConnectedDevice,
}


class Wire(gateway_pb2_grpc.DeviceLinkServiceServicer):
    """Between the gateway and its pumps."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.passed: dict[str, bytes] = {}
        self.replies: dict[int, asyncio.Future[gateway_pb2.ConnectRequest]] = {}
        self.withheld: set[str] = set()
        self.counted: Counter[str] = Counter()

    async def Connect(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[gateway_pb2.ConnectRequest], context: Context
    ) -> AsyncIterator[gateway_pb2.ConnectResponse]:
        device: list[str] = []
        async for response in self._inner.Connect(self._heard(request_iterator, device), context):
            kind = response.WhichOneof("message") or ""
            if kind == "bundle" and response.bundle.call_id not in self.replies and device:
                self.passed[device[0]] = response.bundle.SerializeToString()
            if kind in self.withheld:
                self.counted[kind] += 1
            else:
                yield response

    async def _heard(
        self, requests: AsyncIterator[gateway_pb2.ConnectRequest], device: list[str]
    ) -> AsyncIterator[gateway_pb2.ConnectRequest]:
        async for request in requests:
            device[:] = [request.device_id]
            kind = request.WhichOneof("message")
            waiting = self.replies.get(getattr(getattr(request, kind or "", None), "call_id", -1))
            if waiting is not None and not waiting.done():
                waiting.set_result(request)
            yield request


class Liar:
    """Between the gateway and people."""

    def __init__(self, inner: Any, lies: dict[str, bytes]) -> None:
        self._inner = inner
        self._lies = lies

    def __getattr__(self, name: str) -> Callable[..., Any]:
        honest: Callable[..., Any] = getattr(self._inner, name)
        if name not in RESPONSES:
            return honest

        async def answer(request: Any, context: Any) -> Any:
            lie = self._lies.pop(name, None)
            if lie is None:
                return await honest(request, context)
            scope_filtered(caller_of(context))
            response = RESPONSES[name]()
            response.ParseFromString(lie)
            return response

        return answer


class CapturedGateway(Gateway):
    """The real gateway, and whoever holds it."""

    wire: Wire
    lies: dict[str, bytes]

    def _servicers(self, *servicers: Any) -> list[Servicer]:  # type: ignore[override]
        *others, (add, link, name) = super()._servicers(*servicers)
        self.wire, self.lies = Wire(link), {}
        return [
            *((add_one, Liar(one, self.lies), named) for add_one, one, named in others),
            (add, self.wire, name),
        ]

    async def send(self, device: str, data: bytes) -> str:
        """Send any message to a pump; its reply in hex, empty when the kind has none or none came."""
        session = self.sessions.get(device)
        if session is None:
            raise LookupError(f"{device} is not connected")
        message = gateway_pb2.ConnectResponse.FromString(data)
        part = getattr(message, message.WhichOneof("message") or "")
        if "call_id" not in part.DESCRIPTOR.fields_by_name:
            session.send(message)
            return ""
        part.call_id = session.call_id()
        waiting = asyncio.get_running_loop().create_future()
        self.wire.replies[part.call_id] = waiting
        session.send(message)
        try:
            async with asyncio.timeout(REPLY_S):
                reply: gateway_pb2.ConnectRequest = await waiting
        except TimeoutError:
            return ""
        return reply.SerializeToString().hex()

    async def act(self, request: dict[str, Any]) -> dict[str, Any]:
        """One line of the attacker's."""
        match request["do"]:
            case "passed":
                return {"message": self.wire.passed.get(request["device"], b"").hex()}
            case "send":
                reply = await self.send(request["device"], bytes.fromhex(request["message"]))
                return {"message": reply}
            case "withhold":
                self.wire.withheld = set(request["kinds"])
                return {"counted": dict(self.wire.counted)}
            case "answer":
                self.lies[request["method"]] = bytes.fromhex(request["response"])
                return {}
        raise LookupError(request["do"])

    async def serve_tap(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The attacker's socket."""
        while line := await reader.readline():
            try:
                answer = {"ok": True, **await self.act(json.loads(line))}
            except (LookupError, Refused) as error:
                answer = {"ok": False, "reason": "STATE_CONFLICT", "sentence": repr(error)}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()


async def serve(config: GatewayConfig, process: Process) -> None:
    """Run until told to stop."""
    gateway = CapturedGateway(config, process)
    try:
        process.ready(await gateway.start())
        tap = await asyncio.start_unix_server(gateway.serve_tap, os.environ[TAP], limit=8 << 20)
        print(json.dumps({"ready": True}), flush=True)  # noqa: T201 - to whoever started it
        await process.until_stopped()
        tap.close()
    finally:
        await gateway.stop()


if __name__ == "__main__":
    run("gateway", GatewayConfig, serve)
