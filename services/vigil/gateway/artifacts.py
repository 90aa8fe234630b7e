"""Firmware, configurations and libraries by digest: fetched once from `release`, checked, served to devices in chunks.

Nothing is served before its whole digest was checked. An interrupted fetch is resumed from what is on disk.
"""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Final

import grpc

from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.release.v1 import release_pb2, release_pb2_grpc
from vigil.errors import Reason, Refused, refused
from vigil.gateway.device_sessions import Session
from vigil.gateway.directory import Directory
from vigil.rpc import status

CHUNK: Final = 64 * 1024
"""Bytes of one chunk on a device's stream."""
MAX_CACHE_BYTES: Final = 8 << 30
"""A site runs a few builds of a few models, each some tens of megabytes."""
MAX_ARTIFACT_BYTES: Final = 2 << 30


class Artifacts:
    """A cache on disk. For one event loop; disk work runs in threads."""

    def __init__(
        self,
        *,
        folder: Path,
        directory: Directory,
        stub: "release_pb2_grpc.ArtifactServiceAsyncStub",
        max_cache_bytes: int = MAX_CACHE_BYTES,
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._directory = directory
        self._stub = stub
        self._max_cache_bytes = max_cache_bytes
        self._fetching: dict[bytes, asyncio.Task[None]] = {}

    async def serve(self, session: Session, request: gateway_pb2.ArtifactRequest) -> None:
        """Send one chunk, from the offset that was asked for, or why there is none."""
        try:
            chunk = await self.chunk(request.digest, request.offset)
        except Refused as refusal:
            chunk = gateway_pb2.ArtifactChunk(
                digest=request.digest, offset=request.offset, error=status.to_status(refusal)
            )
        session.try_send(gateway_pb2.ConnectResponse(artifact=chunk))

    async def chunk(self, digest: bytes, offset: int) -> gateway_pb2.ArtifactChunk:
        """Up to 64 KiB of a published artifact. Raises RESOURCE_NOT_FOUND, FIELD_INVALID, SERVICE_UNAVAILABLE."""
        size = self._directory.artifact_size(digest)
        if size is None or not 0 < size <= MAX_ARTIFACT_BYTES:
            raise refused(Reason.RESOURCE_NOT_FOUND, "no published artifact has this digest")
        if not 0 <= offset <= size:
            raise refused(Reason.FIELD_INVALID, "the offset lies outside the artifact", field="offset")
        path = self._folder / digest.hex()
        if not path.exists():
            await self._fetch(digest, size)
        data = await asyncio.to_thread(_read, path, offset)
        return gateway_pb2.ArtifactChunk(digest=digest, offset=offset, size=size, chunk=data)

    async def _fetch(self, digest: bytes, size: int) -> None:
        """Have it on disk; several devices that ask at once wait for one fetch."""
        task = self._fetching.get(digest)
        if task is None:
            task = asyncio.create_task(self._download(digest, size))
            self._fetching[digest] = task
            task.add_done_callback(lambda done: self._fetched(digest, done))
        await asyncio.shield(task)

    def _fetched(self, digest: bytes, task: asyncio.Task[None]) -> None:
        self._fetching.pop(digest, None)
        if not task.cancelled():
            task.exception()

    async def _download(self, digest: bytes, size: int) -> None:
        part = self._folder / f"{digest.hex()}.part"
        try:
            await asyncio.to_thread(self._make_room, size)
            have = part.stat().st_size if part.exists() else 0
            if have > size:
                part.unlink()
                have = 0
            call = self._stub.FetchArtifact(release_pb2.FetchArtifactRequest(digest=digest, offset=have))
            async for piece in status.translated_stream(call):
                if piece.offset != have or have + len(piece.chunk) > size:
                    raise refused(Reason.ARTIFACT_CORRUPT, "the artifact came in pieces that do not fit")
                await asyncio.to_thread(_append, part, piece.chunk)
                have += len(piece.chunk)
            await asyncio.to_thread(_finish, part, self._folder / digest.hex(), digest, size)
        except OSError as error:
            raise refused(
                Reason.STORAGE_UNAVAILABLE, "The gateway cannot keep the artifact.", cause=error.strerror
            ) from error
        except grpc.aio.UsageError as error:
            raise refused(Reason.SERVICE_UNAVAILABLE, "The gateway is stopping.") from error

    def _make_room(self, size: int) -> None:
        """Drop what was not read for longest until the new artifact fits."""
        kept = sorted(
            ((found.stat().st_atime, found.stat().st_size, found) for found in self._folder.iterdir()),
            key=lambda one: one[0],
        )
        total = sum(length for _, length, _ in kept)
        for _, length, path in kept:
            if total + size <= self._max_cache_bytes:
                return
            if path.suffix != ".part":
                path.unlink(missing_ok=True)
                total -= length


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK)
    except OSError as error:
        raise refused(
            Reason.STORAGE_UNAVAILABLE, "The gateway cannot read the artifact.", cause=error.strerror
        ) from error


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def _finish(part: Path, path: Path, digest: bytes, size: int) -> None:
    """Check the digest of what is on disk, make it durable, and give it its name. Raises ARTIFACT_CORRUPT."""
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
        whole = file.tell() == size
        if found != digest or not whole:
            if whole:
                part.unlink()
            raise refused(
                Reason.ARTIFACT_CORRUPT if whole else Reason.SERVICE_UNAVAILABLE,
                "The artifact's digest is not what was signed."
                if whole
                else "The artifact has not come whole yet.",
            )
        os.fsync(file.fileno())
    part.replace(path)
