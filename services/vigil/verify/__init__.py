"""Checking evidence offline: with the trust bundle and the log's verifier key, and with nobody's word for it."""

from vigil.verify.checks import (
    Record,
    SignedTree,
    check_checkpoint,
    check_consistency,
    check_inclusion,
    check_recorded,
    check_statement,
    check_subject,
)
from vigil.verify.document import Document, Proven, document_from_json, document_to_json
from vigil.verify.report import Finding, Property, Report, verify_document, verify_record

__all__ = [
    "Document",
    "Finding",
    "Property",
    "Proven",
    "Record",
    "Report",
    "SignedTree",
    "check_checkpoint",
    "check_consistency",
    "check_inclusion",
    "check_recorded",
    "check_statement",
    "check_subject",
    "document_from_json",
    "document_to_json",
    "verify_document",
    "verify_record",
]
