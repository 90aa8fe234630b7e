"""Following heads: what counts, what does not, and that no head ever makes policy forget while it is fresh."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.pki import DEVICE
from tests.support.policy_room import PolicyRoom
from tests.support.policy_world import Heads
from vigil.core.clock import ManualClock
from vigil.core.statements.bodies import Head, RevocationEffect, Scope
from vigil.core.statements.envelope import Statement
from vigil.errors import Reason, Refused
from vigil.policy.heads import HeadFollower

DENY = RevocationEffect.DENY


class Service:
    """The head service without a wire; what it signs can be bent."""

    def __init__(self, room: PolicyRoom) -> None:
        self.heads = Heads(room)
        self.bent: dict[str, Any] = {}
        sign = room.head

        def head(challenges: bytes | None = None, **values: Any) -> Statement[Head]:
            return sign(challenges, **{**values, **self.bent})

        room.head = head  # type: ignore[method-assign]

    async def AnswerChallenges(self, request: Any, *, timeout: float) -> Any:  # noqa: N802, ASYNC109 - a stub's form
        assert timeout > 0
        return await self.heads.AnswerChallenges(request, None)


class Following:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.room = PolicyRoom(folder, clock=self.clock)
        self.service = Service(self.room)
        self.follower = HeadFollower(
            stub=self.service,  # type: ignore[arg-type]
            verifier=lambda: self.room.verifier,
            clock=self.clock,
            entropy=os.urandom,
        )

    def revoked(self) -> bool:
        effect = self.follower.revocations.effect(Scope.DEVICE, DEVICE, at=self.clock.now())
        return effect is DENY

    async def refusal(self) -> Reason:
        with pytest.raises(Refused) as refusal:
            await self.follower.ask()
        return refusal.value.reason


@pytest.fixture
def following(tmp_path: Path) -> Following:
    return Following(tmp_path)


@pytest.mark.holds("captured-bus")
async def test_freshness_runs_from_the_sending_of_what_was_answered(following: Following) -> None:
    assert following.follower.age() == float("inf")
    assert not await following.follower.ask()
    following.clock.advance(2)
    assert following.follower.age() == 2.0
    following.service.heads.forged = True
    assert await following.refusal() is Reason.SIGNATURE_INVALID
    assert following.follower.age() == 2.0


@pytest.mark.holds("captured-bus")
async def test_pages_count_only_when_a_head_confirms_the_last(following: Following) -> None:
    following.room.revoke(Scope.DEVICE, DEVICE)
    for number in range(4):
        following.room.revoke(Scope.GATEWAY, f"gateway-{number}")
    following.service.heads.page = 2
    assert await following.follower.ask()
    assert await following.follower.ask()
    assert following.follower.age() == float("inf")
    assert not following.revoked()
    assert not await following.follower.ask()
    assert following.revoked()
    assert following.follower.age() == 0.0


@pytest.mark.holds("captured-bus")
@pytest.mark.parametrize(
    ("bent", "reason"),
    [
        ({"epoch": 0, "chain": bytes(32)}, Reason.EPOCH_ROLLED_BACK),
        ({"chain": bytes(32)}, Reason.SIGNATURE_INVALID),
        ({"epoch": 2**62}, Reason.SNAPSHOT_REQUIRED),
    ],
)
async def test_a_head_that_does_not_follow_changes_nothing(
    following: Following, bent: dict[str, Any], reason: Reason
) -> None:
    following.room.revoke(Scope.DEVICE, DEVICE)
    await following.follower.ask()
    assert following.revoked()
    following.clock.advance(1)
    following.service.bent = bent
    assert await following.refusal() is reason
    assert following.revoked()
    assert following.follower.age() == 1.0
    following.service.bent = {}
    assert not await following.follower.ask()
    assert following.follower.age() == 0.0


async def test_a_later_era_replaces_a_chain_that_was_lost_once_it_is_whole(following: Following) -> None:
    room = following.room
    room.revoke(Scope.DEVICE, DEVICE)
    room.revoke(Scope.GATEWAY, "gateway-7")
    room.revoke(Scope.GATEWAY, "gateway-8")
    await following.follower.ask()
    del room.entries[1:]
    room.open_era()
    following.clock.advance(1)
    assert await following.refusal() is Reason.SNAPSHOT_REQUIRED
    assert following.revoked()
    assert following.follower.age() == 1.0
    following.service.heads.page = 1
    assert await following.follower.ask()
    assert not await following.follower.ask()
    assert following.revoked()
    state = following.follower.revocations.state
    assert (state.era, state.epoch) == (1, 2)
    assert state.effect(Scope.GATEWAY, "gateway-7", at=following.clock.now()) is None
    assert following.follower.age() == 0.0


@pytest.mark.holds("stolen-signers")
@pytest.mark.parametrize("signer", ["head", "decision"])
async def test_an_era_that_the_root_did_not_open_clears_nothing(following: Following, signer: str) -> None:
    """A captured head signer restricts; it never un-revokes."""
    room = following.room
    room.revoke(Scope.DEVICE, DEVICE)
    await following.follower.ask()
    following.clock.advance(1)
    signed = room.signed_by
    room.signed_by = lambda _statement, body: signed(signer, body)  # type: ignore[method-assign]
    following.service.bent = {"era": 1, "epoch": 0, "chain": bytes(32)}
    for _ in range(3):
        await following.refusal()
        assert following.revoked()
        assert following.follower.age() >= 1.0
    room.signed_by = signed  # type: ignore[method-assign]
    following.service.bent = {}
    assert not await following.follower.ask()
    assert following.revoked()
    assert following.follower.age() == 0.0
