"""The devices' side of the fleet benchmark: what a device refuses breaks the run, and nobody is counted too early."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.benchmarks.fleet import DeviceSide, device_id, frame, sync_frame
from tests.support.pki import TestPki
from tests.unit.revocation.support import revocation, scribe_of
from vigil.core.clock import SystemClock
from vigil.core.revocations import EMPTY_CHAIN, Entry, chain_hash
from vigil.core.statements.bodies import Head
from vigil.errors import Reason, Refused
from vigil.gateway.revocations import proto_of

DEVICES = 5


@dataclass
class _Chain:
    """A chain of revocations and what a gateway says of it."""

    pki: TestPki

    def __post_init__(self) -> None:
        self.entries: list[Entry] = []

    def revoke(self) -> None:
        statement = revocation(self.pki.admin(1), device_id(len(self.entries)))
        epoch = len(self.entries) + 1
        chain = chain_hash(self._chain, epoch, [statement.digest])
        self.entries.append(Entry(epoch, (statement.data,), chain))

    @property
    def _chain(self) -> bytes:
        return self.entries[-1].chain if self.entries else EMPTY_CHAIN

    def head(self) -> bytes:
        body = Head(
            epoch=len(self.entries),
            chain=self._chain,
            era=0,
            issued=SystemClock().now(),
            challenges=bytes(32),
        )
        return scribe_of(self.pki.signer_credential("head")).sign(body, subject="head").data

    def frames(self, entries: Sequence[Entry], count: int) -> bytes:
        return frame([proto_of(one) for one in entries], self.head()) * count


@pytest.fixture
async def side(tmp_path: Path) -> tuple[DeviceSide, _Chain]:
    """Devices that stand at epoch 2 and wait for the third."""
    pki = TestPki(tmp_path)
    chain, devices = _Chain(pki), DeviceSide(pki)
    chain.revoke()
    chain.revoke()
    synced = await devices.sync(
        sync_frame(DEVICES, [proto_of(one) for one in chain.entries], chain.head()), None
    )
    assert synced == b"2"
    await devices.expect(b"3", None)
    return devices, chain


async def test_the_wait_ends_with_the_last_device(side: tuple[DeviceSide, _Chain]) -> None:
    devices, chain = side
    chain.revoke()
    waiting = asyncio.ensure_future(devices.wait(b"", None))
    await devices.tell(chain.frames(chain.entries[-1:], DEVICES - 1), None)
    await asyncio.sleep(0)
    assert not waiting.done()
    await devices.tell(chain.frames(chain.entries[-1:], 1), None)
    told = json.loads(await waiting)
    assert told["p50"] <= told["p99"] <= told["last"]


async def test_what_a_device_refuses_breaks_the_run(side: tuple[DeviceSide, _Chain]) -> None:
    devices, chain = side
    chain.revoke()
    chain.revoke()
    waiting = asyncio.ensure_future(devices.wait(b"", None))
    with pytest.raises(Refused) as found:  # the third entry is missing
        await devices.tell(chain.frames(chain.entries[-1:], 1), None)
    assert found.value.reason is Reason.STATEMENT_MALFORMED
    with pytest.raises(Refused):
        await waiting


async def test_another_epoch_than_the_expected_one_is_no_success(side: tuple[DeviceSide, _Chain]) -> None:
    devices, chain = side
    chain.revoke()
    chain.revoke()
    await devices.tell(chain.frames(chain.entries[-2:], DEVICES), None)
    with pytest.raises(AssertionError, match="expected epoch"):
        await devices.wait(b"", None)
