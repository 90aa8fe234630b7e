"""Open streams end when their caller no longer stands, and failures tell nothing."""

import asyncio
from typing import Any

import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.unit.rpc.conftest import Serve, World
from tests.unit.rpc.probe import SERVICE, SEVERAL, Probe
from tests.unit.rpc.test_admission import OWN, exchange, refusal_of
from vigil.errors import Reason, Refused
from vigil.rpc import deadline
from vigil.rpc.options import StreamSettings
from vigil.rpc.status import translated

SLOW_SWEEP = StreamSettings(sweep_seconds=3600)


@pytest.mark.holds("stolen-technician")
async def test_a_feed_cuts_the_streams_of_one_credential_at_once(serve: Serve) -> None:
    world = await serve(settings=SLOW_SWEEP)
    caller, other = world.gateway(), world.gateway("gateway-2")
    cut, kept = caller.stub.Echo(timeout=30), other.stub.Echo(timeout=30)
    await exchange(cut, OWN)
    await exchange(kept, Probe(gateway_id="gateway-2"))
    assert len(world.server.streams) == 2
    waiting = asyncio.ensure_future(cut.read())
    assert world.server.streams.cut_credential(caller.identity.thumbprint, Reason.GATEWAY_REVOKED) == 1
    refusal = await refusal_of(waiting)
    assert refusal.reason is Reason.GATEWAY_REVOKED
    await asyncio.wait_for(world.servicer.ended.wait(), 10)
    await exchange(kept, Probe(text="still"))
    assert len(world.server.streams) == 1


async def test_streams_of_a_subject_are_cut_whatever_certificate_opened_them(serve: Serve) -> None:
    world = await serve(settings=SLOW_SWEEP)
    streams = [world.gateway().stub.Echo(timeout=30) for _ in range(2)]
    for stream in streams:
        await exchange(stream, OWN)
    assert world.server.streams.cut_subject("gateway-1") == 2
    for stream in streams:
        assert (await refusal_of(stream.read())).reason is Reason.CREDENTIAL_REVOKED


async def test_a_stream_without_traffic_is_cut_by_the_sweep(world: World) -> None:
    caller = world.gateway()
    call = caller.stub.Follow(OWN, timeout=30)
    assert (await call.read()).text == "first"
    world.revoke(caller)
    assert (await refusal_of(call.read())).reason is Reason.CREDENTIAL_REVOKED


@pytest.mark.holds("stolen-technician")
async def test_a_stream_is_cut_at_the_end_of_its_certificate(world: World) -> None:
    call = world.gateway().stub.Follow(OWN, timeout=30)
    assert (await call.read()).text == "first"
    world.clock.ahead = 400 * 24 * 3600.0
    assert (await refusal_of(call.read())).reason is Reason.CERTIFICATE_EXPIRED


@pytest.mark.holds("stolen-technician")
async def test_a_message_meets_the_revocation_before_any_sweep(serve: Serve) -> None:
    world = await serve(settings=SLOW_SWEEP)
    caller = world.gateway()
    call = caller.stub.Echo(timeout=30)
    await exchange(call, OWN)
    world.revoke(caller)
    await call.write(Probe(text="after"))
    assert (await refusal_of(call.read())).reason is Reason.CREDENTIAL_REVOKED
    assert "after" not in world.servicer.seen


async def test_a_message_meets_the_expiry_before_any_sweep(serve: Serve) -> None:
    world = await serve(settings=SLOW_SWEEP)
    call = world.gateway().stub.Echo(timeout=30)
    await exchange(call, OWN)
    world.clock.ahead = 400 * 24 * 3600.0
    await call.write(Probe(text="after"))
    assert (await refusal_of(call.read())).reason is Reason.CERTIFICATE_EXPIRED
    assert "after" not in world.servicer.seen


async def test_a_peer_that_reads_nothing_is_cut_all_the_same(serve: Serve) -> None:
    world = await serve(settings=SLOW_SWEEP)
    caller = world.gateway()
    call = caller.stub.Flood(OWN, timeout=60)
    await call.initial_metadata()
    # First the handler gets stuck behind the peer's closed window.
    sent = -1
    while sent != world.servicer.flooded:
        sent = world.servicer.flooded
        await asyncio.sleep(0.2)
    assert sent > 0
    assert world.server.streams.cut_credential(caller.identity.thumbprint) == 1
    await asyncio.wait_for(world.servicer.ended.wait(), 10)
    assert len(world.server.streams) == 0
    # What the transport had taken before still arrives, then the refusal.
    assert (await refusal_of(drained(call))).reason is Reason.CREDENTIAL_REVOKED


