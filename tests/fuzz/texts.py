"""Short texts and proofs: UDI carriers, signed notes, page tokens, Merkle paths."""

import hashlib
from collections.abc import Iterator
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fuzz.harness import Harness, expect
from tests.fuzz.source import Source, pack, text
from vigil.core import merkle, notes, udi
from vigil.core.merkle import Frontier
from vigil.core.witness_policy import parse_witness_policy
from vigil.evidence.witnessing import request_body
from vigil.rpc import paging
from vigil.witness.domain import KnownLogs, Rejected, check_follows, parse_request

_KEY: Final = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"a note's key").digest())
_PUBLIC: Final = _KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
_NAME: Final = "vigil.test/evidence"


def _udi(data: bytes) -> bool:
    found = udi.parse(text(data))
    again = udi.parse(found.canonical)
    expect(again.key == found.key, "the canonical form names another device")
    expect(again.canonical == found.canonical, "the canonical form has another canonical form")
    expect(udi.parse_di(found.di) == found.di, "the device identifier alone is refused")
    return True


def udi_seeds() -> Iterator[bytes]:
    """Read by a scanner and by a person."""
    yield b"(01)09504000059118(21)SN-0001"
    yield b"(01)09504000059118(11)260101(17)310101(10)LOT7(21)SN-0001(8012)1.6.3"
    yield b"]d201095040000591181726010110LOT7\x1d21SN-0001"
    yield b"01095040000591182112345"
    yield b"+A999QAB1234C0"


def _di(data: bytes) -> bool:
    given = text(data)
    expect(udi.parse_di(given) == given, "an accepted identifier is another one")
    return True


def _note(data: bytes) -> bool:
    """A note as it comes, or the input as the text under a sound signature."""
    source = Source(data)
    signed, given = source.number(1) & 1, text(source.rest())
    if signed:
        sound = given.encode("utf-8", "replace").decode()
        given = notes.sign_note(sound, name=_NAME, public_key=_PUBLIC, sign=_KEY.sign)
    body = notes.open_note(given, notes.verifier_key(_NAME, _PUBLIC))
    origin, size, root = notes.parse_checkpoint_text(body)
    expect(
        body.startswith(notes.checkpoint_text(origin, size, root)), "an accepted checkpoint has another form"
    )
    return True


def note_seeds() -> Iterator[bytes]:
    """A checkpoint, signed and to be signed, with an extension and without."""
    for extension in ("", "extension\n"):
        body = notes.checkpoint_text(_NAME, 42, bytes(32)) + extension
        yield b"\x01" + body.encode()
        yield b"\x00" + notes.sign_note(body, name=_NAME, public_key=_PUBLIC, sign=_KEY.sign).encode()


def _verifier_key(data: bytes) -> bool:
    given = text(data)
    name, key = notes.parse_verifier_key(given)
    expect(notes.verifier_key(name, key) == given, "an accepted verifier key has another form")
    return True


def _cosigned(data: bytes) -> bool:
    """What a witness answers, or the input as the text under a sound cosignature."""
    source = Source(data)
    signed, at, given = source.number(1) & 1, source.number(), text(source.rest())
    key, lines = notes.cosigner_key(_NAME, _PUBLIC), given
    if signed:
        given = given.encode("utf-8", "replace").decode()
        lines = notes.cosign(given, time=at % 2**63, name=_NAME, public_key=_PUBLIC, sign=_KEY.sign)
    found = notes.find_cosignature(given, notes.parse_signatures(lines), key)
    expect(not signed or found == notes.Cosignature(_NAME, at % 2**63, lines), "a sound cosignature is lost")
    return found is not None


def cosigned_seeds() -> Iterator[bytes]:
    """A cosignature to be made, and one of another text."""
    body = notes.checkpoint_text(_NAME, 42, bytes(32))
    at = (1_790_000_000).to_bytes(8, "big")
    yield b"\x01" + at + body.encode()
    line = notes.cosign(body, time=1_790_000_000, name=_NAME, public_key=_PUBLIC, sign=_KEY.sign)
    yield b"\x00" + at + line.encode()


def _witness_request(data: bytes) -> bool:
    """A request of add-checkpoint; nothing but the documented answers comes of it."""
    try:
        asked = parse_request(data)
        signed = KnownLogs([notes.verifier_key(_NAME, _PUBLIC)]).open(asked.note)
        check_follows(asked, signed.head, None)
    except Rejected as rejected:
        expect(rejected.status in (400, 403, 404, 409, 422), "an answer that tlog-witness does not know")
        return False
    return True


def witness_request_seeds() -> Iterator[bytes]:
    """Taken, in conflict, without a proof, of another log."""
    note = notes.sign_note(
        notes.checkpoint_text(_NAME, 42, bytes(32)), name=_NAME, public_key=_PUBLIC, sign=_KEY.sign
    )
    for old, path in ((0, ()), (1, ()), (0, (bytes(32),)), (43, ())):
        yield request_body(old, path, note)
    yield request_body(0, (), note.replace(_NAME, "other.test/evidence"))


def _policy(data: bytes) -> bool:
    """Whatever is read can be held against what witnesses say."""
    policy = parse_witness_policy(text(data))
    expect(policy.quorum == "none" or not policy.satisfied({}), "nobody's word is enough")
    everybody = dict.fromkeys(policy.witnesses, "")
    expect(policy.satisfied(everybody), "everybody's word is not enough")
    return True


