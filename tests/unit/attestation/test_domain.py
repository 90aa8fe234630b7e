"""Appraisal, rule by rule: what each lie of a device looks like to the verifier."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.statements import EXAMPLES, NOW
from vigil.attestation.domain import (
    EAT_PROFILE,
    NO_LIBRARY,
    Appraisal,
    Known,
    References,
    appraise,
    check_submission,
    decode_known,
    encode_known,
    malfunction,
    read_leaf,
    tier,
)
from vigil.core import cbor
from vigil.core.digest import sha256
from vigil.core.merkle import Frontier, leaf_hash
from vigil.core.statements.bodies import ActionClass, Evidence, LogHead, Measurements, Release, TrustTier
from vigil.core.submission import submission_digest
from vigil.errors import Reason, Refused

FIRMWARE, SBOM, CONFIGURATION = sha256(b"firmware"), sha256(b"sbom"), sha256(b"configuration")
OLD = sha256(b"old firmware")
PERMIT = sha256(b"permit")
RELEASE: Release = dataclasses.replace(EXAMPLES[Release], firmware=FIRMWARE, sbom=SBOM, security_version=3)
REFERENCES = References(
    model_known=True,
    releases={
        FIRMWARE: RELEASE,
        OLD: dataclasses.replace(RELEASE, firmware=OLD, version="1.0.0", security_version=2),
    },
    configurations=frozenset({CONFIGURATION}),
    libraries=frozenset(),
)


def leaf(kind: str, digest: bytes, *, boot: int = 1, permit: bytes | None = None) -> bytes:
    value: dict[int | str, object] = {"kind": kind, "boot": boot, "digest": digest, "time": NOW}
    return cbor.encode(value if permit is None else {**value, "permit": permit})


FIRST = [leaf("boot", bytes(32)), leaf("firmware", FIRMWARE), leaf("configuration", CONFIGURATION)]


class Pump:
    """A device's side of the log, honest unless told otherwise."""

    def __init__(self) -> None:
        self.frontier = Frontier.empty()
        self.counter = 0

    def evidence(self, leaves: list[bytes], **changes: object) -> Evidence:
        self.frontier = self.frontier.extend([leaf_hash(item) for item in leaves])
        self.counter += 1
        body = dataclasses.replace(
            EXAMPLES[Evidence],
            eat_profile=EAT_PROFILE,
            measurements=Measurements(FIRMWARE, CONFIGURATION, NO_LIBRARY, SBOM),
            log=LogHead(self.frontier.size, self.frontier.root(), self.counter),
            swversion=("1.6.3",),
            security_version=3,
            bootcount=1,
        )
        return dataclasses.replace(body, **changes)


def judge(
    evidence: Evidence,
    leaves: list[bytes],
    *,
    known: Known | None = None,
    permits: dict[bytes, ActionClass] | None = None,
    references: References = REFERENCES,
) -> Appraisal:
    return appraise(
        evidence, leaves=leaves, permits=permits or {}, known=known or Known(), references=references
    )


def healthy() -> tuple[Pump, Known]:
    pump = Pump()
    appraisal = judge(pump.evidence(FIRST), FIRST)
    assert appraisal.status is TrustTier.AFFIRMING, appraisal.reasons
    return pump, appraisal.known


def test_an_honest_pump_is_affirming_and_the_frontier_follows_its_log() -> None:
    pump, known = healthy()
    assert known.frontier == pump.frontier
    more = [leaf("command", PERMIT)]
    again = judge(pump.evidence(more), more, known=known)
    assert again.status is TrustTier.AFFIRMING
    assert again.known.frontier.size == 4
    assert decode_known(encode_known(again.known)) == again.known


@pytest.mark.holds("cloned-device")
def test_a_log_that_does_not_lead_to_the_signed_root_is_a_clone_for_good() -> None:
    pump, known = healthy()
    evidence = pump.evidence([leaf("command", PERMIT)])
    forged = judge(evidence, [leaf("command", OLD)], known=known)
    assert forged.status is TrustTier.CONTRAINDICATED
    assert forged.reasons[0] == "log_diverged"
    assert forged.vector["instance-identity"] == 96
    honest_later = judge(pump.evidence([]), [], known=forged.known)
    assert honest_later.reasons[0] == "log_diverged"


@pytest.mark.holds("malicious-gateway")
@pytest.mark.parametrize("fault", ["altered", "cut", "begun elsewhere", "without its permit"])
def test_a_gateway_on_the_way_makes_no_clone(fault: str) -> None:
    """What the device signed is told from what arrived: nothing changes, and the next evidence counts."""
    pump, known = healthy()
    more, permits = [leaf("command", PERMIT), leaf("receipt", OLD)], [b"permit"]
    digest = submission_digest(first_leaf=3, leaves=more, permits=permits)
    evidence = pump.evidence(more, submission=digest)
    check_submission(known, evidence, first_leaf=3, leaves=more, permits=permits)
    arrived = {
        "altered": (3, [leaf("command", OLD), more[1]], permits),
        "cut": (3, more[:1], permits),
        "begun elsewhere": (0, [*FIRST, *more], permits),
        "without its permit": (3, more, []),
    }[fault]
    with pytest.raises(Refused) as refusal:
        check_submission(known, evidence, first_leaf=arrived[0], leaves=arrived[1], permits=arrived[2])
    assert refusal.value.reason is Reason.STATEMENT_MALFORMED