async def drained(call: Any) -> None:
    async for _answer in call:
        pass


async def test_a_caller_that_leaves_ends_the_handler(world: World) -> None:
    call = world.gateway().stub.Echo(timeout=30)
    await exchange(call, OWN)
    call.cancel()
    await asyncio.wait_for(world.servicer.ended.wait(), 10)
    assert len(world.server.streams) == 0


async def test_a_stopping_server_ends_its_streams_and_says_so(serve: Serve) -> None:
    world = await serve()
    caller = world.gateway()
    health = health_pb2_grpc.HealthStub(caller.channels.service(world.address, "policy"))
    watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    held = asyncio.ensure_future(translated(caller.stub.Ping(Probe(text="hold"), timeout=30)))
    call = caller.stub.Echo(timeout=30)
    await exchange(call, OWN)
    stopping = asyncio.ensure_future(world.server.stop(10))
    assert (await refusal_of(call.read())).reason is Reason.SERVICE_UNAVAILABLE
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    # A unary call in flight is answered before the server is gone.
    world.servicer.hold.set()
    assert (await held).text == "hold"
    await asyncio.wait_for(stopping, 10)


async def test_refusals_arrive_as_they_were_raised(world: World) -> None:
    stub = world.gateway().stub
    one = await refusal_of(stub.Ping(Probe(text="one"), timeout=10))
    assert one.status == "INVALID_ARGUMENT"
    assert one.refusals[0].values == {"field": "udi", "n": "1"}
    assert (one.refusals[0].lifted_by, one.refusals[0].who) == ("another", "you")
    quoting = await refusal_of(stub.Ping(Probe(text="quoting", count=70_000), timeout=10))
    assert quoting.reason is Reason.RESOURCE_NOT_FOUND, "a header that is too long breaks the stream"
    several = await refusal_of(stub.Ping(Probe(text="several"), timeout=10))
    assert several.refusals == SEVERAL.refusals


async def test_a_defect_tells_the_caller_an_id_and_the_log_the_rest(world: World) -> None:
    with structlog.testing.capture_logs() as logs:
        refusal = await refusal_of(world.gateway().stub.Ping(Probe(text="defect"), timeout=10))
    assert refusal.reason is Reason.INTERNAL
    assert "forty-two" not in repr(refusal.refusals)
    (entry,) = [entry for entry in logs if entry["event"] == "call_failed"]
    assert entry["error_id"] == refusal.refusals[0].values["error_id"]
    assert "forty-two" in repr(entry["exc_info"])
    assert entry["method"].endswith("/Ping")


async def test_the_callers_deadline_bounds_the_calls_made_for_it(world: World) -> None:
    world.servicer.remaining = deadline.remaining
    stub = world.gateway().stub
    left = float((await translated(stub.Ping(Probe(text="remaining"), timeout=7))).text)
    assert 0 < left <= 7
    assert (await translated(stub.Ping(Probe(text="remaining")))).text == "None"


async def test_an_outgoing_call_keeps_to_the_deadline_of_the_call_being_served(world: World) -> None:
    caller = world.gateway()

    async def serve_a_call() -> Refused:
        deadline.begin(0.2)
        inner = caller.stub.Ping(Probe(text="hold"), timeout=60)
        assert inner.time_remaining() <= 0.2
        return await refusal_of(inner)

    async def work() -> Any:
        deadline.begin(0.0)
        return await deadline.detached(translated_later(caller.stub))

    assert (await asyncio.create_task(serve_a_call())).reason is Reason.DEADLINE_EXCEEDED
    # What outlives the call is not bounded by it.
    assert (await asyncio.create_task(work())).text == "later"


async def translated_later(stub: Any) -> Any:
    return await translated(stub.Ping(Probe(text="later")))


async def test_a_server_that_is_not_there_is_unavailable(world: World) -> None:
    caller = world.gateway()
    await world.server.stop(0)
    refusal = await refusal_of(caller.stub.Ping(Probe(), timeout=10))
    assert refusal.reason is Reason.SERVICE_UNAVAILABLE
    assert refusal.refusals[0].lifted_by


async def test_two_servers_never_share_a_port(world: World, serve: Serve) -> None:
    from vigil.rpc.server import ListenError

    with pytest.raises(ListenError):
        await serve(listen=world.address)


async def test_many_streams_open_at_once(serve: Serve) -> None:
    world = await serve(settings=StreamSettings(max_calls_per_caller=None))
    stub = world.gateway().stub
    calls = [stub.Echo(timeout=60) for _ in range(1_200)]
    answers = await asyncio.gather(*(exchange(call, OWN) for call in calls))
    assert len(answers) == 1_200
    for call in calls:
        call.cancel()
