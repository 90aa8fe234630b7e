"""The tree against the vectors of the Certificate Transparency reference implementation, and its laws."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil.core import cbor, merkle
from vigil.core.merkle import Frontier

LEAVES = [
    merkle.leaf_hash(bytes.fromhex(data))
    for data in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}

sizes = st.integers(1, 70)


def leaves_of(size: int) -> list[bytes]:
    return [merkle.leaf_hash(number.to_bytes(4, "big")) for number in range(size)]


@pytest.mark.parametrize("size", range(9))
def test_roots_of_the_reference(size: int) -> None:
    assert merkle.tree_root(LEAVES[:size]).hex() == ROOTS[size]
    assert Frontier.empty().extend(LEAVES[:size]).root().hex() == ROOTS[size]


@pytest.mark.parametrize(("where", "path"), INCLUSION.items())
def test_inclusion_paths_of_the_reference(where: tuple[int, int], path: list[str]) -> None:
    index, size = where
    assert [node.hex() for node in merkle.inclusion_path(LEAVES[:size], index)] == path


@pytest.mark.parametrize(("where", "path"), CONSISTENCY.items())
def test_consistency_paths_of_the_reference(where: tuple[int, int], path: list[str]) -> None:
    old, new = where
    assert [node.hex() for node in merkle.consistency_path(LEAVES[:new], old)] == path


def test_a_leaf_is_not_a_node() -> None:
    left, right = LEAVES[:2]
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)
    assert merkle.leaf_hash(b"") != merkle.EMPTY_ROOT


@pytest.mark.holds("insider-evidence")
@settings(max_examples=80)
@given(sizes, st.data())
def test_every_inclusion_path_proves_its_leaf_and_no_other(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    index = data.draw(st.integers(0, size - 1))
    root, path = merkle.tree_root(leaves), merkle.inclusion_path(leaves, index)

    def proves(leaf: bytes, at: int, of: int, by: list[bytes]) -> bool:
        return merkle.verify_inclusion(leaf=leaf, index=at, size=of, path=by, root=root)

    assert proves(leaves[index], index, size, path)
    assert not proves(merkle.leaf_hash(b"other"), index, size, path)
    assert not proves(leaves[index], size, size, path)
    assert not proves(leaves[index], -1, size, path)
    assert not proves(leaves[index], index, size, [*path, merkle.EMPTY_ROOT])
    for other in range(size):
        assert other == index or not proves(leaves[index], other, size, path)
    if path:
        assert not proves(leaves[index], index, size, path[:-1])
        at = data.draw(st.integers(0, len(path) - 1))
        assert not proves(leaves[index], index, size, [*path[:at], merkle.EMPTY_ROOT, *path[at + 1 :]])
        assert not proves(leaves[index], index, size, [*path[:at], path[at][:-1], *path[at + 1 :]])


@pytest.mark.holds("insider-evidence")
@settings(max_examples=120)
@given(sizes, st.data())
def test_every_consistency_path_proves_its_prefix_and_no_other(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    old = data.draw(st.integers(0, size))
    path, roots = (
        merkle.consistency_path(leaves, old),
        [merkle.tree_root(leaves[:n]) for n in range(size + 1)],
    )

    def proves(by: list[bytes], *, old_root: bytes = roots[old], new_root: bytes = roots[size]) -> bool:
        return merkle.verify_consistency(
            old_size=old, new_size=size, old_root=old_root, new_root=new_root, path=by
        )

    assert proves(path)
    assert not proves([*path, merkle.EMPTY_ROOT])
    assert not proves(path, old_root=merkle.leaf_hash(b"other"))
    if old:
        assert not proves(path, new_root=merkle.leaf_hash(b"other"))
    if path:
        assert not proves(path[:-1])
        at = data.draw(st.integers(0, len(path) - 1))
        assert not proves([*path[:at], merkle.EMPTY_ROOT, *path[at + 1 :]])
    if 0 < old < size:
        rewritten = [merkle.leaf_hash(b"forged"), *leaves[1:]]
        assert not proves(merkle.consistency_path(rewritten, old), new_root=merkle.tree_root(rewritten))


def test_a_path_that_stops_before_the_top_of_the_claimed_tree_is_refused() -> None:
    old_root, new_root, path = (
        merkle.tree_root(LEAVES[:4]),
        merkle.tree_root(LEAVES),
        [merkle.tree_root(LEAVES[4:])],
    )

    def proves(new_size: int) -> bool:
        return merkle.verify_consistency(
            old_size=4, new_size=new_size, old_root=old_root, new_root=new_root, path=path
        )

    assert proves(8)
    assert not proves(9)
    assert not proves(16)


def test_sizes_that_cannot_be() -> None:
    root = merkle.tree_root(LEAVES)
    assert not merkle.verify_consistency(old_size=9, new_size=8, old_root=root, new_root=root, path=[])
    assert not merkle.verify_consistency(old_size=-1, new_size=8, old_root=root, new_root=root, path=[])
    assert merkle.verify_consistency(
        old_size=0, new_size=8, old_root=merkle.EMPTY_ROOT, new_root=root, path=[]
    )
    for wrong in (-1, 8):
        with pytest.raises(ValueError, match="no such leaf"):
            merkle.inclusion_path(LEAVES, wrong)
    for wrong in (-1, 9):
        with pytest.raises(ValueError, match="larger"):
            merkle.consistency_path(LEAVES, wrong)


@settings(max_examples=60)
@given(st.integers(0, 70), st.integers(0, 70))
def test_a_frontier_continues_where_it_stopped(first: int, more: int) -> None:
    leaves = leaves_of(first + more)
    frontier = Frontier.empty().extend(leaves[:first])
    assert len(frontier.hashes) == first.bit_count()
    assert frontier.root() == merkle.tree_root(leaves[:first])
    carried = Frontier.from_list(cbor.decode(cbor.encode(frontier.to_list())))
    assert carried == frontier
    grown = carried.extend(leaves[first:])
    assert (grown.size, grown.root()) == (first + more, merkle.tree_root(leaves))
    stepwise = carried
    for leaf in leaves[first:]:
        stepwise = stepwise.append(leaf)
    assert stepwise == grown


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1],
        [0, bytes(32)],
        [2, bytes(32), bytes(32)],
        [1, bytes(31)],
        [-1, bytes(32)],
        [b"", 1],
        [True, bytes(32)],
    ],
)
def test_a_frontier_of_the_wrong_shape_is_refused(values: list[int | bytes]) -> None:
    with pytest.raises(ValueError, match=r"frontier|length"):
        Frontier.from_list(values)
