"""A whole service with nothing in it but its wiring, run as a process by the tests."""

import asyncio
import os
import sys

from tests.unit.rpc.probe import SERVICE, ProbeServicer, add_to_server
from vigil.rpc.server import GrpcServer
from vigil.rpc.service_main import BaseServiceConfig, Process, run


class TinyConfig(BaseServiceConfig):
    fail: str = ""


async def serve(config: TinyConfig, process: Process) -> None:
    server = GrpcServer(
        role=process.role,
        tls=config.tls,
        clock=process.clock,
        listen=config.listen,
        servicers=[(add_to_server, ProbeServicer(), SERVICE)],
        metrics=process.metrics,
    )
    process.ready(await server.start())
    if config.fail:
        process.supervise("doomed", _fail(config.fail))
    process.log.info("facts", pid=os.getpid(), key="abc", nested={"passphrase": "abc", "plain": "visible"})
    await process.until_stopped()
    await server.stop(1)


async def _fail(words: str) -> None:
    await asyncio.sleep(0)
    hidden_local = "in a local variable"
    assert hidden_local
    raise RuntimeError(words)


if __name__ == "__main__":
    run("tiny", TinyConfig, serve, sys.argv[1:])
