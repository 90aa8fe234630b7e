"""Revocation as it runs: service, edges, evidence and the neighbours' feeds over mTLS, with a real bus."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.revocation.support import PUMP, World, a_world, revocation
from vigil.core.revocations import EMPTY_CHAIN, PathStep, answers, chain_hash
from vigil.core.statements.bodies import Head
from vigil.core.statements.envelope import read


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield await world.start()


async def test_a_revocation_gets_an_epoch_and_a_head_confirms_it(world: World) -> None:
    statement = revocation(world.operator, PUMP)
    entry = await world.revoke(world.operator, statement)
    assert entry.epoch == 1
    assert entry.chain == chain_hash(EMPTY_CHAIN, 1, [statement.digest])
    again = await world.revoke(world.operator, statement)
    assert again == entry
    challenge = os.urandom(32)
    answered = await world.head(challenge, after_epoch=0, max_entries=10)
    head = read(answered.head.head, Head)
    assert (head.body.epoch, head.body.chain) == (1, entry.chain)
    steps = [PathStep(path.index, path.size, tuple(path.path)) for path in answered.head.paths]
    assert answers(head, challenge, steps)
    assert not answers(head, os.urandom(32), steps)
    assert list(answered.entries) == [entry]
