"""N-of-M policies, as C2SP tlog-policy writes them."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vigil.core import notes
from vigil.core.witness_policy import WitnessPolicy, check_witnessed, parse_witness_policy
from vigil.errors import Reason, Refused

TEXT = notes.checkpoint_text("vigil.test/evidence", 3, hashlib.sha256(b"root").digest())


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def public(name: str) -> bytes:
    return key(name).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def vkey(name: str) -> str:
    return notes.cosigner_key(f"{name}.example", public(name))


LOG = notes.verifier_key("vigil.test/evidence", public("log"))
NOTE = notes.sign_note(TEXT, name="vigil.test/evidence", public_key=public("log"), sign=key("log").sign)


def note_with(*names: str) -> str:
    lines = [
        notes.cosign(TEXT, time=1000, name=f"{name}.example", public_key=public(name), sign=key(name).sign)
        for name in names
    ]
    return NOTE + "".join(lines)


def policy(*lines: str) -> WitnessPolicy:
    witnesses = [f"witness {name} {vkey(name)}" for name in ("a", "b", "c", "x", "y")]
    return parse_witness_policy("\n".join([*witnesses, *lines, ""]))


def reason_of(note: str, held: WitnessPolicy, log: str = LOG) -> Reason | None:
    try:
        check_witnessed(note, held, log_key=log)
    except Refused as error:
        return error.reason
    return None


def test_two_of_three() -> None:
    held = policy("group g 2 a b c", "quorum g")
    assert set(check_witnessed(note_with("a", "c"), held, log_key=LOG)) == {"a", "c"}
    assert reason_of(note_with("a"), held) is Reason.NOT_WITNESSED
    assert reason_of(NOTE, held) is Reason.NOT_WITNESSED
    assert reason_of(note_with("x", "y", "a"), held) is Reason.NOT_WITNESSED


def test_the_same_witness_twice_is_one() -> None:
    assert reason_of(note_with("a", "a"), policy("group g 2 a b c", "quorum g")) is Reason.NOT_WITNESSED


def test_groups_of_groups() -> None:
    held = policy("group one 2 a b c", "group two any x y", "group both all one two", "quorum both")
    assert reason_of(note_with("a", "b", "y"), held) is None
    assert reason_of(note_with("a", "b", "c"), held) is Reason.NOT_WITNESSED
    assert reason_of(note_with("a", "x", "y"), held) is Reason.NOT_WITNESSED


def test_one_witness_or_none() -> None:
    assert reason_of(note_with("b"), policy("quorum b")) is None
    assert reason_of(note_with("a"), policy("quorum b")) is Reason.NOT_WITNESSED
    assert reason_of(NOTE, policy("quorum none")) is None


def test_a_false_cosignature_refuses_the_note_however_many_are_sound() -> None:
    line = notes.cosign(
        TEXT.replace("\n3\n", "\n4\n"),
        time=1000,
        name="c.example",
        public_key=public("c"),
        sign=key("c").sign,
    )
    assert (
        reason_of(note_with("a", "b") + line, policy("group g 2 a b c", "quorum g"))
        is Reason.SIGNATURE_INVALID
    )


def test_the_logs_own_signature_is_needed_too() -> None:
    another = notes.verifier_key("vigil.test/evidence", public("mallory"))
    assert reason_of(note_with("a"), policy("quorum a"), another) is Reason.SIGNATURE_INVALID


def test_a_policy_that_names_logs_knows_no_other() -> None:
    assert reason_of(note_with("a"), policy(f"log {LOG}", "quorum a")) is None
    another = notes.verifier_key("other.example", public("other"))
    assert reason_of(note_with("a"), policy(f"log {another}", "quorum a")) is Reason.NOT_WITNESSED


def test_urls_comments_tabs_and_empty_lines_are_read() -> None:
    text = f"# ours\n\n\tlog {LOG} https://log.example \n witness\ta {vkey('a')} http://w.example:8420\nquorum a\n"
    held = parse_witness_policy(text)
    assert held.logs == (LOG,)
    assert held.witnesses["a"].url == "http://w.example:8420"


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["quorum a", "quorum b"],
        ["quorum unknown"],
        ["group g 0 a b", "quorum g"],
        ["group g 3 a b", "quorum g"],
        ["group g two a b", "quorum g"],
        ["group g all", "quorum g"],
        ["group g any a a", "quorum g"],
        ["group g any a", "group h any a b", "quorum h"],
        ["group g any h", "group h any a", "quorum g"],
        ["group a any b", "quorum a"],
        ["group none any b", "quorum none"],
        [f"witness again {vkey('a')}", "quorum a"],
        [f"witness d {LOG}", "quorum d"],
        [f"log {vkey('a')}", "quorum a"],
        [f"log {LOG}", f"log {LOG}", "quorum a"],
        ["quorum a b"],
        ["witnesses a", "quorum a"],
        ["quorum a\r"],
        ["group g \u0662 a b c", "quorum g"],
    ],
)
def test_what_is_no_policy_is_refused(lines: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        policy(*lines)
    assert refused.value.reason is Reason.FIELD_INVALID
