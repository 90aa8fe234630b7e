"""``python -m tests.benchmarks.echo ROLE ENDS``: one of the echo's processes; prints its port, ends with its stdin."""

import asyncio
import json
import sys
from typing import Any

import grpc
import uvloop

from tests.benchmarks.echo import sizes
from tests.benchmarks.echo.wire import Ends, Pool, stream_of


async def evidence(ends: Ends) -> None:
    """Answer each append."""
    answers = {
        sizes.APPEND: bytes(sizes.APPENDED),
        sizes.APPEND_RECEIPT: bytes(sizes.APPENDED_RECEIPT),
    }

    async def append(request: bytes) -> bytes:
        return answers[len(request)]

    await _until_told(await ends.serve({"Append": stream_of(append)}))


async def policy(ends: Ends) -> None:
    """Have each decision recorded."""
    log = await Pool().dial(ends.channel("evidence"), "/echo/Append")
    record, decided = bytes(sizes.APPEND), bytes(sizes.DECIDED)

    async def decide(_request: bytes) -> bytes:
        await log.call(record)
        return decided

    await _until_told(await ends.serve({"Decide": stream_of(decide)}))


async def gateway(ends: Ends) -> None:
    """Prepare asks a device; submit asks policy, then a device; the receipt is appended behind."""
    decisions = await Pool().dial(ends.channel("policy"), "/echo/Decide")
    log = await Pool().dial(ends.channel("evidence"), "/echo/Append")
    devices = Pool()
    behind: set[asyncio.Task[bytes]] = set()
    nonce, prepared = bytes(sizes.NONCE), bytes(sizes.PREPARED)
    item, bundle = bytes(sizes.DECIDE), bytes(sizes.BUNDLE)
    receipt, submitted = bytes(sizes.APPEND_RECEIPT), bytes(sizes.SUBMITTED)

    async def prepare(_request: bytes, _context: Any) -> bytes:
        await devices.call(nonce)
        return prepared

    async def submit(_request: bytes, _context: Any) -> bytes:
        await decisions.call(item)
        await devices.call(bundle)
        task = asyncio.create_task(log.call(receipt))
        behind.add(task)
        task.add_done_callback(behind.discard)
        return submitted

    async def link(_requests: Any, context: Any) -> None:
        devices.add(context)
        await asyncio.Event().wait()

    await _until_told(
        await ends.serve(
            {
                "Prepare": grpc.unary_unary_rpc_method_handler(prepare),
                "Submit": grpc.unary_unary_rpc_method_handler(submit),
                "Link": grpc.stream_stream_rpc_method_handler(link),
            }
        )
    )


async def devices(ends: Ends) -> None:
    """Dial out, and answer what comes."""
    channel = ends.channel("gateway")
    answers = {sizes.NONCE: bytes(sizes.NONCED), sizes.BUNDLE: bytes(sizes.RECEIPT)}

    async def answer() -> None:
        call: Any = channel.stream_stream("/echo/Link")()
        while (request := await call.read()) is not grpc.aio.EOF:
            await call.write(answers[len(request)])

    tasks = [asyncio.create_task(answer()) for _ in range(16)]
    await _until_told((None, 0))
    for task in tasks:
        task.cancel()


async def _until_told(served: tuple[grpc.aio.Server | None, int]) -> None:
    server, port = served
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    if server is not None:
        await server.stop(None)


def main() -> None:
    """Run the role that was named."""
    roles = {"evidence": evidence, "policy": policy, "gateway": gateway, "devices": devices}
    uvloop.run(roles[sys.argv[1]](Ends(**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
