"""COSE Receipts: read by another CBOR library, and refused where anything in them is another."""

from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pki import TestPki
from tests.support.proofs import ProofLog
from vigil.core import merkle
from vigil.core.clock import ManualClock
from vigil.core.receipts import (
    INCLUSION,
    Proof,
    Receipt,
    check_consistency_receipt,
    check_inclusion_receipt,
    is_receipt,
    read_receipt,
    sign_receipt,
)
from vigil.errors import Reason, Refused


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ProofLog:
    log = ProofLog(TestPki(tmp_path_factory.mktemp("receipts-pki"), clock=ManualClock()), ManualClock())
    for number in range(7):
        log.append(f"device/{number}")
    return log


def reason_of(run: Callable[[], object]) -> Reason:
    with pytest.raises(Refused) as caught:
        run()
    return caught.value.reason


def test_each_record_has_its_receipt(log: ProofLog) -> None:
    for index, record in enumerate(log.records):
        data = log.receipt(index)
        assert is_receipt(data)
        receipt = read_receipt(data)
        assert (receipt.leaf, receipt.proof.second) == (record.leaf, index)
        check_inclusion_receipt(receipt, log.verifier_key, record.leaf)
        other = log.records[(index + 1) % 7].leaf
        assert reason_of(lambda r=receipt, o=other: check_inclusion_receipt(r, log.verifier_key, o)) is (
            Reason.NOT_RECORDED
        )


def test_a_receipt_is_of_the_form_of_the_standard(log: ProofLog) -> None:
    """RFC 9942: tag 18, vds 395 protected, vdp 396 unprotected, nothing as payload."""
    tagged = cbor2.loads(log.receipt(2))
    assert tagged.tag == 18
    protected, unprotected, payload, signature = tagged.value
    assert (payload, len(signature)) == (None, 64)
    assert cbor2.loads(protected) == {
        1: -8,
        4: log.verifier_key.split("+")[1] and bytes.fromhex(log.verifier_key.split("+")[1]),
        15: {1: "vigil.test/evidence"},
        395: 1,
    }
    assert set(unprotected) == {396, "vigil.leaf"}
    ((kind, (proof,)),) = unprotected[396].items()
    assert kind == -1
    assert cbor2.loads(proof) == [7, 2, merkle.inclusion_path(log.hashes, 2)]


def test_growth_has_its_receipt(log: ProofLog) -> None:
    for since in range(1, 7):
        receipt = read_receipt(log.consistency_receipt(since))
        root = merkle.tree_root(log.hashes[:since])
        check_consistency_receipt(receipt, log.verifier_key, old_size=since, old_root=root)
        for size, old in ((since, bytes(32)), (since + 1, root)):
            run = lambda s=size, o=old, r=receipt: check_consistency_receipt(  # noqa: E731
                r, log.verifier_key, old_size=s, old_root=o
            )
            assert reason_of(run) in (Reason.NOT_RECORDED, Reason.SIGNATURE_INVALID)
    inclusion = read_receipt(log.receipt(1))
    assert (
        reason_of(
            lambda: check_consistency_receipt(inclusion, log.verifier_key, old_size=7, old_root=bytes(32))
        )
        is Reason.NOT_RECORDED
    )
    assert (
        reason_of(lambda: check_inclusion_receipt(receipt, log.verifier_key, log.records[1].leaf))
        is Reason.NOT_RECORDED
    )


def test_a_proof_without_a_path_has_none() -> None:
    proof = Proof(INCLUSION, 1, 0, ())
    run = lambda: sign_receipt(proof, bytes(32), origin="o", public_key=bytes(32), sign=bytes)  # noqa: E731
    assert reason_of(run) is Reason.FIELD_INVALID


def test_another_logs_key_is_refused(log: ProofLog) -> None:
    other = ProofLog(log.pki, ManualClock())
    receipt = read_receipt(log.receipt(1))
    run = lambda: check_inclusion_receipt(receipt, other.verifier_key, log.records[1].leaf)  # noqa: E731
    assert reason_of(run) is Reason.SIGNATURE_INVALID


