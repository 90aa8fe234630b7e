"""Deterministic CBOR: the vectors of RFC 8949 Appendix A, every refusal, and cbor2 as a second reader."""

from enum import IntEnum, StrEnum
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil.core import cbor
from vigil.errors import Reason, Refused

# RFC 8949 Appendix A, as far as the values are allowed.
VECTORS: list[tuple[str, Any]] = [
    ("00", 0),
    ("01", 1),
    ("0a", 10),
    ("17", 23),
    ("1818", 24),
    ("1864", 100),
    ("1903e8", 1000),
    ("1a000f4240", 1000000),
    ("1b000000e8d4a51000", 1000000000000),
    ("1bffffffffffffffff", 2**64 - 1),
    ("20", -1),
    ("29", -10),
    ("3863", -100),
    ("3903e7", -1000),
    ("3b7fffffffffffffff", -(2**63)),
    ("f4", False),
    ("f5", True),
    ("f6", None),
    ("40", b""),
    ("4401020304", b"\x01\x02\x03\x04"),
    ("60", ""),
    ("6161", "a"),
    ("6449455446", "IETF"),
    ("62225c", '"\\'),
    ("62c3bc", "\u00fc"),
    ("63e6b0b4", "\u6c34"),
    ("64f0908591", "\U00010151"),
    ("80", []),
    ("83010203", [1, 2, 3]),
    ("8301820203820405", [1, [2, 3], [4, 5]]),
    ("98190102030405060708090a0b0c0d0e0f101112131415161718181819", list(range(1, 26))),
    ("a0", {}),
    ("a201020304", {1: 2, 3: 4}),
    ("a26161016162820203", {"a": 1, "b": [2, 3]}),
    ("826161a161626163", ["a", {"b": "c"}]),
]

# What section 4.2.1 gives as its example of the order, without the keys that are not allowed here.
ORDERED = {10: 0, 100: 1, -1: 2, "z": 3, "aa": 4}
ORDERED_HEX = "a5" + "0a00" + "186401" + "2002" + "617a03" + "62616104"


@pytest.mark.parametrize(("encoded", "value"), VECTORS)
def test_rfc_8949_appendix_a(encoded: str, value: Any) -> None:
    assert cbor.encode(value).hex() == encoded
    decoded = cbor.decode(bytes.fromhex(encoded))
    assert decoded == value
    assert type(decoded) is type(value)


def test_map_keys_stand_in_bytewise_order_of_their_encodings() -> None:
    shuffled = {key: ORDERED[key] for key in ("aa", "z", -1, 100, 10)}
    assert cbor.encode(shuffled).hex() == ORDERED_HEX
    decoded = cbor.decode(bytes.fromhex(ORDERED_HEX))
    assert list(decoded) == list(ORDERED)


@pytest.mark.parametrize(
    ("why", "encoded"),
    [
        ("nothing", ""),
        ("trailing byte", "0000"),
        ("truncated integer", "19"),
        ("truncated 64-bit integer", "1b00000001000000"),
        ("truncated byte string", "4401"),
        ("truncated long byte string", "5820" + "00" * 31),
        ("truncated head of a byte string", "58"),
        ("truncated text", "6261"),
        ("truncated array", "8301"),
        ("truncated map", "a101"),
        ("string past the end inside a map", "a10144aa"),
        ("23 in two bytes", "1817"),
        ("255 in three bytes", "1900ff"),
        ("65535 in five bytes", "1a0000ffff"),
        ("2^32-1 in nine bytes", "1b00000000ffffffff"),
        ("negative not shortest", "3800"),
        ("length of bytes not shortest", "5817" + "00" * 23),
        ("length of text not shortest", "780161"),
        ("length of array not shortest", "980100"),
        ("length of map not shortest", "b8010000"),
        ("indefinite bytes", "5f4100ff"),
        ("indefinite text", "7f6161ff"),
        ("indefinite array", "9f01ff"),
        ("indefinite map", "bf0101ff"),
        ("break alone", "ff"),
        ("reserved additional information", "1c"),
        ("reserved additional information", "5d"),
        ("below -2^63", "3b8000000000000000"),
        ("bignum", "c249010000000000000000"),
        ("date", "c074323031332d30332d32315432303a30343a30305a"),
        ("epoch date", "c11a514b67b0"),
        ("uuid", "d82550" + "00" * 16),
        ("regular expression", "d82366285b612d5d"),
        ("shareable", "d81c80"),
        ("self-described CBOR", "d9d9f700"),
        ("half float", "f90000"),
        ("float", "fa47c35000"),
        ("double", "fb3ff199999999999a"),
        ("NaN", "f97e00"),
        ("undefined", "f7"),
        ("simple value 16", "f0"),
        ("simple value 255", "f8ff"),
        ("false in two bytes", "f814"),
        ("duplicate key", "a201010102"),
        ("keys out of order", "a202010101"),
        ("text before integer", "a261610101" + "01"),
        ("longer text first", "a2626161016161" + "01"),
        ("negative before positive", "a220000100"),
        ("key of bytes", "a1410000"),
        ("key of array", "a18000"),
        ("key of map", "a1a000"),
        ("key of true", "a1f500"),
        ("key of null", "a1f600"),
        ("invalid UTF-8", "61ff"),
        ("surrogate in UTF-8", "63eda080"),
        ("overlong UTF-8", "62c080"),
        ("invalid UTF-8 in a key", "a161ff00"),
    ],
)
def test_refused(why: str, encoded: str) -> None:
    with pytest.raises(Refused) as caught:
        cbor.decode(bytes.fromhex(encoded))
    assert caught.value.reason is Reason.STATEMENT_MALFORMED, why


