"""The hands at the bedside and the bench: the control socket of a process (see `vigil.device.fleet`)."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vigil.demo.processes import Child
from vigil.errors import Reason, refused

START_S = 60.0


@dataclass
class ControlLine:
    """JSON lines over a Unix socket: one request, one answer."""

    path: Path
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    _lock: asyncio.Lock | None = None

    async def open(self) -> None:
        """Connect. Raises OSError."""
        self._streams = await asyncio.open_unix_connection(self.path, limit=8 << 20)
        self._lock = asyncio.Lock()

    async def do(self, action: str, **values: Any) -> dict[str, Any]:
        """One act; answers what came back. Raises what was refused."""
        if self._streams is None or self._lock is None:
            raise refused(Reason.STATE_CONFLICT, "the control socket is not open")
        reader, writer = self._streams
        async with self._lock:
            writer.write(json.dumps({"do": action, **values}).encode() + b"\n")
            await writer.drain()
            answer: dict[str, Any] = json.loads(await reader.readline())
        if not answer.get("ok"):
            raise refused(Reason(answer["reason"]), str(answer["sentence"]))
        return answer

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class FleetProcess:
    """One `python -m vigil.device --fleet` process and the line to it."""

    def __init__(self, folder: Path, *, control: Path, log: Path) -> None:
        self.folder = folder
        self._line = ControlLine(control)
        arguments = ["vigil.device", "--fleet", str(folder), "--control", str(control)]
        self._child = Child([*arguments, "--log-level", "warning"], log)

    @property
    def pid(self) -> int:
        """Of the running process. Raises STATE_CONFLICT before it was started."""
        if self._child.process is None:
            raise refused(Reason.STATE_CONFLICT, "the fleet's process was not started")
        return self._child.process.pid

    async def start(self) -> None:
        """Start it and wait until its pumps are on. Raises SERVICE_UNAVAILABLE."""
        await self._child.start()
        await self._child.line(seconds=START_S)
        await self._line.open()

    async def do(self, action: str, pump: str, **values: Any) -> dict[str, Any]:
        """One act at one pump; answers what the fleet says. Raises what it refuses."""
        return await self._line.do(action, pump=pump, **values)

    async def stop(self) -> None:
        """Switch everything off."""
        self._line.close()
        await self._child.stop()
