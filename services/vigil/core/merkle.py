"""Merkle trees: the hashing of RFC 6962 section 2.1, the proof algorithms of RFC 9162 section 2.1.

Leaves are hashed under ``0x00`` and nodes under ``0x01``, so that no node can pass for a leaf. Everything
here works on leaf *hashes*. Wrong sizes and indexes are programming errors (ValueError) where a proof is
made, and a plain False where one is checked: a proof comes from someone else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from typing import Final, Self

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()
"""The root of the tree without leaves (RFC 6962 section 2.1)."""


def leaf_hash(data: bytes) -> bytes:
    """Hash one entry: SHA-256(0x00 || data)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees: SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


def tree_root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Compute the Merkle Tree Hash over ``leaf_hashes`` (RFC 6962 section 2.1)."""
    level = list(leaf_hashes)
    if not level:
        return EMPTY_ROOT
    while len(level) > 1:
        above = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0]


def inclusion_path(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """Make the path from leaf ``index`` to the root, lowest sibling first (RFC 9162 section 2.1.3.1).

    Raises ValueError if there is no such leaf.
    """
    if not 0 <= index < len(leaf_hashes):
        raise ValueError("no such leaf")
    path = []
    level = list(leaf_hashes)
    while len(level) > 1:
        if index ^ 1 < len(level):
            path.append(level[index ^ 1])
        above = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        level, index = above, index >> 1
    return path


def root_of_path(*, leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Compute the root that ``path`` leads to from the leaf hash ``leaf`` (RFC 9162 section 2.1.3.2).

    Raises ValueError if the path cannot belong to leaf ``index`` of a tree of ``size`` leaves.
    """
    if not 0 <= index < size:
        raise ValueError("the leaf lies outside the tree")
    if any(len(sibling) != HASH_BYTES for sibling in path) or len(leaf) != HASH_BYTES:
        raise ValueError("a hash has another length")
    at, last, root = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise ValueError("the path is too long")
        if at & 1 or at == last:
            root = node_hash(sibling, root)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        at, last = at >> 1, last >> 1
    if last:
        raise ValueError("the path is too short")
    return root


def verify_inclusion(*, leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Say whether ``path`` proves that leaf hash ``leaf`` stands at ``index`` in the tree of ``root``."""
    try:
        return compare_digest(root_of_path(leaf=leaf, index=index, size=size, path=path), root)
    except ValueError:
        return False


def consistency_path(leaf_hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """Prove that the tree's first ``old_size`` leaves are a prefix of it (RFC 9162 section 2.1.4.1).

    Empty for an old size of 0 or of the whole tree. Raises ValueError for an old size beyond the tree.
    """
    if not 0 <= old_size <= len(leaf_hashes):
        raise ValueError("the old tree is larger than the new one")
    if old_size == 0:
        return []
    path: list[bytes] = []
    first, end, whole = 0, len(leaf_hashes), True
    while old_size != end - first:  # SUBPROOF(m, D_n, b), from the top down
        split = _largest_power_below(end - first)
        if old_size <= split:
            path.append(tree_root(leaf_hashes[first + split : end]))
            end = first + split
        else:
            path.append(tree_root(leaf_hashes[first : first + split]))
            first, old_size, whole = first + split, old_size - split, False
    if not whole:
        path.append(tree_root(leaf_hashes[first:end]))
    path.reverse()
    return path


def verify_consistency(
    *, old_size: int, new_size: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]
) -> bool:
    """Say whether ``path`` proves the old tree a prefix of the new one (RFC 9162 section 2.1.4.2)."""
    if not 0 <= old_size <= new_size or any(len(node) != HASH_BYTES for node in path):
        return False
    if old_size == new_size:
        return not path and compare_digest(old_root, new_root)
    if old_size == 0:
        return not path and compare_digest(old_root, EMPTY_ROOT)
    found = root_of_consistency(old_size=old_size, new_size=new_size, old_root=old_root, path=path)
    return found is not None and compare_digest(found, new_root)


def root_of_consistency(
    *, old_size: int, new_size: int, old_root: bytes, path: Sequence[bytes]
) -> bytes | None:
    """Compute the new tree's root that ``path`` leads to from the old one (RFC 9162 section 2.1.4.2).

    None where the path does not belong to the old root, or to a growth from ``old_size`` (above 0) to more.
    """
    if not 0 < old_size < new_size or not path or any(len(node) != HASH_BYTES for node in path):
        return None
    nodes = list(path)
    if old_size & (old_size - 1) == 0:
        nodes.insert(0, old_root)
    old_at, new_at = old_size - 1, new_size - 1
    while old_at & 1:
        old_at, new_at = old_at >> 1, new_at >> 1
    old, new = nodes[0], nodes[0]
    for node in nodes[1:]:
        if new_at == 0:
            return None
        if old_at & 1 or old_at == new_at:
            old, new = node_hash(node, old), node_hash(node, new)
            while not old_at & 1 and old_at:
                old_at, new_at = old_at >> 1, new_at >> 1
        else:
            new = node_hash(new, node)
        old_at, new_at = old_at >> 1, new_at >> 1
    return new if new_at == 0 and compare_digest(old, old_root) else None


def _largest_power_below(size: int) -> int:
    """Find the largest power of two smaller than ``size`` (at least 2): k of RFC 6962 section 2.1."""
    return 1 << (size - 1).bit_length() - 1


@dataclass(frozen=True, slots=True)
class Frontier:
    """What a verifier keeps to append leaves itself: the roots of the complete subtrees, largest first.

    A tree of ``size`` leaves has one complete subtree for each bit of ``size`` that is set.
    """

    size: int
    hashes: tuple[bytes, ...]

    def __post_init__(self) -> None:
        """Check the shape. Raises ValueError if the hashes cannot be those of a tree of this size."""
        if self.size < 0 or len(self.hashes) != self.size.bit_count():
            raise ValueError("a frontier has one hash for each bit set in its size")
        if any(len(subtree) != HASH_BYTES for subtree in self.hashes):
            raise ValueError("a hash has another length")

    @classmethod
    def empty(cls) -> Self:
        """Make the frontier of the tree without leaves."""
        return cls(0, ())

    def append(self, leaf: bytes) -> Self:
        """Answer the frontier after one more leaf hash."""
        return self.extend((leaf,))

    def extend(self, leaf_hashes: Iterable[bytes]) -> Self:
        """Answer the frontier after more leaf hashes, in order."""
        size, hashes = self.size, list(self.hashes)
        for leaf in leaf_hashes:
            carried, bits = leaf, size
            while bits & 1:
                carried = node_hash(hashes.pop(), carried)
                bits >>= 1
            hashes.append(carried)
            size += 1
        return type(self)(size, tuple(hashes))

    def root(self) -> bytes:
        """Compute the root of the tree: the subtrees folded from the smallest up."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for subtree in reversed(self.hashes[:-1]):
            root = node_hash(subtree, root)
        return root

    def to_list(self) -> list[int | bytes]:
        """``[size, hash, …]`` for CBOR."""
        return [self.size, *self.hashes]

    @classmethod
    def from_list(cls, values: Sequence[int | bytes]) -> Self:
        """Read what :meth:`to_list` wrote. Raises ValueError for anything else."""
        size, *hashes = values or (None,)
        if type(size) is not int or not all(type(subtree) is bytes for subtree in hashes):
            raise ValueError("a frontier is written as its size and its hashes")
        return cls(size, tuple(subtree for subtree in hashes if isinstance(subtree, bytes)))
