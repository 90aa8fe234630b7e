import time

import pytest

from vigil.core.clock import ManualClock, SystemClock, rfc3339
from vigil.core.digest import hex_digest, parse_hex_digest, sha256
from vigil.errors import Reason, Refused


def test_the_system_clock_says_milliseconds_and_seconds() -> None:
    clock = SystemClock()
    before, now, after = time.time(), clock.now(), time.time()
    assert int(before * 1000) <= now <= after * 1000
    first = clock.monotonic()
    assert first <= clock.monotonic()


def test_a_manual_clock_moves_only_when_told_to() -> None:
    clock = ManualClock(now=5_000, monotonic=7.0)
    assert (clock.now(), clock.monotonic()) == (5_000, 7.0)
    clock.advance(1.5)
    assert (clock.now(), clock.monotonic()) == (6_500, 8.5)
    clock.set_now(10)
    assert (clock.now(), clock.monotonic()) == (10, 8.5)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


def test_a_digest_is_written_in_hex_and_read_back() -> None:
    text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, "abc"
    assert hex_digest(sha256(b"abc")) == text
    assert parse_hex_digest(text) == sha256(b"abc")


@pytest.mark.parametrize(
    "text",
    ["", "ab", "AB" * 32, "ab" * 33, "ab" * 31 + "0", "0x" + "ab" * 31, "ab" * 32 + "\n", "\u0661" * 64],
)
def test_anything_else_is_no_digest(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_hex_digest(text)
    assert caught.value.reason is Reason.FIELD_INVALID


def test_a_digest_of_another_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        hex_digest(b"short")


def test_an_instant_is_written_for_people_and_any_number_is_one() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_795_881_356_055) == "2026-11-28T15:55:56.055Z"
    assert rfc3339(2**63) == f"{2**63} ms after 1970"
