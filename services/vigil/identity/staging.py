"""The folder in which a first start is made before it appears, and the names on disk made durable."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vigil.core.certificates import sync_directory
from vigil.errors import Reason, Refused, refused

STAGING: Final = ".first-start"


@contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """Hold the staging folder, empty or as a committed first start left it, alone."""
    staging = directory / STAGING
    make_directory(staging, exist_ok=True)
    descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor, staging)
        try:
            if not (directory / "pki").exists():
                for leftover in staging.iterdir():
                    shutil.rmtree(leftover)
            yield staging
        finally:
            unfinished = (directory / "pki").exists() and (staging / "people").exists()
            if not unfinished:
                shutil.rmtree(staging, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, staging: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if staging.stat().st_ino == os.fstat(descriptor).st_ino:
            return
    except OSError as error:  # held by another process, or removed by one that has just ended
        raise _running() from error
    raise _running()


def _running() -> Refused:
    return refused(Reason.STATE_CONFLICT, "Another first start is running on this folder.", who="operator")


def make_directory(path: Path, *, exist_ok: bool = False) -> None:
    path.mkdir(mode=0o700, exist_ok=exist_ok)


def sync_tree(top: Path) -> None:
    """Make every name under a folder durable; the files' contents are so already."""
    for path in (top, *(path for path in top.rglob("*") if path.is_dir())):
        sync_directory(path)
