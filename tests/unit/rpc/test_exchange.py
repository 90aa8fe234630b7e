"""Many calls over few streams: each gets its own answer, or learns that it is lost."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import structlog

from tests.unit.rpc.conftest import Caller, Serve, World
from tests.unit.rpc.probe import SEVERAL, Item, Probe, ProbeServicer, ProbeStub
from tests.unit.rpc.test_rotation import replace
from vigil.core.certificates import Kind
from vigil.errors import Reason, Refused
from vigil.rpc import deadline
from vigil.rpc.stream_server import serve_exchange
from vigil.rpc.streams import Exchange


def exchange_of(world: World, caller: Caller, **values: Any) -> Exchange[Any, Any]:
    channel = caller.channels.service(world.address, "policy")
    stub: Any = ProbeStub(channel)
    return Exchange(
        name="probe",
        open_stream=stub.Exchange,
        pack=lambda items: Probe(gateway_id="gateway-1", items=items),
        unpack=lambda probe: probe.items,
        entropy=os.urandom,
        generation=lambda: channel.generation,
        **values,
    )


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


@pytest.fixture
async def exchange(world: World) -> AsyncIterator[Exchange[Any, Any]]:
    async with exchange_of(world, world.gateway(), streams=3) as made:
        yield made


async def test_each_call_gets_its_own_answer(exchange: Exchange[Any, Any]) -> None:
    texts = [f"text {number}" for number in range(1_000)]
    answers = await asyncio.gather(*(exchange.call(Item(text=text), timeout=30) for text in texts))
    assert [answer.text for answer in answers] == texts


async def test_what_waits_leaves_together(world: World) -> None:
    messages: list[int] = []

    def pack(items: list[Any]) -> Any:
        messages.append(len(items))
        return Probe(gateway_id="gateway-1", items=items)

    made = exchange_of(world, world.gateway(), streams=1)
    made.pack = pack
    async with made:
        await asyncio.gather(*(made.call(Item(text="x"), timeout=30) for _ in range(200)))
    assert sum(messages) == 200
    assert len(messages) < 20
    assert max(messages) == made.max_batch


async def test_answers_come_out_of_order(world: World, exchange: Exchange[Any, Any]) -> None:
    held = asyncio.ensure_future(exchange.call(Item(text="hold"), timeout=30))
    for _ in range(20):
        assert (await exchange.call(Item(text="quick"), timeout=30)).text == "quick"
    assert not held.done()
    world.servicer.hold.set()
    assert (await held).text == "hold"


async def test_refusals_of_one_item_are_its_own(exchange: Exchange[Any, Any]) -> None:
    refused_call = asyncio.ensure_future(exchange.call(Item(text="refuse"), timeout=30))
    assert (await exchange.call(Item(text="fine"), timeout=30)).text == "fine"
    with pytest.raises(Refused) as caught:
        await refused_call
    assert caught.value.refusals == SEVERAL.refusals


async def test_a_defect_in_one_item_is_its_own_and_tells_nothing(exchange: Exchange[Any, Any]) -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(Refused) as caught:
        await exchange.call(Item(text="defect"), timeout=30)
    assert caught.value.reason is Reason.INTERNAL
    assert "forty-two" not in repr(caught.value.refusals)
    assert logs[0]["error_id"] == caught.value.refusals[0].values["error_id"]
    assert (await exchange.call(Item(text="fine"), timeout=30)).text == "fine"


async def test_a_call_has_its_deadline_and_gives_its_place_back(world: World) -> None:
    async with exchange_of(world, world.gateway(), streams=1, max_in_flight=1) as exchange:
        for _ in range(3):
            with pytest.raises(Refused) as caught:
                await exchange.call(Item(text="hold"), timeout=0.05)
            assert caught.value.reason is Reason.DEADLINE_EXCEEDED
        assert (await exchange.call(Item(text="quick"), timeout=30)).text == "quick"


async def test_a_call_keeps_to_the_deadline_of_the_call_being_served(exchange: Exchange[Any, Any]) -> None:
    async def serve_a_call() -> Any:
        deadline.begin(0.05)
        return await exchange.call(Item(text="hold"), timeout=60)

    with pytest.raises(Refused) as caught:
        await asyncio.create_task(serve_a_call())
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED
    # Its streams are not bounded by it.
    assert (await exchange.call(Item(text="fine"), timeout=30)).text == "fine"


async def test_a_server_reads_no_more_than_it_may_have_in_flight(world: World) -> None:
    async with exchange_of(world, world.gateway(), streams=1) as exchange:
        calls = [asyncio.ensure_future(exchange.call(Item(text="hold"), timeout=30)) for _ in range(50)]
        await until(lambda: len(world.servicer.seen) == 8)
        await asyncio.sleep(0.05)
        assert len(world.servicer.seen) == 8
        world.servicer.hold.set()
        assert len(await asyncio.gather(*calls)) == 50


async def test_a_broken_stream_fails_what_is_in_flight_and_comes_back(serve: Serve) -> None:
    world = await serve()
    async with exchange_of(world, world.gateway(), streams=2) as exchange:
        held = asyncio.ensure_future(exchange.call(Item(text="hold"), timeout=30))
        await until(lambda: "hold" in world.servicer.seen)
        await world.server.stop(0)
        with pytest.raises(Refused) as caught:
            await held
        assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
        # With nothing to connect to, a call fails long before its deadline.
        await until(lambda: exchange._failure is not None)
        with pytest.raises(Refused) as caught:
            await exchange.call(Item(text="lost"), timeout=600)
        assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
        again = await serve(listen=world.address)
        await until(lambda: exchange.connected == 2)
        assert (await exchange.call(Item(text="back"), timeout=30)).text == "back"
        assert again.servicer.seen == ["back"]


async def test_a_revoked_caller_learns_it_in_its_calls(world: World) -> None:
    caller = world.gateway()
    async with exchange_of(world, caller, streams=2) as exchange:
        held = asyncio.ensure_future(exchange.call(Item(text="hold"), timeout=30))
        await until(lambda: "hold" in world.servicer.seen)
        world.revoke(caller)
        with pytest.raises(Refused) as caught:
            await held
        assert caught.value.reason is Reason.CREDENTIAL_REVOKED
        await until(lambda: exchange.connected == 0 and exchange._failure is not None)
        with pytest.raises(Refused) as caught:
            await exchange.call(Item(text="again"), timeout=600)
        assert caught.value.reason is Reason.CREDENTIAL_REVOKED


async def test_a_stopping_server_answers_what_it_read(serve: Serve) -> None:
    world = await serve()
    async with exchange_of(world, world.gateway(), streams=1) as exchange:
        held = [asyncio.ensure_future(exchange.call(Item(text="hold"), timeout=30)) for _ in range(5)]
        await until(lambda: len(world.servicer.seen) == 5)
        stopping = asyncio.ensure_future(world.server.stop(20))
        await asyncio.sleep(0.05)
        world.servicer.hold.set()
        assert [answer.text for answer in await asyncio.gather(*held)] == ["hold"] * 5
        await asyncio.wait_for(stopping, 15)


async def test_no_call_is_lost_while_streams_move_to_a_new_certificate(world: World) -> None:
    caller = world.gateway()
    async with exchange_of(world, caller, streams=3) as exchange:
        await exchange.call(Item(text="first"), timeout=30)
        channel = caller.channels.service(world.address, "policy")
        for _ in range(3):
            before = channel.generation
            replace(caller.files, world.pki.issue(Kind.GATEWAY, "gateway-1"))
            caller.channels.refresh()
            answers = await asyncio.gather(*(exchange.call(Item(text="x"), timeout=30) for _ in range(300)))
            assert len(answers) == 300
            assert channel.generation is not before
        await until(lambda: not channel._retired)


async def test_a_closed_exchange_takes_no_calls(world: World) -> None:
    exchange = exchange_of(world, world.gateway(), streams=1)
    held = asyncio.ensure_future(exchange.call(Item(text="hold"), timeout=30))
    await until(lambda: "hold" in world.servicer.seen)
    await exchange.close()
    for call in (held, exchange.call(Item(text="late"))):
        with pytest.raises(Refused) as caught:
            await call
        assert caught.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_a_message_that_cannot_be_made_fails_its_calls_only(world: World) -> None:
    exchange = exchange_of(world, world.gateway(), streams=1)
    good = exchange.pack

    def pack(items: list[Any]) -> Any:
        if items[0].text == "unspeakable":
            raise ValueError("it cannot be said")
        return good(items)

    exchange.pack = pack
    async with exchange:
        with pytest.raises(Refused) as caught:
            await exchange.call(Item(text="unspeakable"), timeout=30)
        assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
        assert (await exchange.call(Item(text="fine"), timeout=30)).text == "fine"


@pytest.mark.holds("floods")
async def test_more_than_the_queue_holds_is_refused(world: World) -> None:
    async with exchange_of(world, world.gateway(), streams=1, max_in_flight=1, max_queue=2) as exchange:
        held = [asyncio.ensure_future(exchange.call(Item(text="hold"), timeout=30))]
        await until(lambda: world.servicer.seen == ["hold"])
        held += [asyncio.ensure_future(exchange.call(Item(text="hold"), timeout=30)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Refused) as caught:
            await exchange.call(Item(text="hold"), timeout=30)
        assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
        world.servicer.hold.set()
        assert len(await asyncio.gather(*held)) == 3


async def test_serving_ends_with_its_requests() -> None:
    async def requests() -> AsyncIterator[Any]:
        for start in range(0, 30, 10):
            yield Probe(items=[Item(call_id=start + number, text="x") for number in range(10)])

    answered = [
        item.call_id
        async for probe in serve_exchange(
            requests(),
            ProbeServicer().serve_item,
            unpack=lambda probe: probe.items,
            pack=lambda items: Probe(items=items),
            failed=lambda call_id, error: Item(call_id=call_id, error=error),
            max_batch=4,
        )
        for item in probe.items
    ]
    assert sorted(answered) == list(range(30))


async def test_a_request_out_of_scope_ends_the_stream(world: World) -> None:
    stub: Any = world.gateway().stub
    call = stub.Exchange(timeout=10)
    await call.write(Probe(gateway_id="gateway-1", items=[Item(call_id=1, text="x")]))
    assert [item.call_id for item in (await call.read()).items] == [1]
    await call.write(Probe(gateway_id="gateway-2", items=[Item(call_id=2, text="y")]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert world.servicer.seen == ["x"]