def policy_seeds() -> Iterator[bytes]:
    """One witness, none, a group."""
    key = notes.cosigner_key("w", _PUBLIC)
    yield f"log {notes.verifier_key(_NAME, _PUBLIC)} https://log\nwitness w {key} http://w\nquorum w\n".encode()
    yield b"# nobody\nquorum none\n"
    yield f"witness w {key}\ngroup g any w\ngroup h all g\nquorum h\n".encode()


def _token(data: bytes) -> bool:
    """The mark in a token is right half of the time."""
    source = Source(data)
    marked, rest = source.number(1) & 1, source.rest()
    token = text(rest)
    if marked:
        token = paging.token_after(rest.decode("utf-8", "replace"), "devices")
    last = paging.after_of(token, "devices")
    expect(
        not last or paging.after_of(paging.token_after(last, "devices"), "devices") == last, "another page"
    )
    return True


def _merkle(data: bytes) -> bool:
    """No path proves what is not in the tree; a real one does."""
    source = Source(data)
    leaves = [merkle.leaf_hash(one) for one in source.chunks(16)] or [merkle.leaf_hash(b"")]
    index, old, size = source.number(), source.number(), source.number()
    path = [part.ljust(32, b"\0")[:32] if index & 1 else part for part in source.chunks(70)]
    root, place = merkle.tree_root(leaves), index % len(leaves)
    real = merkle.inclusion_path(leaves, place)
    given = {"leaf": leaves[place], "index": place, "size": len(leaves)}
    expect(merkle.verify_inclusion(**given, path=real, root=root), "a real path is refused")
    if path != real:
        expect(not merkle.verify_inclusion(**given, path=path, root=root), "another path is accepted")
    absent = merkle.leaf_hash(b"what is in no tree" + data)
    expect(
        not merkle.verify_inclusion(leaf=absent, index=index, size=size, path=path, root=root),
        "a leaf that is in no tree is accepted",
    )
    expect(
        not merkle.verify_consistency(
            old_size=1 + old % 2**63, new_size=size, old_root=absent, new_root=root, path=path
        )
        or (1 + old % 2**63, root) == (size, absent),
        "two histories are called consistent",
    )
    prefix = old % (len(leaves) + 1)
    expect(
        merkle.verify_consistency(
            old_size=prefix,
            new_size=len(leaves),
            old_root=merkle.tree_root(leaves[:prefix]),
            new_root=root,
            path=merkle.consistency_path(leaves, prefix),
        ),
        "a real history is refused",
    )
    try:
        Frontier.from_list([size, *path])
    except ValueError:
        return path == real
    return True


def merkle_seeds() -> Iterator[bytes]:
    """Trees of one to nine leaves with a path."""
    for size in (1, 2, 3, 8, 9):
        leaves = [bytes((place,)) for place in range(size)]
        hashes = [merkle.leaf_hash(leaf) for leaf in leaves]
        yield pack(leaves, size - 1, size // 2, size, merkle.inclusion_path(hashes, size - 1))


HARNESSES: Final = (
    Harness(
        name="udi",
        reads="UDI carriers",
        prepare=lambda: _udi,
        seeds=udi_seeds,
        words=(b"(01)", b"(21)", b"]d2", b"\x1d", b"8012", b"(17)310101"),
        max_bytes=600,
    ),
    Harness(
        name="udi-di",
        reads="device identifiers",
        prepare=lambda: _di,
        seeds=lambda: [b"09504000059118", b"00000000000000"],
        max_bytes=64,
    ),
    Harness(
        name="note",
        reads="signed notes and checkpoints (C2SP)",
        prepare=lambda: _note,
        seeds=note_seeds,
        words=("\u2014 ".encode(),),
    ),
    Harness(
        name="verifier-key",
        reads="verifier keys of the log",
        prepare=lambda: _verifier_key,
        seeds=lambda: [notes.verifier_key(_NAME, _PUBLIC).encode()],
        max_bytes=1_024,
    ),
    Harness(
        name="cosignature",
        reads="cosignatures of witnesses (C2SP)",
        prepare=lambda: _cosigned,
        seeds=cosigned_seeds,
        words=("\u2014 ".encode(),),
    ),
    Harness(
        name="witness-request",
        reads="checkpoints handed to a witness (C2SP tlog-witness)",
        prepare=lambda: _witness_request,
        seeds=witness_request_seeds,
        words=(b"old ", b"\n\n", "\u2014 ".encode()),
    ),
    Harness(
        name="witness-policy",
        reads="policies of witnesses (C2SP tlog-policy)",
        prepare=lambda: _policy,
        seeds=policy_seeds,
        words=(b"witness ", b"group ", b"quorum ", b" any ", b" all "),
    ),
    Harness(
        name="page-token",
        reads="page tokens",
        prepare=lambda: _token,
        seeds=lambda: [
            b"\x01dev-aaaaaaaaaaaaaaaa",
            b"\x00" + paging.token_after("a", "devices").encode(),
            b"\x00",
        ],
        max_bytes=1_024,
    ),
    Harness(
        name="merkle", reads="Merkle proofs (RFC 6962, RFC 9162)", prepare=lambda: _merkle, seeds=merkle_seeds
    ),
)
