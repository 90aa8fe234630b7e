"""A service as a process: how it is configured, started, stopped and orphaned, and what its log holds."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import structlog

from tests.support.pki import TestPki
from tests.unit.rpc.conftest import tls_files
from tests.unit.rpc.probe import Probe, ProbeStub
from vigil.core.clock import SystemClock
from vigil.rpc import logs
from vigil.rpc.channel import Channels
from vigil.rpc.service_main import EXIT_CONFIG, BaseServiceConfig, ConfigError, load_config, raise_file_limit
from vigil.rpc.status import translated

PROJECT = Path(__file__).parents[3]


class Config(BaseServiceConfig):
    secret_word: int = 0


def written(pki: TestPki, folder: Path, **values: str) -> Path:
    files = pki.service("policy").tls_files
    given = {
        "data_dir": "data",
        "listen": "127.0.0.1:0",
        "trust_domain": pki.trust_domain,
        "certificate": str(files.certificate),
        "key": str(files.key),
        "trust": str(files.trust),
        **values,
    }
    path = folder / "tiny.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items()))
    return path


class Started:
    """A started service and the pipes to it."""

    def __init__(self, config: Path) -> None:
        self.parent_end, holder = os.pipe()
        ready, ready_end = os.pipe()
        self.holder = holder
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.unit.rpc.tiny_service", "--config", str(config)),
                *("--parent-fd", str(self.parent_end), "--ready-fd", str(ready_end)),
            ],
            # gRPC's own lines are no JSON; whoever starts a service turns them off.
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
            cwd=PROJECT,
            pass_fds=(self.parent_end, ready_end),
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(ready_end)
        os.close(self.parent_end)
        with os.fdopen(ready) as pipe:
            line = pipe.readline()
        self.ready: dict[str, Any] = json.loads(line) if line else {}

    def wait(self) -> list[dict[str, Any]]:
        _out, err = self.process.communicate(timeout=30)
        return [json.loads(line) for line in err.splitlines()]


@pytest.fixture
def start() -> Iterator[Any]:
    started: list[Started] = []

    def make(config: Path) -> Started:
        started.append(Started(config))
        return started[-1]

    yield make
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate(timeout=30)
        os.close(each.holder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_service_serves_until_a_signal(
    pki: TestPki, tmp_path: Path, start: Any, number: signal.Signals
) -> None:
    service = start(written(pki, tmp_path))
    channels = Channels(tls=tls_files(pki.gateway()), trust_domain=pki.trust_domain, clock=SystemClock())
    stub: Any = ProbeStub(channels.service(f"127.0.0.1:{service.ready['port']}", "policy"))
    assert (await translated(stub.Ping(Probe(text="here"), timeout=10))).text == "here"
    await channels.close()
    service.process.send_signal(number)
    lines = service.wait()
    assert service.process.returncode == 0
    assert [line["event"] for line in lines] == ["ready", "facts", "stopping"]
    assert {line["role"] for line in lines} == {"tiny"}


def test_a_service_ends_with_whoever_holds_its_pipe(pki: TestPki, tmp_path: Path, start: Any) -> None:
    service = start(written(pki, tmp_path))
    os.close(service.holder)
    service.holder = os.open("/dev/null", os.O_RDONLY)
    assert service.wait()[-1]["event"] == "stopping"
    assert service.process.returncode == 0


def test_its_log_holds_no_secret(pki: TestPki, tmp_path: Path, start: Any) -> None:
    service = start(written(pki, tmp_path, fail="-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEI"))
    lines = service.wait()
    assert service.process.returncode == 1
    facts = next(line for line in lines if line["event"] == "facts")
    assert facts["key"] == logs.REDACTED
    assert facts["nested"] == {"passphrase": logs.REDACTED, "plain": "visible"}
    failure = json.dumps(next(line for line in lines if line["event"] == "task_ended"))
    assert "RuntimeError" in failure
    assert "MHcCAQEEI" not in failure
    assert "local variable" not in failure


def test_a_port_that_is_taken_is_said_in_one_line(pki: TestPki, tmp_path: Path, start: Any) -> None:
    first = start(written(pki, tmp_path))
    second = start(written(pki, tmp_path, listen=f"127.0.0.1:{first.ready['port']}"))
    (line,) = second.wait()
    assert second.process.returncode == 1
    assert "another process" in line["error"]


def test_a_bad_configuration_is_said_in_one_line(pki: TestPki, tmp_path: Path, start: Any) -> None:
    service = start(written(pki, tmp_path, listen="nowhere", passphrase="hunter2"))
    (line,) = service.wait()
    assert service.process.returncode == EXIT_CONFIG
    assert "listen" in line["error"]
    assert "passphrase" in line["error"]
    assert "hunter2" not in line["error"]


def test_metrics_are_served_where_the_configuration_says(pki: TestPki, tmp_path: Path, start: Any) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    service = start(written(pki, tmp_path, metrics_listen=f"127.0.0.1:{port}"))
    assert service.ready["role"] == "tiny"
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert b"vigil_rpc_seconds_bucket" in answer.read()


def test_paths_are_relative_to_the_configuration(pki: TestPki, tmp_path: Path) -> None:
    config = load_config(written(pki, tmp_path, key="keys/tls.key"), Config)
    assert config.data_dir == tmp_path / "data"
    assert config.tls.key == tmp_path / "keys" / "tls.key"
    with pytest.raises(ConfigError, match="no address for evidence"):
        config.peer("evidence")


@pytest.mark.parametrize("text", ["data_dir = ", "\xff", "listen = 5"])
def test_what_is_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError):
        load_config(path, Config)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "absent.toml", Config)


@pytest.mark.parametrize(
    ("name", "value", "logged"),
    [
        ("private_key", "x", logs.REDACTED),
        ("Authorization", "x", logs.REDACTED),
        ("key_thumbprint", "ab12", "ab12"),
        ("keyed", "x", "x"),
        ("payload", b"1234", "<4 bytes>"),
        ("url", "redis://user:pass@host", f"redis://user:{logs.REDACTED}@host"),
        ("values", [{"token": "x"}], [{"token": logs.REDACTED}]),
        ("text", "x" * 5000, "x" * 4096 + "…"),
        ("number", 5, 5),
    ],
)
def test_what_is_redacted(name: str, value: Any, logged: Any) -> None:
    assert logs.redact(None, "info", {name: value}) == {name: logged}


def test_lines_of_the_standard_library_are_json_too() -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        logs.configure(role="tiny", stream=stream)
        logging.getLogger("other").warning("a %s word", "plain", extra={"password": "x"})
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
    line = json.loads(stream.getvalue())
    assert (line["event"], line["password"], line["level"]) == ("a plain word", logs.REDACTED, "warning")


def test_file_descriptors_are_raised_to_what_is_granted() -> None:
    import resource

    assert raise_file_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
