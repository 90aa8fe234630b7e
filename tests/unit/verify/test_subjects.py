"""Whole subjects checked with no network: what is complete, what is absent, and every way to pretend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.support.pki import TestPki
from tests.support.proofs import ProofLog, census_pages
from vigil.core import merkle
from vigil.core.census import Item, page_root, subject_key
from vigil.core.clock import ManualClock
from vigil.core.merkle import leaf_hash
from vigil.core.statements.bodies import Census
from vigil.errors import Reason, Refused
from vigil.evidence import domain
from vigil.verify import (
    CensusProof,
    Document,
    Property,
    Proven,
    Record,
    SubjectClaim,
    census_of,
    document_from_json,
    document_to_json,
    log_key_of,
    not_proved,
    verify_document,
)

A, B, C, NONE = "device/a", "device/b", "site/c", "device/none"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> TestPki:
    return TestPki(tmp_path_factory.mktemp("subjects-pki"), clock=ManualClock())


@pytest.fixture
def log(pki: TestPki) -> ProofLog:
    """Five records of a, two of b, one of c; a census; one more of a."""
    clock = ManualClock()
    log = ProofLog(pki, clock)
    for subjects in ((A,), (A, B), (A,), (A, C), (A,), (B,)):
        log.append(*subjects)
        clock.advance(1)
    log.count()
    log.append(A)
    return log


def failed(log: ProofLog, document: Document, **values: Any) -> list[tuple[Property, str]]:
    read = document_from_json(document_to_json(document))
    assert read == document
    report = verify_document(read, verifier=log.verifier, **values)
    assert report.holds is not any(one.holds is False for one in report.findings)
    return [(one.property, one.sentence) for one in report.findings if one.holds is False]


def sentence(log: ProofLog, document: Document, of: Property) -> str:
    report = verify_document(document, verifier=log.verifier)
    assert report.holds, report
    return next(one.sentence for one in report.findings if one.property is of)


# --- what holds


def test_whole_subjects_hold_with_the_trust_bundle_alone(log: ProofLog) -> None:
    document = log.document(subjects=[A, B, C, NONE, f"log/{log.origin}"])
    assert failed(log, document) == []
    assert log_key_of(document, log.verifier) == log.verifier_key
    assert "1 to 5 of device/a" in sentence(log, log.document(subjects=[A]), Property.COMPLETENESS)
    assert "counts 5 in the log's first 6 entries" in sentence(
        log, log.document(subjects=[A]), Property.COMPLETENESS
    )
    assert "None of the log's first 6 entries is about" in sentence(
        log, log.document(subjects=[NONE]), Property.ABSENCE
    )


def test_records_after_the_census_need_their_last_one(log: ProofLog) -> None:
    claim = replace(log.claim(A), leaves=log.leaves(A))
    document = replace(log.document(records=[7], subjects=[A]), subjects=(claim,))
    assert "Records 1 to 6" in sentence(log, document, Property.COMPLETENESS)
    without = replace(document, records=document.records[:1])
    assert [of for of, _ in failed(log, without)] == [Property.COMPLETENESS]


def test_a_stretch_is_bound_by_its_last_record(log: ProofLog) -> None:
    leaves = log.leaves(A)[2:4]
    claim = SubjectClaim(subject=A, first=3, leaves=leaves)
    document = replace(log.document(records=[3]), subjects=(claim,))
    assert failed(log, document, verifier_key=log.verifier_key) == []
    report = verify_document(document, verifier=log.verifier, verifier_key=log.verifier_key)
    assert "before or after them is not shown" in report.findings[-1].sentence
    loose = replace(document, records=())
    assert failed(log, loose, verifier_key=log.verifier_key)[0][0] is Property.COMPLETENESS


def test_a_census_of_nothing_leaves_no_room_for_anybody(pki: TestPki) -> None:
    log = ProofLog(pki, ManualClock())
    log.count()
    assert failed(log, log.document(subjects=[NONE])) == []


def test_what_nobody_may_conclude_is_said(log: ProofLog) -> None:
    words = not_proved(log.document(subjects=[A]), witnessed=False)
    assert any("after the census" in one for one in words)
    assert any("witnesses" in one for one in words)
    assert any("no other record" in one for one in not_proved(log.document(records=[1]), witnessed=True))
    assert not any("witnesses" in one for one in not_proved(log.document(records=[1]), witnessed=True))


def test_the_growth_between_two_checkpoints_holds(log: ProofLog) -> None:
    document = log.document(since=3)
    assert failed(log, document, verifier_key=log.verifier_key, known=log.note(3)) == []
    assert failed(log, document, verifier_key=log.verifier_key, known=log.note(8)) == []
    (of, words), *_ = failed(log, document, verifier_key=log.verifier_key, known=log.note(4))
    assert (of, "does not show that it extends" in words) == (Property.CONSISTENCY, True)


# --- an operator who leaves something out


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (lambda one: replace(one, leaves=one.leaves[:-1]), "counts 5, and that record is not here"),
        (lambda one: replace(one, leaves=one.leaves[1:]), "number 1 is missing before number 2"),
        (lambda one: replace(one, leaves=(*one.leaves[:2], *one.leaves[3:])), "number 3 is missing"),
        (
            lambda one: replace(one, leaves=(one.leaves[1], one.leaves[0], *one.leaves[2:])),
            "number 1 is missing",
        ),
        (lambda one: replace(one, leaves=(*one.leaves, one.leaves[-1])), "number 6 is missing"),
        (lambda one: replace(one, first=0), "number 0 is missing"),
        (lambda one: replace(one, leaves=(), first=0), "leaves room"),
        (lambda one: replace(one, subject=B), "is not about it"),
        (lambda one: replace(one, subject="No Subject"), "no subject"),
        (lambda one: replace(one, census=None, leaves=()), "no census that says so"),
        (lambda one: replace(one, census=None), "neither among the records nor named"),
        (lambda one: replace(one, census=replace(one.census, index=4)), "is not here"),
        (
            lambda one: replace(one, census=CensusProof(one.census.index, ())),
            "what the census says of it is not here",
        ),
        (lambda one: replace(one, census=CensusProof(one.census.index, one.census.items * 2)), "is not here"),
    ],
)
def test_a_record_withheld_is_found(log: ProofLog, lie: Callable[[Any], SubjectClaim], found: str) -> None:
    document = log.document(subjects=[A])
    (claim,) = document.subjects
    ((_, words),) = failed(log, replace(document, subjects=(lie(claim),)))
    assert found in words


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize("place", ["number", "leaf", "place", "path"])
def test_what_the_census_says_cannot_be_other(log: ProofLog, place: str) -> None:
    document = log.document(subjects=[A])
    (claim,) = document.subjects
    assert claim.census is not None
    (one,) = claim.census.items
    changed = {
        "number": replace(one, item=replace(one.item, number=4)),
        "leaf": replace(one, item=replace(one.item, leaf=leaf_hash(log.records[0].leaf))),
        "place": replace(one, place=one.place ^ 1),
        "path": replace(one, path=(*one.path[:-1], bytes(32))),
    }[place]
    lie = replace(claim, census=replace(claim.census, items=(changed,)))
    ((_, words),) = failed(log, replace(document, subjects=(lie,)))
    assert "does not lead to the census's root" in words


@pytest.mark.holds("insider-evidence")
def test_a_history_cut_to_fit_an_older_number_is_found(log: ProofLog) -> None:
    """Whoever hides the newest record must show an item that no census has."""
    document = log.document(subjects=[A])
    (claim,) = document.subjects
    assert claim.census is not None
    (one,) = claim.census.items
    item = Item(one.item.key, 4, leaf_hash(claim.leaves[3]))
    lie = replace(
        claim, leaves=claim.leaves[:4], census=replace(claim.census, items=(replace(one, item=item),))
    )
    assert failed(log, replace(document, subjects=(lie,)))


@pytest.mark.holds("insider-evidence")
def test_a_census_that_lies_contradicts_the_logs_own_leaves(pki: TestPki) -> None:
    """The log's signer can leave a subject out; whoever reads the tiles counts again and finds another root."""
    log = ProofLog(pki, ManualClock())
    for subject in (A, B):
        log.append(subject)
    lie = log.count(leave_out=A)
    assert failed(log, log.document(subjects=[A])) == [], "absence is believed as far as the signer is"
    body = census_of(log.records[lie.index], log.verifier)
    counted = census_pages(log.records[: body.size])
    assert merkle.tree_root([page_root(page) for page in counted]) != body.root
    document = replace(log.document(records=[0], subjects=[A]))
    leaf = domain.decode_leaf(document.records[0].record.leaf)
    assert [link.subject for link in leaf.subjects] == [A], "one record of it is enough to show the lie"


