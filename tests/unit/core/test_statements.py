"""Every kind of statement: one encoding, one kind, one signature."""

import dataclasses
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pki import Credential, TestPki
from tests.support.statements import EXAMPLES
from vigil.core import cbor, cose
from vigil.core.certificates import Kind
from vigil.core.clock import ManualClock
from vigil.core.keys import KeySigner
from vigil.core.statements import bodies
from vigil.core.statements.envelope import (
    BODY_OF,
    CONTENT_TYPE_OF,
    KIND_OF,
    SIGNED_BY,
    Scribe,
    StatementKind,
    check,
    kind_of,
    read,
    read_any,
)
from vigil.core.statements.schema import decode_body, encode_body, to_map
from vigil.errors import Reason, Refused

KINDS = sorted(BODY_OF)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> TestPki:
    return TestPki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def technician(pki: TestPki) -> Credential:
    return pki.issue(Kind.PERSON, "p-ada", roles=("technician",), sites=("site-1",))


def scribe_of(credential: Credential, *, numbered: bool = False) -> Scribe:
    return credential.scribe(ManualClock(), numbered=numbered)


def test_every_kind_has_a_body_a_content_type_a_signer_and_an_example() -> None:
    assert set(BODY_OF) == set(StatementKind) == set(CONTENT_TYPE_OF) == set(SIGNED_BY)
    assert len(set(CONTENT_TYPE_OF.values())) == len(StatementKind)
    assert set(EXAMPLES) == set(KIND_OF)


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_has_one_encoding_and_reads_back(kind: StatementKind) -> None:
    body = EXAMPLES[BODY_OF[kind]]
    payload = encode_body(body)
    assert decode_body(type(body), payload) == body
    assert encode_body(decode_body(type(body), payload)) == payload


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_missing_and_mistyped_fields_are_malformed(kind: StatementKind) -> None:
    body_type = BODY_OF[kind]
    good = to_map(EXAMPLES[body_type])
    required = [
        field.name
        for field in dataclasses.fields(body_type)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    wrong: list[dict[int | str, object]] = [{**good, "surprise": 1}]
    for label in good:
        wrong.append({**good, label: {"not": "this"} if not isinstance(good[label], dict) else 7})
        if label in required:
            wrong.append({other: value for other, value in good.items() if other != label})
    for value in wrong:
        with pytest.raises(Refused) as refusal:
            decode_body(body_type, cbor.encode(value))
        assert refusal.value.reason is Reason.STATEMENT_MALFORMED


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    for reader in (read_any, kind_of, lambda raw: decode_body(bodies.Intent, raw)):
        try:
            reader(data)
        except Refused as refusal:
            assert refusal.reason is Reason.STATEMENT_MALFORMED  # noqa: PT017 - both ends are right


def test_a_signed_statement_reads_checks_and_keeps_its_digest(technician: Credential) -> None:
    signed = scribe_of(technician).sign(EXAMPLES[bodies.Intent], subject="device/dev-aaaaaaaaaaaaaaaa")
    again = read(signed.data, bodies.Intent)
    check(again, technician.identity)
    assert again.digest == signed.digest == read(cose.without_chain(signed.data), bodies.Intent).digest
    assert again.number is None
    assert again.issuer == "person/p-ada"


def test_the_kind_expected_decides(technician: Credential) -> None:
    signed = scribe_of(technician).sign(EXAMPLES[bodies.Approval], subject="device/d")
    with pytest.raises(Refused) as refusal:
        read(signed.data, bodies.Intent)
    assert refusal.value.reason is Reason.STATEMENT_MALFORMED
    assert kind_of(signed.data) is StatementKind.APPROVAL


def test_a_flipped_bit_anywhere_in_the_signature_fails(technician: Credential) -> None:
    signed = scribe_of(technician).sign(EXAMPLES[bodies.Intent], subject="device/d")
    for place in (1, 17, 40, 63):
        data = bytearray(signed.data)
        data[-place] ^= 0x01
        with pytest.raises(Refused) as refusal:
            check(read(bytes(data), bodies.Intent), technician.identity)
        assert refusal.value.reason is Reason.SIGNATURE_INVALID


@pytest.mark.holds("stolen-signers")
def test_only_the_right_kind_of_signer_may_sign_a_kind(pki: TestPki, technician: Credential) -> None:
    decided = Scribe(
        signer=technician.signer,
        issuer="person/p-ada",
        clock=ManualClock(),
        entropy=os.urandom,
        numbered=False,
    ).sign(EXAMPLES[bodies.Decision], subject="device/d")
    with pytest.raises(Refused) as refusal:
        check(decided, technician.identity)
    assert refusal.value.reason is Reason.SIGNATURE_INVALID
    head: KeySigner = pki.signer("head")
    identity = pki.verifier.remember(head.chain)
    forged = Scribe(
        signer=head, issuer=f"signer/{identity.id}", clock=ManualClock(), entropy=os.urandom, numbered=True
    ).sign(EXAMPLES[bodies.Decision], subject="device/d")
    with pytest.raises(Refused, match="not made for"):
        check(forged, identity)


@pytest.mark.holds("stolen-signers")
def test_an_issuer_that_is_not_the_certificates_holder_is_refused(technician: Credential) -> None:
    signed = Scribe(
        signer=technician.signer,
        issuer="person/p-eve",
        clock=ManualClock(),
        entropy=os.urandom,
        numbered=False,
    ).sign(EXAMPLES[bodies.Intent], subject="device/d")
    with pytest.raises(Refused) as refusal:
        check(signed, technician.identity)
    assert refusal.value.reason is Reason.SIGNATURE_INVALID


def test_numbers_are_gapless_and_name_the_statement_before(pki: TestPki) -> None:
    signer = pki.signer("recorded")
    identity = pki.verifier.remember(signer.chain)
    scribe = Scribe(
        signer=signer, issuer=f"signer/{identity.id}", clock=ManualClock(), entropy=os.urandom, numbered=True
    )
    signed = [scribe.sign(EXAMPLES[bodies.Recorded], subject="log") for _ in range(4)]
    numbers = [statement.number for statement in signed]
    assert [number.number for number in numbers if number] == [0, 1, 2, 3]
    assert numbers[0] is not None
    assert numbers[0].previous == b""
    for before, after in zip(signed, numbers[1:], strict=False):
        assert after is not None
        assert after.previous == before.digest
