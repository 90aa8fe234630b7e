"""A log that goes on from an older copy signs nothing new while enough witnesses hold more; a liar stops nothing."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vigil.core.notes import cosigner_key
from vigil.core.witness_policy import WitnessPolicy, parse_witness_policy
from vigil.errors import Reason, Refused
from vigil.evidence.guard import HistoryGuard, Holds


def policy(quorum: str = "quorum g") -> WitnessPolicy:
    keys = [Ed25519PrivateKey.generate().public_key() for _ in range(3)]
    lines = [
        f"witness w{n} {cosigner_key(f'w{n}', key.public_bytes(Encoding.Raw, PublicFormat.Raw))} http://w{n}"
        for n, key in enumerate(keys)
    ]
    return parse_witness_policy("\n".join([*lines, "group g 2 w0 w1 w2", quorum, ""]))


def refusal(guard: HistoryGuard) -> Refused:
    with pytest.raises(Refused) as caught:
        guard.check()
    assert caught.value.reason is Reason.EVIDENCE_UNAVAILABLE
    return caught.value


@pytest.mark.holds("insider-evidence")
def test_every_witness_is_asked_once_before_anything_new_is_signed() -> None:
    guard = HistoryGuard(policy(), begun=True)
    for name in ("w0", "w1", "w2"):
        assert name in str(refusal(guard))
        guard.heard(name, Holds.SAME)
    guard.check()


@pytest.mark.holds("insider-evidence")
def test_enough_that_hold_more_stop_it_and_one_does_not() -> None:
    guard = HistoryGuard(policy(), begun=True)
    for name in ("w0", "w1", "w2"):
        guard.heard(name, Holds.MORE if name == "w0" else Holds.SAME)
    guard.check()
    guard.heard("w2", Holds.MORE)
    assert guard.older
    assert "w0, w2 hold more" in str(refusal(guard))
    guard.heard("w0", Holds.SAME)
    guard.check()


@pytest.mark.holds("insider-evidence")
def test_enough_that_hold_another_history_stop_it_and_one_does_not() -> None:
    guard = HistoryGuard(policy(), begun=False)
    guard.heard("w0", Holds.OTHER)
    guard.check()
    guard.heard("w0", Holds.MORE)
    guard.heard("w0", Holds.OTHER)
    guard.check()
    guard.heard("w1", Holds.MORE)
    assert "w1 hold more of this log than is here; w0 hold another history" in str(refusal(guard))
    guard.heard("w1", Holds.OTHER)
    assert "w0, w1 hold another history" in str(refusal(guard))
    guard.heard("w1", Holds.SAME)
    guard.check()


def test_who_does_not_answer_takes_nothing_back() -> None:
    guard = HistoryGuard(policy(), begun=False)
    for name in ("w0", "w1"):
        guard.heard(name, Holds.OTHER)
        guard.heard(name, Holds.UNSAID, trouble="unreachable: nobody")
    assert guard.older
    assert guard.witnesses["w0"] == (0, "unreachable: nobody")


def test_a_new_log_a_log_without_witnesses_and_one_without_a_quorum_wait_for_nobody() -> None:
    HistoryGuard(policy(), begun=False).check()
    HistoryGuard(WitnessPolicy(), begun=True).check()
    guard = HistoryGuard(policy("quorum none"), begun=True)
    for name in ("w0", "w1", "w2"):
        guard.heard(name, Holds.OTHER)
    guard.check()
