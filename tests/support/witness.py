"""A witness as a process of its own, made and run by the commands that a person types."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

START_SECONDS = 60.0


class WitnessProcess:
    """`vigil witness init` once, then `vigil witness run`; killed and started again on the same port."""

    def __init__(self, folder: Path, *, name: str, logs: list[str]) -> None:
        self.folder = folder
        self.name = name
        self.logs = logs
        self.port = 0
        self.verifier_key = ""
        self.stderr = folder.with_suffix(".log")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def init(self) -> None:
        """Make its key, its memory and its configuration."""
        named = [part for key in self.logs for part in ("--log", key)]
        made = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vigil.cli", "witness", "init", str(self.folder), "--name", self.name),
            *named,
            *("--listen", "127.0.0.1:0", "--output", "json"),
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await made.communicate()
        assert made.returncode == 0
        self.verifier_key = json.loads(told)["verifier_key"]

    async def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Run it and wait until it takes checkpoints."""
        reading, writing = os.pipe()
        with self.stderr.open("ab") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "vigil.cli", "witness", "run", str(self.folder)),
                pass_fds=(writing,),
                stderr=stderr,
                env={**os.environ, **(environment or {}), "VIGIL_READY_FD": str(writing)},
            )
        os.close(writing)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb")
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await reader.readline()
        finally:
            transport.close()
        if not line:
            raise RuntimeError(f"the witness did not start: {self.stderr.read_text()}")
        self.port = json.loads(line)["port"]
        config = self.folder / "witness.toml"
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{self.port}"))

    async def kill(self) -> None:
        """SIGKILL."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM: in order."""
        await self._end(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait for its end; answers how."""
        assert self._process is not None
        return await self._process.wait()

    async def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            await self._process.wait()
