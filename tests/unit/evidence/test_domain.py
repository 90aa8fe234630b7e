"""The log's arithmetic, held against the reference tree and the published signed-note vector."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil.core import cbor, merkle
from vigil.core.certificates import EVERY
from vigil.core.merkle import Frontier, leaf_hash
from vigil.core.statements.envelope import Number
from vigil.errors import Reason, Refused
from vigil.evidence import domain
from vigil.evidence.domain import (
    Admitted,
    Checkpoint,
    Leaf,
    LogState,
    Scope,
    SubjectHead,
    SubjectLink,
    check_advance,
    decode_leaf,
    open_note,
    sequence,
    subjects_of,
)

EMPTY = LogState(Frontier.empty(), 0)
NEUMANN_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NEUMANN_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
NEUMANN_NOTE = (
    NEUMANN_TEXT
    + "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def digest_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def admitted(number: int, *subjects: str) -> Admitted:
    return Admitted("receipt", digest_of(number), bytes(32), None, subjects, ())


class Tree:
    """A stored tree of `size` leaves, with the reference's list of leaf hashes beside it."""

    def __init__(self, size: int) -> None:
        self.leaves = [leaf_hash(digest_of(place)) for place in range(size)]
        self.frontier, nodes = domain.extend(Frontier.empty(), self.leaves)
        self.nodes = {(node.level, node.position): node.hash for node in nodes}
        self.reads = 0

    def read(self, level: int, position: int) -> bytes:
        self.reads += 1
        return self.nodes[level, position] if level else self.leaves[position]


@given(st.integers(1, 200), st.data())
@settings(max_examples=60)
def test_stored_subtrees_give_the_reference_paths(size: int, data: st.DataObject) -> None:
    tree = Tree(size)
    index = data.draw(st.integers(0, size - 1))
    at = data.draw(st.integers(index + 1, size))
    old = data.draw(st.integers(0, at))
    assert list(domain.inclusion_path(index, at, tree.read)) == merkle.inclusion_path(tree.leaves[:at], index)
    assert list(domain.consistency_path(old, at, tree.read)) == merkle.consistency_path(tree.leaves[:at], old)
    assert domain.root_of(at, tree.read) == merkle.tree_root(tree.leaves[:at])
    assert domain.read_frontier(size, tree.read) == tree.frontier == Frontier.empty().extend(tree.leaves)


def test_a_proof_costs_few_reads_in_a_large_log() -> None:
    tree = Tree(5_000)
    domain.inclusion_path(17, 4_999, tree.read)
    assert tree.reads <= 2 * 13


def test_paths_that_cannot_exist_are_programming_errors() -> None:
    tree = Tree(4)
    for index, size in ((4, 4), (-1, 4), (0, 0)):
        with pytest.raises(ValueError, match="no such leaf"):
            domain.inclusion_path(index, size, tree.read)
    with pytest.raises(ValueError, match="larger"):
        domain.consistency_path(5, 4, tree.read)


@given(st.integers(1, 40))
@settings(max_examples=20)
def test_one_pass_gives_every_path(size: int) -> None:
    leaves = [leaf_hash(digest_of(place)) for place in range(size)]
    root, paths = domain.root_and_paths(leaves)
    assert root == merkle.tree_root(leaves)
    assert [list(path) for path in paths] == [merkle.inclusion_path(leaves, place) for place in range(size)]


def test_a_leaf_reads_back_as_it_was() -> None:
    leaf = Leaf(
        kind="decision",
        log_time=1_790_000_000_000,
        digest=os.urandom(32),
        signer=os.urandom(32),
        number=Number(os.urandom(16), 7, os.urandom(32)),
        subjects=(SubjectLink("device/dev-a", 1, b""), SubjectLink("site/s", 9, os.urandom(32))),
        bodies=(os.urandom(32),),
    )
    assert decode_leaf(leaf.encode()) == leaf


def test_the_leaf_encoding_is_fixed() -> None:
    leaf = Leaf("hold", 5, b"\x01" * 32, b"\x02" * 32, None, (SubjectLink("site/s", 1, b""),), ())
    assert leaf.encode().hex() == (
        "880164686f6c6405"
        "5820" + "01" * 32 + "5820" + "02" * 32 + "f6" + "81836673 6974652f7301 40".replace(" ", "") + "80"
    )


