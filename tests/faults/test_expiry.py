"""A certificate ends while everybody works: what is past its end is refused, streams included; nobody else notices."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from tests.faults.acts import short_lived
from tests.faults.flow import Flow
from tests.support.stack import FOR_NOW, Stack, eventually
from vigil.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from vigil.api.identity.v1 import identity_pb2, identity_pb2_grpc
from vigil.core.clock import SystemClock
from vigil.errors import Reason, Refused
from vigil.rpc.status import translated

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.holds("certificate-rotation")]

LIFE_MS = 8_000


async def ended_by(call: object) -> tuple[int, Reason]:
    """Read a stream until it ends; answers when (ms) and why."""

    async def read() -> None:
        async for _ in call:  # type: ignore[attr-defined]
            pass

    with pytest.raises(Refused) as raised:
        await translated(read())
    return SystemClock().now(), raised.value.reason


async def test_ended_under_load(stack: Stack, injected: Callable[[int], None]) -> None:
    await stack.calm()
    pump, gateway_id = stack.pumps(stack.first)[0], stack.world.gateways[stack.first]
    flow = Flow(stack, 3)
    answered: Counter[str] = Counter()
    async with flow.flowing():
        short, until = short_lived(stack, life_ms=LIFE_MS)
        identity = identity_pb2_grpc.DeviceServiceStub(stack.channel(short.tls_files, "identity"))
        gateway = gateway_pb2_grpc.GatewayDeviceServiceStub(stack.channel(short.tls_files, gateway_id))
        stream = gateway.FollowDevice(gateway_pb2.FollowDeviceRequest(device_id=pump.device_id), timeout=60)
        following = asyncio.create_task(ended_by(stream))
        refused: dict[str, tuple[int, Reason]] = {}

        async def ask(name: str, call: Callable[[], object]) -> None:
            while name not in refused:
                try:
                    await translated(call())  # type: ignore[arg-type]
                    answered[name] += 1
                except Refused as refusal:
                    refused[name] = (SystemClock().now(), refusal.reason)
                await asyncio.sleep(0.05)

        await asyncio.gather(
            ask("identity", lambda: identity.CountDevices(identity_pb2.CountDevicesRequest(), timeout=20)),
            ask(
                gateway_id,
                lambda: gateway.GetGatewayStatus(gateway_pb2.GetGatewayStatusRequest(), timeout=20),
            ),
        )
        assert SystemClock().now() >= until
        injected(1)
        moment, reason = await asyncio.wait_for(following, 30)
        assert reason is Reason.CERTIFICATE_EXPIRED
        assert moment >= until
        # On the connections from before, whose handshake knew nothing of it.
        assert {one for _, one in refused.values()} == {Reason.CERTIFICATE_EXPIRED}
        assert min(at for at, _ in refused.values()) >= until
        assert min(answered["identity"], answered[gateway_id]) > 5
        await flow.reached(flow.acknowledged + 4)
    # Everybody else's work went on: ada's own certificate is another.
    assert set(flow.refused) <= FOR_NOW
    await flow.check()

    async def not_let_in() -> bool:
        fresh = stack.channel(short.tls_files, "policy")
        try:
            await translated(
                identity_pb2_grpc.DeviceServiceStub(fresh).CountDevices(
                    identity_pb2.CountDevicesRequest(), timeout=5
                )
            )
        except Refused as refusal:
            return refusal.reason is Reason.SERVICE_UNAVAILABLE
        return False

    # A new connection fails in the handshake already.
    await eventually(not_let_in, what="the ended certificate is not let in")
