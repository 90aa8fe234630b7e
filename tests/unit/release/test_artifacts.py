"""Artifacts: resumed uploads, wrong bytes, a full disk, and pieces in any order."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.release.test_models import refused_with
from vigil.core.digest import sha256
from vigil.errors import Reason
from vigil.release import artifacts as module
from vigil.release.artifacts import MAX_ARTIFACT_BYTES, MAX_CHUNK_BYTES, ArtifactStore
from vigil.release.uploads import FETCH_CHUNK, Progress, Uploads

BYTES = os.urandom(200_000)
DIGEST = sha256(BYTES)


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(ArtifactStore(tmp_path / "artifacts"))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_an_upload_is_kept_by_its_digest_and_fetched_from_anywhere(
    uploads: Uploads, tmp_path: Path
) -> None:
    done = await uploads.upload(DIGEST, size=len(BYTES), offset=0, chunks=pieces(BYTES))
    assert done == Progress(len(BYTES), complete=True)
    name = DIGEST.hex()
    assert files(tmp_path) == [f"artifacts/{name[:2]}/{name}"]
    for offset in (0, 1, FETCH_CHUNK, len(BYTES) - 1, len(BYTES)):
        got = [piece async for piece in uploads.download(DIGEST, size=len(BYTES), offset=offset)]
        assert b"".join(chunk for _, chunk in got) == BYTES[offset:]
        assert all(len(chunk) <= FETCH_CHUNK for _, chunk in got)
    with pytest.raises(Exception, match="offset"):
        _ = [one async for one in uploads.download(DIGEST, size=len(BYTES), offset=len(BYTES) + 1)]


async def test_an_interrupted_upload_goes_on_where_it_stood(uploads: Uploads, tmp_path: Path) -> None:
    partly = await uploads.upload(DIGEST, size=len(BYTES), offset=0, chunks=pieces(BYTES[:70_000]))
    assert partly == Progress(70_000, complete=False)
    again = Uploads(ArtifactStore(tmp_path / "artifacts"))
    assert await again.progress(DIGEST) == partly
    for offset in (0, 69_999, 70_001):
        error = await refused_with(
            Reason.STATE_CONFLICT,
            again.upload(DIGEST, size=len(BYTES), offset=offset, chunks=pieces(BYTES[offset:])),
        )
        assert error.refusals[0].values["received"] == "70000"
    done = await again.upload(DIGEST, size=len(BYTES), offset=70_000, chunks=pieces(BYTES[70_000:]))
    assert done.complete
    # Once whole, a repeated upload is answered without its bytes.
    assert (await again.upload(DIGEST, size=len(BYTES), offset=0, chunks=pieces())).complete
    await refused_with(Reason.FIELD_INVALID, again.upload(DIGEST, size=1, offset=0, chunks=pieces()))


@pytest.mark.holds("rollback-and-mix")
async def test_wrong_bytes_are_removed(uploads: Uploads, tmp_path: Path) -> None:
    wrong = b"x" + BYTES[1:]
    await refused_with(
        Reason.ARTIFACT_CORRUPT, uploads.upload(DIGEST, size=len(BYTES), offset=0, chunks=pieces(wrong))
    )
    assert files(tmp_path) == []
    assert await uploads.progress(DIGEST) == Progress(0, complete=False)
    assert (await uploads.upload(DIGEST, size=len(BYTES), offset=0, chunks=pieces(BYTES))).complete


@pytest.mark.holds("rollback-and-mix")
async def test_sizes_are_bounded_and_kept_to(uploads: Uploads) -> None:
    await refused_with(
        Reason.REQUEST_TOO_LARGE,
        uploads.upload(DIGEST, size=MAX_ARTIFACT_BYTES + 1, offset=0, chunks=pieces()),
    )
    for size, offset in ((0, 0), (-1, 0), (10, 11), (10, -1)):
        await refused_with(
            Reason.FIELD_INVALID, uploads.upload(DIGEST, size=size, offset=offset, chunks=pieces())
        )
    for chunks in ((b"",), (BYTES[:10], BYTES), (bytes(MAX_CHUNK_BYTES + 1),)):
        received = (await uploads.progress(DIGEST)).received
        await refused_with(
            Reason.FIELD_INVALID,
            uploads.upload(DIGEST, size=len(BYTES), offset=received, chunks=pieces(*chunks)),
        )
    await refused_with(Reason.FIELD_INVALID, uploads.progress(b"short"))


async def test_one_digest_has_one_upload_at_a_time(uploads: Uploads) -> None:
    async def meanwhile() -> AsyncIterator[bytes]:
        yield BYTES[:10]
        await refused_with(
            Reason.STATE_CONFLICT,
            uploads.upload(DIGEST, size=len(BYTES), offset=10, chunks=pieces(BYTES[10:])),
        )
        yield BYTES[10:]

    assert (await uploads.upload(DIGEST, size=len(BYTES), offset=0, chunks=meanwhile())).complete


async def test_unfinished_uploads_are_few_and_given_up_after_a_day(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PARTIALS", 2)
    for one in (b"a", b"b"):
        await uploads.upload(sha256(one * 9), size=9, offset=0, chunks=pieces(one))
    await refused_with(
        Reason.QUOTA_EXCEEDED, uploads.upload(DIGEST, size=len(BYTES), offset=0, chunks=pieces(BYTES))
    )
    old = tmp_path / "artifacts" / "partial" / sha256(b"a" * 9).hex()
    os.utime(old, (time.time() - 90_000,) * 2)
    assert (await uploads.upload(DIGEST, size=len(BYTES), offset=0, chunks=pieces(BYTES))).complete
    assert not old.exists()


async def test_a_disk_that_fails_is_said_and_nothing_half_appears(uploads: Uploads, tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    # Where the artifact's folder belongs, something else stands.
    (folder / DIGEST.hex()[:2]).write_text("in the way")
    with pytest.raises(OSError, match="Not a directory"):
        (folder / DIGEST.hex()[:2] / "x").stat()
    await refused_with(
        Reason.STORAGE_UNAVAILABLE,
        uploads.upload(DIGEST, size=len(BYTES), offset=0, chunks=pieces(BYTES)),
    )
    (folder / DIGEST.hex()[:2]).unlink()
    assert (await uploads.upload(DIGEST, size=len(BYTES), offset=0, chunks=pieces(BYTES))).complete


@given(data=st.binary(min_size=1, max_size=300), cuts=st.lists(st.integers(1, 100), max_size=8))
@settings(max_examples=25, deadline=None)
async def test_any_sequence_of_interruptions_ends_whole(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    at = 0
    for cut in [*cuts, len(data)]:
        uploads = Uploads(ArtifactStore(folder))
        part = data[at : at + cut]
        if at == len(data):
            break
        progress = await uploads.upload(sha256(data), size=len(data), offset=at, chunks=pieces(part))
        at += len(part)
        assert progress == Progress(at, complete=at == len(data))
    assert ArtifactStore(folder).read(sha256(data), length=1000) == data
