"""Everything that can be said about a record or a document, property by property (ARCHITECTURE section 6)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vigil.core.certificates import ChainVerifier
from vigil.errors import Refused
from vigil.verify.checks import (
    Record,
    SignedTree,
    check_bodies,
    check_checkpoint,
    check_inclusion,
    check_recorded,
    check_statement,
    check_subject,
)
from vigil.verify.document import Document


class Property(StrEnum):
    CHECKPOINT = "checkpoint"
    PROVENANCE = "provenance"
    BODIES = "bodies"
    RECORDED = "recorded"
    INTEGRITY = "integrity"
    COMPLETENESS = "completeness"


@dataclass(frozen=True, slots=True)
class Finding:
    """One property of one record (``index``), or of the whole (None). ``holds`` is None where nothing can be said."""

    property: Property
    holds: bool | None
    sentence: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether something was checked and nothing failed. An empty report proves nothing."""
        return bool(self.findings) and all(finding.holds is not False for finding in self.findings)


def verify_record(
    record: Record, *, inclusion_path: Sequence[bytes], tree: SignedTree, verifier: ChainVerifier
) -> tuple[Finding, ...]:
    """Check one record against a verified checkpoint; every property is looked at, whatever failed before."""

    def finding(of: Property, holds: bool | None, sentence: str) -> Finding:
        return Finding(of, holds, sentence, record.index)

    def attempt(of: Property, run: Callable[[], tuple[bool | None, str]]) -> Finding:
        try:
            holds, sentence = run()
            return finding(of, holds, sentence)
        except Refused as refusal:
            return finding(of, holds=False, sentence=refusal.refusals[0].sentence)

    findings = [
        attempt(Property.PROVENANCE, lambda: _provenance(record, verifier)),
        attempt(Property.RECORDED, lambda: _recorded(record, verifier)),
        attempt(Property.INTEGRITY, lambda: _integrity(record, inclusion_path, tree)),
        attempt(Property.BODIES, lambda: _bodies(record)),
    ]
    return tuple(findings)


def verify_document(document: Document, *, verifier: ChainVerifier, verifier_key: str) -> Report:
    """Check everything in a document. The trust bundle and the log's key come from elsewhere."""
    trust_domain = verifier.bundle.trust_domain
    try:
        tree = check_checkpoint(document.checkpoint, verifier_key=verifier_key, trust_domain=trust_domain)
    except Refused as refusal:
        return Report((Finding(Property.CHECKPOINT, False, refusal.refusals[0].sentence),))
    findings = [Finding(Property.CHECKPOINT, True, f"The log signed its first {tree.size} entries.")]
    for proven in document.records:
        findings.extend(
            verify_record(proven.record, inclusion_path=proven.inclusion_path, tree=tree, verifier=verifier)
        )
    if document.subject:
        findings.append(_completeness(document))
    return Report(tuple(findings))


def _completeness(document: Document) -> Finding:
    try:
        newest = check_subject([proven.record for proven in document.records], document.subject)
    except Refused as refusal:
        return Finding(Property.COMPLETENESS, False, refusal.refusals[0].sentence)
    sentence = f"Records 1 to {newest} of {document.subject} are here, without a gap."
    return Finding(Property.COMPLETENESS, True, sentence)


def _provenance(record: Record, verifier: ChainVerifier) -> tuple[bool | None, str]:
    if not record.statement:
        return None, "The statement was erased; its leaf is on record."
    signer = check_statement(record, verifier)
    return True, f"Signed by {signer.kind} {signer.id}."


def _recorded(record: Record, verifier: ChainVerifier) -> tuple[bool | None, str]:
    body = check_recorded(record, verifier)
    return True, f"The log recorded it in a commit of {body.count} at {body.time} ms."


def _integrity(record: Record, path: Sequence[bytes], tree: SignedTree) -> tuple[bool | None, str]:
    check_inclusion(record, path, tree)
    return True, f"It stands at {record.index} under the checkpoint of {tree.size}."


def _bodies(record: Record) -> tuple[bool | None, str]:
    missing = check_bodies(record)
    if missing:
        return None, f"{len(missing)} of its bodies are not here: erased, or left out."
    return True, f"All {len(record.bodies)} bodies are those that were recorded."