@pytest.mark.holds("malicious-gateway")
def test_a_gateway_that_tells_another_size_shortens_no_log() -> None:
    """A long log is sent in parts, each under its own head: from a false start, that head is a short one."""
    pump, known = healthy()
    part = FIRST[:2]
    frontier = Frontier.empty().extend([leaf_hash(item) for item in part])
    evidence = pump.evidence(
        [],
        log=LogHead(2, frontier.root(), 9),
        submission=submission_digest(first_leaf=0, leaves=part, permits=[]),
    )
    with pytest.raises(Refused):
        check_submission(known, evidence, first_leaf=0, leaves=part)
    short = dataclasses.replace(evidence, submission=submission_digest(first_leaf=2, leaves=[], permits=[]))
    check_submission(known, short, first_leaf=2, leaves=[])
    assert judge(short, [], known=known).reasons[0] == "log_shortened"


@pytest.mark.holds("cloned-device")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"log": LogHead(2, bytes(32), 9)}, "log_shortened"),
        ({"bootcount": 0}, "boot_count_fell"),
    ],
)
def test_a_device_that_went_back_is_contraindicated(changes: dict[str, object], reason: str) -> None:
    pump, known = healthy()
    appraisal = judge(pump.evidence([], **changes), [], known=known)
    assert appraisal.status is TrustTier.CONTRAINDICATED
    assert appraisal.reasons[0] == reason
    assert appraisal.known.diverged


@pytest.mark.holds("cloned-device")
def test_a_counter_that_did_not_rise_with_the_log_is_a_copy() -> None:
    pump, known = healthy()
    more = [leaf("command", PERMIT)]
    evidence = pump.evidence(more)
    stale = dataclasses.replace(evidence, log=dataclasses.replace(evidence.log, counter=known.counter))
    assert judge(stale, more, known=known).reasons[0] == "counter_not_risen"


@pytest.mark.holds("rollback-and-mix")
@pytest.mark.parametrize(
    ("measured", "changes", "reason"),
    [
        (Measurements(sha256(b"evil"), CONFIGURATION, NO_LIBRARY, SBOM), {}, "firmware_not_logged"),
        (Measurements(FIRMWARE, CONFIGURATION, NO_LIBRARY, sha256(b"other")), {}, "sbom_mismatch"),
        (Measurements(FIRMWARE, sha256(b"other"), NO_LIBRARY, SBOM), {}, "configuration_not_logged"),
        (
            Measurements(FIRMWARE, CONFIGURATION, NO_LIBRARY, SBOM),
            {"swversion": ("9.9",)},
            "version_mismatch",
        ),
        (
            Measurements(FIRMWARE, CONFIGURATION, NO_LIBRARY, SBOM),
            {"security_version": 9},
            "security_version_mismatch",
        ),
        (Measurements(FIRMWARE, CONFIGURATION, NO_LIBRARY, SBOM), {"dbgstat": 0}, "debug_enabled"),
    ],
)
def test_mix_and_match_is_contraindicated(
    measured: Measurements, changes: dict[str, object], reason: str
) -> None:
    pump, known = healthy()
    appraisal = judge(pump.evidence([], measurements=measured, **changes), [], known=known)
    assert appraisal.status is TrustTier.CONTRAINDICATED
    assert reason in appraisal.reasons


@pytest.mark.holds("rollback-and-mix")
def test_firmware_that_nobody_published_is_contraindicated_even_when_it_logs_itself() -> None:
    pump, known = healthy()
    evil = sha256(b"evil")
    leaves = [leaf("boot", bytes(32), boot=2), leaf("firmware", evil, boot=2)]
    measured = Measurements(evil, CONFIGURATION, NO_LIBRARY, SBOM)
    appraisal = judge(pump.evidence(leaves, measurements=measured, bootcount=2), leaves, known=known)
    assert appraisal.status is TrustTier.CONTRAINDICATED
    assert appraisal.reasons == ("firmware_unrecognized",)
    assert appraisal.vector["executables"] == 96


@pytest.mark.holds("rollback-and-mix")
def test_an_older_security_version_needs_a_permit() -> None:
    for permits, expected in (({}, ("firmware_rollback",)), ({PERMIT: ActionClass.U}, ())):
        pump, known = healthy()
        leaves = [leaf("firmware", OLD, permit=PERMIT)]
        evidence = pump.evidence(
            leaves,
            measurements=Measurements(OLD, CONFIGURATION, NO_LIBRARY, SBOM),
            swversion=("1.0.0",),
            security_version=2,
        )
        assert judge(evidence, leaves, known=known, permits=permits).reasons == expected


