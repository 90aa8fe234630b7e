"""The trees of the newest censuses, in pages; every function takes the connection of its transaction.

A tree's pages are written first and its row last: pages without a row are what an interrupted census left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Join, Select, delete, func, select, update

from vigil.core.census import ITEM_BYTES, Placed, place_below, placed_in
from vigil.core.digest import DIGEST_BYTES
from vigil.core.merkle import tree_root
from vigil.evidence.tables import CENSUS, CENSUS_PAGE, ENTRY
from vigil.storage import delete_keys, put_rows

PAGE_NAME: Final = 2 * DIGEST_BYTES
"""A page as its tree names it: its first key, then its root."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A stored tree. ``index`` is where its signed census is on record; None while it is not."""

    size: int
    subjects: int
    root: bytes
    digest: bytes
    pages: bytes
    index: int | None = None

    @property
    def names(self) -> list[tuple[bytes, bytes]]:
        """Each page's first key and root."""
        size = DIGEST_BYTES
        return [
            (self.pages[at : at + size], self.pages[at + size : at + 2 * size])
            for at in range(0, len(self.pages), PAGE_NAME)
        ]

    @property
    def roots(self) -> list[bytes]:
        """Each page's root."""
        return [root for _, root in self.names]

    @property
    def sound(self) -> bool:
        """Whether its pages' roots lead to its root."""
        return len(self.pages) % PAGE_NAME == 0 and tree_root(self.roots) == self.root


def put_pages(connection: Connection, size: int, first: int, pages: Sequence[bytes]) -> None:
    """Write pages of a tree that is being made; whoever makes the same tree writes the same pages."""
    put_rows(connection, CENSUS_PAGE, [(size, number, page) for number, page in enumerate(pages, first)])


def put_tree(connection: Connection, tree: Tree) -> None:
    """Write a tree's row, when all its pages are there."""
    put_rows(connection, CENSUS, [(tree.size, tree.subjects, tree.root, tree.digest, tree.pages)])


def sign_tree(connection: Connection, size: int, digest: bytes) -> None:
    """Note which statement signs a tree; before the statement is recorded."""
    connection.execute(update(CENSUS).where(CENSUS.c.size == size).values(digest=digest))


def _trees(tables: Join) -> Select[Any]:
    return (
        select(CENSUS.c.size, CENSUS.c.subjects, CENSUS.c.root, CENSUS.c.digest, CENSUS.c.pages, ENTRY.c.idx)
        .select_from(tables)
        .order_by(CENSUS.c.size.desc())
    )


def load_trees(connection: Connection) -> list[Tree]:
    """Every stored tree, newest first."""
    query = _trees(CENSUS.outerjoin(ENTRY, ENTRY.c.digest == CENSUS.c.digest))
    return [Tree(*row) for row in connection.execute(query)]


def newest_recorded(connection: Connection, *, below: int | None = None) -> Tree | None:
    """The newest tree whose census is on record, at an index below ``below``."""
    query = _trees(CENSUS.join(ENTRY, ENTRY.c.digest == CENSUS.c.digest)).limit(1)
    if below is not None:
        query = query.where(ENTRY.c.idx < below)
    row = connection.execute(query).one_or_none()
    return None if row is None else Tree(*row)


def load_pages(connection: Connection, size: int, first: int, count: int) -> list[bytes]:
    """Read consecutive pages. Raises LookupError when one is missing."""
    inside = (CENSUS_PAGE.c.size == size) & CENSUS_PAGE.c.number.between(first, first + count - 1)
    query = select(CENSUS_PAGE.c.data).where(inside).order_by(CENSUS_PAGE.c.number)
    found = list(connection.execute(query).scalars())
    if len(found) != count:
        raise LookupError(f"the census of {size} lacks {count - len(found)} of its pages")
    return found


def drop_pages(connection: Connection, size: int, first: int, count: int) -> None:
    """Forget some pages of a tree."""
    inside = (CENSUS_PAGE.c.size == size) & CENSUS_PAGE.c.number.between(first, first + count - 1)
    connection.execute(delete(CENSUS_PAGE).where(inside))


def drop_trees(connection: Connection, sizes: Sequence[int]) -> None:
    """Forget trees' rows; their pages are left over then."""
    delete_keys(connection, CENSUS, [(size,) for size in sizes])


def leftovers(connection: Connection) -> dict[int, int]:
    """Trees of which only pages are left, by size, with the highest page number."""
    known = select(CENSUS.c.size)
    query = (
        select(CENSUS_PAGE.c.size, func.max(CENSUS_PAGE.c.number))
        .where(CENSUS_PAGE.c.size.not_in(known))
        .group_by(CENSUS_PAGE.c.size)
    )
    return {size: number for size, number in connection.execute(query)}  # noqa: C416 - rows are tuples of another type


def place(connection: Connection, tree: Tree, key: bytes) -> tuple[Placed, ...]:
    """A subject's item in a tree; or the items that leave no room for it. Raises LookupError for a damaged tree."""
    names = tree.names
    if not names:
        return ()
    number = max(0, _last_at_most(names, key))
    roots = tree.roots
    (page,) = load_pages(connection, tree.size, number, 1)
    at = place_below(page, key)
    if at >= 0 and page[at * ITEM_BYTES : at * ITEM_BYTES + DIGEST_BYTES] == key:
        return (placed_in(page, at, number=number, roots=roots),)
    around = [] if at < 0 else [placed_in(page, at, number=number, roots=roots)]
    if at + 1 < len(page) // ITEM_BYTES:
        around.append(placed_in(page, at + 1, number=number, roots=roots))
    elif number + 1 < len(names):
        (following,) = load_pages(connection, tree.size, number + 1, 1)
        around.append(placed_in(following, 0, number=number + 1, roots=roots))
    return tuple(around)


def _last_at_most(names: Sequence[tuple[bytes, bytes]], key: bytes) -> int:
    """The page in which a key stands, if it does; -1 below the first."""
    low, high = 0, len(names)
    while low < high:
        middle = (low + high) // 2
        if names[middle][0] <= key:
            low = middle + 1
        else:
            high = middle
    return low - 1
