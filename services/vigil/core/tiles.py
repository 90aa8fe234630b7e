"""The tiles of a transparency log and their paths (C2SP tlog-tiles). Pure.

A hash tile of level L holds up to 256 subtree hashes of height 8 * L; an entry bundle holds the entries under one
tile of level 0. Each resource has one path: with a zero, an ``x`` or a slash more or less it is no path of the log.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vigil.errors import Reason, Refused, refused

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT
MAX_LEVEL: Final = 63
MAX_ENTRY_BYTES: Final = 65_535
"""An entry's length is a big-endian uint16."""
MAX_PATH: Final = 64
"""Characters of a path: level 63 and an index of 20 digits take fewer."""
CHECKPOINT_PATH: Final = "/checkpoint"

_NUMBER: Final = r"0|[1-9][0-9]{0,9}"
_TILE = re.compile(
    rf"/tile/(?P<level>entries|{_NUMBER})/(?P<index>(?:x[0-9]{{3}}/){{0,6}}[0-9]{{3}})(?:\.p/(?P<width>{_NUMBER}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Tile:
    """One hash tile, or the bundle of entries at ``index`` where ``entries`` says so (its level is then 0).

    ``width``: how many of the 256 hashes or entries; 256 is a full tile.
    """

    level: int
    index: int
    width: int = TILE_WIDTH
    entries: bool = False

    @property
    def full(self) -> bool:
        """Whether nothing can ever be added."""
        return self.width == TILE_WIDTH

    @property
    def start(self) -> int:
        """Position of the first hash among the subtrees of its level, or index of the first entry."""
        return self.index * TILE_WIDTH

    @property
    def path(self) -> str:
        """The one path of it below the log's prefix."""
        digits = f"{self.index:03d}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        parts = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        index = "/".join((*(f"x{part}" for part in parts[:-1]), parts[-1]))
        return f"/tile/{'entries' if self.entries else self.level}/{index}{'' if self.full else f'.p/{self.width}'}"

    def width_in(self, size: int) -> int:
        """How many hashes or entries this tile has in a tree of ``size`` leaves: 0 to 256."""
        return min(TILE_WIDTH, max(0, (size >> TILE_HEIGHT * self.level) - self.start))


def parse_tile(path: str) -> Tile:
    """Read a path below the log's prefix. Raises RESOURCE_NOT_FOUND for another place, FIELD_INVALID for bad form."""
    if not path.startswith("/tile/"):
        raise refused(
            Reason.RESOURCE_NOT_FOUND,
            "There is nothing here: the log is read at /checkpoint, /tile/<L>/<N> and /tile/entries/<N>.",
        )
    found = _TILE.fullmatch(path) if len(path) <= MAX_PATH else None
    if found is None:
        raise _malformed(
            "it is not /tile/<L>/<N>[.p/<W>] with N in groups of three digits, all but the last after an x"
        )
    level, index, width = found["level"], found["index"], found["width"]
    if index.startswith("x000/"):
        raise _malformed("its index begins with a group of zeros")
    if level != "entries" and int(level) > MAX_LEVEL:
        raise _malformed(f"its level is above {MAX_LEVEL}")
    if width is not None and not 1 <= int(width) < TILE_WIDTH:
        raise _malformed(f"a partial tile has 1 to {TILE_WIDTH - 1} hashes")
    return Tile(
        level=0 if level == "entries" else int(level),
        index=int(index.replace("x", "").replace("/", "")),
        width=TILE_WIDTH if width is None else int(width),
        entries=level == "entries",
    )


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """An entry bundle: each entry after its length. Raises ValueError for an entry that no bundle can hold."""
    if any(len(entry) > MAX_ENTRY_BYTES for entry in entries):
        raise ValueError(f"an entry has more than {MAX_ENTRY_BYTES} bytes")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def _malformed(what: str) -> Refused:
    return refused(
        Reason.FIELD_INVALID,
        f"This is not the path of a tile: {what}.",
        lifted_by="the path as C2SP tlog-tiles writes it",
        who="caller",
        field="path",
    )
