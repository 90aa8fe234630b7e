"""What every service's ``__main__`` shares: its arguments, its configuration, its logs, and how it ends.

async def serve(config: IdentityConfig, process: Process) -> None:
    server = GrpcServer(role="identity", tls=config.tls, clock=process.clock, …)
    process.ready(await server.start())
    await process.until_stopped()
    await server.stop()

def main() -> None:
    run("identity", IdentityConfig, serve)
"""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import tomllib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import prometheus_client
import structlog
import uvloop
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from vigil.core.clock import Clock, Entropy, SystemClock
from vigil.core.ordered import OrderedSet
from vigil.errors import VigilError
from vigil.rpc import logs
from vigil.rpc.metrics import measure_tasks
from vigil.rpc.network import GRPC, Network, target_of
from vigil.rpc.tls import TlsFiles

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h."""
SWITCH_S = 0.0005
"""Seconds until a thread that waits for the interpreter gets it. The database's thread lets it go at every statement:
with the default of 5 ms, a commit of eight of them would wait 40 ms on a busy event loop."""
PR_SET_PDEATHSIG = 1
"""prctl(2), linux/prctl.h."""
PARENT_FD = "VIGIL_PARENT_FD"
READY_FD = "VIGIL_READY_FD"

ConfigT = TypeVar("ConfigT", bound="ProcessConfig")
Serve = Callable[[ConfigT, "Process"], Awaitable[None]]


class ConfigError(VigilError):
    """The configuration cannot be used."""


class ProcessConfig(BaseModel):
    """What every process is told. Relative paths are relative to the folder of the configuration file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    data_dir: Path = Field(description="The process's own folder, for its database.")
    listen: str = Field(
        description="host:port to serve on; port 0 takes a free one.", pattern=r"^\S+:\d{1,5}$"
    )
    metrics_listen: str = Field(
        default="",
        description="host:port for Prometheus; empty serves no metrics.",
        pattern=r"^(\S+:\d{1,5})?$",
    )
    log_level: str = Field(
        default="info", description="debug, info, warning or error.", pattern=r"^(debug|info|warning|error)$"
    )

    @field_validator("*", mode="after")
    @classmethod
    def _resolve(cls, value: Any, info: ValidationInfo) -> Any:
        base = (info.context or {}).get("base")
        if isinstance(value, Path) and base is not None:
            return base / value.expanduser()
        return value


class BaseServiceConfig(ProcessConfig):
    """What every service of an installation is told besides: who it is, and whom it knows."""

    trust_domain: str = Field(description="The trust domain, a DNS name.", min_length=1)
    certificate: Path = Field(description="PEM: the service's certificate and its intermediate.")
    key: Path = Field(description="PEM: the key of that certificate.")
    trust: Path = Field(description="trust.json: the root and the intermediates.")
    peers: dict[str, str] = Field(default_factory=dict, description="host:port of other services, by role.")

    @property
    def tls(self) -> TlsFiles:
        """Where this end's certificate lies."""
        return TlsFiles(self.certificate, self.key, self.trust)

    @property
    def confirmations(self) -> Path:
        """Where a signer looks for two people's confirmations of the clock, at a start."""
        return self.data_dir / "clock-confirmations"

    def peer(self, role: str) -> str:
        """The address of another service, or several. Raises ConfigError when the configuration names none of use."""
        try:
            address = self.peers[role]
            target_of(address, role)
        except KeyError:
            raise ConfigError(f"the configuration names no address for {role} under [peers]") from None
        except ValueError as error:
            raise ConfigError(f"[peers] {role}: {error}") from error
        return address


def load_config(path: Path, cls: type[ConfigT]) -> ConfigT:
    """Read a TOML file. Raises ConfigError with every field that is wrong and no value that was given."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return cls.model_validate(values, context={"base": path.resolve().parent})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in each['loc']) or 'it'}: {each['msg']}" for each in error.errors()
        )
        raise ConfigError(f"{path} cannot be used: {wrong}") from error


class Process:
    """The process around a service: its clock, entropy and network, its metrics, its end."""

    def __init__(
        self,
        *,
        role: str,
        ready_fd: int | None,
        clock: Clock | None = None,
        entropy: Entropy = os.urandom,
        network: Network = GRPC,
    ) -> None:
        self.role = role
        self.clock: Clock = clock or SystemClock()
        self.entropy = entropy
        self.network = network
        self.metrics = prometheus_client.CollectorRegistry()
        self.log = structlog.get_logger(f"vigil.{role}")
        self.failed = False
        self._ready_fd = ready_fd
        self._stopping = asyncio.Event()
        self._tasks: OrderedSet[asyncio.Task[None]] = OrderedSet()

    def ready(self, port: int) -> None:
        """Say that calls are answered: in the log, and to whoever started this process."""
        # What was made while starting stays: collections need not walk it again.
        gc.collect()
        gc.freeze()
        self.log.info("ready", port=port, pid=os.getpid())
        if self._ready_fd is not None:
            with contextlib.suppress(OSError), os.fdopen(self._ready_fd, "w") as pipe:
                pipe.write(json.dumps({"role": self.role, "port": port, "pid": os.getpid()}) + "\n")
            self._ready_fd = None

    def supervise(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work for the life of the process; when it fails, the process stops and is started anew."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    @property
    def stopping(self) -> bool:
        """Whether the process was told to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Begin to stop, in order."""
        self._stopping.set()

    async def until_stopped(self) -> None:
        """Wait for a signal, for the parent's end or for a supervised task's failure."""
        await self._stopping.wait()
        self.log.info("stopping")

    async def end(self) -> None:
        """Cancel supervised work and wait for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.remove_done_callback(self._ended)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        self.failed = True
        self.log.error("task_ended", task=task.get_name(), exc_info=task.exception())
        self.stop()


