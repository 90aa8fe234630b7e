"""The clock of whoever signs: withheld while it leaps, never back, measured by what is on record."""

import pytest

from vigil.core.classes import CLOCK_AGREEMENT_MS
from vigil.core.clock import ManualClock
from vigil.core.signing_clock import START_SLACK_MS, SigningTime
from vigil.errors import Reason, Refused

pytestmark = pytest.mark.holds("clock-steps")


def reason_of(time: SigningTime) -> Reason | None:
    try:
        time.now()
    except Refused as refusal:
        return refusal.reason
    return None


def test_a_leap_is_withheld_until_the_clock_is_right_again() -> None:
    clock = ManualClock()
    time = SigningTime(clock=clock, durable=None)
    time.stored(time.now())
    clock.advance(5)
    right = clock.now()
    clock.set_now(right + CLOCK_AGREEMENT_MS + 1)
    assert reason_of(time) is Reason.STATE_CONFLICT
    clock.set_now(right)
    assert time.now() == right


def test_it_never_goes_back() -> None:
    clock = ManualClock()
    time = SigningTime(clock=clock, durable=clock.now())
    first = time.now()
    clock.set_now(first - 3_600_000)
    assert time.now() == first


def test_a_start_is_measured_by_what_another_signer_has_durable_once() -> None:
    clock = ManualClock()
    time = SigningTime(clock=clock, durable=None)
    time.begin(clock.now() - START_SLACK_MS - 1)
    assert reason_of(time) is Reason.STATE_CONFLICT
    time.begin(clock.now())
    assert reason_of(time) is Reason.STATE_CONFLICT
