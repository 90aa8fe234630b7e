"""Checking evidence offline: with the trust bundle and the log's verifier key, and with nobody's word for it."""

from vigil.evidence.domain import decode_leaf
from vigil.verify.checks import (
    Record,
    SignedTree,
    check_checkpoint,
    check_consistency,
    check_inclusion,
    check_links,
    check_recorded,
    check_statement,
    check_subject,
)
from vigil.verify.document import (
    CensusProof,
    Document,
    Earlier,
    Proven,
    SubjectClaim,
    document_from_json,
    document_from_value,
    document_to_json,
    document_value,
)
from vigil.verify.report import (
    Finding,
    Property,
    Report,
    attempt,
    log_key_of,
    not_proved,
    verify_document,
    verify_record,
)
from vigil.verify.subjects import Shown, census_of, check_claim

__all__ = [
    "CensusProof",
    "Document",
    "Earlier",
    "Finding",
    "Property",
    "Proven",
    "Record",
    "Report",
    "Shown",
    "SignedTree",
    "SubjectClaim",
    "attempt",
    "census_of",
    "check_checkpoint",
    "check_claim",
    "check_consistency",
    "check_inclusion",
    "check_links",
    "check_recorded",
    "check_statement",
    "check_subject",
    "decode_leaf",
    "document_from_json",
    "document_from_value",
    "document_to_json",
    "document_value",
    "log_key_of",
    "not_proved",
    "verify_document",
    "verify_record",
]