def run(
    role: str, config_class: type[ConfigT], serve: Serve[ConfigT], argv: Sequence[str] | None = None
) -> None:
    """Run a service until it is told to stop, then exit: 0 in order, 1 after a failure, 78 for a bad config."""
    arguments = _parser(role).parse_args(argv)
    os.umask(0o077)
    try:
        config = load_config(arguments.config, config_class)
    except ConfigError as error:
        _say(role, error)
        sys.exit(EXIT_CONFIG)
    logs.configure(role=role, level=config.log_level)
    sys.setswitchinterval(SWITCH_S)
    raise_file_limit()
    if arguments.parent_fd is not None:
        die_with_parent()
    try:
        failed = uvloop.run(_main(role, config, serve, arguments))
    except VigilError as error:
        _say(role, error)
        sys.exit(1)
    sys.exit(1 if failed else 0)


async def _main(role: str, config: ConfigT, serve: Serve[ConfigT], arguments: argparse.Namespace) -> bool:
    process = Process(role=role, ready_fd=arguments.ready_fd)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, process.stop)
    loop.add_signal_handler(signal.SIGINT, _interrupted, process)
    if arguments.parent_fd is not None:
        watch_parent(arguments.parent_fd, process.stop)
    measure_tasks(process.metrics, loop)
    metrics = serve_metrics(config.metrics_listen, process.metrics)
    try:
        await serve(config, process)
    finally:
        await process.end()
        metrics()
    return process.failed


def _interrupted(process: Process) -> None:
    if process.stopping:
        # Interrupted twice, by a person who does not want to wait. Everything acknowledged is on disk.
        os._exit(1)
    process.stop()


def watch_parent(descriptor: int, on_end: Callable[[], None]) -> None:
    """Call ``on_end`` when the other end of this pipe is closed: its holder has died, however it did."""
    loop = asyncio.get_running_loop()
    os.set_blocking(descriptor, False)

    def readable() -> None:
        with contextlib.suppress(BlockingIOError):
            if not os.read(descriptor, 1024):
                loop.remove_reader(descriptor)
                on_end()

    loop.add_reader(descriptor, readable)


def die_with_parent() -> None:
    """Ask the kernel to end this process in order when its parent dies (Linux; elsewhere the pipe alone does)."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        if prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def raise_file_limit() -> int:
    """Take all file descriptors that the system grants, one for each connection; answers how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def serve_metrics(listen: str, registry: prometheus_client.CollectorRegistry) -> Callable[[], None]:
    """Serve Prometheus where the configuration says; answers how to stop it. Raises ConfigError."""
    if not listen:
        return lambda: None
    host, _, port = listen.rpartition(":")
    try:
        server, thread = prometheus_client.start_http_server(
            int(port), addr=host.strip("[]"), registry=registry
        )
    except OSError as error:
        raise ConfigError(f"metrics cannot be served on {listen}: {error}") from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def _parser(role: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"vigil-{role}", description=f"The {role} service of Vigil.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the configuration, TOML")
    parser.add_argument(
        "--parent-fd",
        type=int,
        default=_from_environment(PARENT_FD),
        metavar="N",
        help=f"stop when this pipe's other end is closed (or {PARENT_FD})",
    )
    parser.add_argument(
        "--ready-fd",
        type=int,
        default=_from_environment(READY_FD),
        metavar="N",
        help=f"write one line of JSON here when calls are answered (or {READY_FD})",
    )
    return parser


def _from_environment(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else None


def _say(role: str, error: Exception) -> None:
    sys.stderr.write(
        json.dumps({"role": role, "level": "error", "event": "not_started", "error": str(error)}) + "\n"
    )
