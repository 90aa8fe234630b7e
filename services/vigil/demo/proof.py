"""Taking evidence away and checking it with nobody's word for it: the auditor's part of the demonstration."""

from vigil.api.evidence.v1 import evidence_pb2
from vigil.cli.session import Session
from vigil.demo.result import expect
from vigil.demo.world import World
from vigil.verify import (
    Document,
    Proven,
    Record,
    SignedTree,
    SubjectClaim,
    check_checkpoint,
    check_inclusion,
    check_recorded,
    check_statement,
    verify_document,
)


def record_of(entry: evidence_pb2.Entry) -> Record:
    """An entry as it is taken away."""
    return Record(
        index=entry.index,
        leaf=entry.leaf,
        statement=entry.statement,
        chain=tuple(entry.chain),
        recorded=entry.recorded.recorded,
        recorded_path=tuple(entry.recorded.path),
        bodies=tuple(entry.bodies),
    )


async def inclusion_of(session: Session, index: int, size: int = 0) -> evidence_pb2.InclusionProof:
    """The path of one record to a checkpoint."""
    request = evidence_pb2.GetInclusionProofRequest(index=index, size=size)
    return await session.call("evidence", session.evidence.GetInclusionProof, request)


def tree_of(world: World, checkpoint: evidence_pb2.Checkpoint) -> SignedTree:
    """A checkpoint, its signature checked with the log's key."""
    return check_checkpoint(
        checkpoint.note, verifier_key=checkpoint.verifier_key, trust_domain=world.installation.trust_domain
    )


async def prove_entry(world: World, entry: evidence_pb2.Entry) -> int:
    """Check one record wholly; answers the size of the log it was proved in. Raises what does not hold."""
    otto = world.people["otto"]
    record = record_of(entry)
    check_statement(record, otto.verifier)
    check_recorded(record, otto.verifier)
    proof = await inclusion_of(otto, entry.index)
    tree = tree_of(world, proof.checkpoint)
    check_inclusion(record, tuple(proof.path), tree)
    return tree.size


async def prove_story(world: World, subject: str) -> tuple[int, dict[str, int]]:
    """Every record of one subject, verified and complete; answers how many, and how many of each kind."""
    otto = world.people["otto"]
    request = evidence_pb2.ListHistoryRequest(subject=subject)
    entries = await otto.every("evidence", otto.evidence.ListHistory, request, "entries")
    expect(bool(entries), "the log holds no record of this pump")
    newest = await inclusion_of(otto, entries[-1].index)
    size = newest.checkpoint.size
    proven = []
    for entry in entries:
        path = (await inclusion_of(otto, entry.index, size)).path
        proven.append(Proven(record_of(entry), tuple(path)))
    document = Document(
        trust_domain=world.installation.trust_domain,
        checkpoint=newest.checkpoint.note,
        records=tuple(proven),
        subjects=(SubjectClaim(subject=subject, first=1, leaves=tuple(one.record.leaf for one in proven)),),
    )
    report = verify_document(document, verifier=otto.verifier, verifier_key=newest.checkpoint.verifier_key)
    failed = [finding.sentence for finding in report.findings if finding.holds is False]
    expect(report.holds, f"{len(failed)} findings do not hold: {failed[:2]}")
    kinds: dict[str, int] = {}
    for entry in entries:
        kinds[entry.kind] = kinds.get(entry.kind, 0) + 1
    return len(entries), kinds
