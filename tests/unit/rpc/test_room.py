"""Overload is refused at once, and nobody's flood takes the places of others."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import grpc
import pytest

from tests.unit.rpc.conftest import Serve
from tests.unit.rpc.probe import Probe
from tests.unit.rpc.test_admission import OWN, refusal_of
from tests.unit.rpc.test_open_streams import drained
from vigil.errors import Reason, Refused, refused
from vigil.rpc.options import StreamSettings
from vigil.rpc.room import ElasticRoom, Room
from vigil.rpc.status import translated

pytestmark = pytest.mark.holds("floods")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what happens elsewhere has no event
            await asyncio.sleep(0.01)


def test_a_room_takes_so_many_and_so_many_of_each() -> None:
    room = Room(4, share=0.5)
    room.enter("a")
    with room.place("a"):
        with pytest.raises(Refused) as caught:
            room.enter("a")
        assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
        with room.place("b"), room.place("c"):
            assert len(room) == 4
            with pytest.raises(Refused), room.place("d"):
                pass
    room.leave("a")
    assert len(room) == 0
    room.enter("a")


def test_a_room_finds_out_how_much_fits_into_its_time() -> None:
    time = [0.0]
    room = ElasticRoom(64, least=4, most=100, target=1.0, now=lambda: time[0])

    def served(seconds: float, refusal: Refused | None = None) -> None:
        with suppress(Refused), room.place("a"):
            time[0] += seconds
            if refusal is not None:
                raise refusal

    served(1.5)
    assert room.places == 32
    # At most once for all that began before.
    with room.place("b"):
        served(1.5)
        assert room.places == 16
        time[0] += 2
    assert room.places == 16
    for _ in range(10):
        served(0.1, refused(Reason.POLICY_UNAVAILABLE, "too late"))
    assert room.places == 4
    served(0.1, refused(Reason.NOT_IN_SCOPE, "soon enough"))
    assert room.places == 5
    for _ in range(2_000):
        served(0.1)
    assert room.places == 100


async def test_unary_calls_are_bounded_and_precedence_has_its_own_places(serve: Serve) -> None:
    world = await serve(
        settings=StreamSettings(max_unary_calls=2, sweep_seconds=0.05), precedence=("safety",)
    )
    first, second = world.gateway(), world.gateway("gateway-2")
    held = [
        asyncio.ensure_future(translated(one.stub.Ping(Probe(text="hold"), timeout=30)))
        for one in (first, second)
    ]
    await until(lambda: world.servicer.seen == ["hold", "hold"])
    assert (await refusal_of(first.stub.Own(OWN, timeout=10))).reason is Reason.SERVICE_UNAVAILABLE
    technician, officer = world.person("technician"), world.person("safety")
    assert (await refusal_of(technician.stub.Ping(Probe(), timeout=10))).reason is Reason.SERVICE_UNAVAILABLE
    assert (await translated(officer.stub.Ping(Probe(text="in"), timeout=10))).text == "in"
    # Streams that are open take no place.
    stream = first.stub.Echo(timeout=30)
    await stream.write(OWN)
    assert await asyncio.wait_for(stream.read(), 10) == OWN
    world.servicer.hold.set()
    await asyncio.gather(*held)
    await translated(first.stub.Own(OWN, timeout=10))


async def test_a_reader_that_takes_nothing_is_cut_and_one_that_reads_is_not(serve: Serve) -> None:
    world = await serve(settings=StreamSettings(stall_seconds=0.5, sweep_seconds=0.05))
    slow, quick = world.gateway(), world.gateway("gateway-2")
    reading = quick.stub.Echo(timeout=60)
    await reading.write(Probe(gateway_id="gateway-2"))
    await reading.read()
    call = slow.stub.Flood(OWN, timeout=60)
    await call.initial_metadata()
    assert len(world.server.streams) == 2
    # The handler is stuck behind the closed window of its peer, and let go.
    await asyncio.wait_for(world.servicer.ended.wait(), 20)
    await until(lambda: len(world.server.streams) == 1)
    assert 0 < world.servicer.flooded < 100
    # What the transport had taken still arrives, then that it was cut, or that the call is over.
    try:
        refusal = await refusal_of(drained(call))
    except asyncio.CancelledError:
        assert call.code() is grpc.StatusCode.CANCELLED
    else:
        assert refusal.reason is Reason.SERVICE_UNAVAILABLE
    await reading.write(Probe(text="still"))
    assert (await asyncio.wait_for(reading.read(), 10)).text == "still"