@pytest.mark.parametrize(
    "head", ["9bffffffffffffffff", "bbffffffffffffffff", "5bffffffffffffffff", "9a7fffffff"]
)
def test_a_declared_length_allocates_nothing(head: str) -> None:
    with pytest.raises(Refused):
        cbor.decode(bytes.fromhex(head))


@pytest.mark.parametrize("opening", ["81", "a100", "c1"])
def test_deep_nesting_is_refused_before_it_costs_anything(opening: str) -> None:
    with pytest.raises(Refused):
        cbor.decode(bytes.fromhex(opening) * (65_000 // (len(opening) // 2)))


def test_the_bounds_are_inclusive() -> None:
    nested: Any = 0
    for _ in range(16):
        nested = [nested]
    assert cbor.decode(cbor.encode(nested)) == nested
    with pytest.raises(Refused):
        cbor.encode([nested])
    with pytest.raises(Refused):
        cbor.decode(b"\x81" + cbor.encode(nested))
    assert cbor.decode(b"\x43abc", max_bytes=4) == b"abc"
    with pytest.raises(Refused):
        cbor.decode(b"\x44abcd", max_bytes=4)


class Label(IntEnum):
    ALG = 1


class Word(StrEnum):
    YES = "yes"


def test_enumerations_and_tuples_are_written_as_what_they_stand_for() -> None:
    assert cbor.encode({Label.ALG: (Word.YES, Label.ALG), Word.YES: 2}) == cbor.encode(
        {1: ["yes", 1], "yes": 2}
    )


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        2**64,
        -(2**63) - 1,
        object(),
        {b"k": 1},
        {True: 1},
        {None: 1},
        {2**64: 1},
        "\ud800",
        {"\ud800": 1},
        {1, 2},
        [1.0],
    ],
)
def test_the_encoder_writes_nothing_that_the_decoder_refuses(value: Any) -> None:
    with pytest.raises(Refused) as caught:
        cbor.encode(value)
    assert caught.value.reason is Reason.STATEMENT_MALFORMED


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 65_535, 65_536])
def test_byte_strings_by_hand_are_the_same(size: int) -> None:
    assert cbor.byte_string(b"x" * size) == cbor.encode(b"x" * size) == cbor2.dumps(b"x" * size)


integers = st.integers(cbor.MIN_INT, cbor.MAX_INT) | st.sampled_from(
    [23, 24, 255, 256, 65535, 65536, -24, -25]
)
leaves = integers | st.binary(max_size=40) | st.text(max_size=30) | st.booleans() | st.none()
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(integers | st.text(max_size=30), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(max_examples=150)
@given(values)
def test_what_is_encoded_is_read_back_and_cbor2_reads_the_same(value: Any) -> None:
    encoded = cbor.encode(value)
    assert cbor.decode(encoded) == value
    assert cbor2.loads(encoded) == value
    assert cbor.encode(cbor.decode(encoded)) == encoded


@settings(max_examples=300)
@given(leaves | st.lists(leaves))
def test_scalars_and_arrays_are_written_as_cbor2_writes_them(value: Any) -> None:
    assert cbor.encode(value) == cbor2.dumps(value)


def test_a_truth_value_is_no_key_even_where_the_same_number_was_one_before() -> None:
    assert cbor.encode({1: 2}) == bytes.fromhex("a10102")
    with pytest.raises(Refused):
        cbor.encode({True: 2})
    assert cbor.encode({"a": 1, "bb": 2, 3: 4}) == cbor.encode({3: 4, "bb": 2, "a": 1})


@settings(max_examples=150)
@given(values, st.randoms(use_true_random=False))
def test_the_order_in_which_a_map_was_made_does_not_show(value: Any, random: Any) -> None:
    def shuffled(item: Any) -> Any:
        if isinstance(item, list):
            return [shuffled(each) for each in item]
        if isinstance(item, dict):
            pairs = list(item.items())
            random.shuffle(pairs)
            return {key: shuffled(each) for key, each in pairs}
        return item

    assert cbor.encode(shuffled(value)) == cbor.encode(value)


def accepted(data: bytes) -> bool:
    """What is read, is read as cbor2 reads it, and is the one encoding of its value."""
    try:
        value = cbor.decode(data)
    except Refused as refusal:
        if refusal.reason is not Reason.STATEMENT_MALFORMED:
            raise
        return False
    assert cbor2.loads(data) == value
    assert cbor.encode(value) == data
    return True


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_are_the_one_encoding(data: bytes) -> None:
    accepted(data)


@settings(max_examples=200)
@given(values, st.data())
def test_a_damaged_encoding_is_refused_or_is_the_one_encoding_of_something_else(
    value: Any, data: st.DataObject
) -> None:
    encoded = bytearray(cbor.encode(value))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] = data.draw(st.integers(0, 255))
    accepted(bytes(encoded))


@settings(max_examples=150)
@given(values)
def test_no_encoding_is_a_prefix_of_another(value: Any) -> None:
    encoded = cbor.encode(value)
    assert accepted(encoded)
    assert not accepted(encoded + b"\x00")
    assert not accepted(encoded[:-1])
