"""Messages that nobody should send, by somebody who may: every method of a whole installation."""

from collections.abc import Callable, Iterable

import pytest

from tests.contract.callers import METHODS, Callers
from tests.fuzz.generator import Generator
from tests.fuzz.rpc import fuzz
from tests.support.stack import Stack

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.holds("hostile-input")]


FOUND = (3982418210, 111098465)
"""Seeds that found something once: a sequence beyond any database, a refusal longer than a header."""


async def _fuzz(
    stack: Stack, callers: Callers, injected: Callable[[int], None], seeds: Iterable[int]
) -> None:
    outcome = await fuzz(stack, callers, iter(seeds))
    assert outcome.findings == []
    assert set(outcome.calls) == {f"{one.process}:{one.name}" for one in METHODS}
    # It is no single first check that refuses everything, and not everything is refused.
    assert len(outcome.reasons) > 5, outcome.reasons
    assert outcome.refused.total() > outcome.calls.total() // 3
    assert outcome.answered.total() > 0
    injected(outcome.calls.total())


@pytest.mark.timeout(900)
async def test_a_few_messages_to_each_method(
    breakable: Stack, callers: Callers, injected: Callable[[int], None]
) -> None:
    await _fuzz(breakable, callers, injected, (0, 1, 2, *FOUND))


@pytest.mark.thorough
@pytest.mark.timeout(3_600)
async def test_many_messages_to_each_method(
    breakable: Stack, callers: Callers, injected: Callable[[int], None]
) -> None:
    await _fuzz(breakable, callers, injected, range(100, 160))


async def test_the_generator_makes_the_same_of_the_same_seed() -> None:
    for method in METHODS:
        made = [Generator(7).message(method.descriptor.input_type) for _ in range(2)]
        assert made[0].SerializeToString(deterministic=True) == made[1].SerializeToString(deterministic=True)
