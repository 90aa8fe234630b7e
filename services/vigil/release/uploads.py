"""Uploads and downloads of artifacts, piece by piece."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from vigil.errors import Reason, Refused, refused
from vigil.release.artifacts import MAX_ARTIFACT_BYTES, MAX_CHUNK_BYTES, ArtifactStore

FETCH_CHUNK: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an upload is."""

    received: int
    complete: bool


class Uploads:
    """One upload of a digest at a time; what came before an interruption is kept."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._open: set[bytes] = set()

    async def progress(self, digest: bytes) -> Progress:
        """Where an upload stands."""
        size = await asyncio.to_thread(self._artifacts.size, digest)
        if size is not None:
            return Progress(size, complete=True)
        return Progress(await asyncio.to_thread(self._artifacts.received, digest), complete=False)

    async def upload(
        self, digest: bytes, *, size: int, offset: int, chunks: AsyncIterator[bytes]
    ) -> Progress:
        """Take chunks from ``offset`` on. Ends early where they end.

        Raises FIELD_INVALID, STATE_CONFLICT, REQUEST_TOO_LARGE, ARTIFACT_CORRUPT, QUOTA_EXCEEDED, STORAGE_UNAVAILABLE.
        """
        if size > MAX_ARTIFACT_BYTES:
            raise refused(
                Reason.REQUEST_TOO_LARGE,
                f"an artifact has at most {MAX_ARTIFACT_BYTES} bytes",
                lifted_by="a smaller one",
                who="the publisher",
            )
        if size < 1 or not 0 <= offset <= size:
            raise _invalid("start", "size and offset lie inside the artifact")
        if digest in self._open:
            raise _conflict("somebody is uploading this artifact now")
        self._open.add(digest)
        try:
            return await self._take(digest, size, offset, chunks)
        finally:
            self._open.discard(digest)

    async def _take(self, digest: bytes, size: int, offset: int, chunks: AsyncIterator[bytes]) -> Progress:
        before = await self.progress(digest)
        if before.complete:
            if before.received != size:
                raise _invalid("start.size", f"the artifact of this digest has {before.received} bytes")
            return before
        if offset != before.received:
            raise _conflict(f"{before.received} bytes are here; go on from there", received=before.received)
        await asyncio.to_thread(self._artifacts.begin, digest)
        received = offset
        if received < size:
            async for chunk in chunks:
                if not 0 < len(chunk) <= MAX_CHUNK_BYTES or received + len(chunk) > size:
                    raise _invalid(
                        "chunk", f"a chunk has 1 to {MAX_CHUNK_BYTES} bytes and none after the announced size"
                    )
                received = await asyncio.to_thread(self._artifacts.append, digest, chunk, offset=received)
                if received == size:
                    break
        if received < size:
            return Progress(received, complete=False)
        await asyncio.to_thread(self._artifacts.finish, digest)
        return Progress(size, complete=True)

    async def download(self, digest: bytes, *, size: int, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """Pieces of a whole artifact, each with its offset. Raises FIELD_INVALID, STORAGE_UNAVAILABLE."""
        if not 0 <= offset <= size:
            raise _invalid("offset", "the offset lies inside the artifact")
        while offset < size:
            chunk = await asyncio.to_thread(self._artifacts.read, digest, offset=offset, length=FETCH_CHUNK)
            if not chunk:
                raise refused(Reason.STORAGE_UNAVAILABLE, "The artifact is shorter on disk than it was.")
            yield offset, chunk
            offset += len(chunk)


def _invalid(field: str, sentence: str) -> Refused:
    return refused(
        Reason.FIELD_INVALID, sentence, lifted_by="a request that says so", who="the caller", field=field
    )


def _conflict(sentence: str, **values: int) -> Refused:
    return refused(
        Reason.STATE_CONFLICT,
        sentence,
        lifted_by="asking where the upload stands (GetUpload) and going on from there",
        who="the publisher",
        **values,
    )
