"""A captured gateway: the real service, with the real key, and an attacker's tap on the wire to the pumps.

``python -m vigil.demo.hostile --config gateway.toml`` wires `vigil.gateway` as its own ``__main__`` does and puts a
recording port between it and its devices' streams. Through a local socket (its path in VIGIL_DEMO_TAP) it is told
what is done to the next bundle that passes, or has an old one sent again. It is an attacker's program: nothing of
it is part of the product.

    {"do": "twist", "how": "alter-parameter" | "swap-permit" | "drop-record" | "invent-permit"}
    {"do": "replay", "device": "dev-…"}       answers what the pump said to it
"""

import asyncio
import dataclasses
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from vigil.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from vigil.core import cbor
from vigil.core.statements.bodies import Decision, Intent, Receipt
from vigil.core.statements.envelope import read
from vigil.core.statements.schema import encode_body
from vigil.demo.processes import TAP_VARIABLE
from vigil.errors import Reason, Refused, refused
from vigil.gateway.__main__ import Gateway
from vigil.gateway.config import GatewayConfig
from vigil.gateway.servicer import Context
from vigil.rpc.server import Servicer
from vigil.rpc.service_main import Process, run
from vigil.rpc.status import from_status

ANSWER_S = 5.0


class Tap(gateway_pb2_grpc.DeviceLinkServiceServicer):
    """Sees and changes what passes between the gateway and its devices."""

    def __init__(self, inner: Any, gateway: "HostileGateway") -> None:
        self._inner = inner
        self._gateway = gateway
        self.recorded: dict[str, gateway_pb2.Bundle] = {}
        self.answers: dict[int, asyncio.Future[gateway_pb2.DeviceReceipt]] = {}
        self.how = ""

    async def Connect(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[gateway_pb2.ConnectRequest], context: Context
    ) -> AsyncIterator[gateway_pb2.ConnectResponse]:
        device: list[str] = []
        async for response in self._inner.Connect(self._heard(request_iterator, device), context):
            if response.HasField("bundle") and device and response.bundle.call_id not in self.answers:
                yield gateway_pb2.ConnectResponse(bundle=self._passed(device[0], response.bundle))
            else:
                yield response

    async def _heard(
        self, requests: AsyncIterator[gateway_pb2.ConnectRequest], device: list[str]
    ) -> AsyncIterator[gateway_pb2.ConnectRequest]:
        async for request in requests:
            device[:] = [request.device_id]
            if request.HasField("receipt"):
                waiting = self.answers.get(request.receipt.call_id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(request.receipt)
            yield request

    def _passed(self, device: str, bundle: gateway_pb2.Bundle) -> gateway_pb2.Bundle:
        how, self.how = self.how, ""
        before = self.recorded.get(device)
        self.recorded[device] = bundle
        twisted = gateway_pb2.Bundle()
        twisted.CopyFrom(bundle)
        match how:
            case "alter-parameter":
                twisted.intent = _with_another_parameter(bundle.intent)
            case "swap-permit" if before is not None:
                twisted.permit = before.permit
                twisted.permit_recorded.CopyFrom(before.permit_recorded)
            case "drop-record":
                twisted.permit_recorded.ClearField("path")
                twisted.permit_recorded.index += 1
            case "invent-permit":
                twisted.permit = self._gateway.invent(bundle.permit)
            case _:
                pass
        return twisted


def _with_another_parameter(intent: bytes) -> bytes:
    """The same signature over another parameter: what a relay that edits would send."""
    statement = read(intent, Intent)
    parameters = {
        name: value + 1 if isinstance(value, int) else value
        for name, value in statement.body.parameters.items()
    }
    body = dataclasses.replace(statement.body, parameters=parameters)
    signature = cbor.byte_string(statement.sign1.signature)
    kept = len(intent) - len(signature) - len(cbor.byte_string(statement.sign1.payload))
    return intent[:kept] + cbor.byte_string(encode_body(body)) + signature


class HostileGateway(Gateway):
    """The real gateway with a tap."""

    tap: Tap

    def _servicers(self, *servicers: Any) -> list[Servicer]:  # type: ignore[override]
        *others, (add, link, name) = super()._servicers(*servicers)
        self.tap = Tap(link, self)
        return [*others, (add, self.tap, name)]

    def invent(self, permit: bytes) -> bytes:
        """A permit as policy would write it, signed with the gateway's own key."""
        body = read(permit, Decision).body
        return self.key.scribe.sign(body, subject=f"device/{body.device}").data

    async def replay(self, device: str) -> dict[str, Any]:
        """Send the recorded bundle once more; answers what the pump said."""
        session, bundle = self.sessions.get(device), self.tap.recorded.get(device)
        if session is None or bundle is None:
            raise refused(Reason.DEVICE_OFFLINE, "there is nothing recorded of this device")
        again = gateway_pb2.Bundle()
        again.CopyFrom(bundle)
        again.call_id = session.call_id()
        waiting = asyncio.get_running_loop().create_future()
        self.tap.answers[again.call_id] = waiting
        session.send(gateway_pb2.ConnectResponse(bundle=again))
        async with asyncio.timeout(ANSWER_S):
            answer = await waiting
        if answer.HasField("error"):
            refusal = from_status(answer.error)
            return {"outcome": "refused", "reason": str(refusal.reason), "sentence": str(refusal)}
        body = read(answer.receipts[-1], Receipt).body
        return {"outcome": str(body.outcome), "reason": body.reason or ""}

    async def listen(self) -> asyncio.Server:
        """Serve the attacker's socket."""
        return await asyncio.start_unix_server(self._serve, os.environ[TAP_VARIABLE])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            request = json.loads(line)
            try:
                if request["do"] == "twist":
                    self.tap.how = str(request["how"])
                    answer: dict[str, Any] = {"ok": True}
                else:
                    answer = {"ok": True, **await self.replay(str(request["device"]))}
            except Refused as error:
                answer = {"ok": False, "reason": str(error.reason), "sentence": str(error)}
            except TimeoutError:
                answer = {"ok": True, "outcome": "silence", "reason": ""}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()


async def serve(config: GatewayConfig, process: Process) -> None:
    """Run until told to stop."""
    gateway = HostileGateway(config, process)
    try:
        process.ready(await gateway.start())
        server = await gateway.listen()
        print(json.dumps({"ready": True}), flush=True)  # noqa: T201 - to whoever started it
        await process.until_stopped()
        server.close()
    finally:
        await gateway.stop()


if __name__ == "__main__":
    run("gateway", GatewayConfig, serve)
