"""`vigil evidence prove` and `check`: a proof made on line, taken away, and checked by anybody without a network."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vigil.api.evidence.v1 import evidence_pb2 as pb
from vigil.cli.logbook import Seen, find_entry, newest_checkpoint, read_policy, record_of, yes
from vigil.cli.logbook import believed as believed_checkpoint
from vigil.cli.options import UsageError
from vigil.cli.output import DONE, REFUSED, Output
from vigil.cli.recounting import recount
from vigil.cli.session import Session
from vigil.core.census import Item, Placed
from vigil.core.certificates import ChainVerifier, TrustBundle, replace_file
from vigil.core.clock import rfc3339
from vigil.core.receipts import (
    CONSISTENCY,
    check_consistency_receipt,
    check_inclusion_receipt,
    is_receipt,
    read_receipt,
    with_leaf,
)
from vigil.core.witness_policy import WitnessPolicy
from vigil.errors import Reason, Refused, refused
from vigil.monitor.reader import TileClient
from vigil.verify import (
    CensusProof,
    Document,
    Earlier,
    Finding,
    Property,
    Proven,
    Report,
    SubjectClaim,
    attempt,
    census_of,
    check_checkpoint,
    decode_leaf,
    document_from_json,
    document_to_json,
    log_key_of,
    not_proved,
    verify_document,
)

MAX_NOTE_FILE: Final = 65_536
RECEIPT_PROVES_NOT: Final = (
    "Who signed the statement: a receipt is of the log's leaf alone.",
    "At which index, and in a log of which size: these stand beside the signature, not under it.",
    "That others are shown the same log: witnesses sign checkpoints, not receipts.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be proved. ``first``: the number with which a subject's leaves begin."""

    records: Sequence[str] = ()
    subjects: Sequence[str] = ()
    first: int = 1
    policy: Path | None = None
    known: Path | None = None
    cose: Path | None = None


async def prove(session: Session, asked: Asked) -> int:
    """Prove records and subjects under one checkpoint; exit 3 when something does not hold."""
    if not asked.records and not asked.subjects and asked.known is None:
        raise UsageError("name a record (its index, or its statement's digest in hex), or a --subject")
    wanted = None if asked.policy is None else read_policy(asked.policy)
    note = "" if asked.known is None else read_note(asked.known)
    entries = [await find_entry(session, name) for name in dict.fromkeys(asked.records)]
    seen, claims, proven = await _subjects(session, asked, wanted)
    for entry in entries:
        proven[entry.index] = await _proven(session, entry, seen, witnessed=wanted is not None)
    document = Document(
        trust_domain=session.context.trust_domain,
        checkpoint=seen.checkpoint.note,
        consistency=await _earlier(session, seen, note),
        records=tuple(proven[index] for index in sorted(proven)),
        subjects=tuple(claims),
    )
    report = verify_document(
        document, verifier=session.verifier, verifier_key=seen.key, policy=wanted, known=note
    )
    report = Report((seen.consistency, *report.findings))
    if asked.cose is not None and report.holds:
        await _write_receipt(session, asked.cose, seen, entries, document)
    if session.output.json:
        print(document_to_json(document))
        for one in report.findings:
            if one.holds is False:
                session.output.say(f"{one.property}: {one.sentence}")
    else:
        show(session.output, report, not_proved(document, witnessed=wanted is not None))
    return DONE if report.holds else REFUSED


async def _subjects(
    session: Session, asked: Asked, wanted: WitnessPolicy | None
) -> tuple[Seen, list[SubjectClaim], dict[int, Proven]]:
    """The checkpoint of everything, and under it each subject with the census's record, by index.

    Where no witnesses are asked for, the first subject's proof brings a checkpoint that covers the newest census.
    """
    subjects = list(dict.fromkeys(asked.subjects))
    found: list[FoundSubject] = []
    if wanted is None and subjects:
        found.append(await subject_proof(session, subjects.pop(0), size=0, first=asked.first))
        seen = await believed_checkpoint(session, found[0].checkpoint, wanted)
    else:
        seen = await newest_checkpoint(session, wanted)
    found += [
        await subject_proof(session, subject, size=seen.tree.size, first=asked.first) for subject in subjects
    ]
    return seen, [one.claim for one in found], {one.census.record.index: one.census for one in found}


@dataclass(frozen=True, slots=True)
class FoundSubject:
    """What a census says of a subject, with the census's own record, under a checkpoint."""

    claim: SubjectClaim
    census: Proven
    checkpoint: pb.Checkpoint


