"""The census's tree: built in pages and from the last one, against the plain tree; who is there, and who is not."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil.core import census
from vigil.core.census import Item, Merger, News, Placed, is_absent, is_placed, subject_key
from vigil.core.digest import sha256
from vigil.core.merkle import EMPTY_ROOT, inclusion_path, leaf_hash, tree_root

SUBJECTS = st.dictionaries(st.integers(0, 900), st.integers(1, 5), max_size=600)


def news_of(numbers: Mapping[int, int], before: Mapping[int, int] | None = None) -> dict[bytes, News]:
    """News that lead every subject to its number, after what was there before."""
    known = before or {}
    out = {}
    for name, number in numbers.items():
        old = known.get(name, 0)
        if number > old:
            previous = sha256(f"{name}.{old}".encode()) if old else b""
            out[subject_key(f"device/{name}")] = News(
                old + 1, previous, number, sha256(f"{name}.{number}".encode())
            )
    return out


def items_of(numbers: Mapping[int, int]) -> list[Item]:
    made = [
        Item(subject_key(f"device/{name}"), number, sha256(f"{name}.{number}".encode()))
        for name, number in numbers.items()
    ]
    return sorted(made, key=lambda item: item.key)


def pages_of(numbers: Mapping[int, int]) -> list[bytes]:
    return Merger(news_of(numbers)).finish()


def placed(pages: list[bytes], place: int) -> Placed:
    number, inside = divmod(place, census.PAGE_ITEMS)
    roots = [census.page_root(page) for page in pages]
    return census.placed_in(pages[number], inside, number=number, roots=roots)


@settings(max_examples=60, deadline=None)
@given(before=SUBJECTS, more=SUBJECTS)
def test_merging_the_news_makes_the_tree_of_all_of_them(before: dict[int, int], more: dict[int, int]) -> None:
    after = {name: max(before.get(name, 0), more.get(name, 0)) for name in {**before, **more}}
    merger = Merger(news_of(after, before))
    pages: list[bytes] = []
    for page in pages_of(before):
        pages += merger.feed(page)
    pages += merger.finish()
    items = items_of(after)
    assert b"".join(pages) == b"".join(item.encode() for item in items)
    assert merger.subjects == len(items)
    assert merger.breaks == []
    assert all(census.is_page(page) for page in pages)
    assert all(len(page) == census.PAGE_BYTES for page in pages[:-1])
    plain = tree_root([leaf_hash(item.encode()) for item in items])
    assert tree_root([census.page_root(page) for page in pages]) == plain


@settings(max_examples=40, deadline=None)
@given(numbers=SUBJECTS.filter(bool), data=st.data())
def test_paths_over_pages_are_paths_of_the_plain_tree(numbers: dict[int, int], data: st.DataObject) -> None:
    pages, items = pages_of(numbers), items_of(numbers)
    hashes = [leaf_hash(item.encode()) for item in items]
    place = data.draw(st.integers(0, len(items) - 1))
    one = placed(pages, place)
    assert one.path == tuple(inclusion_path(hashes, place))
    assert is_placed(one, subjects=len(items), root=tree_root(hashes))


@settings(max_examples=60, deadline=None)
@given(numbers=SUBJECTS, name=st.integers(0, 1_000))
def test_a_subject_is_either_shown_or_shown_absent_never_both(numbers: dict[int, int], name: int) -> None:
    pages, items = pages_of(numbers), items_of(numbers)
    root = tree_root([leaf_hash(item.encode()) for item in items])
    key = subject_key(f"device/{name}")
    below = sum(census.place_below(page, key) + 1 for page in pages) - 1
    around = [placed(pages, place) for place in (below, below + 1) if 0 <= place < len(items)]
    present = below >= 0 and items[below].key == key
    assert present is (name in numbers)
    assert is_absent(key, around, subjects=len(items), root=root) is not present
    for some in ([], around[:1], around[1:], [*around, *around], around[::-1]):
        if some != around:
            shown = is_absent(key, some, subjects=len(items), root=root)
            # One neighbour says enough only where it stands at an end with nothing on its other side.
            end = len(some) == 1 and (
                (some[0].place == 0 and key < some[0].item.key)
                or (some[0].place == len(items) - 1 and some[0].item.key < key)
            )
            assert shown is end


@pytest.fixture(scope="module")
def tree() -> tuple[list[bytes], list[Item], bytes]:
    numbers = {name: name % 4 + 1 for name in range(700)}
    items = items_of(numbers)
    return pages_of(numbers), items, tree_root([leaf_hash(item.encode()) for item in items])


def test_a_gap_between_neighbours_that_are_none_shows_nothing(
    tree: tuple[list[bytes], list[Item], bytes],
) -> None:
    pages, items, root = tree
    key = items[300].key
    wide = [placed(pages, 299), placed(pages, 301)]
    assert not is_absent(key, wide, subjects=len(items), root=root)
    moved = [wide[0], replace(wide[1], place=300)]
    assert not is_absent(key, moved, subjects=len(items), root=root)
    assert not is_absent(key, [], subjects=len(items), root=root)
    assert is_absent(key, [], subjects=0, root=EMPTY_ROOT)
    assert not is_absent(key, [], subjects=0, root=root)


def test_every_part_of_a_place_counts(tree: tuple[list[bytes], list[Item], bytes]) -> None:
    pages, items, root = tree
    one = placed(pages, 257)
    changed = [
        replace(one, place=256),
        replace(one, place=-1),
        replace(one, path=one.path[:-1]),
        replace(one, path=(*one.path, bytes(32))),
        replace(one, path=(bytes(32), *one.path[1:])),
        replace(one, item=replace(one.item, number=one.item.number + 1)),
        replace(one, item=replace(one.item, number=0)),
        replace(one, item=replace(one.item, number=2**63)),
        replace(one, item=replace(one.item, leaf=bytes(32))),
        replace(one, item=replace(one.item, key=bytes(32))),
        replace(one, item=Item(one.item.key[:-1], one.item.number, one.item.key[-1:] + one.item.leaf)),
    ]
    assert is_placed(one, subjects=len(items), root=root)
    assert not [some for some in changed if is_placed(some, subjects=len(items), root=root)]
    assert not is_placed(one, subjects=258, root=root)
    assert not is_placed(one, subjects=len(items), root=bytes(32))


def test_news_that_do_not_follow_are_told_and_the_newest_stands() -> None:
    key = subject_key("device/1")
    (page,) = pages_of({1: 2, 2: 1})
    for news in (
        News(2, sha256(b"1.1"), 2, bytes(32)),
        News(4, sha256(b"1.2"), 4, bytes(32)),
        News(3, bytes(32), 3, bytes(32)),
        News(1, b"", 1, bytes(32)),
    ):
        merger = Merger({key: news})
        merger.feed(page)
        (after,) = merger.finish()
        assert merger.breaks == [key]
        assert Item(key, news.number, bytes(32)).encode() in after
    merger = Merger({subject_key("device/9"): News(2, bytes(32), 2, bytes(32))})
    merger.feed(page)
    merger.finish()
    assert merger.breaks == [subject_key("device/9")]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda page: page[:-1],
        lambda page: page + page[: census.ITEM_BYTES],
        lambda page: page[: census.ITEM_BYTES] * 2,
        lambda page: page * 300,
    ],
)
def test_what_is_no_page_is_seen(spoil: object) -> None:
    (page,) = pages_of({1: 2, 2: 1})
    assert census.is_page(page)
    assert not census.is_page(spoil(page))  # type: ignore[operator]


def test_an_item_has_one_encoding() -> None:
    item = items_of({1: 1})[0]
    assert Item.decode(item.encode()) == item
    with pytest.raises(ValueError, match="72 bytes"):
        Item.decode(item.encode() + b"\x00")
