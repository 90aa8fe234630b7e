"""Artifacts on their way in: fetched piece by piece in the background, resumed where they stopped, used by digest."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vigil.core.digest import sha256
from vigil.errors import Reason, refused

MAX_BYTES: Final = 256 << 20
"""More than the flash of an infusion pump."""
MAX_CORRUPT: Final = 3
"""Whole downloads with a wrong digest before the artifact is given up."""


@dataclass(slots=True)
class _Wanted:
    size: int
    corrupt: int = 0


class Artifacts:
    """Files ``<hex digest>`` in one folder, ``.part`` until complete and verified."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)
        self._wanted: dict[bytes, _Wanted] = {}

    def want(self, digest: bytes, size: int) -> None:
        """Begin to fetch, unless it is here. Raises REQUEST_TOO_LARGE."""
        if size > MAX_BYTES:
            raise refused(Reason.REQUEST_TOO_LARGE, "the artifact is larger than the device's memory")
        if not self.ready(digest):
            self._wanted.setdefault(digest, _Wanted(size))

    def forget(self, digest: bytes) -> None:
        """Neither fetch nor keep it any longer."""
        self._wanted.pop(digest, None)
        self._path(digest).unlink(missing_ok=True)
        self._part(digest).unlink(missing_ok=True)

    def keep(self, digests: frozenset[bytes]) -> None:
        """Forget everything but these."""
        names = {digest.hex() for digest in digests}
        self._wanted = {digest: wanted for digest, wanted in self._wanted.items() if digest in digests}
        for path in self._directory.iterdir():
            if path.name.removesuffix(".part") not in names:
                path.unlink()

    def ready(self, digest: bytes) -> bool:
        """Whether it is here, complete and verified."""
        return self._path(digest).exists()

    def hopeless(self, digest: bytes) -> bool:
        """Whether it came several times, and each time with another digest."""
        wanted = self._wanted.get(digest)
        return wanted is not None and wanted.corrupt >= MAX_CORRUPT

    def read(self, digest: bytes) -> bytes:
        """Its bytes, verified once more. Raises ARTIFACT_CORRUPT."""
        data = self._path(digest).read_bytes()
        if sha256(data) != digest:
            self.forget(digest)
            raise refused(Reason.ARTIFACT_CORRUPT, "what was fetched has changed on the device's disk")
        return data

    def next(self) -> tuple[bytes, int] | None:
        """Digest and offset of the piece to ask for next; None when nothing is missing."""
        for digest, wanted in self._wanted.items():
            if wanted.corrupt < MAX_CORRUPT:
                return digest, self._have(digest)
        return None

    def take(self, digest: bytes, *, offset: int, chunk: bytes) -> bool:
        """Keep a piece that continues what is here; True when the artifact is complete with it."""
        wanted = self._wanted.get(digest)
        if wanted is None or offset != self._have(digest):
            return False
        if not chunk or offset + len(chunk) > wanted.size:
            return self._corrupt(wanted, digest)
        with self._part(digest).open("ab") as file:
            file.write(chunk)
            file.flush()
            if offset + len(chunk) < wanted.size:
                return False
            os.fsync(file.fileno())
        if sha256(self._part(digest).read_bytes()) != digest:
            return self._corrupt(wanted, digest)
        self._part(digest).replace(self._path(digest))
        del self._wanted[digest]
        return True

    def _corrupt(self, wanted: _Wanted, digest: bytes) -> bool:
        """Shorter or longer than was signed, or something else: begin anew, a few times."""
        wanted.corrupt += 1
        self._part(digest).unlink(missing_ok=True)
        return False

    def _have(self, digest: bytes) -> int:
        part = self._part(digest)
        return part.stat().st_size if part.exists() else 0

    def _path(self, digest: bytes) -> Path:
        return self._directory / digest.hex()

    def _part(self, digest: bytes) -> Path:
        return self._directory / f"{digest.hex()}.part"
