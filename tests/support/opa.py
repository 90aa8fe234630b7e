"""A real OPA: the command, and a server with a bundle on the loopback interface."""

import asyncio
import os
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from vigil.policy.engine.opa import LOCAL_OPA, Opa, OpaMissing

ROOT = Path(__file__).parent.parent.parent
POLICIES = ROOT / "policies"

_START_LIMIT_S = 60


def opa() -> Opa:
    """The `opa` command. Without it the test fails, with the words of how to install it."""
    local = ROOT / LOCAL_OPA
    try:
        return Opa.find(local if os.access(local, os.X_OK) else None)
    except OpaMissing as missing:
        pytest.fail(str(missing))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OpaServer:
    """`opa run --server` on 127.0.0.1 with one bundle; `with` starts it and ends it."""

    def __init__(self, bundle: Path, *, port: int = 0) -> None:
        self.port = port or free_port()
        self._bundle = bundle

    def __enter__(self) -> Self:
        address = f"127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [
                str(opa().executable),
                "run",
                "--server",
                "--addr",
                address,
                "--log-level",
                "error",
                "--disable-telemetry",
                "--bundle",
                str(self._bundle),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    async def ready(self) -> None:
        """Wait until it accepts connections, which it does after the bundle is loaded."""
        async with asyncio.timeout(_START_LIMIT_S):
            while True:
                if self._process.poll() is not None:
                    pytest.fail(f"opa ended with {self._process.returncode}")
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return

    def pause(self) -> None:
        """Stop it where it stands: connections stay open and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)  # its last thread has stopped

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
