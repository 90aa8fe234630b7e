"""The value types of a feed: a change, a place in the owner's history, and what a reader may see of it. Pure."""

import hashlib
from dataclasses import dataclass

from vigil.api.feed.v1 import feed_pb2

MARK_BYTES = 16
"""A mark tells one history from another after a restore; it does not defend against forgery."""


@dataclass(frozen=True, slots=True)
class Change:
    """A resource as it is after ``sequence``: its value, or that it is gone."""

    sequence: int
    kind: str
    key: str
    value: bytes
    deleted: bool
    site_id: str


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the owner's history: a sequence number and the mark of everything up to it."""

    sequence: int
    mark: bytes


START = Position(sequence=0, mark=b"")
"""Before the first change."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a reader sees: the kinds it asked for (none: all) at the sites that are its own (None: everywhere)."""

    sites: frozenset[str] | None
    kinds: frozenset[str]

    def visible(self, row: "Row") -> feed_pb2.Change | None:
        """Show a change as this reader sees it: what leaves its sites is deleted for it."""
        if self.kinds and row.kind not in self.kinds:
            return None
        if self.sites is None or not row.site or row.site in self.sites:
            return row.shown
        if row.previous_site is not None and (not row.previous_site or row.previous_site in self.sites):
            return row.gone
        return None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the tail, encoded once for every reader."""

    position: Position
    kind: str
    site: str
    previous_site: str | None
    """Where the resource belonged before, if that was another site; empty: it concerned everybody."""
    shown: feed_pb2.Change
    gone: feed_pb2.Change


def next_mark(
    before: bytes, *, sequence: int, kind: str, key: str, site: str, value: bytes, deleted: bool
) -> bytes:
    """Chain one change to the mark of everything before it."""
    parts = (
        before,
        sequence.to_bytes(8),
        kind.encode(),
        key.encode(),
        site.encode(),
        b"\x01" if deleted else b"\x00",
        value,
    )
    chained = hashlib.sha256()
    for part in parts:
        chained.update(len(part).to_bytes(4))
        chained.update(part)
    return chained.digest()[:MARK_BYTES]
