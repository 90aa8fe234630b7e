"""The log's arithmetic: leaves, numbering, one group commit, proofs over stored subtrees, signed checkpoints.

Pure: values in, values out. Invariants that everything here keeps:

* a leaf has one encoding, and the log's tree (RFC 6962) is over these leaves in the order of their index;
* log time never goes back;
* every subject's records are numbered 1, 2, 3, … and each names the hash of the leaf before it;
* a commit's `recorded` tree is over (index, statement digest), so that its signature binds both;
* a checkpoint never shrinks, and one size has one root.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vigil.core import cbor
from vigil.core.certificates import EVERY, Identity, Kind
from vigil.core.clock import Entropy
from vigil.core.digest import DIGEST_BYTES, sha256
from vigil.core.merkle import EMPTY_ROOT, Frontier, leaf_hash, node_hash
from vigil.core.notes import (
    Checkpoint,
    check_advance,
    checkpoint_text,
    key_id,
    open_note,
    origin_of,
    parse_checkpoint_text,
    parse_verifier_key,
    sign_note,
    verifier_key,
)
from vigil.core.salted import salted
from vigil.core.statements.envelope import Number
from vigil.errors import Reason, Refused, refused

__all__ = [
    "Admitted",
    "Checkpoint",
    "Commit",
    "Leaf",
    "LogState",
    "Node",
    "Scope",
    "SubjectHead",
    "SubjectLink",
    "check_advance",
    "checkpoint_text",
    "consistency_path",
    "decode_leaf",
    "extend",
    "field_invalid",
    "inclusion_path",
    "is_subject",
    "keep_bodies",
    "key_id",
    "not_in_scope",
    "open_note",
    "origin_of",
    "parse_checkpoint_text",
    "parse_verifier_key",
    "read_frontier",
    "recorded_leaf",
    "root_and_paths",
    "root_of",
    "scope_of",
    "sequence",
    "sign_note",
    "subjects_of",
    "subtrees",
    "verifier_key",
]

LEAF_VERSION: Final = 1
MAX_LEAF_BYTES: Final = 65_535
"""An entry of a tile bundle has a 16-bit length (C2SP tlog-tiles)."""
MAX_SUBJECTS: Final = 64
MAX_BODIES: Final = 8
MAX_BODY_BYTES: Final = 65_536
READS_EVERYTHING: Final = ("auditor", "admin", "recall")
"""Roles that read what belongs to no single site: of the operator everything, of an organization its own."""

_SUBJECT = re.compile(r"[a-z][a-z0-9-]{0,31}(/[!-~]{1,223})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class SubjectLink:
    """A record's place among its subject's records: counted from 1, with the previous leaf's hash (b"" before 1)."""

    subject: str
    number: int
    previous: bytes


@dataclass(frozen=True, slots=True)
class Leaf:
    """What the log commits to about one statement. ``log_time`` in ms since the epoch; digests are SHA-256."""

    kind: str
    log_time: int
    digest: bytes
    signer: bytes
    number: Number | None
    subjects: tuple[SubjectLink, ...]
    bodies: tuple[bytes, ...]

    def encode(self) -> bytes:
        """The one encoding: a CBOR array of eight (docs/protocol.md, Log leaf)."""
        number = self.number
        return cbor.encode(
            [
                LEAF_VERSION,
                self.kind,
                self.log_time,
                self.digest,
                self.signer,
                None if number is None else [number.series, number.number, number.previous],
                [[link.subject, link.number, link.previous] for link in self.subjects],
                list(self.bodies),
            ]
        )


def decode_leaf(data: bytes) -> Leaf:
    """Read a leaf. Raises STATEMENT_MALFORMED for anything but the one encoding of a version-1 leaf."""
    match cbor.decode(data, max_bytes=MAX_LEAF_BYTES, max_depth=3):
        case [
            int(version),
            str(kind),
            int(log_time),
            bytes(digest),
            bytes(signer),
            number,
            links,
            bodies,
        ] if (
            version == LEAF_VERSION
            and type(version) is int
            and type(log_time) is int
            and log_time >= 0
            and len(digest) == len(signer) == DIGEST_BYTES
            and isinstance(links, list)
            and isinstance(bodies, list)
            and len(bodies) <= MAX_BODIES
            and all(type(body) is bytes and len(body) == DIGEST_BYTES for body in bodies)
        ):
            return Leaf(kind, log_time, digest, signer, _number(number), _links(links), tuple(bodies))
    raise _malformed_leaf()


