"""A revocation database of last week: what was revoked since comes back from the log and from the edges."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.opa import free_port
from tests.unit.revocation.support import PUMP, Gateway, World, a_world, reinstatement, revocation, until
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.clock import SystemClock
from vigil.core.revocations import chain_hash
from vigil.core.statements.bodies import Head
from vigil.core.statements.envelope import read
from vigil.revocation import store
from vigil.rpc.server import GrpcServer
from vigil.storage import open_database

pytestmark = pytest.mark.holds("restored-revocations")

LATER = tuple(f"dev-{letter * 16}" for letter in "cdef")
Entry = revocation_pb2.RevocationEntry


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        await world.start(revocation=False)
        world.ports["edge"] = free_port()
        yield world


async def start(world: World) -> None:
    await world.start_revocation(edges=(f"127.0.0.1:{world.ports['edge']}",))


async def entries(world: World) -> list[Entry]:
    return list((await world.head(after_epoch=0, max_entries=100)).entries)


async def last_week(world: World) -> list[Entry]:
    """A copy of the database with one revocation in it; four later steps reach the edge, and not the log."""
    await world.start_revocation()
    await world.start_edge()
    await world.revoke(world.operator, revocation(world.operator, PUMP))
    await recorded(world, 1)
    await world.stop_one("revocation")
    shutil.copytree(world.folder / "revocation", world.folder / "copy")
    await start(world)
    await world.stop_one("evidence")
    statements = [revocation(world.operator, name) for name in LATER[:3]]
    for statement in statements:
        await world.revoke(world.operator, statement)
    await world.reinstate(
        world.operator, [reinstatement(who, statements[1]) for who in (world.operator, world.second)]
    )
    everything = await entries(world)
    edge = world.running["edge"]
    gateway = Gateway(world, world.pki.gateway())
    await until(lambda: gateway.state.epoch == 5)
    assert edge.task.done() is False
    await gateway.stop()
    return everything


async def restore(world: World) -> None:
    """The copy in the place of the database; shown to lack what came later, and so does the log."""
    await world.stop_one("revocation")
    shutil.rmtree(world.folder / "revocation")
    (world.folder / "copy").rename(world.folder / "revocation")
    database = open_database(
        world.folder / "revocation" / "revocation.db",
        metadata=store.METADATA,
        migrations="vigil.revocation.migrations",
    )
    assert database.read_now(store.position).epoch == 1
    database.close()
    await world.start_evidence()
    assert log_size(world) == 1


def log_size(world: World) -> int:
    with sqlite3.connect(f"file:{world.folder}/evidence/evidence.db?mode=ro", uri=True, timeout=20) as log:
        return int(log.execute("SELECT count(*) FROM entry").fetchone()[0])


async def recorded(world: World, count: int) -> None:
    await until(lambda: log_size(world) >= count)


async def test_the_edges_know_what_the_log_never_got(world: World, injected: Callable[[int], None]) -> None:
    before = await last_week(world)
    await restore(world)
    injected(1)
    await start(world)
    assert await entries(world) == before
    head = read((await world.head()).head.head, Head).body
    assert (head.epoch, head.chain) == (5, before[-1].chain)
    # And the log gets it now: four statements of people, two of them of the reinstatement.
    await recorded(world, 1 + 3 + 2)
    gateway = Gateway(world, world.pki.gateway())
    await until(lambda: gateway.state.epoch == 5 and gateway.age() < 3)
    assert gateway.ended is None
    assert gateway.effect(LATER[0]) is not None
    assert gateway.effect(LATER[1]) is None
    await gateway.stop()


async def test_no_head_before_the_edge_was_asked(world: World, injected: Callable[[int], None]) -> None:
    before = await last_week(world)
    await world.stop_one("edge")
    await restore(world)
    injected(1)
    starting = asyncio.create_task(start(world))
    await asyncio.sleep(1.0)
    assert not starting.done()
    assert world.running["revocation"].port == 0
    await world.start_edge()
    await starting
    assert await entries(world) == before


class LyingEdge(revocation_pb2_grpc.EdgeServiceServicer):
    """A captured edge: the real key, and whatever entries it likes."""

    def __init__(self, lies: list[Entry]) -> None:
        self.lies = lies
        self.asked: list[int] = []

    async def GetEntries(  # noqa: N802 - the contract's name
        self, request: revocation_pb2.GetEntriesRequest, _context: Any
    ) -> revocation_pb2.EntryBatch:
        self.asked.append(request.after_epoch)
        return revocation_pb2.EntryBatch(entries=self.lies)


@pytest.mark.holds("claimed-epoch", "captured-bus")
@pytest.mark.parametrize(
    "lie", ["2^63", "a gap", "another chain", "no signature", "a technician", "half a reinstatement"]
)
async def test_an_edge_is_not_believed_for_its_word(
    world: World, lie: str, injected: Callable[[int], None]
) -> None:
    await world.start_revocation()
    first = revocation(world.operator, PUMP)
    entry = await world.revoke(world.operator, first)
    await world.stop_one("revocation")
    nurse = world.pki.person("p-nurse", "technician")
    signed = {
        "a technician": revocation(nurse, LATER[0]),
        "half a reinstatement": read_one(reinstatement(world.operator, first)),
    }.get(lie, revocation(world.operator, LATER[0]))
    epoch = {"2^63": 2**63, "a gap": 3}.get(lie, 2)
    chain = chain_hash(entry.chain, epoch, [signed.digest])
    claim = Entry(epoch=epoch, statements=[signed.data], chain=chain, create_time_ms=1)
    if lie == "another chain":
        claim.chain = bytes(32)
    if lie == "no signature":
        claim.statements[0] = signed.data[:-1] + bytes([signed.data[-1] ^ 1])
    edge = LyingEdge([claim])
    server = GrpcServer(
        role="edge",
        tls=world.pki.service("edge").tls_files,
        clock=SystemClock(),
        listen=f"127.0.0.1:{world.ports['edge']}",
        servicers=[
            (
                revocation_pb2_grpc.add_EdgeServiceServicer_to_server,
                edge,
                "vigil.api.revocation.v1.EdgeService",
            )
        ],
    )
    await server.start()
    await start(world)
    assert edge.asked == [1]
    injected(1)
    assert await entries(world) == [entry]
    # What a person does next gets the next epoch, as if nobody had claimed anything.
    assert (await world.revoke(world.operator, revocation(world.operator, LATER[1]))).epoch == 2
    await server.stop(0)


def read_one(data: bytes) -> Any:
    from vigil.core.statements.envelope import read_any

    return read_any(data)
