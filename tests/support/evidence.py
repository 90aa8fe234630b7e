"""The evidence service as a process of its own, and people whose statements it records."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support.pki import Credential, TestPki
from vigil.core.clock import Clock, SystemClock
from vigil.core.statements.bodies import Hold, HoldAction
from vigil.core.statements.envelope import Scribe, Statement

START_SECONDS = 60.0


class EvidenceProcess:
    """``python -m vigil.evidence`` on a folder; started, killed and started again on the same port."""

    def __init__(
        self,
        pki: TestPki,
        folder: Path,
        *,
        peers: Mapping[str, str] | None = None,
        settings: Mapping[str, str | float] | None = None,
        tiles: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``tiles``: serve the log's tiles too, over ``http`` or ``https``; ``environment``: beside our own."""
        self.pki = pki
        self.folder = folder
        self.port = 0
        self.stderr = folder / "evidence.log"
        self.tiles_port = 0
        self._tiles = tiles
        self._environment = dict(environment or {})
        self._peers = dict(peers or {})
        self.settings = dict(settings or {})
        self._credential = pki.service("evidence")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def tiles(self) -> str:
        """Where the log's tiles are."""
        return f"{self._tiles}://127.0.0.1:{self.tiles_port}"

    @property
    def data(self) -> Path:
        return self.folder / "evidence"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start and wait until calls are answered."""
        reading, writing = os.pipe()
        with self.stderr.open("ab") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "vigil.evidence",
                "--config",
                str(self._configuration()),
                "--ready-fd",
                str(writing),
                pass_fds=(writing,),
                stderr=stderr,
                env={**os.environ, **self._environment},
            )
        os.close(writing)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb")
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await reader.readline()
        finally:
            transport.close()
        if not line:
            await self._process.wait()
            raise RuntimeError(f"evidence did not start: {self.stderr.read_text()}")
        self.port = json.loads(line)["port"]
        if self._tiles:
            events = [json.loads(event) for event in self.stderr.read_text().splitlines()]
            self.tiles_port = [event["port"] for event in events if event.get("event") == "tiles"][-1]

    async def kill(self) -> None:
        """SIGKILL: nothing of it gets a last word."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM: in order."""
        await self._end(signal.SIGTERM)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def freeze(self) -> None:
        """SIGSTOP: it does nothing, and its connections stay. Returns when it has really stopped (proc(5))."""
        os.kill(self.pid, signal.SIGSTOP)
        while self._state() != "T":
            time.sleep(0.001)

    def thaw(self) -> None:
        """SIGCONT: it goes on where it was."""
        os.kill(self.pid, signal.SIGCONT)

    def events(self) -> list[dict[str, object]]:
        """What it has said in its log."""
        return [json.loads(line) for line in self.stderr.read_text().splitlines() if line.startswith("{")]

    def said(self, words: str) -> bool:
        """Whether its log holds these words."""
        return any(words in str(event.get("event")) for event in self.events())

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def cpu_seconds(self) -> float:
        """CPU time of the running process, user and system (proc(5))."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Resident memory of the running process (proc(5)), MB."""
        assert self._process is not None
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        [kib] = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
        return kib * 1024 / 1e6

    async def exit_code(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    async def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            await self._process.wait()

    def _configuration(self) -> Path:
        files = self._credential.tls_files
        signers = self.pki.directory / "pki" / "signers"
        values: dict[str, str | float | bool] = {
            "data_dir": str(self.data),
            "listen": self.address,
            "trust_domain": self.pki.trust_domain,
            "certificate": str(files.certificate),
            "key": str(files.key),
            "trust": str(files.trust),
            "signer_certificate": str(signers / "recorded.pem"),
            "signer_key": str(signers / "recorded.key"),
            "census_seconds": "3600",  # where no test asks for one, the log holds what the test put there
            **self.settings,
        }
        if self._tiles:
            values["tiles_listen"] = f"127.0.0.1:{self.tiles_port}"
            values["tiles_tls"] = self._tiles == "https"
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        if self._peers:
            lines += ["[peers]", *(f"{name} = {json.dumps(value)}" for name, value in self._peers.items())]
        path = self.folder / "evidence.toml"
        path.write_text("\n".join(lines) + "\n")
        return path


class HoldWriter:
    """A person who signs holds, each another statement."""

    def __init__(self, credential: Credential, *, clock: Clock | None = None) -> None:
        self.credential = credential
        self._scribe = Scribe(
            signer=credential.signer,
            issuer=credential.issuer_name,
            clock=clock or SystemClock(),
            entropy=os.urandom,
            numbered=False,
        )

    def hold(self, device: str = "dev-aaaaaaaaaaaaaaaa", reason: str = "") -> Statement[Hold]:
        body = Hold(device=device, action=HoldAction.PLACE, reason=reason)
        return self._scribe.sign(body, subject=f"device/{device}")