def test_a_permitted_change_of_configuration_is_approved_and_an_unpermitted_one_is_not() -> None:
    changed = sha256(b"changed")
    measured = Measurements(FIRMWARE, changed, NO_LIBRARY, SBOM)
    leaves = [leaf("configuration", changed, permit=PERMIT)]
    for permits, status in (
        ({PERMIT: ActionClass.C}, TrustTier.AFFIRMING),
        ({PERMIT: ActionClass.R}, TrustTier.WARNING),
        ({}, TrustTier.WARNING),
    ):
        pump, known = healthy()
        appraisal = judge(pump.evidence(leaves, measurements=measured), leaves, known=known, permits=permits)
        assert appraisal.status is status
    follow = [leaf("configuration", changed, boot=2)]
    pump, known = healthy()
    approved = judge(
        pump.evidence(leaves, measurements=measured), leaves, known=known, permits={PERMIT: ActionClass.C}
    )
    rebooted = pump.evidence(follow, measurements=measured, bootcount=2)
    assert judge(rebooted, follow, known=approved.known).status is TrustTier.AFFIRMING


def test_the_first_configuration_is_known_from_what_was_measured_not_from_a_leaf() -> None:
    pump = Pump()
    first = [leaf("boot", bytes(32)), leaf("firmware", FIRMWARE)]
    known = judge(pump.evidence(first), first).known
    changed = sha256(b"changed")
    leaves = [leaf("configuration", changed, permit=PERMIT)]
    evidence = pump.evidence(leaves, measurements=Measurements(FIRMWARE, changed, NO_LIBRARY, SBOM))
    appraisal = judge(evidence, leaves, known=known, permits={PERMIT: ActionClass.C})
    assert appraisal.status is TrustTier.AFFIRMING


@pytest.mark.holds("rollback-and-mix")
def test_a_permit_does_not_whitewash_a_configuration_that_was_never_approved() -> None:
    wrong, changed = sha256(b"wrong"), sha256(b"changed")
    pump = Pump()
    first = [leaf("configuration", wrong)]
    known = judge(
        pump.evidence(first, measurements=Measurements(FIRMWARE, wrong, NO_LIBRARY, SBOM)), first
    ).known
    leaves = [leaf("configuration", changed, permit=PERMIT)]
    evidence = pump.evidence(leaves, measurements=Measurements(FIRMWARE, changed, NO_LIBRARY, SBOM))
    appraisal = judge(evidence, leaves, known=known, permits={PERMIT: ActionClass.C})
    assert appraisal.reasons == ("configuration_unapproved",)


@pytest.mark.holds("cloned-device")
def test_a_submission_must_begin_where_the_verifiers_copy_ends() -> None:
    pump, known = healthy()
    evidence = pump.evidence([leaf("command", PERMIT)])
    check_submission(known, evidence, first_leaf=3, leaves=[leaf("command", PERMIT)])
    for first in (0, 2, 4):
        with pytest.raises(Refused) as refusal:
            check_submission(known, evidence, first_leaf=first, leaves=[])
        assert refusal.value.reason is Reason.STATEMENT_MALFORMED
    with pytest.raises(Refused):
        check_submission(
            known, dataclasses.replace(evidence, eat_profile="tag:other"), first_leaf=3, leaves=[]
        )


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([2, 3, 0], TrustTier.AFFIRMING),
        ([0], TrustTier.NONE),
        ([], TrustTier.NONE),
        ([2, -1], TrustTier.NONE),
        ([2, 32], TrustTier.WARNING),
        ([32, 96, 2], TrustTier.CONTRAINDICATED),
        ([-97], TrustTier.CONTRAINDICATED),
        ([-33], TrustTier.WARNING),
        ([-2], TrustTier.AFFIRMING),
    ],
)
def test_the_tier_is_the_worst_of_the_vector(claims: list[int], expected: TrustTier) -> None:
    assert tier(claims) is expected


def test_a_failed_appraisal_leaves_the_device_untrusted_and_what_was_known() -> None:
    _, known = healthy()
    appraisal = malfunction(known)
    assert appraisal.status is TrustTier.NONE
    assert appraisal.known == known


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_as_a_leaf_are_refused_or_read(data: bytes) -> None:
    try:
        read_leaf(data)
    except Refused as refusal:
        assert refusal.reason is Reason.STATEMENT_MALFORMED  # noqa: PT017 - both ends are right


@pytest.mark.holds("rollback-and-mix")
@given(
    st.lists(st.sampled_from(["boot", "firmware", "configuration", "library", "command"]), max_size=12),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_only_published_builds_and_approved_configurations_are_ever_affirming(
    kinds: list[str], data: st.DataObject
) -> None:
    digests = [FIRMWARE, OLD, CONFIGURATION, sha256(b"x")]
    leaves = [
        leaf(kind, data.draw(st.sampled_from(digests)), permit=data.draw(st.sampled_from([None, PERMIT])))
        for kind in kinds
    ]
    measured = Measurements(
        data.draw(st.sampled_from(digests)), data.draw(st.sampled_from(digests)), NO_LIBRARY, SBOM
    )
    appraisal = judge(Pump().evidence(leaves, measurements=measured), leaves, permits={PERMIT: ActionClass.C})
    if appraisal.status is TrustTier.AFFIRMING:
        assert measured.firmware == FIRMWARE
        assert measured.configuration == CONFIGURATION or appraisal.known.configuration_by_permit