def _number(value: object) -> Number | None:
    match value:
        case None:
            return None
        case [bytes(series), int(number), bytes(previous)] if (
            type(number) is int and number >= 0 and len(series) == 16 and len(previous) in (0, DIGEST_BYTES)
        ):
            return Number(series, number, previous)
    raise _malformed_leaf()


def _links(values: list[object]) -> tuple[SubjectLink, ...]:
    links = []
    for value in values:
        match value:
            case [str(subject), int(number), bytes(previous)] if (
                type(number) is int
                and number >= 1
                and len(previous) == (0 if number == 1 else DIGEST_BYTES)
                and is_subject(subject)
            ):
                links.append(SubjectLink(subject, number, previous))
            case _:
                raise _malformed_leaf()
    if len(links) > MAX_SUBJECTS or len({link.subject for link in links}) != len(links):
        raise _malformed_leaf()
    return tuple(links)


def is_subject(text: str) -> bool:
    """Whether this names a subject: ``<kind>/<id>``, or one word; printable ASCII without spaces."""
    return _SUBJECT.fullmatch(text) is not None


def subjects_of(named: Sequence[str], own: str) -> tuple[str, ...]:
    """The subjects of a record: its statement's own ``sub`` first, then what the caller named beside it.

    Nobody can leave a statement out of the history of the subject that it names itself. Raises FIELD_INVALID.
    """
    subjects = dict.fromkeys((own, *named) if is_subject(own) else named)
    if len(subjects) > MAX_SUBJECTS:
        raise field_invalid("subjects", f"A record has at most {MAX_SUBJECTS} subjects.")
    for subject in subjects:
        if not is_subject(subject):
            raise field_invalid("subjects", "A subject is written as its kind, a slash and its id.")
    return tuple(subjects)


def keep_bodies(bodies: Sequence[bytes], entropy: Entropy) -> dict[bytes, bytes]:
    """Bodies as they are kept beside a statement, salted, by their digests in order. Raises REQUEST_TOO_LARGE."""
    if len(bodies) > MAX_BODIES or any(len(body) > MAX_BODY_BYTES for body in bodies):
        raise refused(
            Reason.REQUEST_TOO_LARGE,
            f"A record keeps at most {MAX_BODIES} bodies of {MAX_BODY_BYTES} bytes each.",
            lifted_by="fewer or smaller bodies; larger artifacts travel by digest",
            who="the sender",
            field="bodies",
        )
    return {sha256(kept): kept for kept in (salted(body, entropy) for body in bodies)}


# --- one group commit


@dataclass(frozen=True, slots=True)
class Admitted:
    """A statement that was read and whose signature holds, waiting for its place in the log."""

    kind: str
    digest: bytes
    signer: bytes
    number: Number | None
    subjects: tuple[str, ...]
    bodies: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SubjectHead:
    """A subject's newest record: how many there are, and the newest one's leaf hash."""

    number: int
    leaf: bytes


NO_RECORDS: Final = SubjectHead(0, b"")


@dataclass(frozen=True, slots=True)
class LogState:
    """The log's tree, and the time of its newest leaf (ms)."""

    frontier: Frontier
    time: int

    @property
    def size(self) -> int:
        """Leaves in the log."""
        return self.frontier.size


@dataclass(frozen=True, slots=True)
class Node:
    """A complete subtree of 2^level leaves, the ``position``-th of its level. Level 0 is a leaf's hash."""

    level: int
    position: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """What one group commit adds. ``root`` and ``paths`` are of the `recorded` tree, not of the log's."""

    before: LogState
    after: LogState
    leaves: tuple[bytes, ...]
    links: tuple[tuple[SubjectLink, ...], ...]
    heads: Mapping[str, SubjectHead]
    nodes: tuple[Node, ...]
    root: bytes
    paths: tuple[tuple[bytes, ...], ...]

    @property
    def first(self) -> int:
        """Log index of its first leaf."""
        return self.before.size


