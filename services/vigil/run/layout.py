"""Where everything lies under a data folder, and the lock that keeps a second `vigil up` out.

::

    lock                       held while `vigil up` runs
    endpoints.json             who listens where (chosen once, kept)
    contexts.json              the command line's contexts
    pki/, people/              trust, as the first start made it
    config/<service>.toml      one configuration a service
    gateways/<id>/             gateway.toml, tls.pem, tls.key, trust.json, data
    <service>/                 a service's own tables and files
    logs/<process>.log         JSON lines
"""

import fcntl
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vigil.core.certificates import replace_file
from vigil.errors import Reason, refused

SERVICES: Final = ("identity", "release", "attestation", "policy", "revocation", "edge", "evidence")
"""Every service of one machine but the gateways, in the order they are shown."""

TILES: Final = "tiles"
"""The name of the address where the evidence service serves the log's tiles over HTTP."""
FIRST_PORT: Final = 7441
FIRST_GATEWAY_PORT: Final = 7450
DEFAULT_TRUST_DOMAIN: Final = "vigil.internal"
DEFAULT_OPERATOR: Final = "operator"


def default_data() -> Path:
    """The data folder where no --data says otherwise: VIGIL_DATA, or the user's own data folder (XDG)."""
    named = os.environ.get("VIGIL_DATA")
    if named:
        return Path(named)
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "vigil"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The paths of one installation."""

    path: Path

    @property
    def endpoints_file(self) -> Path:
        return self.path / "endpoints.json"

    @property
    def contexts_file(self) -> Path:
        return self.path / "contexts.json"

    @property
    def trust(self) -> Path:
        return self.path / "pki" / "trust.json"

    @property
    def witness_policy(self) -> Path:
        """Where an operator names the log's witnesses (C2SP tlog-policy); absent where there are none."""
        return self.path / "witness-policy"

    def config(self, service: str) -> Path:
        return self.path / "config" / f"{service}.toml"

    def log(self, process: str) -> Path:
        return self.path / "logs" / f"{process}.log"

    def gateway(self, gateway_id: str) -> Path:
        return self.path / "gateways" / gateway_id

    def gateways(self) -> list[str]:
        """The gateways of this machine: every folder with a configuration."""
        return sorted(found.parent.name for found in (self.path / "gateways").glob("*/gateway.toml"))

    def exists(self) -> bool:
        """Whether a first start happened here."""
        return self.trust.exists()

    def read_endpoints(self) -> dict[str, str]:
        """Addresses (host:port) by process name; empty before the first start."""
        try:
            found = json.loads(self.endpoints_file.read_text())
        except FileNotFoundError:
            return {}
        return {str(name): str(address) for name, address in found.items()}

    def write_endpoints(self, endpoints: Mapping[str, str]) -> None:
        """Keep the addresses, durably."""
        text = json.dumps(dict(sorted(endpoints.items())), indent=2) + "\n"
        replace_file(self.endpoints_file, text.encode())

    def running(self) -> bool:
        """Whether some `vigil up` holds this folder now."""
        try:
            with self.lock():
                return False
        except _Locked:
            return True
        except FileNotFoundError:
            return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder. Raises STATE_CONFLICT when another process holds it."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _Locked from None
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """As ``lock``, with the refusal a person sees."""
        try:
            with self.lock():
                yield
        except _Locked:
            raise refused(
                Reason.STATE_CONFLICT,
                f"another `vigil up` is already running on {self.path}",
                lifted_by="stopping it, or another --data folder",
                who="the operator",
            ) from None


class _Locked(Exception):  # noqa: N818 - never leaves this module
    """Somebody else holds the folder."""


def free_ports(wanted: int, first: int, taken: set[int]) -> list[int]:
    """Find ports on the loopback address, from ``first`` up, that nobody listens on and ``taken`` does not hold."""
    found: list[int] = []
    port = first
    while len(found) < wanted:
        if port > 65_000:
            raise refused(Reason.STATE_CONFLICT, "no free port was found on 127.0.0.1")
        if port not in taken and _is_free(port):
            found.append(port)
        port += 1
    return found


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def port_of(address: str) -> int:
    """The port of ``host:port``."""
    return int(address.rpartition(":")[2])


def runtime_folder() -> Path:
    """Make a short 0700 folder for Unix sockets, whose paths may have 107 bytes (unix(7))."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    if len(base) > 60:
        base = "/tmp"  # noqa: S108 - mkdtemp makes a private folder below it
    return Path(tempfile.mkdtemp(prefix="vigil-", dir=base))