def rebuilt(data: bytes, change: Callable[[Any, dict[Any, Any], list[Any]], None]) -> bytes:
    """The receipt with its parts changed, encoded as the standard says."""
    protected, unprotected, payload, signature = cbor2.loads(data).value
    parts = [protected, unprotected, payload, signature]
    headers = cbor2.loads(protected)
    change(headers, unprotected, parts)
    if parts[0] is protected:
        parts[0] = cbor2.dumps(headers, canonical=True)
    return b"\xd2" + cbor2.dumps(parts, canonical=True)


@pytest.mark.holds("hostile-input")
@pytest.mark.parametrize(
    "change",
    [
        lambda h, _u, _p: h.update({1: -7}),
        lambda h, _u, _p: h.update({395: 2}),
        lambda h, _u, _p: h.update({395: True}),
        lambda h, _u, _p: h.update({99: 1}),
        lambda h, _u, _p: h.update({15: {1: "x", 2: "y"}}),
        lambda h, _u, _p: h.update({15: "x"}),
        lambda h, _u, _p: h.update({4: "x"}),
        lambda h, _u, _p: h.pop(4),
        lambda _h, u, _p: u.pop(396),
        lambda _h, u, _p: u.update({396: []}),
        lambda _h, u, _p: u.update({396: {}}),
        lambda _h, u, _p: u.update({396: {-3: u[396][-1]}}),
        lambda _h, u, _p: u.update({396: {-1: u[396][-1] * 2}}),
        lambda _h, u, _p: u.update({396: {**u[396], -2: u[396][-1]}}),
        lambda _h, u, _p: u.update({396: {-2: u[396][-1]}}),
        lambda _h, u, _p: u.update({396: {-1: [cbor2.dumps([7, 2, []])]}}),
        lambda _h, u, _p: u.update({396: {-1: [cbor2.dumps([7, 2, [b"x"]])]}}),
        lambda _h, u, _p: u.update({396: {-1: [cbor2.dumps([7, -2, [bytes(32)]])]}}),
        lambda _h, u, _p: u.update({396: {-1: [cbor2.dumps([7, 2, [bytes(32)] * 65])]}}),
        lambda _h, u, _p: u.update({396: {-1: [cbor2.dumps([7, 2])]}}),
        lambda _h, u, _p: u.update({"vigil.leaf": b""}),
        lambda _h, u, _p: u.update({"vigil.leaf": "x"}),
        lambda _h, u, _p: u.update({"more": 1}),
        lambda _h, _u, p: p.__setitem__(2, bytes(32)),
        lambda _h, _u, p: p.__setitem__(3, bytes(63)),
        lambda _h, _u, p: p.append(1),
        lambda _h, _u, p: p.__setitem__(0, b""),
    ],
)
def test_another_form_is_refused(log: ProofLog, change: Callable[..., None]) -> None:
    data = log.receipt(2)
    assert read_receipt(rebuilt(data, lambda *_: None)) == read_receipt(data)
    assert reason_of(lambda: read_receipt(rebuilt(data, change))) is Reason.STATEMENT_MALFORMED


@pytest.mark.holds("insider-evidence")
@settings(max_examples=400, deadline=None)
@given(at=st.integers(0, 2_000), bit=st.integers(0, 7))
def test_no_bit_of_a_receipt_can_be_another(log: ProofLog, at: int, bit: int) -> None:
    data = log.receipt(2)
    at %= len(data)
    changed = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]

    def taken() -> Receipt | None:
        try:
            receipt = read_receipt(changed)
            check_inclusion_receipt(receipt, log.verifier_key, log.records[2].leaf)
        except Refused:
            return None
        return receipt

    receipt = taken()
    # The size stands beside the signature: one whose tree has the same path is taken, and proves no more.
    assert receipt is None or (receipt.proof.second, receipt.proof.path) == (
        2,
        tuple(merkle.inclusion_path(log.hashes, 2)),
    )


@pytest.mark.parametrize("data", [b"", b"\xd2", b"\x84", b"\xd2\xf6", b"\xd2" + bytes(200_000)])
def test_what_is_no_receipt_is_refused(data: bytes) -> None:
    assert reason_of(lambda: read_receipt(data)) is Reason.STATEMENT_MALFORMED
