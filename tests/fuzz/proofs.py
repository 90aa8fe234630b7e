"""Proofs to take away that hold: whatever is changed in one, what is still accepted says nothing that is not so."""

from collections.abc import Iterator
from functools import cache
from typing import Final

from tests.fuzz.harness import Harness, Run, expect
from tests.fuzz.source import text
from tests.fuzz.world import trust_domain
from tests.support.proofs import ProofLog
from vigil.core.merkle import leaf_hash, tree_root
from vigil.core.receipts import (
    CONSISTENCY,
    check_consistency_receipt,
    check_inclusion_receipt,
    read_receipt,
)
from vigil.verify import SignedTree, SubjectClaim, check_checkpoint, check_links
from vigil.verify.document import document_from_json, document_to_json
from vigil.verify.report import verify_document

SUBJECTS: Final = ("device/a", "device/b", "site/c")
NONE: Final = "device/none"
SINCE: Final = 3


@cache
def proof_log() -> ProofLog:
    """A log of seven records and a census."""
    log = ProofLog(trust_domain(), trust_domain().clock)
    for place in range(7):
        log.append(SUBJECTS[place % 3], SUBJECTS[(place + 1) % 3])
    log.count()
    return log


def _proof() -> Run:
    log = proof_log()
    leaves = {record.leaf for record in log.records}
    counted = {subject: log.placed(subject)[0].item.number for subject in SUBJECTS}
    known = {SignedTree(size, tree_root(log.hashes[:size])) for size in range(len(log.records) + 1)}

    def is_so(claim: SubjectClaim) -> bool:
        """Whether what an accepted claim says is true of this log."""
        if not claim.leaves:
            return claim.subject not in counted
        last = check_links(claim.leaves, claim.subject, first=claim.first)
        return leaves.issuperset(claim.leaves) and (
            claim.census is None or last >= counted.get(claim.subject, 1)
        )

    def run(data: bytes) -> bool:
        document = document_from_json(text(data))
        expect(document_from_json(document_to_json(document)) == document, "a proof reads as another one")
        report = verify_document(document, verifier=log.verifier, verifier_key=log.verifier_key)
        if not report.holds:
            return False
        tree = check_checkpoint(
            document.checkpoint, verifier_key=log.verifier_key, trust_domain=log.pki.trust_domain
        )
        expect(tree in known, "a checkpoint is accepted that was never signed")
        expect(
            all(leaf_hash(one.record.leaf) == log.hashes[one.record.index] for one in document.records),
            "a record is accepted that the log does not hold",
        )
        expect(all(map(is_so, document.subjects)), "a subject is accepted that is otherwise in the log")
        return True

    return run


def proof_seeds() -> Iterator[bytes]:
    """Records, whole subjects, one that is not there, growth."""
    log = proof_log()
    for document in (
        log.document(records=[1, 5]),
        log.document(subjects=SUBJECTS[:1]),
        log.document(subjects=[NONE]),
        log.document(records=[2], subjects=[*SUBJECTS, NONE], since=SINCE),
    ):
        yield document_to_json(document).encode()


def _receipt() -> Run:
    log = proof_log()
    old_root = tree_root(log.hashes[:SINCE])

    def run(data: bytes) -> bool:
        receipt = read_receipt(data)
        if receipt.proof.kind == CONSISTENCY:
            check_consistency_receipt(receipt, log.verifier_key, old_size=SINCE, old_root=old_root)
        else:
            check_inclusion_receipt(receipt, log.verifier_key, receipt.leaf)
            expect(
                leaf_hash(receipt.leaf) in log.hashes,
                "a receipt is accepted of a leaf that is not in the log",
            )
        return True

    return run


def receipt_seeds() -> Iterator[bytes]:
    """Of records, and of growth."""
    log = proof_log()
    yield log.receipt(0)
    yield log.receipt(6)
    yield log.consistency_receipt(SINCE)


HARNESSES: Final = (
    Harness(
        name="evidence-proof",
        reads="proofs to take away that hold",
        prepare=_proof,
        seeds=proof_seeds,
        words=(b'"leaves":', b'"items":', b"null", b"[]"),
        max_bytes=32_768,
    ),
    Harness(name="cose-receipt", reads="COSE Receipts", prepare=_receipt, seeds=receipt_seeds),
)