GOOD = [1, "hold", 5, bytes(32), bytes(32), None, [["site/s", 1, b""]], []]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 2),
        (0, True),
        (1, 5),
        (2, -1),
        (2, True),
        (3, bytes(31)),
        (4, bytes(33)),
        (5, [bytes(15), 0, b""]),
        (5, [bytes(16), -1, b""]),
        (5, [bytes(16), 0, bytes(5)]),
        (5, 0),
        (6, [["site/s", 0, b""]]),
        (6, [["site/s", 1, bytes(32)]]),
        (6, [["site/s", 2, b""]]),
        (6, [["Site/s", 1, b""]]),
        (6, [["site/s", 1, b""], ["site/s", 1, b""]]),
        (6, [["site/s", 1]]),
        (6, None),
        (7, [bytes(31)]),
        (7, [bytes(32)] * 9),
        (7, None),
    ],
)
def test_a_leaf_of_another_form_is_refused(place: int, value: object) -> None:
    assert decode_leaf(cbor.encode(GOOD)).kind == "hold"
    with pytest.raises(Refused) as caught:
        decode_leaf(cbor.encode([*GOOD[:place], value, *GOOD[place + 1 :]]))
    assert caught.value.reason is Reason.STATEMENT_MALFORMED


def test_the_largest_record_fits_into_a_tile_entry() -> None:
    subjects = tuple(f"device/{'x' * 210}-{place:03}" for place in range(domain.MAX_SUBJECTS))
    heads = {subject: SubjectHead(2**62, bytes(32)) for subject in subjects}
    number = Number(bytes(16), 2**62, bytes(32))
    item = Admitted("x" * 32, bytes(32), bytes(32), number, subjects, (bytes(32),) * domain.MAX_BODIES)
    commit = sequence(EMPTY, [item], heads=heads, now=2**43)
    assert len(commit.leaves[0]) <= domain.MAX_LEAF_BYTES
    assert decode_leaf(commit.leaves[0]).subjects[63].number == 2**62 + 1


def test_subjects_are_numbered_within_a_commit_and_across_commits() -> None:
    first = sequence(EMPTY, [admitted(1, "device/a", "site/s"), admitted(2, "device/a")], heads={}, now=10)
    leaves = [decode_leaf(leaf) for leaf in first.leaves]
    assert [link.number for leaf in leaves for link in leaf.subjects] == [1, 1, 2]
    assert leaves[1].subjects[0].previous == leaf_hash(first.leaves[0])
    second = sequence(first.after, [admitted(3, "device/a")], heads=first.heads, now=11)
    assert decode_leaf(second.leaves[0]).subjects == (SubjectLink("device/a", 3, leaf_hash(first.leaves[1])),)
    assert second.first == 2


def test_log_time_never_goes_back() -> None:
    first = sequence(EMPTY, [admitted(1)], heads={}, now=1_000)
    second = sequence(first.after, [admitted(2)], heads={}, now=10)
    assert decode_leaf(second.leaves[0]).log_time == 1_000
    assert second.after.time == 1_000


def test_a_recorded_path_binds_index_and_digest() -> None:
    before = sequence(EMPTY, [admitted(place) for place in range(3)], heads={}, now=1).after
    commit = sequence(before, [admitted(place) for place in range(10, 15)], heads={}, now=1)
    for place, path in enumerate(commit.paths):
        arguments = {"index": place, "size": 5, "path": path, "root": commit.root}
        assert merkle.verify_inclusion(
            leaf=domain.recorded_leaf(3 + place, digest_of(10 + place)), **arguments
        )
        assert not merkle.verify_inclusion(
            leaf=domain.recorded_leaf(4 + place, digest_of(10 + place)), **arguments
        )
        assert not merkle.verify_inclusion(leaf=domain.recorded_leaf(3 + place, digest_of(99)), **arguments)


def test_the_statements_own_subject_cannot_be_left_out() -> None:
    assert subjects_of(["site/s"], "device/a") == ("device/a", "site/s")
    assert subjects_of(["device/a", "site/s", "site/s"], "device/a") == ("device/a", "site/s")
    assert subjects_of([], "revocations") == ("revocations",)
    assert subjects_of(["site/s"], "Not a subject") == ("site/s",)
    for bad in (["no good"], ["device/ä"], ["device/"], [f"device/{place}" for place in range(64)]):
        with pytest.raises(Refused) as caught:
            subjects_of(bad, "device/a")
        assert caught.value.reason is Reason.FIELD_INVALID


def test_bodies_are_bounded() -> None:
    salt, large = bytes(range(16)), b"x" * 65_536
    kept = domain.keep_bodies([large], lambda size: salt[:size])
    assert kept == {domain.sha256(salt + large): salt + large}
    for bodies in ([b"x" * 65_537], [b""] * 9):
        with pytest.raises(Refused) as caught:
            domain.keep_bodies(bodies, bytes)
        assert caught.value.reason is Reason.REQUEST_TOO_LARGE


# --- notes


