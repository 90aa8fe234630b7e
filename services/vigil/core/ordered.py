"""A set walked in the order in which its members came: who waits is served in turn, and a run can be repeated."""

from collections.abc import Iterable, Iterator, MutableSet
from typing import TypeVar

T = TypeVar("T")


class OrderedSet(MutableSet[T]):
    """Like `set`, with an order."""

    __slots__ = ("_members",)

    def __init__(self, values: Iterable[T] = ()) -> None:
        self._members = dict.fromkeys(values)

    def add(self, value: T) -> None:
        """Add behind all others; what is in it keeps its place."""
        self._members.setdefault(value)

    def discard(self, value: T) -> None:
        """Remove it if it is in it."""
        self._members.pop(value, None)

    def __contains__(self, value: object) -> bool:
        return value in self._members

    def __iter__(self) -> Iterator[T]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)
