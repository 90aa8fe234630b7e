"""One check each, pure: a record and its proofs in, what they establish out, Refused if they do not.

The invariants of a record that passed all of them:

* its statement was signed by the holder of a certificate that was valid when it was signed;
* the log's leaf says the same of it, and every body beside it is the one that was recorded;
* the log promised to record it (`recorded`), at this index and time;
* the leaf stands at that index in the tree that a checkpoint of the log signs.

Not checked here: what the statement's body says, which may be newer than this verifier; and revocation. What a
revoked signer signed before stays evidence; the revocation itself is on record, and its time tells which came
first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest
from itertools import pairwise

from cryptography.hazmat.primitives.serialization import Encoding

from vigil.core import cose
from vigil.core.certificates import ChainVerifier, Identity, Kind
from vigil.core.digest import sha256
from vigil.core.merkle import leaf_hash, verify_consistency, verify_inclusion
from vigil.core.statements.bodies import Recorded
from vigil.core.statements.envelope import check, read, read_envelope
from vigil.errors import Reason, Refused, refused
from vigil.evidence.domain import (
    decode_leaf,
    is_subject,
    open_note,
    origin_of,
    parse_checkpoint_text,
    recorded_leaf,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record as it was taken away. ``statement`` is empty where it was erased; the leaf stays."""

    index: int
    leaf: bytes
    statement: bytes
    chain: tuple[bytes, ...]
    bodies: tuple[bytes, ...] = ()  # with their salts, as `core.salted` keeps them
    recorded: bytes = b""
    recorded_path: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class SignedTree:
    """The log at one size, as its checkpoint's signature says."""

    size: int
    root: bytes


def check_statement(record: Record, verifier: ChainVerifier) -> Identity:
    """Provenance: who signed this statement, and that the leaf says the same. Raises as the checks do."""
    leaf = decode_leaf(record.leaf)
    data = cose.with_chain(record.statement, record.chain) if record.chain else record.statement
    statement = read_envelope(data)
    if not compare_digest(statement.digest, leaf.digest):
        raise _mismatch("the leaf is of another statement")
    if (str(statement.kind), statement.signer, statement.number) != (leaf.kind, leaf.signer, leaf.number):
        raise _mismatch("the leaf says something else of its statement's kind, signer or number")
    if is_subject(statement.subject) and all(link.subject != statement.subject for link in leaf.subjects):
        raise _mismatch("the leaf leaves out the subject that its statement names")
    # The certificate as it was when the statement was signed, and never later than it was recorded.
    at = min(statement.issued_at * 1000, leaf.log_time)
    signer = verifier.valid_at(statement.signer, at=at, grace=True)
    if signer is None:
        signer = verifier.verify(statement.chain, at=at, grace=True)
    check(statement, signer)
    if record.chain:
        if cose.without_chain(record.statement) != record.statement:
            raise _mismatch("certificates stand in the statement and beside it")
        check_path(record.chain, signer, verifier)
    return signer


def check_path(chain: Sequence[bytes], signer: Identity, verifier: ChainVerifier) -> None:
    """The certificates beside a statement are its signer's and what leads from it to the root: no more, no less.

    The path that was verified is the trust bundle's own; what travels must not say anything else. Raises NOT_RECORDED.
    """
    intermediates = verifier.bundle.intermediates.get(signer.kind, ())
    above = [one.public_bytes(Encoding.DER) for one in intermediates]
    whole = len(chain) == (2 if above else 1) and compare_digest(sha256(chain[0]), signer.thumbprint)
    if not whole or (above and chain[1] not in above):
        raise _mismatch("the certificates beside it are not the way from its signer to the root")


def check_named_signer(record: Record, verifier: ChainVerifier) -> Identity:
    """The certificates beside a statement that is gone are those of the signer that its leaf names."""
    leaf = decode_leaf(record.leaf)
    if not compare_digest(sha256(record.chain[0]), leaf.signer):
        raise _mismatch("the certificate beside it is not its signer's")
    signer = verifier.verify(record.chain, at=leaf.log_time, grace=True)
    check_path(record.chain, signer, verifier)
    return signer


def check_bodies(record: Record) -> tuple[bytes, ...]:
    """Every body beside the record is one that the leaf names; answers the digests of those that are missing."""
    named = decode_leaf(record.leaf).bodies
    given = {sha256(body) for body in record.bodies}
    if not given <= set(named) or len(given) != len(record.bodies):
        raise _mismatch("a body beside the record is not the one that was recorded")
    return tuple(digest for digest in named if digest not in given)