def sequence(
    state: LogState, items: Sequence[Admitted], *, heads: Mapping[str, SubjectHead], now: int
) -> Commit:
    """Give every item its index, log time and numbers.

    ``heads`` holds the head of every subject named that has records. The bounds on subjects and bodies keep
    a leaf below MAX_LEAF_BYTES. Raises ValueError for no items.
    """
    if not items:
        raise ValueError("a commit has at least one item")
    time = max(now, state.time)  # log time never goes back, whatever the machine's clock does
    moved: dict[str, SubjectHead] = {}
    leaves: list[bytes] = []
    hashes: list[bytes] = []
    links: list[tuple[SubjectLink, ...]] = []
    for item in items:
        own: list[SubjectLink] = []
        for subject in item.subjects:
            head = moved.get(subject) or heads.get(subject, NO_RECORDS)
            own.append(SubjectLink(subject, head.number + 1, head.leaf))
        leaf = Leaf(item.kind, time, item.digest, item.signer, item.number, tuple(own), item.bodies).encode()
        hashed = leaf_hash(leaf)
        for link in own:
            moved[link.subject] = SubjectHead(link.number, hashed)
        leaves.append(leaf)
        hashes.append(hashed)
        links.append(tuple(own))
    frontier, nodes = extend(state.frontier, hashes)
    root, paths = root_and_paths(
        [recorded_leaf(state.size + place, item.digest) for place, item in enumerate(items)]
    )
    return Commit(
        before=state,
        after=LogState(frontier, time),
        leaves=tuple(leaves),
        links=tuple(links),
        heads=moved,
        nodes=nodes,
        root=root,
        paths=paths,
    )


def recorded_leaf(index: int, digest: bytes) -> bytes:
    """Leaf hash of a commit's `recorded` tree: over the log index (8 bytes, big endian) and the digest."""
    return leaf_hash(index.to_bytes(8, "big") + digest)


def root_and_paths(leaf_hashes: Sequence[bytes]) -> tuple[bytes, tuple[tuple[bytes, ...], ...]]:
    """Root of a tree and the inclusion path of every leaf, each level hashed once (RFC 9162 2.1.3.1)."""
    levels = [list(leaf_hashes)]
    while len(levels[-1]) > 1:
        level = levels[-1]
        above = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        levels.append(above + level[-1:] if len(level) % 2 else above)
    paths = []
    for index in range(len(leaf_hashes)):
        path, at = [], index
        for level in levels:
            if at ^ 1 < len(level):
                path.append(level[at ^ 1])
            at >>= 1
        paths.append(tuple(path))
    return (levels[-1][0] if levels[-1] else EMPTY_ROOT), tuple(paths)


def extend(frontier: Frontier, leaf_hashes: Iterable[bytes]) -> tuple[Frontier, tuple[Node, ...]]:
    """Append leaves; answer the new frontier and every complete subtree above the leaves that came to be."""
    size, hashes, nodes = frontier.size, list(frontier.hashes), []
    for leaf in leaf_hashes:
        carried, level = leaf, 0
        while size >> level & 1:
            carried = node_hash(hashes.pop(), carried)
            level += 1
            nodes.append(Node(level, size >> level, carried))
        hashes.append(carried)
        size += 1
    return Frontier(size, tuple(hashes)), tuple(nodes)


# --- proofs over stored subtrees

NodeReader = Callable[[int, int], bytes]
"""``read(level, position)`` answers the hash of a complete subtree; level 0 is a leaf's."""


def subtrees(size: int) -> list[tuple[int, int]]:
    """The complete subtrees (level, position) that make up a tree of ``size`` leaves, largest first."""
    return cover(0, size)


def read_frontier(size: int, read: NodeReader) -> Frontier:
    """Rebuild the frontier of a stored tree."""
    return Frontier(size, tuple(read(level, position) for level, position in subtrees(size)))


