"""The census: one Merkle tree over every subject's newest record. Pure.

A *subject's key* is SHA-256 of its name (UTF-8). The tree's leaves stand in the order of these keys; leaf data is 72
bytes, ``key || number (8 bytes, big endian) || hash of the newest record's leaf``, hashed as RFC 6962 section 2.1
hashes leaves and nodes. So:

* a subject with n records has exactly one leaf, found by its key, which names n and the record itself;
* a subject without any has none: two neighbours, or an end of the tree, leave no room for it;
* a proof shows the keys of two neighbours and not their names.

The tree is kept in pages of 256 items, which are complete subtrees of it: a proof reads one page and the pages' roots.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hmac import compare_digest
from itertools import pairwise
from typing import Final, Self

from vigil.core.digest import DIGEST_BYTES, sha256
from vigil.core.merkle import EMPTY_ROOT, inclusion_path, leaf_hash, tree_root, verify_inclusion

ITEM_BYTES: Final = 2 * DIGEST_BYTES + 8
PAGE_ITEMS: Final = 256
"""Leaves under one page: a power of two, so that a page is a complete subtree (RFC 6962 section 2.1)."""
PAGE_BYTES: Final = PAGE_ITEMS * ITEM_BYTES
MAX_NUMBER: Final = 2**63 - 1


def subject_key(subject: str) -> bytes:
    """Where a subject stands in the order of the tree: SHA-256 of its name."""
    return sha256(subject.encode())


@dataclass(frozen=True, slots=True)
class Item:
    """One subject's newest record: its number, and the hash of its leaf in the log."""

    key: bytes
    number: int
    leaf: bytes

    def encode(self) -> bytes:
        """The tree's leaf data, 72 bytes."""
        return self.key + self.number.to_bytes(8, "big") + self.leaf

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read leaf data. Raises ValueError for another length."""
        if len(data) != ITEM_BYTES:
            raise ValueError("an item of a census has 72 bytes")
        return cls(data[:32], int.from_bytes(data[32:40], "big"), data[40:])


@dataclass(frozen=True, slots=True)
class Placed:
    """An item at its place (from 0) in the tree, with its inclusion path (RFC 9162 section 2.1.3)."""

    place: int
    item: Item
    path: tuple[bytes, ...]


# --- checking


def is_placed(placed: Placed, *, subjects: int, root: bytes) -> bool:
    """Whether an item stands at its place in the tree of ``subjects`` leaves."""
    item = placed.item
    if len(item.key) != DIGEST_BYTES or len(item.leaf) != DIGEST_BYTES or not 1 <= item.number <= MAX_NUMBER:
        return False
    return verify_inclusion(
        leaf=leaf_hash(item.encode()), index=placed.place, size=subjects, path=placed.path, root=root
    )


def is_absent(key: bytes, neighbours: Sequence[Placed], *, subjects: int, root: bytes) -> bool:
    """Whether the neighbours leave no room for a key: the last below and the first above it, where there are such.

    At an end of the tree there is one neighbour, in an empty tree none.
    """
    if len(key) != DIGEST_BYTES or not all(
        is_placed(one, subjects=subjects, root=root) for one in neighbours
    ):
        return False
    match neighbours:
        case []:
            return subjects == 0 and compare_digest(root, EMPTY_ROOT)
        case [one] if one.place == 0 and key < one.item.key:
            return True
        case [one]:
            return one.place == subjects - 1 and one.item.key < key
        case [below, above]:
            return above.place == below.place + 1 and below.item.key < key < above.item.key
    return False


# --- the tree in pages


def page_hashes(page: bytes) -> list[bytes]:
    """Leaf hashes of a page's items."""
    return [leaf_hash(page[at : at + ITEM_BYTES]) for at in range(0, len(page), ITEM_BYTES)]


def page_root(page: bytes) -> bytes:
    """Root of the subtree over one page."""
    return tree_root(page_hashes(page))


def is_page(page: bytes) -> bool:
    """Whether these are 1 to 256 items in strictly rising order of their keys."""
    keys = [page[at : at + DIGEST_BYTES] for at in range(0, len(page), ITEM_BYTES)]
    whole = len(page) % ITEM_BYTES == 0 and 0 < len(page) <= PAGE_BYTES
    return whole and all(one < other for one, other in pairwise(keys))


