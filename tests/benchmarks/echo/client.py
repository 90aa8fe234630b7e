"""The echo's client: starts the other four processes, and makes a command's two calls."""

import asyncio
import contextlib
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import grpc

from tests.benchmarks.echo import sizes
from tests.benchmarks.echo.wire import Ends
from tests.support.pki import TestPki

START_S = 60.0


class Echo:
    """``async with Echo(channels=16) as echo: await echo.command(3)``."""

    def __init__(self, *, channels: int) -> None:
        self._count = channels
        self._channels: list[grpc.aio.Channel] = []
        self._prepare: list[Any] = []
        self._submit: list[Any] = []
        self._stack = AsyncExitStack()
        self.pids: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vigil-echo-"))
        pki = TestPki(Path(folder))
        peers: dict[str, str] = {}
        try:
            for role in ("evidence", "policy", "gateway", "devices"):
                peers[role] = await self._start(role, Ends.of(pki, role, peers))
        except BaseException:
            await self._stack.aclose()
            raise
        ends = Ends.of(pki, "client", peers)
        for _ in range(self._count):
            channel = ends.channel("gateway")
            self._channels.append(channel)
            self._prepare.append(channel.unary_unary("/echo/Prepare"))
            self._submit.append(channel.unary_unary("/echo/Submit"))
        return self

    async def __aexit__(self, *_exception: object) -> None:
        for channel in self._channels:
            await channel.close()
        await self._stack.aclose()

    async def command(self, caller: int) -> None:
        """Prepare and submit."""
        place = caller % self._count
        await self._prepare[place](bytes(sizes.PREPARE))
        await self._submit[place](bytes(sizes.SUBMIT))

    async def _start(self, role: str, ends: Ends) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.benchmarks.echo",
            role,
            ends.to_line(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._stack.push_async_callback(_ended, process)
        self.pids[role] = process.pid
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_S)
        if not line:
            raise RuntimeError(f"the echo's {role} did not start")
        return f"127.0.0.1:{int(line)}"


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    await process.wait()
