"""Completeness and absence: what a document says of whole subjects, checked against a census. Pure.

A census is a statement of the log's signer, and a record of the log. It commits to every subject's newest record in the
log's first ``size`` entries; its own record stands behind these. What came after that, it does not know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hmac import compare_digest

from vigil.core import cose
from vigil.core.census import Placed, is_absent, is_placed, subject_key
from vigil.core.certificates import ChainVerifier
from vigil.core.merkle import leaf_hash
from vigil.core.statements.bodies import Census
from vigil.core.statements.envelope import read
from vigil.errors import Reason, Refused, refused
from vigil.evidence.domain import is_subject
from vigil.verify.checks import (
    Record,
    SignedTree,
    check_inclusion,
    check_links,
    check_recorded,
    check_statement,
)
from vigil.verify.document import CensusProof, Proven, SubjectClaim


@dataclass(frozen=True, slots=True)
class Shown:
    """What a claim established. ``last`` is 0 for a subject without records; ``size`` 0 without a census.

    ``newest``: the number that the census names as the newest of the log's first ``size`` entries.
    """

    subject: str
    first: int
    last: int
    newest: int = 0
    size: int = 0
    index: int = -1

    @property
    def sentence(self) -> str:
        """For people."""
        if not self.last:
            return (
                f"None of the log's first {self.size} entries is about {self.subject}: the census at {self.index} "
                "leaves no room for it."
            )
        words = (
            f"Records {self.first} to {self.last} of {self.subject} are here, each naming the one before it"
        )
        if not self.size:
            around = "after" if self.first == 1 else "before or after"
            return f"{words}; whether there are more {around} them is not shown."
        counted = f"the census at {self.index} counts {self.newest} in the log's first {self.size} entries"
        missing = "" if self.first == 1 else f"; the {self.first - 1} before are not shown"
        return f"{words}; {counted}{missing}."


def census_of(record: Record, verifier: ChainVerifier) -> Census:
    """Read a census in its record: signed by the log's signer, promised by the log. Raises as the checks do."""
    check_statement(record, verifier)
    check_recorded(record, verifier)
    data = cose.with_chain(record.statement, record.chain) if record.chain else record.statement
    census = read(data, Census).body
    if census.size > record.index:
        raise _gap("the census", "it claims to know entries that come after itself")
    return census


def check_claim(
    claim: SubjectClaim, records: Mapping[int, Proven], *, tree: SignedTree, verifier: ChainVerifier
) -> Shown:
    """Check one claim of a document; ``records`` are the document's by index. Raises NOT_RECORDED, as the checks do."""
    subject = claim.subject
    if not is_subject(subject):
        raise _gap(subject, "that is no subject")
    if claim.census is None:
        if not claim.leaves:
            raise _gap(subject, "there is no record, and no census that says so")
        last = check_links(claim.leaves, subject, first=claim.first)
        _check_anchored(claim, records, tree)
        return Shown(subject, claim.first, last)
    census = _census(claim.census, records, tree=tree, verifier=verifier)
    if not claim.leaves:
        return _absent(claim, claim.census, census)
    last = check_links(claim.leaves, subject, first=claim.first)
    newest = _newest(claim, claim.census.items, census)
    if newest != last:
        _check_anchored(claim, records, tree)
    return Shown(subject, claim.first, last, newest, census.size, claim.census.index)


def _census(
    proof: CensusProof, records: Mapping[int, Proven], *, tree: SignedTree, verifier: ChainVerifier
) -> Census:
    proven = records.get(proof.index)
    if proven is None:
        raise _gap("the census", f"its record at {proof.index} is not here")
    check_inclusion(proven.record, proven.inclusion_path, tree)
    return census_of(proven.record, verifier)


def _absent(claim: SubjectClaim, proof: CensusProof, census: Census) -> Shown:
    if claim.first or not is_absent(
        subject_key(claim.subject), proof.items, subjects=census.subjects, root=census.root
    ):
        raise _gap(claim.subject, "the census leaves room for it where it is said not to be")
    return Shown(claim.subject, 0, 0, 0, census.size, proof.index)


def _newest(claim: SubjectClaim, items: Sequence[Placed], census: Census) -> int:
    """The number that the census names as newest, which must be of one of the claim's leaves."""
    subject = claim.subject
    match items:
        case [one] if one.item.key == subject_key(subject):
            pass
        case _:
            raise _gap(subject, "what the census says of it is not here")
    if not is_placed(one, subjects=census.subjects, root=census.root):
        raise _gap(subject, "its place does not lead to the census's root")
    at = one.item.number - claim.first
    if not 0 <= at < len(claim.leaves):
        raise _gap(subject, f"the census counts {one.item.number}, and that record is not here")
    if not compare_digest(leaf_hash(claim.leaves[at]), one.item.leaf):
        raise _gap(subject, f"the census names another record as number {one.item.number}")
    return one.item.number


def _check_anchored(claim: SubjectClaim, records: Mapping[int, Proven], tree: SignedTree) -> None:
    """The last leaf, through which all others are bound, stands in the log."""
    for proven in records.values():
        if proven.record.leaf == claim.leaves[-1]:
            check_inclusion(proven.record, proven.inclusion_path, tree)
            return
    raise _gap(claim.subject, "its last record is neither among the records nor named by a census")


def _gap(subject: str, sentence: str) -> Refused:
    return refused(
        Reason.NOT_RECORDED, f"The records of {subject} are not complete: {sentence}.", subject=subject
    )
