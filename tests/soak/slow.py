"""Readers that open a stream and take nothing from it: each is cut off, and catches up when it reads again."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from tests.soak.sampler import gauge_of
from tests.support.stack import eventually
from vigil.api.feed.v1 import feed_pb2, feed_pb2_grpc
from vigil.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.certificates import Kind
from vigil.core.revocations import EMPTY_CHAIN
from vigil.demo.world import World
from vigil.rpc.options import Options, client_options
from vigil.rpc.tls import TlsFiles, load

NARROW: Final[Options] = [("grpc.http2.lookahead_bytes", 1_024), ("grpc.http2.bdp_probe", 0)]
"""A reader that lets the server send next to nothing ahead of what it reads (HTTP/2 flow control)."""
WATCH: Final = "/vigil.api.feed.v1.FeedService/Watch"
FOLLOW: Final = "/vigil.api.revocation.v1.EdgeService/Follow"


def channel(world: World, *, files: TlsFiles, role: str, narrow: bool) -> grpc.aio.Channel:
    """A channel to a service with somebody's key files, none of our own niceties about it."""
    material = load(files)
    credentials = grpc.ssl_channel_credentials(
        material.anchors_pem(Kind.SERVICE), material.key_pem, material.certificate_pem
    )
    options = client_options(f"{role}.{world.installation.trust_domain}") + (NARROW if narrow else [])
    return grpc.aio.secure_channel(world.folder.read_endpoints()[role], credentials, options=options)


def files_of_service(world: World, role: str) -> TlsFiles:
    """The credential of a service of this installation."""
    home = world.folder.path / "pki" / "services" / role
    return TlsFiles(home / "tls.pem", home / "tls.key", world.folder.trust)


def files_of_gateway(world: World, site: str) -> TlsFiles:
    """The credential of a gateway of this installation."""
    home = world.folder.gateway(world.gateways[site])
    return TlsFiles(home / "tls.pem", home / "tls.key", world.folder.trust)


async def _watch(start: feed_pb2.WatchStart) -> AsyncIterator[feed_pb2.WatchRequest]:
    yield feed_pb2.WatchRequest(start=start)
    await asyncio.Event().wait()


async def following(gateway_id: str, *, every: float) -> AsyncIterator[revocation_pb2.FollowRequest]:
    """From the beginning, and a challenge again and again: each head that answers one has to be sent."""
    start = revocation_pb2.FollowStart(epoch=0, chain=EMPTY_CHAIN)
    yield revocation_pb2.FollowRequest(gateway_id=gateway_id, start=start)
    while True:
        yield revocation_pb2.FollowRequest(gateway_id=gateway_id, challenge=os.urandom(16))
        await asyncio.sleep(every)


async def stalled_feed(world: World, metrics: str, *, seconds: float) -> float:
    """Policy's feed of identity with a reader that takes nothing; answers after how long it was cut, in seconds."""
    slow = channel(world, files=files_of_service(world, "policy"), role="identity", narrow=True)
    try:
        before = await gauge_of(metrics, "vigil_rpc_streams", method=WATCH)
        call = feed_pb2_grpc.FeedServiceStub(slow).Watch(_watch(feed_pb2.WatchStart()))
        return await _until_cut(call, metrics, WATCH, before, seconds=seconds)
    finally:
        await slow.close()


async def stalled_edge(world: World, site: str, metrics: str, *, seconds: float) -> float:
    """A gateway's stream of the edge with a reader that takes nothing; answers as `stalled_feed`."""
    slow = channel(world, files=files_of_gateway(world, site), role="edge", narrow=True)
    try:
        before = await gauge_of(metrics, "vigil_rpc_streams", method=FOLLOW)
        stub = revocation_pb2_grpc.EdgeServiceStub(slow)
        call = stub.Follow(following(world.gateways[site], every=0.05))
        return await _until_cut(call, metrics, FOLLOW, before, seconds=seconds)
    finally:
        await slow.close()


async def _until_cut(call: Any, metrics: str, method: str, before: float, *, seconds: float) -> float:
    """Raises AssertionError for a stream that the server keeps."""
    await call.initial_metadata()
    began = time.monotonic()
    for is_open in (True, False):
        await eventually(
            lambda is_open=is_open: _is_open(metrics, method, before, is_open),
            what="a reader that takes nothing is cut",
            seconds=seconds,
        )
    return time.monotonic() - began


async def _is_open(metrics: str, method: str, before: float, wanted: bool) -> bool:
    return (await gauge_of(metrics, "vigil_rpc_streams", method=method) > before) is wanted


async def devices_in_feed(world: World) -> int:
    """The same reader again, which reads now: how many devices the snapshot shows it."""
    reading = channel(world, files=files_of_service(world, "policy"), role="identity", narrow=False)
    found = 0
    try:
        call = feed_pb2_grpc.FeedServiceStub(reading).Watch(_watch(feed_pb2.WatchStart(kinds=["device"])))
        async for response in call:
            found += len(response.snapshot.changes)
            if response.snapshot.last:
                break
        call.cancel()
    finally:
        await reading.close()
    return found


async def epochs_at_edge(world: World, site: str, wanted: int) -> int:
    """The same reader again, which reads now: up to which epoch the edge shows it entries."""
    reading = channel(world, files=files_of_gateway(world, site), role="edge", narrow=False)
    reached = 0
    try:
        call = revocation_pb2_grpc.EdgeServiceStub(reading).Follow(following(world.gateways[site], every=1.0))
        async for response in call:
            reached = max([reached, *(entry.epoch for entry in response.entries.entries)])
            if reached >= wanted:
                break
        call.cancel()
    finally:
        await reading.close()
    return reached


async def stalled_followers(world: World, who: str, site: str, device_ids: list[str]) -> list[Any]:
    """Pumps followed live by somebody who reads nothing; answers the open calls and their channel to close."""
    session = world.people[who]
    files = TlsFiles(session.context.certificate, session.context.key, session.trust_file)
    material = load(files)
    credentials = grpc.ssl_channel_credentials(
        material.anchors_pem(Kind.GATEWAY), material.key_pem, material.certificate_pem
    )
    gateway_id = world.gateways[site]
    options = client_options(f"{gateway_id}.{Kind.GATEWAY}.{world.installation.trust_domain}") + NARROW
    slow = grpc.aio.secure_channel(world.folder.read_endpoints()[gateway_id], credentials, options=options)
    stub = gateway_pb2_grpc.GatewayDeviceServiceStub(slow)
    calls = [stub.FollowDevice(gateway_pb2.FollowDeviceRequest(device_id=one)) for one in device_ids]
    for call in calls:
        await call.initial_metadata()
    return [*calls, slow]