def check_recorded(record: Record, verifier: ChainVerifier) -> Recorded:
    """The log's own promise: signed by the signer of `recorded`, for this statement at this index and time."""
    leaf = decode_leaf(record.leaf)
    statement = read(record.recorded, Recorded)
    body = statement.body
    signer = verifier.valid_at(statement.signer, at=body.time, grace=True)
    if signer is None:
        signer = verifier.verify(statement.chain, at=body.time, kinds=frozenset({Kind.SIGNER}), grace=True)
    check(statement, signer)
    if statement.chain:
        check_path(statement.chain, signer, verifier)
    if body.time != leaf.log_time:
        raise _mismatch("the leaf's time is not that of its commit")
    if not verify_inclusion(
        leaf=recorded_leaf(record.index, leaf.digest),
        index=record.index - body.first,
        size=body.count,
        path=record.recorded_path,
        root=body.root,
    ):
        raise refused(Reason.NOT_RECORDED, "The record's path does not lead to what the log signed.")
    return body


def check_checkpoint(note: str, *, verifier_key: str, trust_domain: str) -> SignedTree:
    """Open a checkpoint with the log's key, known from elsewhere. Raises SIGNATURE_INVALID, STATEMENT_MALFORMED."""
    origin, size, root = parse_checkpoint_text(open_note(note, verifier_key))
    if origin != origin_of(trust_domain):
        raise _mismatch(f"the checkpoint is of another log: {origin}")
    return SignedTree(size, root)


def check_inclusion(record: Record, path: Sequence[bytes], tree: SignedTree) -> None:
    """Integrity: the leaf stands at its index under the checkpoint's root. Raises NOT_RECORDED."""
    if not verify_inclusion(
        leaf=leaf_hash(record.leaf), index=record.index, size=tree.size, path=path, root=tree.root
    ):
        raise refused(
            Reason.NOT_RECORDED,
            "The leaf does not stand at its index under this checkpoint.",
            index=record.index,
        )


def check_consistency(old: SignedTree, new: SignedTree, path: Sequence[bytes]) -> None:
    """The log was only appended to between two checkpoints. Raises NOT_RECORDED."""
    if not verify_consistency(
        old_size=old.size, new_size=new.size, old_root=old.root, new_root=new.root, path=path
    ):
        raise refused(
            Reason.NOT_RECORDED,
            f"The log of {new.size} entries is not an extension of that of {old.size}.",
            old_size=old.size,
            new_size=new.size,
        )


def check_subject(records: Sequence[Record], subject: str, *, first: int = 1) -> int:
    """Completeness: the subject's records, from number ``first`` without a gap; answers the newest number.

    Each names the leaf before it, and neither index nor log time goes back. Raises NOT_RECORDED.
    """
    last = check_links([record.leaf for record in records], subject, first=first)
    for number, (one, other) in enumerate(pairwise(records), first + 1):
        if other.index <= one.index:
            raise _gap(subject, f"number {number} stands before the one it follows")
    return last


def check_links(leaves: Sequence[bytes], subject: str, *, first: int) -> int:
    """The same for leaves alone: numbers without a gap, each naming the hash of the one before, time never back."""
    expected, previous, time = first, None, 0
    for data in leaves:
        leaf = decode_leaf(data)
        link = next((link for link in leaf.subjects if link.subject == subject), None)
        if link is None:
            raise _gap(subject, f"a record where number {expected} should be is not about it")
        if link.number != expected:
            raise _gap(subject, f"number {expected} is missing before number {link.number}")
        if previous is not None and not compare_digest(link.previous, previous):
            raise _gap(subject, f"number {expected} follows another record than the one given")
        if leaf.log_time < time:
            raise _gap(subject, f"number {expected} is older than the one it follows")
        expected, previous, time = expected + 1, leaf_hash(data), leaf.log_time
    if expected == first:
        raise _gap(subject, "there is no record")
    return expected - 1


def _mismatch(sentence: str) -> Refused:
    return refused(Reason.NOT_RECORDED, f"This is not what was recorded: {sentence}.")


def _gap(subject: str, sentence: str) -> Refused:
    return refused(
        Reason.NOT_RECORDED, f"The records of {subject} are not complete: {sentence}.", subject=subject
    )
