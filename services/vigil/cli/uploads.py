"""Bytes on their way to the release service: by digest, resumed where they stopped, with a progress bar for people."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from vigil.api.release.v1 import release_pb2 as pb
from vigil.cli.session import Session
from vigil.core.digest import sha256
from vigil.errors import Reason, Refused, refused
from vigil.rpc.status import translated

CHUNK: Final = 256 << 10
UPLOAD_S: Final = 600.0
ATTEMPTS: Final = 5


async def upload(session: Session, data: bytes, *, name: str) -> bytes:
    """Upload bytes and answer their digest. An interrupted upload goes on where it stood. Raises as the service."""
    digest = sha256(data)
    with _progress(session, name, len(data)) as advance:
        for _ in range(ATTEMPTS):
            there = await session.call(
                "release", session.artifacts.GetUpload, pb.GetUploadRequest(digest=digest)
            )
            advance(int(there.received))
            if there.complete:
                return digest
            try:
                done = await translated(
                    session.artifacts.UploadArtifact(
                        _messages(data, digest, int(there.received), advance), timeout=UPLOAD_S
                    )
                )
            except Refused as error:
                if error.reason is not Reason.SERVICE_UNAVAILABLE:
                    raise session.named("release", error) from error
                continue
            if done.complete:
                return digest
    raise refused(
        Reason.SERVICE_UNAVAILABLE,
        f"the upload of {name} was interrupted {ATTEMPTS} times",
        lifted_by="the same command again: it goes on where the upload stood",
        who="you",
    )


async def _messages(
    data: bytes, digest: bytes, offset: int, advance: Callable[[int], None]
) -> AsyncIterator[pb.UploadArtifactRequest]:
    yield pb.UploadArtifactRequest(start=pb.UploadStart(digest=digest, size=len(data), offset=offset))
    for at in range(offset, len(data), CHUNK):
        chunk = data[at : at + CHUNK]
        yield pb.UploadArtifactRequest(chunk=chunk)
        advance(at + len(chunk))


@contextlib.contextmanager
def _progress(session: Session, name: str, total: int) -> Iterator[Callable[[int], None]]:
    if session.output.json or not session.output.terminal:
        yield lambda _at: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total)
        yield lambda at: progress.update(task, completed=at)