def test_the_published_note_verifies() -> None:
    assert open_note(NEUMANN_NOTE, NEUMANN_KEY) == NEUMANN_TEXT


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        (NEUMANN_NOTE.replace("answer", "Answer"), Reason.SIGNATURE_INVALID),
        (NEUMANN_NOTE.replace("— PeterNeumann", "— PeterN"), Reason.SIGNATURE_INVALID),
        (NEUMANN_NOTE + "— PeterNeumann x08goAAAA\n", Reason.STATEMENT_MALFORMED),
        (NEUMANN_NOTE + "— PeterNeumann x08gowAA\n", Reason.SIGNATURE_INVALID),
        (NEUMANN_NOTE[:-1], Reason.STATEMENT_MALFORMED),
        (NEUMANN_NOTE.replace("—", "-"), Reason.STATEMENT_MALFORMED),
        (NEUMANN_TEXT, Reason.STATEMENT_MALFORMED),
        (NEUMANN_NOTE.replace("then", "th\ten"), Reason.STATEMENT_MALFORMED),
        ("", Reason.STATEMENT_MALFORMED),
        (NEUMANN_NOTE + "— w AAAAAAAA\n" * 100, Reason.STATEMENT_MALFORMED),
    ],
)
def test_another_note_is_refused(note: str, reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        open_note(note, NEUMANN_KEY)
    assert caught.value.reason is reason


def test_witness_signatures_are_passed_over() -> None:
    assert open_note(NEUMANN_NOTE + "— witness.example AAAAAAAA\n", NEUMANN_KEY) == NEUMANN_TEXT


def test_a_checkpoint_is_signed_and_read_back() -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    origin = domain.origin_of("vigil.test")
    text = domain.checkpoint_text(origin, 12, b"\x07" * 32)
    assert text == "vigil.test/evidence\n12\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n"
    note = domain.sign_note(text, name=origin, public_key=public, sign=key.sign)
    verifier = domain.verifier_key(origin, public)
    assert domain.parse_verifier_key(verifier) == (origin, public)
    assert domain.parse_checkpoint_text(open_note(note, verifier)) == (origin, 12, b"\x07" * 32)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n1\n",
        "o\n01\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n",
        "o\n-1\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n",
        "\n1\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n",
        "o\n1\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwd=\n",
        "o\n1\nBwcH\n",
        "o\n1\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
        "o\n1\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n\nx\n",
    ],
)
def test_a_checkpoint_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(Refused) as caught:
        domain.parse_checkpoint_text(text)
    assert caught.value.reason is Reason.STATEMENT_MALFORMED


@pytest.mark.parametrize(
    "key", ["", "a+b", NEUMANN_KEY.replace("c74f", "c74e"), NEUMANN_KEY[:-1] + "X", "a b" + NEUMANN_KEY]
)
def test_a_verifier_key_of_another_form_is_refused(key: str) -> None:
    with pytest.raises(Refused) as caught:
        domain.parse_verifier_key(key)
    assert caught.value.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    ("size", "root", "time"),
    [(9, b"a", 100), (10, b"b", 100), (11, b"c", 99)],
    ids=["smaller", "forked", "earlier"],
)
def test_checkpoints_only_go_forward(size: int, root: bytes, time: int) -> None:
    newest = Checkpoint("o", 10, b"a", 100, "")
    check_advance(newest, size=10, root=b"a", time=100)
    check_advance(newest, size=11, root=b"c", time=100)
    check_advance(None, size=0, root=b"", time=0)
    with pytest.raises(Refused) as caught:
        check_advance(newest, size=size, root=root, time=time)
    assert caught.value.reason is Reason.STATE_CONFLICT


# --- scope


@pytest.mark.parametrize(
    ("scope", "owner", "covered"),
    [
        (Scope("h", frozenset({"s"}), siteless=False), ("h", "s"), True),
        (Scope("h", frozenset({"s"}), siteless=False), ("h", "t"), False),
        (Scope("h", frozenset({"s"}), siteless=False), ("g", "s"), False),
        (Scope("h", frozenset({"s"}), siteless=False), ("h", ""), False),
        (Scope("h", frozenset({"s"}), siteless=True), ("h", ""), True),
        (Scope("h", frozenset({"s"}), siteless=True), ("", ""), False),
        (Scope("h", frozenset({EVERY}), siteless=False), ("h", "t"), True),
        (Scope(EVERY, frozenset({EVERY}), siteless=False), ("g", "t"), True),
        (Scope(EVERY, frozenset({EVERY}), siteless=True), ("", "s"), False),
        (Scope(EVERY, frozenset(), siteless=True, everything=True), ("", ""), True),
        (Scope("h", frozenset(), siteless=False), ("h", "s"), False),
    ],
)
def test_scope_covers(scope: Scope, owner: tuple[str, str], covered: bool) -> None:
    assert scope.covers(*owner) is covered
