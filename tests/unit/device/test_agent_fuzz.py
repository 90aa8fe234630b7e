"""Whatever a gateway sends, the device neither fails nor changes."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.pumps import PumpSite, TestPump
from tests.unit.device.test_checks import PRESSURE, SET, fingerprint
from vigil.core.commands import RecordedProof
from vigil.core.revocations import Entry, PathStep
from vigil.core.statements.envelope import read_any
from vigil.device import messages
from vigil.device.facts import Bundle
from vigil.errors import Reason, refused

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PROOFS = st.builds(
    RecordedProof, st.binary(max_size=80), st.integers(-5, 2**64), st.tuples(st.binary(max_size=40))
)
BUNDLES = st.builds(
    Bundle,
    intent=st.binary(max_size=200),
    command=st.binary(max_size=200),
    approvals=st.tuples(st.binary(max_size=50)),
    statements_recorded=st.tuples(PROOFS),
    permit=st.binary(max_size=200),
    permit_recorded=st.none() | PROOFS,
    release=st.binary(max_size=100),
    downgrade=st.binary(max_size=100),
)
PARTS = ("intent", "command", "permit")


@pytest.mark.holds("malicious-gateway")
@given(bundle=BUNDLES)
@FUZZ
def test_random_bundles_are_refused(pump: TestPump, bundle: Bundle) -> None:
    before = fingerprint(pump)
    assert pump.send(bundle).error is not None
    assert fingerprint(pump) == before


@pytest.mark.holds("malicious-gateway")
@given(part=st.sampled_from(PARTS), place=st.integers(0, 5_000), bit=st.integers(0, 7))
@FUZZ
def test_a_flipped_bit_anywhere_is_refused(
    site: PumpSite, pump: TestPump, part: str, place: int, bit: int
) -> None:
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    data = bytearray(getattr(bundle, part))
    data[place % len(data)] ^= 1 << bit
    before = fingerprint(pump)
    answer = pump.send(replace(bundle, **{part: bytes(data)}))
    if answer.error is None:
        # An intermediate beside a statement is looked at by nobody: the statement is the very same one.
        assert read_any(bytes(data)).digest == read_any(getattr(bundle, part)).digest
        assert read_any(bytes(data)).chain[0] == read_any(getattr(bundle, part)).chain[0]
        return
    assert fingerprint(pump) == before


@given(
    data=st.binary(max_size=300),
    number=st.integers(0, 2**63),
    words=st.text(max_size=50),
)
@FUZZ
def test_other_messages_with_anything_in_them_are_survived(
    pump: TestPump, data: bytes, number: int, words: str
) -> None:
    before = fingerprint(pump)
    for message in (
        messages.Welcome(words, number, data, words),
        messages.NonceRequest(number, data, True, data),
        messages.Challenge(number, data, number),
        messages.Appraised(number, None),
        messages.ArtifactChunk(data, number, data, None),
        messages.Revocations((Entry(number, (data,), data),), data, (PathStep(number, 1, (data,)),), number),
        messages.Revocations((Entry(number, (data,), data),), b"", (), number),
        messages.ReceiptQuery(number, data),
        messages.StatusInterval(number),
        messages.Renewed(messages.Certificates((data,), (data,), words), None),
        messages.Renewed(None, refused(Reason.INTERNAL, "something")),
    ):
        pump.agent.handle(message)
    assert fingerprint(pump) == before
