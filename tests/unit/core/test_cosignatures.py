"""C2SP cosignatures: held against bytes that are put together here, by `cryptography` and the words of the specs."""

import base64
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vigil.core import notes
from vigil.errors import Reason, Refused

NAME = "witness.example/w1"
TEXT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
TIME = 1_679_315_147
KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"a witness").digest())
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
VERIFIER_KEY = notes.cosigner_key(NAME, PUBLIC)


def line_by_hand(text: str = TEXT, *, time: int = TIME, kind: bytes = b"\x04", name: str = NAME) -> str:
    """A signature line after tlog-cosignature: no code of ours in it."""
    named = hashlib.sha256(name.encode() + b"\n" + kind + PUBLIC).digest()[:4]
    signature = KEY.sign(b"cosignature/v1\ntime %d\n%s" % (time, text.encode()))
    payload = named + struct.pack(">Q", time) + signature
    return f"— {name} {base64.b64encode(payload).decode()}\n"


def found(lines: str, text: str = TEXT) -> notes.Cosignature | None:
    return notes.find_cosignature(text, notes.parse_signatures(lines), VERIFIER_KEY)


def test_the_line_is_the_one_of_the_specification() -> None:
    made = notes.cosign(TEXT, time=TIME, name=NAME, public_key=PUBLIC, sign=KEY.sign)
    assert made == line_by_hand()
    assert found(made) == notes.Cosignature(NAME, TIME, made)


def test_the_example_of_the_specification_is_read() -> None:
    """tlog-cosignature's own example: its time stands in it, in the first eight bytes after the key id."""
    note = TEXT + (
        "\n— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1g"
        "GzGku9nTo+zyWE+xeMcTOAYQ8=\n— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeol"
        "MI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
    )
    read = notes.parse_note(note)
    assert read.text == TEXT
    witness = read.signatures[1]
    assert witness.name == "witness.example.com/w1"
    assert len(witness.signature) == 8 + 64
    assert int.from_bytes(witness.signature[:8], "big") == TIME


def test_another_projects_cosignature_is_read() -> None:
    """Made by `NewSignerForCosignatureV1` of github.com/transparency-dev/formats v0.1.1 with the key of this file."""
    line = (
        "— witness.example/w1 UR4/aAAAAABrCoArSV4BwYJzKqpvaDbN67P57N02u1Dd4Hcjqelu1uwaygk+B5mL11eUcMmxRWIAZH"
        "PPvd6eagTQRU8xy7zcYnYDDg==\n"
    )
    assert found(line) == notes.Cosignature(NAME, 1_795_850_283, line)
    assert line_by_hand(time=1_795_850_283) == line, "Ed25519 signs the same in the same way"


def test_a_witness_key_is_written_as_the_specification_says() -> None:
    typed = b"\x04" + PUBLIC
    named = hashlib.sha256(NAME.encode() + b"\n" + typed).hexdigest()[:8]
    assert f"{NAME}+{named}+{base64.b64encode(typed).decode()}" == VERIFIER_KEY
    assert notes.parse_cosigner_key(VERIFIER_KEY) == (NAME, PUBLIC)


def test_a_logs_key_is_no_witnesss_and_the_other_way_round() -> None:
    with pytest.raises(Refused) as refused:
        notes.parse_cosigner_key(notes.verifier_key(NAME, PUBLIC))
    assert refused.value.reason is Reason.FIELD_INVALID
    with pytest.raises(Refused):
        notes.parse_verifier_key(VERIFIER_KEY)


def test_a_plain_signature_of_the_same_key_is_no_cosignature() -> None:
    note = notes.sign_note(TEXT, name=NAME, public_key=PUBLIC, sign=KEY.sign)
    assert found(note.removeprefix(TEXT + "\n")) is None
    with pytest.raises(Refused) as refused:
        notes.open_note(f"{TEXT}\n{line_by_hand()}", notes.verifier_key(NAME, PUBLIC))
    assert refused.value.reason is Reason.SIGNATURE_INVALID


def test_a_strangers_line_is_passed_over() -> None:
    assert found(line_by_hand(name="witness.example/w2")) is None
    assert found(line_by_hand(kind=b"\x01")) is None


@pytest.mark.parametrize("wrong", ["text", "time", "bit", "short"])
def test_a_line_that_claims_the_key_and_does_not_verify_refuses_the_note(wrong: str) -> None:
    line = line_by_hand(TEXT.replace("20852163", "20852164") if wrong == "text" else TEXT)
    payload = bytearray(base64.b64decode(line.rpartition(" ")[2]))
    if wrong == "time":
        payload[11] ^= 1
    elif wrong == "bit":
        payload[-1] ^= 1
    elif wrong == "short":
        del payload[-1]
    with pytest.raises(Refused) as refused:
        found(f"— {NAME} {base64.b64encode(payload).decode()}\n")
    assert refused.value.reason in (Reason.SIGNATURE_INVALID, Reason.STATEMENT_MALFORMED)


def test_of_two_cosignatures_the_newer_counts() -> None:
    newer = line_by_hand(time=TIME + 9)
    assert found(newer + line_by_hand()) == notes.Cosignature(NAME, TIME + 9, newer)


def test_a_time_beyond_63_bits_is_refused() -> None:
    with pytest.raises(Refused):
        found(line_by_hand(time=2**63))
