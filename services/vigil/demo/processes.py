"""Child processes of the demonstration: each ends with it, however it ends."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vigil.errors import Reason, refused
from vigil.rpc.service_main import PARENT_FD

TAP_VARIABLE = "VIGIL_DEMO_TAP"
"""Tells the captured gateway where the attacker's socket is."""


@dataclass
class Child:
    """One Python module as a child process. Whatever it prints on stdout is read by `line`; stderr goes to a log."""

    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    _pipe: tuple[int, int] | None = None

    async def start(self) -> None:
        """Start it; it holds the reading end of a pipe whose other end is ours alone."""
        self._pipe = os.pipe2(os.O_CLOEXEC)
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *self.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={
                    **os.environ,
                    **self.environment,
                    PARENT_FD: str(self._pipe[0]),
                    "GRPC_VERBOSITY": "NONE",
                },
                pass_fds=(self._pipe[0],),
                start_new_session=True,
            )

    async def line(self, *, seconds: float) -> bytes:
        """The next line that it prints. Raises SERVICE_UNAVAILABLE when none comes."""
        try:
            if self.process is not None and self.process.stdout is not None:
                read = await asyncio.wait_for(self.process.stdout.readline(), seconds)
                if read:
                    return read
        except TimeoutError:
            pass
        raise refused(
            Reason.SERVICE_UNAVAILABLE,
            f"{self.arguments[0]} did not come up",
            lifted_by=f"reading {self.log}",
            who="you",
        )

    async def stop(self) -> None:
        """End it in order."""
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = None
