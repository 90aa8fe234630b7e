"""A real PostgreSQL server, Debian's, in a folder of its own: reached through a Unix socket, ended with the tests.

As root it runs as another user, since PostgreSQL refuses to run as root; what it may do to the machine is nothing more.
"""

import contextlib
import datetime as dt
import ipaddress
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

SERVICE_USERS: Final = ("postgres", "nobody")
SUPERUSER: Final = "vigil"
START_S: Final = 60.0
MEMORY: Final = Path("/dev/shm")
ROOM: Final = 1 << 30
"""Bytes: a server takes 40 MB, a database 8."""


def binaries() -> Path | None:
    """Where Debian or the path keep the newest server."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return None if initdb is None else Path(initdb).resolve().parent


def missing() -> str:
    """Why there can be no server here; empty when there can."""
    if binaries() is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    if os.geteuid() == 0 and _user() is None:
        return "PostgreSQL does not run as root, and this machine has no user for it"
    return ""


def _user() -> str | None:
    for name in SERVICE_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


class PostgresServer:
    """One server. ``stop`` and ``kill`` leave its files, ``start`` continues on them."""

    def __init__(self, folder: Path, *, inside: Sequence[str] = ()) -> None:
        """``inside``: a command (`ip netns exec NAME`) as root that the server is started through."""
        self._folder = folder
        self._data = folder / "data"
        self._socket = folder
        self._numbers = itertools.count(1)
        self._server: subprocess.Popen[bytes] | None = None
        self._port = 5432  # of the socket's name; nothing listens there
        binary = binaries()
        assert binary is not None, missing()
        self._binary = binary
        self._owner: tuple[int, int] | None = None
        self._as: list[str] = []
        # It ends with this process, however that ends.
        self._dies = ["setpriv", "--pdeathsig", "QUIT"] if shutil.which("setpriv") else []
        if os.geteuid() == 0:
            entry = pwd.getpwnam(str(_user()))
            self._owner = entry.pw_uid, entry.pw_gid
            # Not by `subprocess`, which then forks in a way that gRPC's threads in this process do not outlive.
            self._as = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
            os.chown(folder, *self._owner)
        self._inside = list(inside)

    @classmethod
    @contextlib.contextmanager
    def running(cls, *, inside: Sequence[str] = (), **settings: str) -> Iterator["PostgresServer"]:
        """A new server, for as long as the block lasts."""
        # In memory where there is room: no test cuts the power, and a database is made in a fifth of the time. (A Unix
        # socket's path has at most 107 bytes, which pytest's folders would use up.)
        roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM
        with tempfile.TemporaryDirectory(prefix="vigil-pg-", dir=MEMORY if roomy else None) as name:
            server = cls(Path(name), inside=inside)
            server.initialize()
            server.start(**settings)
            try:
                yield server
            finally:
                server.stop()

    @property
    def pid(self) -> int:
        """The postmaster."""
        assert self._server is not None
        return self._server.pid

    @property
    def log(self) -> str:
        """What the server has said."""
        return (self._folder / "log").read_text(errors="replace")

    def initialize(self) -> None:
        command = [self._binary / "initdb", "-D", self._data, "-U", SUPERUSER, "--auth=trust", "--no-sync"]
        command += ["--encoding=UTF8", "--no-locale", "--no-instructions"]
        subprocess.run([*self._as, *command], check=True, stdout=subprocess.DEVNULL, cwd="/")

    def start(self, **settings: str) -> None:
        """Start on the files there are and wait until queries are answered."""
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket),
            "port": str(self._port),
            "shared_buffers": "32MB",
            "max_connections": "200",
            "log_min_messages": "warning",
            **settings,
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [
                    *self._inside,
                    *self._as,
                    *self._dies,
                    self._binary / "postgres",
                    "-D",
                    self._data,
                    *arguments,
                ],
                stderr=log,
                stdout=log,
                cwd="/",
            )
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(Exception):
                self.query("SELECT 1")
                return
            assert self._server.poll() is None, f"{self._server.returncode}: {self.log}"
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it: SIGQUIT is PostgreSQL's 'immediate', without a last word to the disk; it recovers when it starts."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(how)
            self._server.wait()
        self._server = None

    def require_passwords(self) -> None:
        """Let nobody but the superuser in without one."""
        rules = f"local all {SUPERUSER} trust\nlocal all all scram-sha-256\n"
        (self._data / "pg_hba.conf").write_text(rules)
        self.query("SELECT pg_reload_conf()")

    def prove_itself(self, address: str) -> Path:
        """Have a certificate for this address from now on, asked of everybody who comes over a network; answers its
        issuer's, for who connects.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, address)])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(Encoding.PEM)
        self._write("server.crt", pem)
        self._write("server.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._write("pg_hba.conf", b"local all all trust\nhostssl all all all trust\n")
        issuer = self._folder / "issuer.pem"
        issuer.write_bytes(pem)
        return issuer

    def _write(self, name: str, content: bytes) -> None:
        path = self._data / name
        path.touch(0o600)
        path.write_bytes(content)
        if self._owner is not None:
            os.chown(path, *self._owner)

    def listen_on_a_network(self) -> tuple[int, str]:
        """Start, listening on every address of this machine; answers the port, and one that is not the loopback's."""
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
            # Nothing is sent: the kernel is asked which address of ours leads there (TEST-NET-1, RFC 5737).
            probe.connect(("192.0.2.1", 9))
            address = str(probe.getsockname()[0])
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
            self._port = int(free.getsockname()[1])
        (self._data / "pg_hba.conf").write_text("local all all trust\nhost all all all trust\n")
        self.start(listen_addresses="*")
        return self._port, address

    def url(self, database: str) -> str:
        """Where the evidence service would be told that the database is."""
        return f"postgresql://{SUPERUSER}@/{database}?host={self._socket}&port={self._port}"

    def create(self) -> str:
        """Make an empty database; answers its URL."""
        name = f"vigil_{os.getpid()}_{next(self._numbers)}"
        self.query(f"CREATE DATABASE {name}")
        return self.url(name)

    def connection(self, database: str = "postgres", **values: Any) -> Any:
        """A connection of one's own, as the superuser."""
        import psycopg

        return psycopg.connect(
            host=str(self._socket), port=self._port, user=SUPERUSER, dbname=database, **values
        )

    def query(self, sql: str, *values: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement by hand; answers its rows."""
        with self.connection(database, autocommit=True) as connection:
            cursor = connection.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []
