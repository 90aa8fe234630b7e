"""Evidence checked with no network: what is whole holds, and every part that is changed is found."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.pki import TestPki
from vigil.core import cbor, cose, merkle
from vigil.core.certificates import ChainVerifier
from vigil.core.clock import ManualClock
from vigil.core.merkle import Frontier, leaf_hash
from vigil.core.statements.bodies import Hold, HoldAction, Recorded
from vigil.core.statements.envelope import Scribe, Statement
from vigil.errors import Reason, Refused
from vigil.evidence import domain
from vigil.evidence.domain import Admitted, LogState
from vigil.verify import (
    Document,
    Property,
    Proven,
    Record,
    SignedTree,
    SubjectClaim,
    check_checkpoint,
    check_consistency,
    check_inclusion,
    check_recorded,
    check_statement,
    check_subject,
    document_from_json,
    document_to_json,
    verify_document,
)

DEVICE = "device/dev-aaaaaaaaaaaaaaaa"
SIZE = 6
OF_RECORDS = {
    Property.CHECKPOINT,
    Property.PROVENANCE,
    Property.RECORDED,
    Property.INTEGRITY,
    Property.BODIES,
}


@dataclass
class Log:
    """A log of six holds in two commits, made by the same pure functions that the service uses."""

    pki: TestPki
    verifier: ChainVerifier
    key: Ed25519PrivateKey
    records: list[Record]

    @property
    def hashes(self) -> list[bytes]:
        return [leaf_hash(record.leaf) for record in self.records]

    @property
    def verifier_key(self) -> str:
        public = self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return domain.verifier_key("vigil.test/evidence", public)

    def note(self, size: int = SIZE, *, origin: str = "vigil.test/evidence") -> str:
        public = self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        text = domain.checkpoint_text(origin, size, merkle.tree_root(self.hashes[:size]))
        return domain.sign_note(text, name="vigil.test/evidence", public_key=public, sign=self.key.sign)

    def tree(self, size: int = SIZE) -> SignedTree:
        return check_checkpoint(self.note(size), verifier_key=self.verifier_key, trust_domain="vigil.test")

    def document(self, records: Sequence[Record] | None = None, subject: str = DEVICE) -> Document:
        proven = tuple(
            Proven(record, tuple(merkle.inclusion_path(self.hashes, record.index)))
            for record in records or self.records
        )
        claim = SubjectClaim(subject=subject, first=1, leaves=tuple(one.record.leaf for one in proven))
        return Document(
            trust_domain="vigil.test",
            checkpoint=self.note(),
            records=proven,
            subjects=(claim,) if subject else (),
        )

    def failures(self, document: Document) -> list[tuple[Property, int | None]]:
        report = verify_document(document, verifier=self.verifier, verifier_key=self.verifier_key)
        assert report.holds is not any(finding.holds is False for finding in report.findings)
        return [(finding.property, finding.index) for finding in report.findings if finding.holds is False]


def build(pki: TestPki) -> Log:
    clock = ManualClock()
    person = pki.person("p-safety", "safety")
    scribe = Scribe(
        signer=person.signer, issuer=person.issuer_name, clock=clock, entropy=os.urandom, numbered=False
    )
    signer = pki.signer_credential("recorded")
    promises = Scribe(
        signer=signer.signer, issuer=signer.issuer_name, clock=clock, entropy=os.urandom, numbered=True
    )
    state, heads, records = LogState(Frontier.empty(), 0), {}, []
    for _ in range(2):
        clock.advance(60)
        holds: list[Statement[Hold]] = [
            scribe.sign(Hold(DEVICE.removeprefix("device/"), HoldAction.PLACE, str(place)), subject=DEVICE)
            for place in range(SIZE // 2)
        ]
        kept = domain.keep_bodies([b"input"], os.urandom)
        items = [
            Admitted("hold", hold.digest, hold.signer, hold.number, (DEVICE, "site/site-1"), tuple(kept))
            for hold in holds
        ]
        commit = domain.sequence(state, items, heads=heads, now=clock.now())
        body = Recorded(commit.root, commit.first, len(items), commit.after.time)
        recorded = promises.sign(body, subject="log/vigil.test/evidence").data
        for place, hold in enumerate(holds):
            records.append(
                Record(
                    index=commit.first + place,
                    leaf=commit.leaves[place],
                    statement=cose.without_chain(hold.data),
                    chain=person.chain,
                    bodies=tuple(kept.values()),
                    recorded=recorded,
                    recorded_path=commit.paths[place],
                )
            )
        state, heads = commit.after, dict(commit.heads)
    return Log(pki, ChainVerifier(pki.bundle), Ed25519PrivateKey.generate(), records)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return build(TestPki(tmp_path_factory.mktemp("verify-pki"), clock=ManualClock()))


def reason_of(run: Callable[[], object]) -> Reason:
    with pytest.raises(Refused) as caught:
        run()
    return caught.value.reason


def with_leaf(record: Record, place: int, value: Any) -> Record:
    """The record with one member of its leaf exchanged."""
    members = cbor.decode(record.leaf)
    members[place] = value
    return replace(record, leaf=cbor.encode(members))


def test_what_is_whole_holds(log: Log) -> None:
    report = verify_document(log.document(), verifier=log.verifier, verifier_key=log.verifier_key)
    assert report.holds
    assert {finding.property for finding in report.findings} == OF_RECORDS | {Property.COMPLETENESS}
    assert all(finding.holds for finding in report.findings)


def test_a_document_survives_its_file(log: Log) -> None:
    document = log.document()
    assert document_from_json(document_to_json(document)) == document


def test_each_signer_is_named(log: Log) -> None:
    assert check_statement(log.records[0], log.verifier).id == "p-safety"
    assert check_recorded(log.records[4], log.verifier).first == 3


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda one, _: with_leaf(one, 1, "receipt"), {Property.PROVENANCE, Property.INTEGRITY}),
        (lambda one, _: with_leaf(one, 2, 5), {Property.PROVENANCE, Property.RECORDED, Property.INTEGRITY}),
        (
            lambda one, _: with_leaf(one, 3, bytes(32)),
            {Property.PROVENANCE, Property.RECORDED, Property.INTEGRITY},
        ),
        (lambda one, _: with_leaf(one, 4, bytes(32)), {Property.PROVENANCE, Property.INTEGRITY}),
        (lambda one, _: with_leaf(one, 5, [bytes(16), 1, b""]), {Property.PROVENANCE, Property.INTEGRITY}),
        (lambda one, _: with_leaf(one, 6, []), {Property.PROVENANCE, Property.INTEGRITY}),
        (lambda one, _: with_leaf(one, 7, []), {Property.BODIES, Property.INTEGRITY}),
        (
            lambda one, _: replace(one, leaf=b"\x00"),
            OF_RECORDS - {Property.CHECKPOINT},
        ),
        (lambda one, other: replace(one, statement=other.statement), {Property.PROVENANCE}),
        (lambda one, _: replace(one, statement=one.statement[:-64] + bytes(64)), {Property.PROVENANCE}),
        (lambda one, _: replace(one, bodies=(b"inpu7",)), {Property.BODIES}),
        (lambda one, other: replace(one, recorded=other.recorded), {Property.RECORDED}),
        (lambda one, other: replace(one, recorded_path=other.recorded_path), {Property.RECORDED}),
        (lambda one, _: replace(one, recorded=one.statement), {Property.RECORDED}),
        (lambda one, _: replace(one, recorded=b""), {Property.RECORDED}),
    ],
)
def test_every_change_is_found(
    log: Log, change: Callable[[Record, Record], Record], found: set[Property]
) -> None:
    changed = change(log.records[1], log.records[5])
    assert {of for of, _ in log.failures(log.document([changed], subject=""))} == found
    assert log.failures(log.document([log.records[1]], subject="")) == []


@pytest.mark.holds("insider-evidence")
def test_a_record_moved_to_another_index_is_found(log: Log) -> None:
    moved = replace(log.records[1], index=2)
    assert {of for of, _ in log.failures(log.document([moved], subject=""))} == {
        Property.RECORDED,
        Property.INTEGRITY,
    }


@pytest.mark.holds("insider-evidence")
def test_an_erased_statement_says_so_and_the_rest_holds(log: Log) -> None:
    erased = replace(log.records[1], statement=b"", bodies=())
    document = log.document([erased], subject="")
    report = verify_document(document, verifier=log.verifier, verifier_key=log.verifier_key)
    assert report.holds
    assert [finding.property for finding in report.findings if finding.holds is None] == [
        Property.PROVENANCE,
        Property.BODIES,
    ]


@pytest.mark.holds("insider-evidence")
def test_another_trust_domain_believes_nothing(log: Log) -> None:
    other = ChainVerifier(log.pki.other_domain().bundle)
    record = log.records[0]
    for run in (lambda: check_statement(record, other), lambda: check_recorded(record, other)):
        assert reason_of(run) is Reason.CERTIFICATE_INVALID
    document = log.document()
    assert not verify_document(document, verifier=other, verifier_key=log.verifier_key).holds


@pytest.mark.holds("insider-evidence")
def test_the_logs_key_and_name_come_from_elsewhere(log: Log) -> None:
    stranger = replace(log, key=Ed25519PrivateKey.generate())
    report = verify_document(log.document(), verifier=log.verifier, verifier_key=stranger.verifier_key)
    assert [(finding.property, finding.holds) for finding in report.findings] == [
        (Property.CHECKPOINT, False)
    ]
    note = log.note(origin="vigil.test/other")
    run = lambda: check_checkpoint(note, verifier_key=log.verifier_key, trust_domain="vigil.test")  # noqa: E731
    assert reason_of(run) is Reason.NOT_RECORDED


def test_an_empty_document_proves_nothing_about_a_subject(log: Log) -> None:
    document = replace(
        log.document(), records=(), subjects=(SubjectClaim(subject=DEVICE, first=0, leaves=()),)
    )
    assert log.failures(document) == [(Property.ABSENCE, None)]


@pytest.mark.holds("insider-evidence")
def test_consistency_between_checkpoints(log: Log) -> None:
    path = merkle.consistency_path(log.hashes, 4)
    check_consistency(log.tree(4), log.tree(6), path)
    forked = SignedTree(4, bytes(32))
    assert reason_of(lambda: check_consistency(forked, log.tree(6), path)) is Reason.NOT_RECORDED
    assert reason_of(lambda: check_consistency(log.tree(6), log.tree(4), path)) is Reason.NOT_RECORDED


def test_inclusion_needs_the_right_tree(log: Log) -> None:
    path = merkle.inclusion_path(log.hashes, 2)
    check_inclusion(log.records[2], path, log.tree())
    assert reason_of(lambda: check_inclusion(log.records[2], path, log.tree(5))) is Reason.NOT_RECORDED


def test_a_subjects_records_are_complete(log: Log) -> None:
    records = log.records
    assert check_subject(records, DEVICE) == SIZE
    assert check_subject(records, "site/site-1") == SIZE
    assert check_subject(records[2:4], DEVICE, first=3) == 4


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize(
    "choose",
    [
        lambda records: records[1:],
        lambda records: [*records[:2], *records[3:]],
        lambda records: [records[1], records[0]],
        lambda records: [records[0], records[0]],
        lambda records: records[:0],
        lambda records: [records[0], replace(records[1], index=0)],
        lambda records: [records[0], with_leaf(records[1], 2, 5)],
        lambda records: [records[0], with_leaf(records[1], 6, [[DEVICE, 2, bytes(32)]])],
        lambda records: [records[0], with_leaf(records[1], 6, [["site/site-1", 2, bytes(32)]])],
    ],
)
def test_a_gap_in_a_subjects_records_is_found(
    log: Log, choose: Callable[[list[Record]], list[Record]]
) -> None:
    assert reason_of(lambda: check_subject(choose(log.records), DEVICE)) is Reason.NOT_RECORDED


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("subjects"),
        lambda value: value.update(more=1),
        lambda value: value.update(vigil_evidence=2),
        lambda value: value.update(records={}),
        lambda value: value.update(checkpoint=5),
        lambda value: value["records"][0].pop("leaf"),
        lambda value: value["records"][0].update(index=True),
        lambda value: value["records"][0].update(index=-1),
        lambda value: value["records"][0].update(leaf="*"),
        lambda value: value["records"][0].update(leaf=None),
        lambda value: value["records"][0].update(chain="AA=="),
        lambda value: value.update(records=["x"]),
    ],
)
def test_a_document_of_another_form_is_refused(log: Log, change: Callable[[Any], None]) -> None:
    value = json.loads(document_to_json(log.document()))
    change(value)
    assert reason_of(lambda: document_from_json(json.dumps(value))) is Reason.STATEMENT_MALFORMED


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_text_that_is_no_document_is_refused(text: str) -> None:
    assert reason_of(lambda: document_from_json(text)) is Reason.STATEMENT_MALFORMED