def inclusion_path(index: int, size: int, read: NodeReader) -> tuple[bytes, ...]:
    """PATH(index, D_size) of RFC 9162 2.1.3.1, in O(log size) reads. Raises ValueError if there is no such leaf."""
    return tuple(hash_of(first, end, read) for first, end in siblings(index, size))


def siblings(index: int, size: int) -> list[tuple[int, int]]:
    """The leaves (first, end) under each hash of an inclusion path. Raises ValueError if there is no such leaf."""
    if not 0 <= index < size:
        raise ValueError("no such leaf")
    found = []
    first, end = 0, size
    while end - first > 1:
        split = first + _largest_power_below(end - first)
        left, right = (first, split), (split, end)
        found.append(right if index < split else left)
        first, end = left if index < split else right
    return found[::-1]


def consistency_path(old_size: int, new_size: int, read: NodeReader) -> tuple[bytes, ...]:
    """PROOF(old_size, D_new_size) of RFC 9162 2.1.4.1, in O(log size) reads; empty for 0 and for equal sizes."""
    if not 0 <= old_size <= new_size:
        raise ValueError("the old tree is larger than the new one")
    if old_size == 0:
        return ()
    path = []
    first, end, whole = 0, new_size, True
    while old_size != end:
        split = first + _largest_power_below(end - first)
        if old_size <= split:
            path.append(hash_of(split, end, read))
            end = split
        else:
            path.append(hash_of(first, split, read))
            first, whole = split, False
    if not whole:
        path.append(hash_of(first, end, read))
    return tuple(reversed(path))


def root_of(size: int, read: NodeReader) -> bytes:
    """Root of a stored tree at one of its earlier sizes."""
    return hash_of(0, size, read) if size else EMPTY_ROOT


def cover(first: int, end: int) -> list[tuple[int, int]]:
    """Complete subtrees of the leaves from ``first``, where a subtree of that size may begin, up to ``end``."""
    cover = []
    while first < end:
        level = (end - first).bit_length() - 1
        cover.append((level, first >> level))
        first += 1 << level
    return cover


def hash_of(first: int, end: int, read: NodeReader) -> bytes:
    """The hash over the leaves from ``first``, where a subtree of that size may begin, up to ``end``."""
    *left, newest = cover(first, end)
    root = read(*newest)
    for level, position in reversed(left):
        root = node_hash(read(level, position), root)
    return root


def _largest_power_below(size: int) -> int:
    return 1 << (size - 1).bit_length() - 1


# --- who may read what


@dataclass(frozen=True, slots=True)
class Scope:
    """What one person may read. ``organization`` or a site of ``*`` stands for every one."""

    organization: str
    sites: frozenset[str]
    siteless: bool
    everything: bool = False

    def covers(self, organization: str, site: str) -> bool:
        """Whether a record of this owner may be read. What belongs to nobody is read by those who read everything."""
        if self.everything:
            return True
        if not organization or self.organization not in (EVERY, organization):
            return False
        if not site:
            return self.siteless
        return EVERY in self.sites or site in self.sites


def scope_of(reader: Identity) -> Scope:
    """A person's scope: the sites of the certificate; for auditors, admins and the recall team all of their own.

    A service that the contract lets read at all reads everything.
    """
    wide = reader.kind is Kind.SERVICE or reader.has_role(*READS_EVERYTHING)
    return Scope(
        organization=EVERY if reader.operator else reader.organization,
        sites=frozenset(reader.sites),
        siteless=wide,
        everything=wide and reader.operator,
    )


def not_in_scope(what: str) -> Refused:
    """The one answer for what is somebody else's and for what does not exist."""
    return refused(
        Reason.NOT_IN_SCOPE,
        f"There is no such {what} in your scope.",
        lifted_by="the right id, or a credential for its site",
        who="an admin of the organization",
    )


# --- refusals


def field_invalid(name: str, sentence: str) -> Refused:
    """Make FIELD_INVALID."""
    return refused(Reason.FIELD_INVALID, sentence, lifted_by="a field of that form", who="caller", field=name)


def _malformed_leaf() -> Refused:
    return refused(Reason.STATEMENT_MALFORMED, "This is not a leaf of the evidence log, version 1.")
