"""A chain of revocations that was lost, and the way out: the offline root and two people open a later era.

Real service, edge and gateway code over mutual TLS. Until the era is opened everybody keeps to what they hold, and
leases run out; then edge and gateway change over by themselves, on disk as well.
"""

import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.followers import FollowingGateway, own_database
from tests.unit.revocation.support import PUMP, World, a_world, revocation, signed_era, until
from vigil.core.clock import ManualClock, SystemClock
from vigil.core.revocations import EMPTY_CHAIN
from vigil.core.statements.bodies import Head, RevocationEffect, Scope
from vigil.core.statements.envelope import read

Injected = Callable[[int], None]
OTHER = "dev-bbbbbbbbbbbbbbbb"
TEN_YEARS_MS = 10 * 365 * 86_400_000


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield await world.start()


def open_era(world: World, monkeypatch: pytest.MonkeyPatch, *, epoch: int, chain: bytes, floor: int) -> None:
    """The ceremony: the root and two administrators sign the same words; the files await the next start."""
    folder = world.folder / "revocation" / "root-statements"
    folder.mkdir(exist_ok=True)
    said = f"--era=1 --floor={floor} --epoch={epoch} --chain={chain.hex()} --reason=repaired"
    for name, data in signed_era(world, monkeypatch, said).items():
        (folder / f"{name}.cose").write_bytes(data)


@pytest.mark.holds("restored-revocations")
async def test_edge_and_gateway_take_the_chain_of_a_later_era(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, injected: Injected
) -> None:
    for name in (PUMP, OTHER):
        await world.revoke(world.operator, revocation(world.operator, name))
    await world.start_edge()
    database = own_database(tmp_path / "gateway.db")
    gateway = FollowingGateway(
        gateway_id="gateway-1",
        tls=world.pki.gateway().tls_files,
        database=database,
        edge=f"127.0.0.1:{world.ports['edge']}",
    )
    gateway.start()
    await until(lambda: gateway.view.state.epoch == 2 and gateway.view.lease_left_ms() > 0)

    # Database and log are lost, both; another chain begins.
    for name in ("revocation", "evidence"):
        await world.stop_one(name)
        shutil.rmtree(world.folder / name)
    await world.start_evidence()
    await world.start_revocation()
    entry = await world.revoke(world.operator, revocation(world.operator, PUMP))
    assert entry.epoch == 1
    injected(1)
    await until(lambda: gateway.view.lease_left_ms() == 0)
    assert gateway.view.state.epoch == 2
    assert gateway.view.state.effect(Scope.DEVICE, OTHER, at=0) is RevocationEffect.DENY

    await world.stop_one("revocation")
    open_era(world, monkeypatch, epoch=2, chain=entry.chain, floor=SystemClock().now())
    await world.start_revocation()
    await until(lambda: gateway.view.state.era == 1)
    await until(lambda: gateway.view.lease_left_ms() > 0)
    assert gateway.view.state.epoch == 2
    # What the root and two people did not see any more is not in force any more.
    assert gateway.view.state.effect(Scope.DEVICE, PUMP, at=0) is RevocationEffect.DENY
    assert gateway.view.state.effect(Scope.DEVICE, OTHER, at=0) is None
    later = await world.revoke(world.operator, revocation(world.operator, OTHER))
    await until(lambda: gateway.view.state.position == (1, 3, later.chain))

    # Both hold it on disk, what is enforced a moment before that: they begin with it again.
    looked_at = FollowingGateway(
        gateway_id="gateway-1", tls=world.pki.gateway().tls_files, database=database, edge="127.0.0.1:1"
    )

    def on_disk() -> tuple[int, int, bytes]:
        looked_at.view.restore()
        return looked_at.view.state.position

    await until(lambda: on_disk() == (1, 3, later.chain))
    await looked_at.stop()
    await gateway.stop()
    await world.stop_one("edge")
    await world.start_edge()
    again = FollowingGateway(
        gateway_id="gateway-1",
        tls=world.pki.gateway().tls_files,
        database=database,
        edge=f"127.0.0.1:{world.ports['edge']}",
    )
    again.view.restore()
    assert again.view.state.position == (1, 3, later.chain)
    again.start()
    await until(lambda: again.view.lease_left_ms() > 0)
    await again.stop()
    database.close()


@pytest.mark.holds("wrong-decade")
async def test_an_era_takes_back_the_time_that_a_clock_ten_years_ahead_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, injected: Injected
) -> None:
    """A very first start with such a clock has nothing to be measured by: its heads are ten years ahead."""
    async with a_world(tmp_path) as world:
        await world.start(revocation=False)
        right = SystemClock().now()
        world.clock = ManualClock(now=right + TEN_YEARS_MS, monotonic=SystemClock().monotonic())
        await world.start_revocation()
        database = tmp_path / "revocation" / "revocation.db"
        await until(lambda: _durable(database) >= right + TEN_YEARS_MS)
        injected(1)
        await world.stop_one("revocation")

        # Signed time never steps back: the right clock alone does not mend it.
        world.clock = None
        await world.start_revocation()
        assert read((await world.head()).head.head, Head).body.issued >= right + TEN_YEARS_MS
        await world.stop_one("revocation")

        open_era(world, monkeypatch, epoch=1, chain=EMPTY_CHAIN, floor=SystemClock().now())
        for _ in range(2):  # the second time from what the first one made durable
            await world.start_revocation()
            body = read((await world.head()).head.head, Head).body
            assert body.era == 1
            assert abs(body.issued - SystemClock().now()) < 60_000
            await until(lambda: right < _durable(database) < right + TEN_YEARS_MS)
            await world.stop_one("revocation")
        await world.start_revocation()


def _durable(database: Path) -> int:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT head_time FROM head_lease").fetchone()[0])
