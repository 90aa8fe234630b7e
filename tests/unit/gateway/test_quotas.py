"""What one credential may ask for."""

import contextlib

import pytest

from vigil.core.classes import NONCE_LIFETIME_S, SAFETY_PERIOD_S
from vigil.core.clock import ManualClock
from vigil.errors import Reason, Refused
from vigil.gateway.quotas import Limits, Quotas

ME, OTHER = b"m" * 32, b"o" * 32


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def quotas(clock: ManualClock, **limits: int) -> Quotas:
    return Quotas(clock=clock, limits=Limits(**limits))


def exhaust(asked: Quotas, kind: str, times: int) -> None:
    for _ in range(times):
        asked.take(ME, kind)
    with pytest.raises(Refused) as caught:
        asked.take(ME, kind)
    assert caught.value.reason is Reason.QUOTA_EXCEEDED


@pytest.mark.holds("floods-by-credential")
def test_a_minutes_worth_and_then_as_it_refills(clock: ManualClock) -> None:
    asked = quotas(clock, commands=6)
    exhaust(asked, "commands", 6)
    clock.advance(10.0)
    exhaust(asked, "commands", 1)
    clock.advance(600.0)
    exhaust(asked, "commands", 6)


@pytest.mark.holds("floods-by-credential")
def test_safety_actions_have_their_own_share_and_so_has_everybody(clock: ManualClock) -> None:
    asked = quotas(clock, commands=1, safety=1)
    exhaust(asked, "commands", 1)
    asked.take(ME, "safety")
    asked.take(OTHER, "commands")


def test_a_nonce_that_is_dead_for_certain_is_known(clock: ManualClock) -> None:
    asked = quotas(clock, nonces=2)
    # What was given before this start, or is spent, only the device knows.
    assert asked.nonce_used(ME, "one")
    asked.nonce_wanted(ME, "one")
    clock.advance(NONCE_LIFETIME_S - 1)
    asked.nonce_given(ME, "one")
    clock.advance(NONCE_LIFETIME_S)
    assert asked.nonce_used(ME, "one")
    asked.nonce_given(ME, "one")
    clock.advance(NONCE_LIFETIME_S + 0.1)
    assert not asked.nonce_used(ME, "one")
    assert asked.nonce_used(ME, "one")
    asked.nonce_given(ME, "one")
    clock.advance(NONCE_LIFETIME_S + 0.1)
    asked.nonce_wanted(ME, "one")
    assert asked.nonce_used(ME, "one")


@pytest.mark.holds("floods-by-credential")
def test_nonces_count_by_device_until_they_lapse(clock: ManualClock) -> None:
    asked = quotas(clock, nonces=2)
    asked.nonce_wanted(ME, "one")
    asked.nonce_wanted(ME, "one")
    asked.nonce_wanted(ME, "two")
    with pytest.raises(Refused):
        asked.nonce_wanted(ME, "three")
    asked.nonce_used(ME, "two")
    asked.nonce_wanted(ME, "three")
    clock.advance(NONCE_LIFETIME_S + 0.1)
    asked.nonce_wanted(ME, "four")


def test_a_place_is_given_back_however_it_ends(clock: ManualClock) -> None:
    asked = quotas(clock, concurrent=1)

    def fail() -> None:
        with asked.under_way(ME):
            with pytest.raises(Refused), asked.under_way(ME):
                pass
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with asked.under_way(ME):
        pass


@pytest.mark.holds("stolen-safety")
def test_three_devices_in_ten_minutes(clock: ManualClock) -> None:
    asked = quotas(clock)
    for device in ("one", "two", "three"):
        assert asked.safety_admits("p-me", device)
        asked.safety_touched("p-me", device)
        clock.advance(60.0)
    assert asked.safety_admits("p-me", "two")
    assert not asked.safety_admits("p-me", "four")
    assert asked.safety_admits("p-other", "four")
    clock.advance(SAFETY_PERIOD_S - 179.0)
    assert asked.safety_admits("p-me", "four")


@pytest.mark.holds("stolen-safety")
def test_a_restart_takes_over_what_was_touched(clock: ManualClock) -> None:
    asked = quotas(clock)
    for device in ("one", "two", "three"):
        asked.safety_touched("p-me", device, ago=500.0)
    assert not asked.safety_admits("p-me", "four")
    clock.advance(101.0)
    assert asked.safety_admits("p-me", "four")


@pytest.mark.holds("floods-by-credential")
def test_what_is_refused_is_counted_by_credential(clock: ManualClock) -> None:
    asked = quotas(clock, commands=2, nonces=1)
    for credential, times in ((ME, 6), (OTHER, 3)):
        for _ in range(times):
            with contextlib.suppress(Refused):
                asked.take(credential, "commands")
    asked.nonce_wanted(ME, "one")
    with pytest.raises(Refused):
        asked.nonce_wanted(ME, "two")
    assert dict(asked.refused()) == {ME: 5, OTHER: 1}
    assert asked.refused() == []
