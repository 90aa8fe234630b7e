"""Everything that can be said about a record or a document, property by property (ARCHITECTURE section 6)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from hmac import compare_digest

from vigil.core.certificates import ChainVerifier
from vigil.core.clock import rfc3339
from vigil.core.witness_policy import WitnessPolicy, check_witnessed
from vigil.errors import Reason, Refused, refused
from vigil.evidence.domain import decode_leaf
from vigil.verify.checks import (
    Record,
    SignedTree,
    check_bodies,
    check_checkpoint,
    check_consistency,
    check_inclusion,
    check_named_signer,
    check_recorded,
    check_statement,
)
from vigil.verify.document import Document, Earlier, Proven, SubjectClaim
from vigil.verify.subjects import census_of, check_claim


class Property(StrEnum):
    CHECKPOINT = "checkpoint"
    CONSISTENCY = "consistency"
    WITNESSES = "witnesses"
    PROVENANCE = "provenance"
    BODIES = "bodies"
    RECORDED = "recorded"
    INTEGRITY = "integrity"
    COMPLETENESS = "completeness"
    ABSENCE = "absence"


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


def attempt(of: Property, run: Callable[[], tuple[bool | None, str]], index: int | None = None) -> Finding:
    """Run a check; its sentence says what it established, or why it does not hold."""
    try:
        holds, sentence = run()
    except Refused as refusal:
        return Finding(of, False, refusal.refusals[0].sentence, index)
    return Finding(of, holds, sentence, index)


def verify_record(
    record: Record, *, inclusion_path: Sequence[bytes], tree: SignedTree, verifier: ChainVerifier
) -> tuple[Finding, ...]:
    """Check one record against a verified checkpoint; every property is looked at, whatever failed before."""
    return (
        attempt(Property.PROVENANCE, lambda: _provenance(record, verifier), record.index),
        attempt(Property.RECORDED, lambda: _recorded(record, verifier), record.index),
        attempt(Property.INTEGRITY, lambda: _integrity(record, inclusion_path, tree), record.index),
        attempt(Property.BODIES, lambda: _bodies(record), record.index),
    )


def verify_document(
    document: Document,
    *,
    verifier: ChainVerifier,
    verifier_key: str | None = None,
    policy: WitnessPolicy | None = None,
    known: str = "",
) -> Report:
    """Check everything in a document. The trust bundle comes from elsewhere, and so does the log's key.

    ``verifier_key`` None: the key that a census in the document names, which a signer under the trust bundle's root
    signed. ``known``: a checkpoint (signed note) seen before, which this document's must not contradict.
    """
    trust_domain = verifier.bundle.trust_domain

    def opened() -> tuple[str, SignedTree]:
        if document.trust_domain != trust_domain:
            raise _other_domain(document.trust_domain)
        key = verifier_key or log_key_of(document, verifier)
        return key, check_checkpoint(document.checkpoint, verifier_key=key, trust_domain=trust_domain)

    try:
        key, tree = opened()
    except Refused as refusal:
        return Report((Finding(Property.CHECKPOINT, False, refusal.refusals[0].sentence),))
    findings = [Finding(Property.CHECKPOINT, True, f"The log signed its first {tree.size} entries.")]
    if policy is not None:
        wanted = policy
        findings.append(
            attempt(Property.WITNESSES, lambda: _witnesses(document.checkpoint, wanted, log_key=key))
        )
    findings += _earlier(document.consistency, tree, key=key, trust_domain=trust_domain)
    if known:
        findings.append(
            attempt(
                Property.CONSISTENCY,
                lambda: _known(known, document.consistency, tree, key=key, trust_domain=trust_domain),
            )
        )
    for proven in document.records:
        findings += verify_record(
            proven.record, inclusion_path=proven.inclusion_path, tree=tree, verifier=verifier
        )
    records = {proven.record.index: proven for proven in document.records}
    if len(records) != len(document.records):
        findings.append(Finding(Property.INTEGRITY, False, "One record stands in it twice."))
    findings += _claims(document.subjects, records, tree=tree, verifier=verifier)
    return Report(tuple(findings))


def log_key_of(document: Document, verifier: ChainVerifier) -> str:
    """The log's key that the document's censuses name. Raises NOT_RECORDED when none does, or two differ."""
    keys: set[str] = set()
    for proven in document.records:
        if decode_leaf(proven.record.leaf).kind == "census":
            keys.add(census_of(proven.record, verifier).log)
    if len(keys) != 1:
        raise refused(
            Reason.NOT_RECORDED,
            "Nothing in it names the log's key, and none was given: give it with --log."
            if not keys
            else "Its censuses name different keys of the log.",
            lifted_by="the log's verifier key, from somebody you believe",
            who="the reader",
        )
    return keys.pop()


def _claims(
    claims: Sequence[SubjectClaim],
    records: Mapping[int, Proven],
    *,
    tree: SignedTree,
    verifier: ChainVerifier,
) -> list[Finding]:
    def run(claim: SubjectClaim) -> tuple[bool | None, str]:
        return True, check_claim(claim, records, tree=tree, verifier=verifier).sentence

    findings = [
        attempt(Property.COMPLETENESS if claim.leaves else Property.ABSENCE, partial(run, claim))
        for claim in claims
    ]
    if len({claim.subject for claim in claims}) != len(claims):
        findings.append(Finding(Property.COMPLETENESS, False, "One subject stands in it twice."))
    return findings


def _earlier(earlier: Sequence[Earlier], tree: SignedTree, *, key: str, trust_domain: str) -> list[Finding]:
    sizes = [-1]

    def run(one: Earlier) -> tuple[bool | None, str]:
        old = check_checkpoint(one.checkpoint, verifier_key=key, trust_domain=trust_domain)
        if old.size <= sizes[-1]:
            raise refused(Reason.NOT_RECORDED, "The earlier checkpoints are out of order.")
        sizes.append(old.size)
        check_consistency(old, tree, one.path)
        return True, f"It only grew since the checkpoint of {old.size} entries."

    return [attempt(Property.CONSISTENCY, partial(run, one)) for one in earlier]


def _known(
    note: str, earlier: Sequence[Earlier], tree: SignedTree, *, key: str, trust_domain: str
) -> tuple[bool | None, str]:
    """Hold the document against a checkpoint that the reader has kept."""
    known = check_checkpoint(note, verifier_key=key, trust_domain=trust_domain)
    if known.size == tree.size:
        if not compare_digest(known.root, tree.root):
            raise refused(
                Reason.NOT_RECORDED,
                f"The log signed two histories of {tree.size} entries: this checkpoint and the known one.",
            )
        return True, "It is the checkpoint that is known here."
    if known.size > tree.size:
        raise refused(
            Reason.NOT_RECORDED,
            f"Its checkpoint of {tree.size} entries is older than the known one of {known.size}; that they are of one "
            "history is not shown.",
            lifted_by="a newer proof",
            who="the log",
        )
    if not known.size:
        check_consistency(known, tree, ())
        return True, "The checkpoint that is known here is of an empty log."
    for one in earlier:
        old = check_checkpoint(one.checkpoint, verifier_key=key, trust_domain=trust_domain)
        if old == known:
            check_consistency(old, tree, one.path)
            return True, f"It extends the checkpoint of {known.size} entries that is known here."
    raise refused(
        Reason.NOT_RECORDED,
        f"It does not show that it extends the known checkpoint of {known.size} entries.",
        lifted_by="a proof made with `--known`",
        who="whoever made it",
    )


def _witnesses(note: str, policy: WitnessPolicy, *, log_key: str) -> tuple[bool | None, str]:
    held = check_witnessed(note, policy, log_key=log_key)
    if not held:
        return None, "The policy asks for no witness, and none of those it knows holds the checkpoint."
    return True, f"Held by {len(held)} of {len(policy.witnesses)} witnesses: {', '.join(sorted(held))}."


def _provenance(record: Record, verifier: ChainVerifier) -> tuple[bool | None, str]:
    if not record.statement:
        by = ""
        if record.chain:
            signer = check_named_signer(record, verifier)
            by = f" and names the certificate of {signer.kind} {signer.id}"
        return None, f"The statement is not here: erased, or left out. Its leaf is on record{by}."
    if not record.chain:
        raise refused(Reason.NOT_RECORDED, "Its signer's certificate is not here.")
    signer = check_statement(record, verifier)
    return True, f"Signed by {signer.kind} {signer.id}."


def _recorded(record: Record, verifier: ChainVerifier) -> tuple[bool | None, str]:
    body = check_recorded(record, verifier)
    return True, f"The log recorded it in a commit of {body.count} at {rfc3339(body.time)}."


def _integrity(record: Record, path: Sequence[bytes], tree: SignedTree) -> tuple[bool | None, str]:
    check_inclusion(record, path, tree)
    return True, f"It stands at {record.index} under the checkpoint of {tree.size}."


def _bodies(record: Record) -> tuple[bool | None, str]:
    missing = check_bodies(record)
    if missing:
        return None, f"{len(missing)} of its bodies are not here: erased, or left out."
    return True, f"All {len(record.bodies)} bodies are those that were recorded."


def _other_domain(name: str) -> Refused:
    return refused(
        Reason.NOT_RECORDED,
        f"It is of another trust domain than the one trusted here: {name}.",
        lifted_by="that trust domain's trust.json",
        who="the reader",
    )


def not_proved(document: Document, *, witnessed: bool) -> tuple[str, ...]:
    """What nobody may read out of a document whose findings all hold, in words."""
    words = ["That what was signed is true, or that all that happened was recorded."]
    if document.records or document.subjects:
        words.append(
            "Whether a signer was revoked before: revocations are on record, and their places tell which came first."
        )
    complete = [one for one in document.subjects if one.census is not None]
    if document.records and not complete:
        words.append("That there is no other record about the same subjects.")
    if complete:
        words.append("What was recorded after the census.")
    if not witnessed:
        words.append("That others are shown the same log: no witnesses were asked for.")
    return tuple(words)