@pytest.mark.holds("insider-evidence")
def test_one_records_number_given_twice_is_found(pki: TestPki) -> None:
    """A subject whose index lost its newest row: the log numbers again from the one before."""
    log = ProofLog(pki, ManualClock())
    log.append(A)
    log.append(A)
    log.heads[A] = domain.SubjectHead(1, leaf_hash(log.records[0].leaf))
    log.append(A)
    log.count()
    document = log.document(subjects=[])
    claim = SubjectClaim(
        subject=A,
        first=1,
        leaves=log.leaves(A),
        census=CensusProof(log.census_index, log.placed(A)),
    )
    document = replace(document, records=(log.proven(log.census_index),), subjects=(claim,))
    ((_, words),) = failed(log, document)
    assert "number 3 is missing before number 2" in words


# --- a census that is none


def spoilt(log: ProofLog, change: Callable[[Record], Record]) -> list[tuple[Property, str]]:
    document = log.document(subjects=[A])
    (proven,) = document.records
    return failed(
        log,
        replace(document, records=(Proven(change(proven.record), proven.inclusion_path),)),
        verifier_key=log.verifier_key,
    )


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize(
    "change",
    [
        lambda one: replace(one, statement=b""),
        lambda one: replace(one, statement=one.statement[:-1] + bytes([one.statement[-1] ^ 1])),
        lambda one: replace(one, recorded=b""),
        lambda one: replace(one, chain=()),
        lambda one: replace(one, chain=one.chain * 2),
        lambda one: replace(one, index=one.index - 1),
    ],
)
def test_a_census_is_believed_only_as_a_record_of_the_log(
    log: ProofLog, change: Callable[[Record], Record]
) -> None:
    found = {of for of, _ in spoilt(log, change)}
    assert found >= {Property.COMPLETENESS} or found == {Property.PROVENANCE}


