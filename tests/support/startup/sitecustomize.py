"""Python runs this as it starts, where PYTHONPATH names this folder: a process gets a clock or a network of its own.

`VIGIL_CLOCKS` names a folder; where it holds a file with the name of this process (see ``name_of``), the process is
replaced by itself under libfaketime, which takes the wall clock from that file, again each second. Its pid, descriptors
and arguments stay, and so does the monotonic clock. A file ``<name>.network`` names a network namespace, which the
process enters first. The product knows nothing of this.
"""

import ctypes
import os
import sys
from pathlib import Path


def name_of(arguments: list[str]) -> str:
    """What a test calls this process: a service, a gateway by its id, `fleet` for pumps, `up`; empty for others."""
    if "--config" in arguments:
        config = Path(arguments[arguments.index("--config") + 1])
        return config.parent.name if config.name == "gateway.toml" else config.stem
    if "--fleet" in arguments:
        return "fleet"
    return "up" if "vigil.run" in arguments else ""


CLONE_NEWNET = 0x40000000


def enter_network() -> None:
    """Enter the network namespace that a test made for this process (setns, setns(2))."""
    folder, name = os.environ.get("VIGIL_CLOCKS"), name_of(sys.orig_argv)
    if not folder or not name:
        return
    wanted = Path(folder) / f"{name}.network"
    if wanted.exists():
        descriptor = os.open(wanted.read_text().strip(), os.O_RDONLY | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(descriptor)


def begin_again() -> None:
    """Replace this process by itself under libfaketime when it is to have a clock of its own."""
    clocks, library = os.environ.get("VIGIL_CLOCKS"), os.environ.get("VIGIL_CLOCKS_LIBRARY", "")
    name = name_of(sys.orig_argv)
    if not clocks or not name or library in os.environ.get("LD_PRELOAD", ""):
        return
    clock = Path(clocks) / name
    if clock.exists():
        environment = {
            **os.environ,
            "LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {library}".strip(),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        os.execve(sys.executable, sys.orig_argv, environment)


enter_network()
begin_again()
