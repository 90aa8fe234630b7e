"""The hands at the bedside and the bench: the control socket of a fleet process (see `vigil.device.fleet`)."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vigil.errors import Reason, refused
from vigil.rpc.service_main import PARENT_FD


@dataclass
class FleetProcess:
    """One `python -m vigil.device --fleet` process and the line to it."""

    folder: Path
    control: Path
    log: Path
    _process: asyncio.subprocess.Process | None = None
    _reader: asyncio.StreamReader | None = None
    _writer: asyncio.StreamWriter | None = None
    _lock: asyncio.Lock | None = None
    _pipe: tuple[int, int] | None = None

    async def start(self) -> None:
        """Start it and wait until its pumps are on. Raises SERVICE_UNAVAILABLE."""
        self._pipe = os.pipe2(os.O_CLOEXEC)
        environment = {**os.environ, PARENT_FD: str(self._pipe[0]), "GRPC_VERBOSITY": "NONE"}
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "vigil.device", "--fleet", str(self.folder), "--control", str(self.control)),
                *("--log-level", "warning"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
                pass_fds=(self._pipe[0],),
                start_new_session=True,
            )
        stdout = self._process.stdout
        if stdout is None or not await stdout.readline():
            raise refused(Reason.SERVICE_UNAVAILABLE, f"the fleet did not start: see {self.log}")
        self._reader, self._writer = await asyncio.open_unix_connection(self.control, limit=8 << 20)
        self._lock = asyncio.Lock()

    async def do(self, action: str, pump: str | None = None, **values: Any) -> dict[str, Any]:
        """One act at one pump; answers what the fleet says. Raises what it refuses."""
        if self._reader is None or self._writer is None or self._lock is None:
            raise refused(Reason.STATE_CONFLICT, "the fleet has not been started")
        request = {"do": action, **({"pump": pump} if pump else {}), **values}
        async with self._lock:
            self._writer.write(json.dumps(request).encode() + b"\n")
            await self._writer.drain()
            answer: dict[str, Any] = json.loads(await self._reader.readline())
        if not answer.get("ok"):
            raise refused(Reason(answer["reason"]), str(answer["sentence"]))
        return answer

    async def stop(self) -> None:
        """Switch everything off."""
        if self._writer is not None:
            self._writer.close()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
