from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil.device import bch

messages = st.integers(0, 2**bch.DIMENSION - 1)
places = st.integers(0, bch.LENGTH - 1)


def with_errors(block: int, at: set[int]) -> int:
    for place in at:
        block ^= 1 << place
    return block


def test_the_generator_is_the_published_one() -> None:
    # Lin and Costello, Error Control Coding, appendix C: (255, 131), t = 18, in octal.
    assert oct(bch.generator_polynomial()) == "0o215713331471510151261250277442142024165471"


@settings(max_examples=40)
@given(messages, messages)
def test_the_code_is_linear_systematic_and_cyclic(left: int, right: int) -> None:
    block = bch.encode(left)
    assert block >> (bch.LENGTH - bch.DIMENSION) == left
    assert bch.encode(left ^ right) == block ^ bch.encode(right)
    rotated = (block << 1 | block >> (bch.LENGTH - 1)) & (1 << bch.LENGTH) - 1
    assert bch.decode(rotated).errors == 0


@settings(max_examples=40)
@given(messages.filter(bool))
def test_codewords_differ_in_37_places_or_more(message: int) -> None:
    assert bch.encode(message).bit_count() >= 2 * bch.CORRECTABLE + 1


@settings(max_examples=60)
@given(messages, st.sets(places, max_size=bch.CORRECTABLE))
def test_up_to_18_errors_are_corrected_and_counted(message: int, errors: set[int]) -> None:
    corrected = bch.decode(with_errors(bch.encode(message), errors))
    assert corrected == bch.Corrected(message, len(errors))


@settings(max_examples=60)
@given(messages, st.sets(places, min_size=19, max_size=60))
def test_more_errors_are_found_or_end_at_another_codeword(message: int, errors: set[int]) -> None:
    received = with_errors(bch.encode(message), errors)
    try:
        corrected = bch.decode(received)
    except bch.UncorrectableError:
        return
    assert corrected.message != message
    assert (received ^ bch.encode(corrected.message)).bit_count() == corrected.errors <= bch.CORRECTABLE


def test_19_errors_are_found() -> None:
    random = Random(5)
    found = 0
    for _ in range(40):
        errors = set(random.sample(range(bch.LENGTH), 19))
        with pytest.raises(bch.UncorrectableError):
            bch.decode(with_errors(bch.encode(random.getrandbits(bch.DIMENSION)), errors))
        found += 1
    assert found == 40


@pytest.mark.parametrize("number", [-1, 2**bch.LENGTH])
def test_what_does_not_fit_is_a_mistake(number: int) -> None:
    with pytest.raises(ValueError, match="255 bits"):
        bch.decode(number)
    with pytest.raises(ValueError, match="131 bits"):
        bch.encode(number if number < 0 else 2**bch.DIMENSION)