async def subject_proof(session: Session, subject: str, *, size: int, first: int) -> FoundSubject:
    """What the newest census says of a subject, and its leaves from one number on, in as many calls as it takes."""
    leaves: list[bytes] = []
    request = pb.GetSubjectProofRequest(subject=subject, size=size, first=first)
    while True:
        proof = await session.call("evidence", session.evidence.GetSubjectProof, request)
        leaves += proof.leaves
        newest = proof.items[0].number if proof.leaves else 0
        if not proof.leaves or first + len(leaves) > newest:
            break
        # The same census, or a newer one with as many records at least; the last one stands in the proof.
        request = pb.GetSubjectProofRequest(
            subject=subject, size=proof.checkpoint.size, first=first + len(leaves)
        )
    items = tuple(
        Placed(one.place, Item(one.key, one.number, one.leaf), tuple(one.path)) for one in proof.items
    )
    claim = SubjectClaim(
        subject=subject,
        first=first if leaves else 0,
        leaves=tuple(leaves),
        census=CensusProof(proof.census.index, items),
    )
    return FoundSubject(claim, Proven(record_of(proof.census), tuple(proof.inclusion_path)), proof.checkpoint)


async def _proven(session: Session, entry: pb.Entry, seen: Seen, *, witnessed: bool) -> Proven:
    size = seen.tree.size
    if entry.index >= size:
        raise refused(
            Reason.NOT_RECORDED,
            f"the newest checkpoint{' that is witnessed' if witnessed else ''} covers {size} records, this one has "
            f"index {entry.index}",
            lifted_by="a moment's patience: the next checkpoint",
            who="the log",
        )
    request = pb.GetInclusionProofRequest(index=entry.index, size=size)
    proof = await session.call("evidence", session.evidence.GetInclusionProof, request)
    return Proven(record_of(entry), tuple(proof.path))


async def _earlier(session: Session, seen: Seen, note: str) -> tuple[Earlier, ...]:
    """The way from the checkpoint that somebody knows to the newest."""
    if not note:
        return ()
    old = check_checkpoint(note, verifier_key=seen.key, trust_domain=session.context.trust_domain)
    if not 0 < old.size < seen.tree.size:
        return ()
    request = pb.GetConsistencyProofRequest(old_size=old.size, new_size=seen.tree.size)
    found = await session.call("evidence", session.evidence.GetConsistencyProof, request)
    return (Earlier(note, tuple(found.path)),)


