"""What passes over the log's tiles: paths that strangers ask for, and entries that a log shows a monitor."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry

from tests.fuzz.harness import Harness, Run, expect
from tests.fuzz.source import text
from vigil.core.digest import sha256
from vigil.core.merkle import Frontier, leaf_hash, tree_root
from vigil.core.statements.envelope import Number
from vigil.core.tiles import MAX_PATH, TILE_WIDTH, Tile, encode_bundle, parse_tile
from vigil.errors import Refused
from vigil.evidence.domain import Leaf, SubjectLink
from vigil.evidence.metrics import TileMetrics
from vigil.monitor.domain import Reading, Wrong, decode, split_bundle

_RESOURCES: Final = {"checkpoint", "entries", "hashes", "other"}


def _tile_request() -> Run:
    registry = CollectorRegistry()
    metrics = TileMetrics(registry)

    def run(data: bytes) -> bool:
        """A path names one tile and a tile has one path; what is counted is a word of ours."""
        path = text(data)
        metrics.answered(path, 200)
        labels = {sample.labels.get("resource") for one in registry.collect() for sample in one.samples}
        expect(labels <= _RESOURCES | {None}, "a stranger's word became a label")
        tile = parse_tile(path)
        expect(tile.path == path, "a tile has two paths")
        expect(len(path) <= MAX_PATH, "a path is longer than any")
        expect(1 <= tile.width <= TILE_WIDTH, "a tile holds nothing, or too much")
        expect(0 <= tile.width_in(2**63 - 1) <= TILE_WIDTH, "a tile is wider than a tile")
        expect(tile.width_in(0) == 0, "an empty log has a tile")
        return True

    return run


def tile_request_seeds() -> Iterator[bytes]:
    """Full, partial, of entries, far away; and what is no path."""
    for tile in (
        Tile(0, 0),
        Tile(0, 1_234_067, 17),
        Tile(7, 5, 255),
        Tile(0, 999_999_999_999, entries=True),
        Tile(0, 3, 1, entries=True),
    ):
        yield tile.path.encode()
    yield b"/checkpoint"
    yield b"/tile/0/x000/001"


def _leaves() -> list[Leaf]:
    leaves: list[Leaf] = []
    for place in range(3):
        previous = leaf_hash(leaves[-1].encode()) if leaves else b""
        number = Number(bytes(16), place, leaves[-1].digest if leaves else b"")
        links = (SubjectLink("device/dev-aaaaaaaaaaaaaaaa", place + 1, previous),)
        leaves.append(Leaf("hold", place, sha256(bytes([place])), bytes(32), number, links, ()))
    return leaves


def _monitored(data: bytes) -> bool:
    """Whatever a log shows as three entries is taken apart to the byte, and read or found wrong."""
    tile = Tile(0, 0, 3, entries=True)
    reading = Reading(Frontier.empty(), 0)
    try:
        entries = split_bundle(data, tile)
        expect(encode_bundle(entries) == data, "a bundle has another form")
        reading.take([decode(index, entry) for index, entry in enumerate(entries)])
    except Wrong as wrong:
        expect(wrong.what in {"malformed", "time", "subject", "signer"}, "a finding that nobody knows")
        return False
    except Refused as refusal:
        expect(False, f"a monitor is refused what it must judge: {refusal}")
    expect(reading.frontier.root() == tree_root([leaf_hash(one) for one in entries]), "another tree")
    return True


def monitored_seeds() -> Iterator[bytes]:
    """A history that is whole, one that is not, and what is cut short."""
    entries = [leaf.encode() for leaf in _leaves()]
    yield encode_bundle(entries)
    yield encode_bundle([entries[1], entries[0], entries[2]])
    yield encode_bundle(entries)[:-5]


HARNESSES: Final = (
    Harness(
        name="tile-request",
        reads="paths of the log's tiles, as strangers ask for them",
        prepare=_tile_request,
        seeds=tile_request_seeds,
        words=(b"/tile/", b"entries/", b".p/", b"x000/", b"/checkpoint"),
        max_bytes=256,
    ),
    Harness(
        name="monitored-entries",
        reads="entries that a log shows to a monitor",
        prepare=lambda: _monitored,
        seeds=monitored_seeds,
    ),
)