def place_below(page: bytes, key: bytes) -> int:
    """The place in a page of the last item whose key is at most this one; -1 when there is none."""
    low, high = 0, len(page) // ITEM_BYTES
    while low < high:
        middle = (low + high) // 2
        at = middle * ITEM_BYTES
        if page[at : at + DIGEST_BYTES] <= key:
            low = middle + 1
        else:
            high = middle
    return low - 1


def placed_in(page: bytes, place: int, *, number: int, roots: Sequence[bytes]) -> Placed:
    """An item of page ``number`` with its path: up to the page's root, then over the pages' roots.

    Pages are aligned complete subtrees (the last is the rest), so the two paths are one of RFC 9162.
    """
    item = Item.decode(page[place * ITEM_BYTES : (place + 1) * ITEM_BYTES])
    path = (*inclusion_path(page_hashes(page), place), *inclusion_path(roots, number))
    return Placed(number * PAGE_ITEMS + place, item, path)


# --- from one census to the next


@dataclass(slots=True)
class News:
    """What a stretch of the log says of one subject: what its first record there follows, and its newest one."""

    first: int
    previous: bytes
    number: int
    leaf: bytes

    def follows(self, item: Item | None) -> bool:
        """Whether the stretch goes on where the census before it ended."""
        if item is None:
            return self.first == 1 and not self.previous
        return self.first == item.number + 1 and compare_digest(self.previous, item.leaf)


class Merger:
    """Makes the next census's pages from the last one's and from the news, page by page.

    ``breaks`` collects the keys of subjects whose records do not follow one another: the newest stands in the census
    all the same, and whoever reads their histories finds the gap.
    """

    def __init__(self, news: Mapping[bytes, News]) -> None:
        self._news = news
        self._keys = sorted(news)
        self._at = 0
        self._pending = bytearray()
        self.subjects = 0
        self.breaks: list[bytes] = []

    def feed(self, page: bytes) -> list[bytes]:
        """Take the next page of the last census; answers the new pages that are full."""
        last = page[-ITEM_BYTES : -ITEM_BYTES + DIGEST_BYTES]
        end = bisect_right(self._keys, last, self._at)
        done = 0
        for key in self._keys[self._at : end]:
            place = place_below(page, key)
            start = place * ITEM_BYTES
            known = place >= 0 and page[start : start + DIGEST_BYTES] == key
            until = start if known else start + ITEM_BYTES
            self._pending += page[done:until]
            done = start + ITEM_BYTES
            self._put(key, Item.decode(page[start:done]) if known else None)
        self._pending += page[done:]
        self._at = end
        return self._full()

    def finish(self) -> list[bytes]:
        """The remaining pages, the last of them full or not."""
        return list(self.remaining())

    def remaining(self) -> Iterator[bytes]:
        """The same one by one: there may be as many as there are news."""
        while self._at < len(self._keys):
            self._put(self._keys[self._at], None)
            self._at += 1
            yield from self._full()
        if self._pending:
            yield self._take(len(self._pending))

    def _put(self, key: bytes, known: Item | None) -> None:
        news = self._news[key]
        if not news.follows(known):
            self.breaks.append(key)
        self._pending += Item(key, news.number, news.leaf).encode()

    def _full(self) -> list[bytes]:
        pages = []
        while len(self._pending) >= PAGE_BYTES:
            pages.append(self._take(PAGE_BYTES))
        return pages

    def _take(self, size: int) -> bytes:
        page = bytes(self._pending[:size])
        del self._pending[:size]
        self.subjects += size // ITEM_BYTES
        return page


class Collector:
    """Gathers the news of a stretch of the log, record by record in the order of the log."""

    def __init__(self) -> None:
        self.news: dict[bytes, News] = {}
        self.names: dict[bytes, str] = {}
        self.breaks: set[bytes] = set()
        self._keys: dict[str, bytes] = {}

    def add(self, subject: str, *, number: int, previous: bytes, leaf: bytes) -> None:
        """One record's link under one of its subjects; ``leaf`` is the hash of its leaf."""
        key = self._keys.get(subject)
        if key is None:
            key = self._keys[subject] = subject_key(subject)
            self.names[key] = subject
            self.news[key] = News(number, previous, number, leaf)
            return
        known = self.news[key]
        if number != known.number + 1 or not compare_digest(previous, known.leaf):
            self.breaks.add(key)
        known.number, known.leaf = number, leaf
