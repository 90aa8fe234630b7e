"""Paths of tiles, and what a tile holds at each size of the tree (C2SP tlog-tiles)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil.core.tiles import MAX_ENTRY_BYTES, Tile, encode_bundle, parse_tile
from vigil.errors import Reason, Refused


@pytest.mark.parametrize(
    ("path", "tile"),
    [
        ("/tile/0/000", Tile(0, 0)),
        ("/tile/0/067", Tile(0, 67)),
        ("/tile/1/999", Tile(1, 999)),
        ("/tile/0/x001/000", Tile(0, 1000)),
        ("/tile/0/x001/x234/067", Tile(0, 1_234_067)),  # the specification's example
        ("/tile/63/000.p/1", Tile(63, 0, 1)),
        ("/tile/2/x010/x000/000.p/255", Tile(2, 10_000_000, 255)),
        ("/tile/entries/000", Tile(0, 0, entries=True)),
        ("/tile/entries/x001/x234/067.p/8", Tile(0, 1_234_067, 8, entries=True)),
        ("/tile/0/x999/x999/x999/x999/x999/x999/999", Tile(0, 10**21 - 1)),
    ],
)
def test_a_tile_has_one_path(path: str, tile: Tile) -> None:
    assert parse_tile(path) == tile
    assert tile.path == path


@given(
    level=st.integers(0, 63),
    index=st.integers(0, 10**21 - 1),
    width=st.integers(1, 256),
    entries=st.booleans(),
)
def test_every_tile_is_read_from_its_path(level: int, index: int, width: int, *, entries: bool) -> None:
    tile = Tile(0 if entries else level, index, width, entries)
    assert parse_tile(tile.path) == tile


@given(st.text(alphabet="/tile0123456789xp.entris-+%", max_size=40).map(lambda rest: f"/tile/{rest}"))
def test_what_is_read_is_written_the_same(path: str) -> None:
    try:
        tile = parse_tile(path)
    except Refused:
        return
    assert tile.path == path


@pytest.mark.parametrize(
    "path",
    [
        "/tile/",
        "/tile/0",
        "/tile/0/",
        "/tile/0/0",
        "/tile/0/00",
        "/tile/0/0000",
        "/tile/0/000/",
        "/tile/0//000",
        "/tile//0/000",
        "/tile/00/000",
        "/tile/01/000",
        "/tile/-1/000",
        "/tile/+1/000",
        "/tile/64/000",
        "/tile/99999999999999999999/000",
        "/tile/0/-01",
        "/tile/0/x00",
        "/tile/0/x000",
        "/tile/0/x000/000",
        "/tile/0/x000/x001/000",
        "/tile/0/001/000",
        "/tile/0/x001/x000",
        "/tile/0/X001/000",
        "/tile/0/x999/x999/x999/x999/x999/x999/x999/999",
        "/tile/0/000.p",
        "/tile/0/000.p/",
        "/tile/0/000.p/0",
        "/tile/0/000.p/00",
        "/tile/0/000.p/01",
        "/tile/0/000.p/-1",
        "/tile/0/000.p/256",
        "/tile/0/000.p/9999999999999",
        "/tile/0/000.p/1/",
        "/tile/0/000.P/1",
        "/tile/0/000?",
        "/tile/0/000?width=1",
        "/tile/0/000#",
        "/tile/0/000 ",
        "/tile/0/000\n",
        "/tile/0/%30%30%30",
        "/tile/0/\u0660\u0660\u0660",  # digits, but not ASCII's
        "/tile/entries",
        "/tile/entries/",
        "/tile/Entries/000",
        "/tile/entries/0/000",
        "/tile/../checkpoint",
        "/tile/0/../../etc/passwd",
        "/tile/0/..",
        "/tile/0/." + "/." * 4000,
        "/tile/0/" + "x001/" * 4000 + "001",
        "/tile/" + "9" * 5000 + "/000",
    ],
)
def test_another_form_is_no_path(path: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_tile(path)
    assert caught.value.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/tile",
        "tile/0/000",
        "//tile/0/000",
        "/TILE/0/000",
        "/../tile/0/000",
        "*",
        "/evidence.db",
        "/log.key",
    ],
)
def test_elsewhere_is_nothing(path: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_tile(path)
    assert caught.value.reason is Reason.RESOURCE_NOT_FOUND


def test_the_tiles_of_the_specifications_example() -> None:
    """A tree of 70,000: 273 full tiles and one of 112, one full and one of 17, one of 1. Nothing above."""
    size = 70_000
    assert Tile(0, 272).width_in(size) == 256
    assert [Tile(0, index).width_in(size) for index in (273, 274)] == [112, 0]
    assert [Tile(1, index).width_in(size) for index in (0, 1, 2)] == [256, 17, 0]
    assert [Tile(2, index).width_in(size) for index in (0, 1)] == [1, 0]
    assert Tile(3, 0).width_in(size) == Tile(63, 0).width_in(size) == 0
    assert (Tile(0, 0).width_in(256), Tile(1, 0).width_in(256), Tile(0, 1).width_in(256)) == (256, 1, 0)
    assert Tile(0, 0).width_in(0) == 0


@given(size=st.integers(0, 2**40), level=st.integers(0, 6))
def test_the_partial_tile_has_the_specifications_width(size: int, level: int) -> None:
    """floor(s / 256**l) mod 256."""
    hashes = size // 256**level
    last = hashes // 256
    assert Tile(level, last).width_in(size) == hashes % 256
    assert last == 0 or Tile(level, last - 1).width_in(size) == 256


def test_an_entry_stands_after_its_length() -> None:
    longest = bytes(MAX_ENTRY_BYTES)
    assert encode_bundle([b"", b"ab", longest]) == b"\x00\x00" + b"\x00\x02ab" + b"\xff\xff" + longest
    assert encode_bundle([]) == b""
    with pytest.raises(ValueError, match="65535"):
        encode_bundle([longest + b"\x00"])
