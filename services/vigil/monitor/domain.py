"""What an outsider can hold a log to, entry by entry. Pure.

* a checkpoint is signed by the log's key, is never smaller than one before, and follows from it: every entry since
  is read, and the tree over them has the root that was signed;
* an entry is a leaf in its one encoding, and log time never goes back;
* a subject's records are numbered without a gap, each naming the hash of the leaf before it;
* a signer's own numbers are never given twice, and each names the digest of the statement before it.

Not seen from outside: what the statements say, and whether a signer's numbers that are missing were ever sent here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from vigil.core.merkle import Frontier, leaf_hash
from vigil.core.notes import open_note, parse_checkpoint_text, parse_verifier_key
from vigil.core.tiles import TILE_WIDTH, Tile
from vigil.errors import Refused, VigilError
from vigil.evidence.domain import Leaf, decode_leaf

MAX_BUNDLE_BYTES: Final = TILE_WIDTH * (2 + 65_535)
MAX_NUMBER: Final = 2**63 - 1
"""What the memory can hold."""


class Wrong(VigilError):  # noqa: N818 - a finding
    """What the log shows cannot be true. ``what``: one word for machines; ``entry``: the leaf it was found at."""

    def __init__(self, what: str, sentence: str, *, index: int | None = None, entry: bytes = b"") -> None:
        super().__init__(sentence)
        self.what = what
        self.index = index
        self.entry = entry


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint whose signature by the log's key holds."""

    size: int
    root: bytes
    note: str


def read_checkpoint(note: str, key: str) -> Signed:
    """Open a checkpoint with the log's key. Raises Wrong (signature, another-log)."""
    try:
        origin, size, root = parse_checkpoint_text(open_note(note, key))
    except Refused as error:
        raise Wrong("signature", error.refusals[0].sentence) from error
    name = parse_verifier_key(key)[0]
    if origin != name:
        raise Wrong(
            "another-log", f"The checkpoint is of another log, {origin}, signed with the key of {name}."
        )
    return Signed(size, root, note)


def check_follows(kept: Signed | None, shown: Signed) -> None:
    """What two checkpoints say of each other without any entry. Raises Wrong (shrunk, forked)."""
    if kept is None:
        return
    if shown.size < kept.size:
        raise Wrong(
            "shrunk",
            f"The log shows {shown.size} records and had signed {kept.size}: it was cut back, or is an old copy.",
        )
    if shown.size == kept.size and shown.root != kept.root:
        raise Wrong(
            "forked", f"The log signed two different trees of {kept.size} records: it shows two histories."
        )


def bundles(first: int, size: int, *, within: int = 0) -> Iterator[Tile]:
    """The entry bundles that hold the entries from ``first`` to the end of a log of this size: one after another, for
    a size is only what somebody signed.

    ``within``: the log's size now, if it has grown; the last bundle has so many entries more.
    """
    for index in range(first // TILE_WIDTH, -(-size // TILE_WIDTH)):
        yield Tile(0, index, min(TILE_WIDTH, max(size, within) - index * TILE_WIDTH), entries=True)


def split_bundle(data: bytes, tile: Tile) -> list[bytes]:
    """Take a bundle apart. Raises Wrong (malformed) for anything but ``tile.width`` entries."""
    entries, at = [], 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data) or at + 2 > len(data):
            raise Wrong(
                "malformed", f"The bundle {tile.path} ends in the middle of an entry.", index=tile.start
            )
        entries.append(data[at + 2 : end])
        at = end
    if len(entries) != tile.width:
        raise Wrong(
            "malformed",
            f"The bundle {tile.path} has {len(entries)} entries instead of {tile.width}.",
            index=tile.start,
        )
    return entries


SignerKey = tuple[bytes, bytes]
"""The thumbprint of a signer's certificate, and one of its series."""


@dataclass(slots=True)
class Known:
    """What is known of some subjects and series: the newest number, and the leaf's hash or the statement's digest.

    ``missing``: how many of a series' numbers below its newest are not in the log.
    """

    subjects: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    series: dict[SignerKey, tuple[int, bytes, int]] = field(default_factory=dict)


@dataclass(slots=True)
class Reading:
    """A log as far as it was read: its tree, its newest time (ms), and the heads of those it was about."""

    frontier: Frontier
    time: int
    known: Known = field(default_factory=Known)

    def take(self, entries: Iterable[tuple[bytes, Leaf]]) -> None:
        """Take the next entries. Raises Wrong (time, subject, signer)."""
        hashes = []
        for index, (entry, leaf) in enumerate(entries, self.frontier.size):
            hashed = leaf_hash(entry)
            if leaf.log_time < self.time:
                raise Wrong(
                    "time", f"Record {index} is older than the one before it.", index=index, entry=entry
                )
            self.time = leaf.log_time
            self._subjects(index, entry, leaf, hashed)
            self._signer(index, entry, leaf)
            hashes.append(hashed)
        self.frontier = self.frontier.extend(hashes)

    def _subjects(self, index: int, entry: bytes, leaf: Leaf, hashed: bytes) -> None:
        for link in leaf.subjects:
            number, previous = self.known.subjects.get(link.subject, (0, b""))
            if link.number != number + 1:
                raise Wrong(
                    "subject",
                    f"Record {index} is number {link.number} of {link.subject}, and {number + 1} was to come.",
                    index=index,
                    entry=entry,
                )
            if link.previous != previous:
                raise Wrong(
                    "subject",
                    f"Record {index} of {link.subject} follows another record than number {number}.",
                    index=index,
                    entry=entry,
                )
            self.known.subjects[link.subject] = link.number, hashed

    def _signer(self, index: int, entry: bytes, leaf: Leaf) -> None:
        number = leaf.number
        if number is None:
            return
        key = (leaf.signer, number.series)
        newest, digest, missing = self.known.series.get(key, (-1, b"", 0))
        if number.number == newest + 1:
            if number.previous != digest:
                raise self._two(index, entry, number.number)
            self.known.series[key] = number.number, leaf.digest, missing
        elif number.number > newest:
            self.known.series[key] = number.number, leaf.digest, missing + number.number - newest - 1
        elif number.number == newest or not missing:
            raise self._two(index, entry, number.number)
        else:  # it came late
            self.known.series[key] = newest, digest, missing - 1

    @staticmethod
    def _two(index: int, entry: bytes, number: int) -> Wrong:
        return Wrong(
            "signer",
            f"Record {index} is its signer's number {number}, and another statement has that number, or follows it.",
            index=index,
            entry=entry,
        )


def decode(index: int, entry: bytes) -> tuple[bytes, Leaf]:
    """Read an entry as a leaf. Raises Wrong (malformed)."""
    try:
        leaf = decode_leaf(entry)
    except Refused as error:
        raise Wrong(
            "malformed", f"Record {index} is no leaf of a Vigil log.", index=index, entry=entry
        ) from error
    if max(leaf.log_time, 0 if leaf.number is None else leaf.number.number) > MAX_NUMBER:
        raise Wrong(
            "malformed", f"Record {index} has a number that no log comes to.", index=index, entry=entry
        )
    return entry, leaf


def check_root(reading: Reading, signed: Signed, *, kept: int) -> None:
    """Everything read up to a checkpoint is what it signs. Raises Wrong (rewritten)."""
    if reading.frontier.root() == signed.root:
        return
    if kept:
        raise Wrong(
            "rewritten",
            f"The log of {signed.size} records that was signed does not follow from the one of {kept} that was seen "
            "before: it was rewritten, or it shows others something else.",
        )
    raise Wrong(
        "rewritten", f"The {signed.size} entries that are served do not lead to the root that the log signed."
    )
