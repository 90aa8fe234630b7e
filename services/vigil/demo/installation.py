"""The installation under the demonstration: `vigil up` as a child process, on a folder of its own."""

import contextlib
import json
import os
import signal
from dataclasses import dataclass, field

from vigil.demo.processes import Child
from vigil.run.layout import DataFolder

START_S = 90.0


@dataclass
class RunningInstallation:
    """`vigil up` and what it started."""

    folder: DataFolder
    trust_domain: str
    base_port: int | None = None
    metrics: bool = False
    pids: dict[str, int] = field(default_factory=dict)
    _child: Child | None = None

    async def start(self) -> None:
        """Start it and wait until it says that all is ready. Raises SERVICE_UNAVAILABLE when it does not."""
        port = [] if self.base_port is None else ["--base-port", str(self.base_port)]
        arguments = ["vigil.run", "--data", str(self.folder.path), "--no-gateway", "--output", "json"]
        if self.metrics:
            arguments.append("--metrics")
        log = self.folder.path / "logs" / "up.log"
        self._child = Child([*arguments, "--trust-domain", self.trust_domain, *port], log)
        await self._child.start()
        line = await self._child.line(seconds=START_S)
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
        if self._child is not None:
            await self._child.stop()
