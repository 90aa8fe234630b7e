"""The installation under the demonstration: `vigil up` as a child process, on a folder of its own."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass, field

from vigil.errors import Reason, refused
from vigil.rpc.service_main import PARENT_FD
from vigil.run.layout import DataFolder

START_S = 90.0


@dataclass
class RunningInstallation:
    """`vigil up` and what it started. Raises SERVICE_UNAVAILABLE when it does not come up."""

    folder: DataFolder
    trust_domain: str
    base_port: int | None = None
    process: asyncio.subprocess.Process | None = None
    pids: dict[str, int] = field(default_factory=dict)
    _pipe: tuple[int, int] | None = None

    async def start(self) -> None:
        """Start it and wait until it says that all is ready."""
        self._pipe = os.pipe2(os.O_CLOEXEC)
        log = self.folder.path / "logs" / "up.log"
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        port = [] if self.base_port is None else ["--base-port", str(self.base_port)]
        with log.open("ab") as words:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "vigil.run", "--data", str(self.folder.path), "--no-gateway", "--output", "json"),
                *("--trust-domain", self.trust_domain, *port),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=words,
                env={**os.environ, PARENT_FD: str(self._pipe[0])},
                pass_fds=(self._pipe[0],),
                start_new_session=True,
            )
        if self.process.stdout is None:
            raise refused(Reason.SERVICE_UNAVAILABLE, "the installation has no output")
        line = b""
        with contextlib.suppress(TimeoutError):
            line = await asyncio.wait_for(self.process.stdout.readline(), START_S)
        if not line:
            raise refused(
                Reason.SERVICE_UNAVAILABLE,
                "the services did not come up",
                lifted_by=f"reading {log} and the logs beside it",
                who="you",
            )
        self.pids = {one["name"]: one["pid"] for one in json.loads(line)["services"]}

    def freeze(self, name: str) -> None:
        """SIGSTOP: the process is there and answers nobody, as a machine that hangs."""
        os.kill(self.pids[name], signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        os.kill(self.pids[name], signal.SIGCONT)

    async def stop(self) -> None:
        """Stop everything in order; what was frozen is thawed first."""
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
