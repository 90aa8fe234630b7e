"""Bytes by digest in a folder: ``ab/<hex>`` when whole and checked, ``partial/<hex>`` until then.

Every function blocks on the disk and belongs in a thread. An artifact appears under its name by rename, after fsync of
its bytes and before fsync of the folders, so whoever sees the name sees all of it, after any crash.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vigil.core.certificates import sync_directory
from vigil.core.digest import DIGEST_BYTES, sha256
from vigil.errors import Reason, Refused, refused

MAX_ARTIFACT_BYTES: Final = 256 << 20
"""What a device takes; more than the flash of an infusion pump."""
MAX_CHUNK_BYTES: Final = 1 << 20
MAX_PARTIALS: Final = 64
PARTIAL_LIFE_S: Final = 86_400.0
"""An upload that nobody resumed for a day is given up."""


class ArtifactStore:
    """One folder. Raises OSError when made if it cannot be."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._partial = directory / "partial"
        self._partial.mkdir(parents=True, exist_ok=True, mode=0o700)

    def size(self, digest: bytes) -> int | None:
        """Bytes of a whole artifact; None when it is not here. Raises STORAGE_UNAVAILABLE."""
        return _size(self._path(digest))

    def received(self, digest: bytes) -> int:
        """Bytes of an unfinished upload. Raises STORAGE_UNAVAILABLE."""
        return _size(self._part(digest)) or 0

    def begin(self, digest: bytes) -> None:
        """Make room for an upload. Raises QUOTA_EXCEEDED, STORAGE_UNAVAILABLE."""
        with _storage():
            if self._part(digest).exists():
                return
            others = list(self._partial.iterdir())
            for one in others:
                # The folder's own clock: how long ago somebody wrote there last.
                if time.time() - one.stat().st_mtime > PARTIAL_LIFE_S:
                    one.unlink(missing_ok=True)
            if len(others) >= MAX_PARTIALS and len(list(self._partial.iterdir())) >= MAX_PARTIALS:
                raise refused(
                    Reason.QUOTA_EXCEEDED,
                    f"{MAX_PARTIALS} uploads are unfinished already",
                    lifted_by="finishing one of them, or a day",
                    who="the publishers",
                )
            self._part(digest).touch(mode=0o600)

    def append(self, digest: bytes, chunk: bytes, *, offset: int) -> int:
        """Write a chunk where the upload stands; answers what is there then. Raises STORAGE_UNAVAILABLE."""
        with _storage(), self._part(digest).open("r+b") as file:
            # At a named place: a write that failed half-way is written again, never doubled.
            file.seek(offset)
            file.write(chunk)
            file.truncate()
        return offset + len(chunk)

    def finish(self, digest: bytes) -> None:
        """Check the digest of what came and keep it. Raises ARTIFACT_CORRUPT (what came is gone then)."""
        part = self._part(digest)
        with _storage():
            with part.open("r+b") as file:
                found = hashlib.file_digest(file, "sha256").digest()
                os.fsync(file.fileno())
            if found != digest:
                part.unlink(missing_ok=True)
                raise refused(
                    Reason.ARTIFACT_CORRUPT,
                    "what was uploaded has another digest than it was announced with; it was removed",
                    lifted_by="uploading the right bytes from the beginning",
                    who="the publisher",
                    digest=digest.hex(),
                )
            self._keep(part, digest)

    def put(self, data: bytes) -> bytes:
        """Keep small bytes at once; answers their digest. Raises STORAGE_UNAVAILABLE."""
        digest = sha256(data)
        if self.size(digest) is not None:
            return digest
        fresh = self._directory / f".{digest.hex()}.{os.getpid()}.{time.monotonic_ns()}"
        with _storage():
            try:
                with fresh.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self._keep(fresh, digest)
            finally:
                fresh.unlink(missing_ok=True)
        return digest

    def read(self, digest: bytes, *, offset: int = 0, length: int) -> bytes:
        """Read part of a whole artifact; fewer bytes at its end. Raises STORAGE_UNAVAILABLE."""
        with _storage(), self._path(digest).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def _keep(self, file: Path, digest: bytes) -> None:
        path = self._path(digest)
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            sync_directory(self._directory)
        file.replace(path)
        sync_directory(path.parent)

    def _path(self, digest: bytes) -> Path:
        name = _name(digest)
        return self._directory / name[:2] / name

    def _part(self, digest: bytes) -> Path:
        return self._partial / _name(digest)


def _name(digest: bytes) -> str:
    if len(digest) != DIGEST_BYTES:
        raise refused(
            Reason.FIELD_INVALID,
            f"a SHA-256 digest has {DIGEST_BYTES} bytes",
            lifted_by="the digest in full",
            who="the caller",
            field="digest",
        )
    return digest.hex()


def _size(path: Path) -> int | None:
    with _storage():
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return None


@contextlib.contextmanager
def _storage() -> Iterator[None]:
    try:
        yield
    except Refused:
        raise
    except OSError as error:
        raise refused(
            Reason.STORAGE_UNAVAILABLE,
            "The artifact could not be written or read.",
            lifted_by="room on the disk, then the same request again",
            who="the operator",
            cause=error.strerror or "",
        ) from error
