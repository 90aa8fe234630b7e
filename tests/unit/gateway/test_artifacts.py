"""Artifacts by digest: fetched once, resumed, checked before a byte is served."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.pki import DEVICE
from tests.unit.gateway.world import FIRMWARE, World
from vigil.api.gateway.v1 import gateway_pb2 as pb
from vigil.api.release.v1 import release_pb2, release_pb2_grpc
from vigil.core.digest import sha256
from vigil.errors import Reason, refused
from vigil.gateway.artifacts import CHUNK
from vigil.rpc import status

DIGEST = sha256(FIRMWARE)
PIECE = 50_000


class Shelf(release_pb2_grpc.ArtifactServiceServicer):
    """Serves bytes under whatever digest it is asked for; may stop after some."""

    def __init__(self, data: bytes = FIRMWARE) -> None:
        self.data = data
        self.stop_after: int | None = None
        self.offsets: list[int] = []

    def servicer(self) -> Any:
        return (
            release_pb2_grpc.add_ArtifactServiceServicer_to_server,
            self,
            "vigil.api.release.v1.ArtifactService",
        )

    async def FetchArtifact(self, request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.offsets.append(request.offset)
        for offset in range(request.offset, len(self.data), PIECE):
            if self.stop_after is not None and offset >= self.stop_after:
                raise refused(Reason.SERVICE_UNAVAILABLE, "it stops here")
            piece = self.data[offset : offset + PIECE]
            yield release_pb2.FetchArtifactResponse(chunk=piece, offset=offset, size=len(self.data))


async def fetch(pump: Any, digest: bytes = DIGEST) -> bytes:
    """As a pump does: one chunk after the other."""
    data, count = b"", len([one for one in pump.seen if one.WhichOneof("message") == "artifact"])
    while True:
        await pump.say(artifact=pb.ArtifactRequest(digest=digest, offset=len(data)))
        count += 1
        piece = (await pump.got("artifact", count)).artifact
        if piece.HasField("error"):
            raise status.from_status(piece.error)
        assert (piece.digest, piece.offset) == (digest, len(data))
        assert len(piece.chunk) <= CHUNK
        data += piece.chunk
        if len(data) == piece.size:
            return data


async def reason_of_fetch(pump: Any, digest: bytes = DIGEST) -> Reason:
    from vigil.errors import Refused

    try:
        await fetch(pump, digest)
    except Refused as refusal:
        return refusal.reason
    raise AssertionError("it was served")


@pytest.mark.holds("rollback-and-mix")
async def test_fetched_once_and_served_from_disk_with_nobody_behind(world: World) -> None:
    world.seed()
    shelf = Shelf()
    async with world.serving("release", shelf.servicer()) as address:
        world.peers["release"] = address
        async with world.running(), world.pump() as pump:
            assert await fetch(pump) == FIRMWARE
            assert await fetch(pump) == FIRMWARE
    assert shelf.offsets == [0]
    async with world.running(), world.pump() as pump:
        assert await fetch(pump) == FIRMWARE


@pytest.mark.holds("rollback-and-mix")
async def test_an_interrupted_fetch_is_resumed(world: World) -> None:
    world.seed()
    shelf = Shelf()
    shelf.stop_after = 2 * PIECE
    async with world.serving("release", shelf.servicer()) as address:
        world.peers["release"] = address
        async with world.running(), world.pump() as pump:
            assert await reason_of_fetch(pump) is Reason.SERVICE_UNAVAILABLE
            shelf.stop_after = None
            assert await fetch(pump) == FIRMWARE
    assert shelf.offsets == [0, 2 * PIECE]


@pytest.mark.holds("rollback-and-mix")
async def test_other_bytes_than_were_signed_are_never_served(world: World) -> None:
    world.seed()
    shelf = Shelf(bytes(len(FIRMWARE)))
    async with world.serving("release", shelf.servicer()) as address:
        world.peers["release"] = address
        async with world.running(), world.pump() as pump:
            assert await reason_of_fetch(pump) is Reason.ARTIFACT_CORRUPT
            # Nothing of it is kept: the right bytes come whole the next time.
            shelf.data = FIRMWARE
            assert await fetch(pump) == FIRMWARE
    assert shelf.offsets == [0, 0]


@pytest.mark.holds("rollback-and-mix")
async def test_more_bytes_than_were_announced_end_the_fetch(world: World) -> None:
    world.seed()
    shelf = Shelf(FIRMWARE + b"more")
    async with world.serving("release", shelf.servicer()) as address:
        world.peers["release"] = address
        async with world.running(), world.pump() as pump:
            assert await reason_of_fetch(pump) is Reason.ARTIFACT_CORRUPT


@pytest.mark.holds("rollback-and-mix")
async def test_only_what_is_published(world: World) -> None:
    world.seed()
    async with world.running(), world.pump() as pump:
        assert await reason_of_fetch(pump, bytes(32)) is Reason.RESOURCE_NOT_FOUND
        assert await reason_of_fetch(pump, b"../../etc/passwd") is Reason.RESOURCE_NOT_FOUND


@pytest.mark.holds("rollback-and-mix")
async def test_two_pumps_share_one_fetch(world: World) -> None:
    other = "dev-bbbbbbbbbbbbbbbb"
    world.devices[other], world.attesters[other] = world.pki.device(other), world.pki.attester(other)
    world.seed(world.device_row(), world.device_row(other))
    shelf = Shelf()
    async with world.serving("release", shelf.servicer()) as address:
        world.peers["release"] = address
        async with world.running(), world.pump(DEVICE) as one, world.pump(other) as two:
            assert await asyncio.gather(fetch(one), fetch(two)) == [FIRMWARE, FIRMWARE]
    assert shelf.offsets == [0]