@pytest.mark.holds("insider-evidence")
def test_a_census_by_somebody_else_is_refused(log: ProofLog, pki: TestPki) -> None:
    """The decision signer hangs under the same root; it was not made for this."""
    decision = pki.signer_credential("decision")
    real = census_of(log.records[log.census_index], log.verifier)
    forged = decision.scribe(log.clock, numbered=True).sign(
        replace(real, subjects=0), subject=f"log/{log.origin}"
    )
    record = log.record(forged, decision, [f"log/{log.origin}"])
    with pytest.raises(Refused) as caught:
        census_of(record, log.verifier)
    assert caught.value.reason is Reason.SIGNATURE_INVALID
    with pytest.raises(Refused):
        census_of(log.records[0], log.verifier)


def test_a_census_that_counts_the_future_is_refused(log: ProofLog) -> None:
    body = Census(bytes(32), 1, 10_000, log.clock.now(), log.verifier_key)
    subject = f"log/{log.origin}"
    record = log.record(log.log_says.sign(body, subject=subject), log.signer, [subject])
    with pytest.raises(Refused, match="come after itself"):
        census_of(record, log.verifier)


@pytest.mark.holds("insider-evidence")
def test_two_keys_or_none_are_nobodys_word(log: ProofLog) -> None:
    assert "Nothing in it names" in failed(log, log.document(records=[1]))[0][1]
    subject = f"log/{log.origin}"
    real = census_of(log.records[log.census_index], log.verifier)
    other = log.log_says.sign(replace(real, log="vigil.test/evidence+00000000+AAAA"), subject=subject)
    index = log.record(other, log.signer, [subject]).index
    assert "different keys" in failed(log, log.document(records=[log.census_index, index]))[0][1]


def test_a_subject_or_record_twice_is_refused(log: ProofLog) -> None:
    document = log.document(records=[1], subjects=[A])
    assert failed(log, replace(document, subjects=document.subjects * 2))
    assert failed(log, replace(document, records=(*document.records, document.records[0])))


def test_another_trust_domain_is_told_at_once(log: ProofLog) -> None:
    document = replace(log.document(subjects=[A]), trust_domain="elsewhere.test")
    ((of, words),) = failed(log, document)
    assert (of, "elsewhere.test" in words) == (Property.CHECKPOINT, True)


def test_the_neighbours_of_an_absent_subject_are_unnamed(log: ProofLog) -> None:
    text = document_to_json(log.document(subjects=[NONE]))
    assert A not in text
    assert B not in text
    assert subject_key(NONE).hex() not in text
