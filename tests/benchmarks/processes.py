"""A service as a process of its own, told when it answers, and its CPU time."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks.site import cpu_seconds
from tests.support.pki import TestPki

START_S = 60.0


class ServiceProcess:
    """``python -m vigil.<role>`` on a free port, with certificates of a `TestPki`."""

    def __init__(
        self, role: str, *, pki: TestPki, folder: Path, peers: Mapping[str, str], signer: str = ""
    ) -> None:
        self._role = role
        self._pki = pki
        self._folder = folder
        self._peers = peers
        self._signer = signer
        self._process: asyncio.subprocess.Process | None = None
        self.address = ""

    async def start(self) -> None:
        """Start and wait until calls are answered."""
        reading, writing = os.pipe()
        with (self._folder / f"{self._role}.log").open("ab") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", f"vigil.{self._role}"),
                *("--config", str(self._configuration()), "--ready-fd", str(writing)),
                pass_fds=(writing,),
                stderr=stderr,
            )
        os.close(writing)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb")
        )
        try:
            async with asyncio.timeout(START_S):
                line = await reader.readline()
        finally:
            transport.close()
        if not line:
            raise RuntimeError((self._folder / f"{self._role}.log").read_text())
        self.address = f"127.0.0.1:{json.loads(line)['port']}"

    async def stop(self) -> None:
        """SIGTERM: in order."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            await self._process.wait()

    def cpu_seconds(self) -> float:
        assert self._process is not None
        return cpu_seconds(self._process.pid)

    def _configuration(self) -> Path:
        files = self._pki.service(self._role).tls_files
        data = self._folder / self._role
        data.mkdir(exist_ok=True)
        values = {
            "data_dir": str(data),
            "listen": "127.0.0.1:0",
            "trust_domain": self._pki.trust_domain,
            "certificate": str(files.certificate),
            "key": str(files.key),
            "trust": str(files.trust),
        }
        if self._signer:
            signers = self._pki.directory / "pki" / "signers"
            values["signer_certificate"] = str(signers / f"{self._signer}.pem")
            values["signer_key"] = str(signers / f"{self._signer}.key")
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        lines += ["[peers]", *(f"{name} = {json.dumps(value)}" for name, value in self._peers.items())]
        path = self._folder / f"{self._role}.toml"
        path.write_text("\n".join(lines) + "\n")
        return path
