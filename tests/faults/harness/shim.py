"""Faults at chosen calls of real processes: a small library between them and the kernel, steered from here.

shim = Shim.build(folder)                      # compiled by cc; `Shim.missing()` says why there can be none
child = subprocess.Popen(…, env={**os.environ, **shim.environment})

with shim.fail(Op.SYNC, path="/evidence/", error=errno.EIO) as fault:      # every fsync below that path
    …
assert fault.fired                             # how often a call really met it
with shim.kill(Op.SYNC, path=…, nth=3) as fault:   # SIGKILL just before the third one (after=True: just after)
    await fault.met()

Every process started with the environment shares one block of rules, so a rule is narrowed by a part of the file's
path (services keep their files apart), or by a pid, where sockets are meant. Nothing is counted before a rule is set.
"""

import contextlib
import errno as errno_of
import mmap
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Final

from tests.support.stack import eventually

SOURCE: Final = Path(__file__).with_name("shim.c")
VARIABLE: Final = "VIGIL_FAULT_RULES"
SOCKETS: Final = "socket:"
ALWAYS: Final = 1 << 40
"""More calls than any test makes."""

_RULES: Final = 16
_HEADER: Final = struct.Struct("<ii")
_RULE: Final = struct.Struct("<iiiiiiqqqq256s")
_COUNTS: Final = struct.Struct("<qq")
_COUNTS_AT: Final = 40
_ACTIVE: Final = struct.Struct("<i")


class Op(IntFlag):
    """What a process asks of the kernel: WRITE on files, SEND on sockets, GROW by taking room, RESIZE without."""

    WRITE = 1
    SYNC = 2
    OPEN = 4
    GROW = 8
    SEND = 16
    RENAME = 32
    RESIZE = 64

    DURABLE = WRITE | SYNC | GROW | RENAME | RESIZE
    """Each step of making something durable."""


class _Action(IntEnum):
    WATCH = 0
    FAIL = 1
    KILL_BEFORE = 2
    KILL_AFTER = 3
    TEAR = 4
    WAIT = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule in force, or what it counted until it ended."""

    block: mmap.mmap
    place: int

    @property
    def seen(self) -> int:
        """Calls that the rule was about."""
        return int(self._counts()[0])

    @property
    def fired(self) -> int:
        """Calls that met the fault."""
        return int(self._counts()[1])

    async def met(self, *, seconds: float = 60.0) -> None:
        """Wait until the fault has happened at least once."""
        await eventually(lambda: self.fired, what="the fault happens", seconds=seconds, pause=0.01)

    def _counts(self) -> tuple[int, int]:
        seen, fired = _COUNTS.unpack_from(self.block, self.place + _COUNTS_AT)
        return seen, fired


class Shim:
    """The compiled library and its block of rules."""

    def __init__(self, library: Path, rules: Path) -> None:
        self.environment = {"LD_PRELOAD": str(library), VARIABLE: str(rules)}
        """With which a process is started so that rules reach it, and everything that it starts."""
        size = _HEADER.size + _RULES * _RULE.size
        if not rules.exists() or rules.stat().st_size != size:
            # A process that runs below the shim steers it too: it must not pull the block from under itself.
            rules.write_bytes(bytes(size))
        with rules.open("r+b") as file:
            self._block = mmap.mmap(file.fileno(), 0)
        self._taken: list[int] = []

    @staticmethod
    def missing() -> str:
        """Why no shim can be built here; empty when one can."""
        return (
            "" if shutil.which("cc") else "a C compiler (cc) is missing: faults are put below a process by it"
        )

    @classmethod
    def build(cls, folder: Path) -> "Shim":
        """Compile into a folder. Raises CalledProcessError."""
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / "shim.so"
        command = [
            "cc",
            "-O2",
            "-Wall",
            "-Werror",
            "-shared",
            "-fPIC",
            "-o",
            str(library),
            str(SOURCE),
            "-ldl",
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return cls(library, folder / "rules")

    def watch(self, ops: Op, *, path: str = "", pid: int = 0) -> "contextlib.AbstractContextManager[Fault]":
        """Only count."""
        return self._rule(_Action.WATCH, ops, path=path, pid=pid)

    def fail(
        self,
        ops: Op,
        *,
        path: str,
        error: int = errno_of.EIO,
        nth: int = 1,
        count: int = ALWAYS,
        pid: int = 0,
    ) -> "contextlib.AbstractContextManager[Fault]":
        """Let ``count`` calls from the ``nth`` on fail with an errno; the kernel never hears of them."""
        return self._rule(_Action.FAIL, ops, path=path, error=error, nth=nth, count=count, pid=pid)

    def full(self, path: str) -> "contextlib.AbstractContextManager[Fault]":
        """No room below a path any more: whatever would take some answers ENOSPC."""
        return self.fail(Op.WRITE | Op.GROW, path=path, error=errno_of.ENOSPC)

    def kill(
        self, ops: Op, *, path: str = "", nth: int = 1, after: bool = False, pid: int = 0
    ) -> "contextlib.AbstractContextManager[Fault]":
        """SIGKILL just before the nth call, or just after it was carried out and before anybody knows. Once."""
        action = _Action.KILL_AFTER if after else _Action.KILL_BEFORE
        return self._rule(action, ops, path=path, nth=nth, count=1, pid=pid)

    def tear(self, *, path: str, nth: int = 1, pid: int = 0) -> "contextlib.AbstractContextManager[Fault]":
        """Half of the nth write reaches the file, then SIGKILL: what a power cut leaves of a sector train."""
        return self._rule(_Action.TEAR, Op.WRITE, path=path, nth=nth, count=1, pid=pid)

    def delay(
        self, ops: Op, *, path: str, seconds: float, count: int = ALWAYS, pid: int = 0
    ) -> "contextlib.AbstractContextManager[Fault]":
        """Each call waits before it is carried out."""
        return self._rule(_Action.WAIT, ops, path=path, count=count, pid=pid, wait_ms=int(seconds * 1000))

    @contextlib.contextmanager
    def _rule(
        self,
        action: _Action,
        ops: Op,
        *,
        path: str = "",
        error: int = 0,
        nth: int = 1,
        count: int = ALWAYS,
        pid: int = 0,
        wait_ms: int = 0,
    ) -> Iterator[Fault]:
        number = next(place for place in range(_RULES) if place not in self._taken)
        self._taken.append(number)
        at = _HEADER.size + number * _RULE.size
        fields = (int(ops), int(action), error, pid, wait_ms, nth, count, 0, 0, path.encode())
        _RULE.pack_into(self._block, at, 0, *fields)
        _ACTIVE.pack_into(self._block, at, 1)
        self._arm()
        try:
            yield Fault(self._block, at)
        finally:
            _ACTIVE.pack_into(self._block, at, 0)
            self._taken.remove(number)
            self._arm()

    def _arm(self) -> None:
        _ACTIVE.pack_into(self._block, 0, len(self._taken))