async def _write_receipt(
    session: Session, path: Path, seen: Seen, entries: Sequence[pb.Entry], document: Document
) -> None:
    """Write the one COSE Receipt that was asked for, after checking it here. Raises UsageError."""
    size = seen.tree.size
    if len(entries) == 1:
        leaf = entries[0].leaf
        wanted = pb.GetInclusionProofRequest(index=entries[0].index, size=size, receipt=True)
        proof = await session.call("evidence", session.evidence.GetInclusionProof, wanted)
        data = with_leaf(proof.receipt, leaf)
        check_inclusion_receipt(read_receipt(data), seen.key, leaf)
    elif not entries and document.consistency:
        (earlier,) = document.consistency
        old = check_checkpoint(
            earlier.checkpoint, verifier_key=seen.key, trust_domain=session.context.trust_domain
        )
        grown = pb.GetConsistencyProofRequest(old_size=old.size, new_size=size, receipt=True)
        data = (await session.call("evidence", session.evidence.GetConsistencyProof, grown)).receipt
        check_consistency_receipt(read_receipt(data), seen.key, old_size=old.size, old_root=old.root)
    else:
        raise UsageError(
            "--cose writes the receipt of one record, or without any that of the way from --known"
        )
    replace_file(path, data)
    session.output.say(f"{path}: a COSE Receipt under the checkpoint of {size} entries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Believed:
    """What a reader brings along. ``log_key`` empty: the one that a census in the proof names."""

    verifier: ChainVerifier
    log_key: str = ""
    policy: WitnessPolicy | None = None
    known: str = ""


def believed(trust: Path, *, log_key: str, policy: Path | None, known: Path | None) -> Believed:
    """Read what is believed. ``log_key`` is a verifier key, or a file with one. Raises as the readers do, OSError."""
    try:
        bundle = TrustBundle.from_json(trust.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UsageError(f"{trust} is not a text in UTF-8") from None
    wanted = None if policy is None else read_policy(policy)
    key = log_key
    if key and "+" not in key:
        key = _text(Path(key)).strip()
    if not key and wanted is not None and len(wanted.logs) == 1:
        key = wanted.logs[0]
    note = "" if known is None else read_note(known)
    return Believed(verifier=ChainVerifier(bundle), log_key=key, policy=wanted, known=note)


def check(output: Output, proof: Path, believes: Believed, *, tiles: str = "") -> int:
    """Check a proof, with no network; exit 3 when anything does not hold.

    ``tiles``: the address of the log's tiles, from which its censuses are counted again.
    """
    data = proof.read_bytes()
    if is_receipt(data):
        return _check_receipt(output, data, believes)
    document = document_from_json(_decoded(data, proof))
    report = verify_document(
        document,
        verifier=believes.verifier,
        verifier_key=believes.log_key or None,
        policy=believes.policy,
        known=believes.known,
    )
    if tiles and not tiles.startswith(("http://", "https://")):
        raise UsageError("--tiles begins with http:// or https://")
    if tiles and not _censuses(document):
        raise UsageError("there is no census in the proof that could be counted again")
    if tiles and report.holds:
        report = Report((*report.findings, *asyncio.run(_recounted(document, believes, tiles))))
    return _told(output, report, not_proved(document, witnessed=believes.policy is not None))


def _censuses(document: Document) -> list[Proven]:
    return [one for one in document.records if decode_leaf(one.record.leaf).kind == "census"]


async def _recounted(document: Document, believes: Believed, tiles: str) -> tuple[Finding, ...]:
    """Every census of a document counted again. Raises UnreadableError."""
    key = believes.log_key or log_key_of(document, believes.verifier)
    domain = believes.verifier.bundle.trust_domain
    tree = check_checkpoint(document.checkpoint, verifier_key=key, trust_domain=domain)
    censuses = [(one.record.index, census_of(one.record, believes.verifier)) for one in _censuses(document)]
    try:
        async with TileClient(tiles) as source:
            counted = await recount(tree, censuses, source.read)
    except Refused as refusal:
        return (Finding(Property.COMPLETENESS, False, refusal.refusals[0].sentence),)
    return tuple(Finding(Property.COMPLETENESS, one.holds, one.sentence, one.index) for one in counted)


def _check_receipt(output: Output, data: bytes, believes: Believed) -> int:
    """Check a COSE Receipt: it carries its leaf, or leads on from the checkpoint that is known."""
    receipt = read_receipt(data)
    if not believes.log_key:
        raise UsageError("a COSE Receipt names no key that could be traced: give the log's with --log")
    domain = believes.verifier.bundle.trust_domain

    def run() -> tuple[bool | None, str]:
        if receipt.proof.kind == CONSISTENCY:
            if not believes.known:
                raise UsageError("a receipt of consistency leads on from a checkpoint that you know: --known")
            old = check_checkpoint(believes.known, verifier_key=believes.log_key, trust_domain=domain)
            check_consistency_receipt(receipt, believes.log_key, old_size=old.size, old_root=old.root)
            return True, f"The log only grew from the known {old.size} entries to the root that it signed."
        if not receipt.leaf:
            raise UsageError("the receipt carries no leaf: `vigil evidence prove --cose` writes it with one")
        check_inclusion_receipt(receipt, believes.log_key, receipt.leaf)
        leaf = decode_leaf(receipt.leaf)
        return True, (
            f"The log signed a root over this leaf: a {leaf.kind}, recorded at {rfc3339(leaf.log_time)}, of statement "
            f"{leaf.digest.hex()}."
        )

    of = Property.CONSISTENCY if receipt.proof.kind == CONSISTENCY else Property.INTEGRITY
    index = None if receipt.proof.kind == CONSISTENCY else receipt.proof.second
    return _told(output, Report((attempt(of, run, index),)), RECEIPT_PROVES_NOT)


def _told(output: Output, report: Report, missing: Sequence[str]) -> int:
    if output.json:
        output.value(report_value(report, missing))
    else:
        show(output, report, missing)
    return DONE if report.holds else REFUSED


def show(output: Output, report: Report, missing: Sequence[str]) -> None:
    """What was found, for people, and what nobody may conclude from it."""
    rows = [
        (yes(one.holds), "" if one.index is None else one.index, one.property, one.sentence)
        for one in report.findings
    ]
    output.table(["holds", "index", "property", "what was found"], rows)
    output.say("All of it holds." if report.holds else "NOT ACCEPTED: something does not hold.")
    output.say("Not proved:")
    for sentence in missing:
        output.say(f"  {sentence}")


def report_value(report: Report, missing: Sequence[str]) -> dict[str, Any]:
    """A report as JSON."""
    return {
        "holds": report.holds,
        "findings": [
            {
                "property": str(one.property),
                "holds": one.holds,
                "sentence": one.sentence,
                "index": one.index,
            }
            for one in report.findings
        ],
        "not_proved": list(missing),
    }


def read_note(path: Path) -> str:
    """A checkpoint that was kept: a signed note, or the JSON that `vigil evidence checkpoint` writes."""
    text = _text(path)
    if text.lstrip().startswith("{"):
        try:
            text = str(json.loads(text)["note"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UsageError(f"{path} holds no checkpoint") from None
    if not text or len(text) > MAX_NOTE_FILE:
        raise UsageError(f"{path} holds no checkpoint")
    return text


def _text(path: Path) -> str:
    return _decoded(path.read_bytes(), path)


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise refused(
            Reason.STATEMENT_MALFORMED,
            f"{path} is not a text in UTF-8.",
            lifted_by="the file as it was written, whole and unchanged",
            who="caller",
        ) from None
