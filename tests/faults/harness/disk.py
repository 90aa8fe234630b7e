"""A small disk that can be filled, and a database that somebody else holds.

disk = SmallDisk.mount(folder, megabytes=64)      # a tmpfs; `SmallDisk.missing()` says why there can be none
with disk.filled():                               # nothing more fits, shown by a write that failed
    …
disk.unmount()                                    # also done when this process ends, however it does

with locked(path):                                # BEGIN EXCLUSIVE by another process' means: a real lock
    …
"""

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BALLAST = "ballast"
PIECE = 1 << 20


@dataclass(frozen=True)
class SmallDisk:
    """A tmpfs of its own."""

    folder: Path
    _keeper: "subprocess.Popen[bytes]"

    @staticmethod
    def missing() -> str:
        """Why none can be mounted here; empty when one can."""
        if os.geteuid() != 0 or shutil.which("mount") is None:
            return "mounting a small disk needs root and mount(8)"
        return ""

    @classmethod
    def mount(cls, folder: Path, *, megabytes: int) -> "SmallDisk":
        """Mount on an empty folder. Raises CalledProcessError where it is not allowed."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = f"size={megabytes}m,mode=0700"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "vigil-test", str(folder)],
            check=True,
            capture_output=True,
        )
        # It reads until nobody holds the other end of the pipe, and that is when this process is gone.
        script = ["sh", "-c", 'cat >/dev/null; umount --lazy "$0" 2>/dev/null', str(folder)]
        return cls(folder, subprocess.Popen(script, stdin=subprocess.PIPE, start_new_session=True))

    def unmount(self) -> None:
        """Take it away, in use or not; nothing happens when it is gone already."""
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()
        self._keeper.wait()

    @contextlib.contextmanager
    def filled(self) -> Iterator[None]:
        """No byte is free inside, shown by a probe before and after; free again at the end."""
        self.fill()
        try:
            assert not self.takes(4096)
            yield
            assert not self.takes(PIECE)
        finally:
            self.free()

    def fill(self) -> None:
        """Take whatever is free."""
        with (self.folder / BALLAST).open("ab", buffering=0) as file:
            for piece in (PIECE, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(piece)) == piece:
                        pass

    def free(self) -> None:
        """Give it back."""
        (self.folder / BALLAST).unlink(missing_ok=True)

    def takes(self, size: int) -> bool:
        """Whether a file of this size still fits; other errors than a full disk are raised."""
        probe = self.folder / "probe"
        try:
            with probe.open("wb", buffering=0) as file:
                return file.write(bytes(size)) == size
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return False
        finally:
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold the database's write lock, as a backup gone wrong would; shown by another one who asks for it."""
    holder = sqlite3.connect(database, isolation_level=None, timeout=20.0)
    try:
        holder.execute("BEGIN IMMEDIATE")
        yield
        other = sqlite3.connect(database, isolation_level=None, timeout=0.0)
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            assert error.sqlite_errorcode == sqlite3.SQLITE_BUSY  # noqa: PT017 - the proof of the fault
        else:
            raise AssertionError("the lock was not held")
        finally:
            other.close()
    finally:
        holder.close()
