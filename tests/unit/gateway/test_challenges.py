"""A head that answers the gateway's challenge answers every device below it."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from vigil.core import merkle
from vigil.core.revocations import PathStep, answers
from vigil.gateway.challenges import ChallengeTree

CHALLENGES = st.lists(st.binary(min_size=16, max_size=64), min_size=1, max_size=9)


@dataclass
class Head:
    """As much of a head as `answers` reads."""

    root: bytes

    @property
    def body(self) -> Any:
        return SimpleNamespace(challenges=self.root)


def upper(challenge: bytes, others: list[bytes]) -> tuple[Any, tuple[PathStep, ...]]:
    """What an edge and the service make of several gateways' challenges."""
    leaves = [merkle.leaf_hash(one) for one in (*others, challenge)]
    step = PathStep(len(others), len(leaves), tuple(merkle.inclusion_path(leaves, len(others))))
    return Head(merkle.tree_root(leaves)), (step,)


@given(challenges=CHALLENGES, others=st.lists(st.binary(min_size=16, max_size=32), max_size=4))
@settings(max_examples=60)
def test_every_device_finds_its_own_challenge(challenges: list[bytes], others: list[bytes]) -> None:
    tree = ChallengeTree()
    for place, challenge in enumerate(challenges):
        assert tree.add(f"dev-{place}", challenge)
    sealed = tree.seal(b"n" * 16)
    head, steps = upper(sealed, others)
    assert answers(head, sealed, steps)
    found = {answer.device_id: answer.steps for answer in tree.answered(sealed, steps)}
    assert set(found) == {f"dev-{place}" for place in range(len(challenges))}
    for place, challenge in enumerate(challenges):
        assert answers(head, challenge, found[f"dev-{place}"])
        assert not answers(head, challenge + b"x", found[f"dev-{place}"])


def test_without_devices_the_nonce_itself_goes_up() -> None:
    tree = ChallengeTree()
    assert tree.seal(b"n" * 16) == b"n" * 16
    assert tree.answered(b"n" * 16, ()) == []


def test_a_challenge_travels_once_and_is_answered_once() -> None:
    tree = ChallengeTree()
    tree.add("dev-1", b"c" * 16)
    sealed = tree.seal(b"n" * 16)
    assert tree.seal(b"m" * 16) == b"m" * 16
    assert len(tree.answered(sealed, ())) == 1
    assert tree.answered(sealed, ()) == []


def test_the_newest_challenge_of_a_device_counts_and_a_gone_device_has_none() -> None:
    tree = ChallengeTree()
    tree.add("dev-1", b"old-old-old-old-")
    tree.add("dev-1", b"new-new-new-new-")
    tree.add("dev-2", b"c" * 16)
    tree.drop("dev-2")
    sealed = tree.seal(b"n" * 16)
    head, steps = upper(sealed, [])
    (answer,) = tree.answered(sealed, steps)
    assert answers(head, b"new-new-new-new-", answer.steps)
    assert not answers(head, b"old-old-old-old-", answer.steps)


def test_sizes() -> None:
    tree = ChallengeTree()
    assert not tree.add("dev-1", b"short")
    assert not tree.add("dev-1", b"l" * 65)
