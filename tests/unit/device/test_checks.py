"""Each check of the device refuses with its own reason, changes nothing, and stands in its place in the order."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.support.pumps import LIFETIME_MS, PumpSite, TestPump, receipt
from vigil.core import cose
from vigil.core.commands import target_root
from vigil.core.digest import sha256
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import read
from vigil.device import domain, messages
from vigil.device.facts import Admission, Bundle
from vigil.errors import Reason, Refused

SET = "set-occlusion-pressure"
PRESSURE = {"occlusion_pressure": 300}


def fingerprint(pump: TestPump) -> tuple[object, ...]:
    """Everything that a refused command must leave as it was."""
    status = pump.agent.status()
    return (
        pump.agent._log.head(),
        pump.hardware.configuration.digest,
        status.applied_actions,
        status.quarantined,
        status.holds,
        status.alert,
        status.staged_commands,
        pump.hardware.pump.therapy,
        pump.store.execute("SELECT count(*) FROM journal"),
    )


def refused_for(pump: TestPump, bundle: Bundle) -> Reason:
    before = fingerprint(pump)
    answer = pump.send(bundle)
    assert answer.error is not None, "the device took it"
    assert fingerprint(pump) == before
    if answer.receipts:
        body = receipt(answer)
        assert body.outcome is b.Outcome.REFUSED
        assert body.reason == answer.error.reason
    return answer.error.reason


def test_a_good_command_passes_every_check(pump: TestPump) -> None:
    answer = pump.command(SET, PRESSURE)
    assert answer.error is None
    assert receipt(answer).outcome is b.Outcome.APPLIED
    assert pump.hardware.configuration.settings["occlusion_pressure"] == 300


# --- check 1


@pytest.mark.parametrize("part", ["intent", "command", "permit"])
def test_1_trailing_bytes_are_refused(site: PumpSite, pump: TestPump, part: str) -> None:
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    assert (
        refused_for(pump, replace(bundle, **{part: getattr(bundle, part) + b"\0"}))
        is Reason.STATEMENT_MALFORMED
    )


def test_1_a_statement_of_another_kind_is_refused(site: PumpSite, pump: TestPump) -> None:
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    assert refused_for(pump, replace(bundle, intent=bundle.command)) is Reason.STATEMENT_MALFORMED


def test_1_more_approvals_than_any_profile_asks_for_are_refused(site: PumpSite, pump: TestPump) -> None:
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician), approvers=(site.approver,))
    assert refused_for(pump, replace(bundle, approvals=bundle.approvals * 9)) is Reason.STATEMENT_MALFORMED


# --- check 2


@pytest.mark.holds("malicious-gateway")
def test_2_a_nonce_that_the_device_did_not_make_is_refused(site: PumpSite, pump: TestPump) -> None:
    assert refused_for(pump, site.bundle(pump, SET, PRESSURE, nonce=os.urandom(16))) is Reason.NONCE_UNKNOWN


@pytest.mark.holds("malicious-gateway")
def test_2_a_nonce_serves_once_even_when_the_command_is_refused(site: PumpSite, pump: TestPump) -> None:
    nonce = pump.nonce(site.technician)
    assert refused_for(pump, site.bundle(pump, "no-such-action", nonce=nonce)) is Reason.ACTION_UNKNOWN
    assert refused_for(pump, site.bundle(pump, SET, PRESSURE, nonce=nonce)) is Reason.NONCE_USED


@pytest.mark.holds("malicious-gateway")
def test_2_a_nonce_lives_five_seconds(site: PumpSite, pump: TestPump) -> None:
    nonce = pump.nonce(site.technician)
    site.clock.advance(5.0)
    assert refused_for(pump, site.bundle(pump, SET, PRESSURE, nonce=nonce)) is Reason.NONCE_EXPIRED


@pytest.mark.holds("stolen-technician")
def test_2_a_nonce_is_for_one_credential(site: PumpSite, pump: TestPump) -> None:
    nonce = pump.nonce(site.technician)
    bundle = site.bundle(pump, SET, PRESSURE, nonce=nonce, requester=site.colleague)
    assert refused_for(pump, bundle) is Reason.NONCE_UNKNOWN
    # And it is gone for its owner too.
    assert refused_for(pump, site.bundle(pump, SET, PRESSURE, nonce=nonce)) is Reason.NONCE_USED


@pytest.mark.holds("malicious-gateway")
def test_2_a_restart_forgets_nonces(site: PumpSite, pump: TestPump) -> None:
    nonce = pump.nonce(site.technician)
    pump.restart()
    assert refused_for(pump, site.bundle(pump, SET, PRESSURE, nonce=nonce)) is Reason.NONCE_UNKNOWN


# --- check 3


def stranger(site: PumpSite, pump: TestPump, **how: Any) -> Reason:
    """A refusal of check 3, which no signature of the device accompanies."""
    executor = how.get("executor") or how.get("requester") or site.technician
    bundle = site.bundle(pump, how.pop("action", SET), PRESSURE, nonce=pump.nonce(executor), **how)
    before = fingerprint(pump)
    answer = pump.send(bundle)
    assert answer.error is not None
    assert answer.receipts == ()
    assert fingerprint(pump) == before
    return answer.error.reason


def test_3_a_certificate_of_another_trust_domain_is_refused(site: PumpSite, pump: TestPump) -> None:
    other = site.pki.other_domain("other-for-checks.test").person("p-technician", "technician")
    assert stranger(site, pump, requester=other) is Reason.CERTIFICATE_INVALID


@pytest.mark.holds("stolen-technician")
def test_3_an_expired_credential_is_refused(site: PumpSite, pump: TestPump) -> None:
    old = site.pki.person("p-old", "technician", operational_until=site.clock.now() - 1)
    assert stranger(site, pump, requester=old) is Reason.CERTIFICATE_EXPIRED


def test_3_an_expired_executor_is_refused_though_the_intent_was_recorded_in_time(
    site: PumpSite, pump: TestPump
) -> None:
    person = site.pki.person("p-brief", "technician", operational_until=site.clock.now() + 1_000)
    own = site.intent(pump, SET, PRESSURE, requester=person)
    named = site.intent(
        pump, SET, PRESSURE, requester=person, executor=site.colleague.identity.key_thumbprint
    )
    recorded = [site.record(intent.digest) for intent in (own, named)]
    site.clock.advance(2)

    def finish(executor: Any, intent: Any, proofs: Any) -> messages.Receipts:
        nonce = pump.nonce(executor)
        bundle = site.bundle(
            pump, SET, PRESSURE, nonce=nonce, requester=person, executor=executor, intent=intent
        )
        return pump.send(replace(bundle, statements_recorded=proofs))

    assert reason_of(finish(person, own, recorded[0])) is Reason.CERTIFICATE_EXPIRED
    # Finished by somebody whom the intent named, it counts as of its record.
    answer = finish(site.colleague, named, recorded[1])
    assert answer.error is None
    assert receipt(answer).performed_by == "p-colleague"


@pytest.mark.holds("stolen-technician")
def test_3_another_site_is_out_of_scope(site: PumpSite, pump: TestPump) -> None:
    visitor = site.pki.person("p-visitor", "technician", sites=("site-2",))
    assert stranger(site, pump, requester=visitor) is Reason.NOT_IN_SCOPE


@pytest.mark.holds("stolen-technician")
def test_3_another_organization_is_out_of_scope(site: PumpSite, pump: TestPump) -> None:
    foreign = site.pki.person("p-foreign", "technician", organization="elsewhere", sites=("*",))
    assert stranger(site, pump, requester=foreign) is Reason.NOT_IN_SCOPE


@pytest.mark.holds("stolen-technician")
@pytest.mark.parametrize(
    ("action", "role"),
    [(SET, "approver"), ("diagnose", "admin"), ("update-firmware", "safety"), ("quarantine", "auditor")],
)
def test_3_each_class_has_its_roles(site: PumpSite, pump: TestPump, action: str, role: str) -> None:
    person = site.pki.person(f"p-{role}-only", role)
    assert stranger(site, pump, requester=person, action=action) is Reason.ROLE_NOT_PERMITTED


@pytest.mark.holds("malicious-gateway")
def test_3_a_person_signs_commands_and_no_device_does(site: PumpSite, pump: TestPump) -> None:
    device = site.pki.attester("dev-bbbbbbbbbbbbbbbb")
    assert stranger(site, pump, requester=device) is Reason.CERTIFICATE_INVALID


@pytest.mark.holds("stolen-technician")
@pytest.mark.parametrize("who", ["requester", "executor", "approver"])
def test_3_revoked_people_are_refused(site: PumpSite, pump: TestPump, who: str) -> None:
    people = {"requester": site.technician, "executor": site.colleague, "approver": site.approver}
    site.revoke(b.Scope.CREDENTIAL, people[who].identity.thumbprint.hex())
    pump.answer_head()
    intent = site.intent(pump, SET, PRESSURE, executor=site.colleague.identity.key_thumbprint)
    reason = stranger(site, pump, executor=site.colleague, approvers=(site.approver,), intent=intent)
    assert reason is Reason.CREDENTIAL_REVOKED


@pytest.mark.holds("stolen-technician")
def test_3_everything_of_a_revoked_person_is_refused(site: PumpSite, pump: TestPump) -> None:
    site.revoke(b.Scope.CREDENTIAL, "principal/p-technician")
    pump.answer_head()
    assert stranger(site, pump) is Reason.CREDENTIAL_REVOKED


@pytest.mark.holds("malicious-gateway")
def test_3_a_forged_signature_is_refused(site: PumpSite, pump: TestPump) -> None:
    intent = site.intent(pump, SET, PRESSURE)
    forged = bytearray(intent.data)
    forged[-1] ^= 1
    bundle = site.bundle(pump, SET, nonce=pump.nonce(site.technician), intent=intent)
    assert refused_for(pump, replace(bundle, intent=bytes(forged))) is Reason.SIGNATURE_INVALID


@pytest.mark.holds("malicious-gateway")
def test_3_a_command_for_another_device_is_refused(site: PumpSite, pump: TestPump) -> None:
    assert stranger(site, pump, command={"device": "dev-cccccccccccccccc"}) is Reason.NOT_IN_TARGET


@pytest.mark.holds("malicious-gateway")
def test_3_a_command_for_another_intent_is_refused(site: PumpSite, pump: TestPump) -> None:
    assert stranger(site, pump, command={"intent": sha256(b"another")}) is Reason.NOT_IN_TARGET


def test_3_a_device_outside_the_target_is_refused(site: PumpSite, pump: TestPump) -> None:
    reason = stranger(site, pump, target_root=target_root(["dev-cccccccccccccccc"]))
    assert reason is Reason.NOT_IN_TARGET


def test_3_a_device_of_a_larger_target_proves_its_place(pump: TestPump) -> None:
    ids = ["dev-cccccccccccccccc", pump.device_id, "dev-dddddddddddddddd"]
    assert pump.command(SET, PRESSURE, device_ids=ids).error is None


def test_3_nobody_finishes_an_intent_but_requester_or_executor(site: PumpSite, pump: TestPump) -> None:
    assert stranger(site, pump, executor=site.colleague) is Reason.SIGNER_NOT_CALLER


def test_3_an_unknown_action_is_named(site: PumpSite, pump: TestPump) -> None:
    assert stranger(site, pump, action="explode") is Reason.ACTION_UNKNOWN


# --- check 4


def test_4_a_known_request_answers_the_stored_receipt(site: PumpSite, pump: TestPump) -> None:
    intent = site.intent(pump, SET, PRESSURE)
    first = pump.command(SET, PRESSURE, intent=intent)
    before = fingerprint(pump)
    again = pump.command(SET, PRESSURE, intent=intent)
    assert again.error is None
    assert again.receipts == first.receipts
    assert fingerprint(pump) == before


def test_4_a_request_id_with_another_intent_is_refused(site: PumpSite, pump: TestPump) -> None:
    pump.command(SET, PRESSURE, request_id=bytes(16))
    bundle = site.bundle(
        pump, SET, {"occlusion_pressure": 301}, nonce=pump.nonce(site.technician), request_id=bytes(16)
    )
    assert refused_for(pump, bundle) is Reason.REQUEST_ID_REUSED


# --- check 5


def with_permit(site: PumpSite, pump: TestPump, **permit: Any) -> Reason:
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician), permit=permit)
    return refused_for(pump, bundle)


@pytest.mark.holds("malicious-gateway")
def test_5_no_permit_no_action(site: PumpSite, pump: TestPump) -> None:
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    assert refused_for(pump, replace(bundle, permit=b"")) is Reason.NOT_RECORDED


@pytest.mark.holds("captured-policy", "stolen-signers")
def test_5_a_permit_without_its_record_is_refused(site: PumpSite, pump: TestPump) -> None:
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    assert refused_for(pump, replace(bundle, permit_recorded=None)) is Reason.NOT_RECORDED


@pytest.mark.holds("captured-policy", "stolen-signers")
def test_5_a_record_of_something_else_is_refused(site: PumpSite, pump: TestPump) -> None:
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    other = site.record(sha256(b"something else"))[0]
    assert refused_for(pump, replace(bundle, permit_recorded=other)) is Reason.NOT_RECORDED


@pytest.mark.holds("captured-policy", "stolen-signers")
def test_5_an_intent_that_is_not_on_record_is_refused(site: PumpSite, pump: TestPump) -> None:
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    assert refused_for(pump, replace(bundle, statements_recorded=())) is Reason.NOT_RECORDED


@pytest.mark.holds("captured-policy", "stolen-signers")
def test_5_an_approval_that_is_not_on_record_is_refused(site: PumpSite, pump: TestPump) -> None:
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician), approvers=(site.approver,))
    spoiled = replace(bundle, statements_recorded=(bundle.statements_recorded[0],) * 2)
    assert refused_for(pump, spoiled) is Reason.NOT_RECORDED


def resigned(site: PumpSite, statement: str) -> Callable[[Any], bytes]:
    """The same decision in the name of a signer made for another kind of statement."""

    def sign(decided: Any) -> bytes:
        return cose.sign(
            site.pki.signer(statement),
            content_type=decided.sign1.content_type,
            claims={**decided.sign1.claims, 1: f"signer/{statement}"},
            payload=decided.sign1.payload,
        )

    return sign


@pytest.mark.holds("stolen-signers")
@pytest.mark.parametrize("statement", ["recorded", "head", "result"])
def test_5_another_kind_of_signer_makes_no_permit(site: PumpSite, pump: TestPump, statement: str) -> None:
    bundle = site.bundle(
        pump, SET, PRESSURE, nonce=pump.nonce(site.technician), change_permit=resigned(site, statement)
    )
    assert refused_for(pump, bundle) is Reason.SIGNATURE_INVALID


@pytest.mark.holds("malicious-gateway")
def test_5_a_gateway_makes_no_permit(site: PumpSite, pump: TestPump) -> None:
    gateway = site.pki.gateway("gateway-1")

    def forged(decided: Any) -> bytes:
        return site.sign(gateway, decided.body).data

    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician), change_permit=forged)
    assert refused_for(pump, bundle) is Reason.CERTIFICATE_INVALID


@pytest.mark.holds("stolen-signers")
@pytest.mark.parametrize("statement", ["decision", "recorded"])
def test_5_a_revoked_signer_is_refused(site: PumpSite, pump: TestPump, statement: str) -> None:
    site.revoke(b.Scope.SIGNER, site.pki.signer_credential(statement).identity.thumbprint.hex())
    pump.answer_head()
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    assert refused_for(pump, bundle) is Reason.SIGNER_REVOKED


@pytest.mark.holds("stolen-signers")
def test_5_a_signer_on_the_root_list_is_refused(site: PumpSite, pump: TestPump) -> None:
    signer = site.pki.signer_credential("decision").identity.thumbprint
    site.rooted(b.RootList(version=1, signers=(signer,)))
    pump.answer_head()
    pump.restart()
    pump.release()
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    assert refused_for(pump, bundle) is Reason.SIGNER_REVOKED


@pytest.mark.holds("stolen-signers")
def test_heads_of_a_signer_on_the_root_list_confirm_nothing(site: PumpSite, pump: TestPump) -> None:
    signer = site.pki.signer_credential("head").identity.thumbprint
    site.rooted(b.RootList(version=1, signers=(signer,)))
    pump.answer_head()
    site.revoke(b.Scope.CREDENTIAL, "principal/p-technician")
    assert pump.answer_head() == []
    assert pump.agent.trust.revocations.epoch == 1


@pytest.mark.holds("malicious-gateway")
@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("answer", b.Answer.REFUSE, Reason.POLICY_DENIED),
        ("action_class", b.ActionClass.R, Reason.POLICY_DENIED),
        ("command", sha256(b"another"), Reason.SIGNATURE_INVALID),
        ("intent", sha256(b"another"), Reason.SIGNATURE_INVALID),
        ("device", "dev-cccccccccccccccc", Reason.SIGNATURE_INVALID),
        ("nonce", bytes(16), Reason.NONCE_UNKNOWN),
        ("nonce", None, Reason.NONCE_UNKNOWN),
        ("profile", sha256(b"another"), Reason.PROFILE_MISMATCH),
        ("era", 1, Reason.EPOCH_ROLLED_BACK),
        ("era", None, Reason.EPOCH_ROLLED_BACK),
        ("epoch", None, Reason.EPOCH_ROLLED_BACK),
        ("boot_count", 99, Reason.ATTESTATION_STALE),
        ("boot_count", None, Reason.ATTESTATION_STALE),
        ("log_size", 0, Reason.ATTESTATION_STALE),
        ("log_size", None, Reason.ATTESTATION_STALE),
        ("obligations", (b.Obligation("dance"),), Reason.POLICY_DENIED),
    ],
    ids=lambda value: value if isinstance(value, str) and value.islower() else "",
)
def test_5_every_field_of_the_permit_counts(
    site: PumpSite, pump: TestPump, field: str, value: object, reason: Reason
) -> None:
    assert with_permit(site, pump, **{field: value}) is reason


@pytest.mark.holds("malicious-gateway")
def test_5_a_permit_does_not_fall_behind_a_head_held_for_eight_seconds(
    site: PumpSite, pump: TestPump
) -> None:
    site.revoke(b.Scope.BUILD, sha256(b"some build").hex())
    pump.answer_head()
    site.clock.advance(8.0)
    assert receipt(pump.command(SET, PRESSURE, permit={"epoch": 0})).outcome is b.Outcome.APPLIED
    site.clock.advance(0.5)
    pump.restart()
    pump.release()
    assert with_permit(site, pump, epoch=0) is Reason.EPOCH_ROLLED_BACK


def test_5_the_eight_seconds_pass_without_a_restart(site: PumpSite, pump: TestPump) -> None:
    site.revoke(b.Scope.BUILD, sha256(b"some build").hex())
    pump.answer_head()
    site.clock.advance(8.1)
    assert with_permit(site, pump, epoch=0) is Reason.EPOCH_ROLLED_BACK


def test_5_a_change_since_the_appraisal_is_noticed(site: PumpSite, pump: TestPump) -> None:
    appraised = pump.agent._log.size
    pump.command(SET, PRESSURE)
    assert with_permit(site, pump, log_size=appraised) is Reason.ATTESTATION_STALE
    # Class R is not bound to it.
    assert pump.command("diagnose", permit={"log_size": appraised, "boot_count": 0}).error is None


@pytest.mark.holds("captured-policy")
@pytest.mark.parametrize("action", ["factory-reset", "set-rate-here"])
def test_5_break_glass_never_reaches_therapy_or_destruction(
    site: PumpSite, pump: TestPump, action: str
) -> None:
    bundle = site.bundle(
        pump,
        action,
        {"rate": 10} if action == "set-rate-here" else {},
        nonce=pump.nonce(site.technician),
        approvers=(site.approver, site.second_approver),
        permit={"mode": "break-glass"},
    )
    assert refused_for(pump, bundle) is Reason.POLICY_DENIED


def test_5_a_device_past_its_operational_end_does_safety_actions_only(site: PumpSite, pump: TestPump) -> None:
    trust = pump.agent.trust
    trust.identity = replace(trust.identity, operational_until=site.clock.now() - 1)
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    assert refused_for(pump, bundle) is Reason.CERTIFICATE_EXPIRED
    assert pump.command("hold", requester=site.safety).error is None


# --- check 6


@pytest.mark.holds("captured-policy")
def test_6_approvals_are_counted(site: PumpSite, pump: TestPump) -> None:
    nonce = pump.nonce(site.technician)
    bundle = site.bundle(pump, "factory-reset", nonce=nonce, approvers=(site.approver,))
    assert refused_for(pump, bundle) is Reason.APPROVALS_MISSING


@pytest.mark.holds("captured-policy")
def test_6_approvers_are_distinct(site: PumpSite, pump: TestPump) -> None:
    bundle = site.bundle(
        pump, "factory-reset", nonce=pump.nonce(site.technician), approvers=(site.approver, site.approver)
    )
    answer = pump.send(bundle)
    assert answer.error is not None
    reasons = {refusal.reason for refusal in answer.error.refusals}
    assert {Reason.APPROVALS_MISSING, Reason.APPROVER_NOT_DISTINCT} <= reasons


@pytest.mark.holds("stolen-technician")
def test_6_the_requester_does_not_approve(site: PumpSite, pump: TestPump) -> None:
    both = site.pki.person("p-both", "technician", "approver")
    bundle = site.bundle(
        pump, "factory-reset", nonce=pump.nonce(both), requester=both, approvers=(both, site.approver)
    )
    answer = pump.send(bundle)
    assert answer.error is not None
    assert Reason.APPROVER_NOT_DISTINCT in {refusal.reason for refusal in answer.error.refusals}


@pytest.mark.holds("stolen-safety")
@pytest.mark.parametrize("action", ["lift-hold", "release-quarantine"])
def test_6_leaving_a_hold_or_quarantine_takes_two_people(site: PumpSite, pump: TestPump, action: str) -> None:
    pump.command("quarantine", requester=site.safety)
    pump.command("hold", requester=site.safety)
    alone = pump.command(action, requester=site.safety)
    assert alone.error is not None
    assert Reason.APPROVALS_MISSING in {refusal.reason for refusal in alone.error.refusals}
    assert pump.command(action, requester=site.safety, approvers=(site.approver,)).error is None
    status = pump.agent.status()
    assert (status.quarantined, status.holds) == ((True, 0) if action == "lift-hold" else (False, 1))


# --- check 7


@pytest.mark.holds("captured-policy")
@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"occlusion_pressure": 601}, Reason.PARAMETER_OUT_OF_RANGE),
        ({"occlusion_pressure": 49}, Reason.PARAMETER_OUT_OF_RANGE),
        ({"occlusion_pressure": "300"}, Reason.PARAMETER_INVALID),
        ({}, Reason.PARAMETER_INVALID),
        ({"occlusion_pressure": 300, "volume": 1}, Reason.PARAMETER_UNKNOWN),
    ],
)
def test_7_parameters_stay_inside_the_profile(
    site: PumpSite, pump: TestPump, parameters: dict[str, int], reason: Reason
) -> None:
    assert refused_for(pump, site.bundle(pump, SET, parameters, nonce=pump.nonce(site.technician))) is reason


@pytest.mark.holds("captured-policy")
@pytest.mark.parametrize("state", ["unknown", "delivering", "stopped", "alarm"])
def test_7_nothing_is_configured_at_a_patient(site: PumpSite, pump: TestPump, state: str) -> None:
    bedside = pump.hardware.pump
    if state == "unknown":
        pump.restart()
    else:
        bedside.start_therapy()
    if state == "stopped":
        bedside.stop_therapy()
    if state == "alarm":
        bedside.occlusion()
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    assert refused_for(pump, bundle) is Reason.PATIENT_CONNECTED


def test_7_nothing_is_destroyed_at_a_patient_not_even_later(site: PumpSite, pump: TestPump) -> None:
    pump.hardware.pump.start_therapy()
    bundle = site.bundle(
        pump,
        "factory-reset",
        nonce=pump.nonce(site.technician),
        approvers=(site.approver, site.second_approver),
        mode=b.Mode.IDLE,
    )
    assert refused_for(pump, bundle) is Reason.PATIENT_CONNECTED


def test_7_a_hold_stops_destruction_and_updates(site: PumpSite, pump: TestPump) -> None:
    pump.command("hold", requester=site.safety)
    approvers = (site.approver, site.second_approver)
    bundle = site.bundle(pump, "factory-reset", nonce=pump.nonce(site.technician), approvers=approvers)
    assert refused_for(pump, bundle) is Reason.EVIDENCE_HOLD
    release = site.release()
    bundle = site.bundle(
        pump,
        "update-firmware",
        {"firmware": release.body.firmware},
        nonce=pump.nonce(site.technician),
        approvers=approvers,
        release=release.data,
    )
    assert refused_for(pump, bundle) is Reason.EVIDENCE_HOLD


@pytest.mark.parametrize(
    ("scope", "reason"), [(b.Scope.DEVICE, Reason.DEVICE_REVOKED), (b.Scope.BUILD, Reason.FIRMWARE_REVOKED)]
)
@pytest.mark.parametrize(
    ("effect", "allowed"),
    [
        (b.RevocationEffect.FLAG, {"C", "R", "S1"}),
        (b.RevocationEffect.NO_NEW, {"C", "R", "S1"}),
        (b.RevocationEffect.CORRECTIVE_ONLY, {"R", "S1"}),
        (b.RevocationEffect.DENY, {"S1"}),
    ],
)
def test_7_effects_of_a_revocation_by_class(  # noqa: PLR0917 - parametrized
    site: PumpSite,
    pump: TestPump,
    scope: b.Scope,
    reason: Reason,
    effect: b.RevocationEffect,
    allowed: set[str],
) -> None:
    name = pump.device_id if scope is b.Scope.DEVICE else pump.hardware.slots.measure().hex()
    site.revoke(scope, name, effect=effect)
    pump.answer_head()
    answers = {
        "C": pump.command(SET, PRESSURE),
        "R": pump.command("diagnose"),
        "S1": pump.command("hold", requester=site.safety),
    }
    assert {label for label, answer in answers.items() if answer.error is None} == allowed
    assert {answer.error.reason for answer in answers.values() if answer.error} <= {reason}


def test_7_a_quarantined_pump_takes_what_leads_out_and_nothing_else(site: PumpSite, pump: TestPump) -> None:
    pump.command("quarantine", requester=site.safety)
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    assert refused_for(pump, bundle) is Reason.DEVICE_QUARANTINED
    assert pump.command("diagnose").error is None
    out = pump.command("release-quarantine", approvers=(site.approver,))
    assert receipt(out).outcome is b.Outcome.APPLIED
    assert pump.command(SET, PRESSURE).error is None


def update(site: PumpSite, pump: TestPump, release: Any, **how: Any) -> messages.Receipts:
    parameters = {"firmware": how.pop("firmware", release.body.firmware)}
    data = how.pop("release_data", release.data)
    return pump.command("update-firmware", parameters, approvers=(site.approver,), release=data, **how)


def reason_of(answer: messages.Receipts) -> Reason:
    assert answer.error is not None
    return answer.error.reason


@pytest.mark.holds("rollback-and-mix")
def test_7_an_update_needs_the_manufacturers_signature(site: PumpSite, pump: TestPump) -> None:
    release = site.release()
    assert reason_of(update(site, pump, release, release_data=b"")) is Reason.SIGNATURE_INVALID
    # Signed by the operator's own signer of another kind, or by another manufacturer.
    forged = cose.sign(
        site.pki.signer("decision"),
        content_type=release.sign1.content_type,
        claims={**release.sign1.claims, 1: "signer/decision"},
        payload=release.sign1.payload,
    )
    assert reason_of(update(site, pump, release, release_data=forged)) is Reason.SIGNATURE_INVALID


@pytest.mark.holds("stolen-signers")
def test_7_another_manufacturer_does_not_sign_for_this_pump(
    site: PumpSite, pump: TestPump, tmp_path: Any
) -> None:
    rival = site.pki.manufacturer(f"rival-{tmp_path.name[-6:].strip('_-').lower() or 'x'}".replace("_", "-"))
    pump.agent.trust.take_trust(site.pki.bundle.to_json())
    release = site.sign(rival.credential("release"), site.release().body, subject="build/x", numbered=True)
    assert reason_of(update(site, pump, release)) is Reason.SIGNATURE_INVALID


@pytest.mark.holds("rollback-and-mix")
def test_7_an_update_is_the_one_that_the_intent_names(site: PumpSite, pump: TestPump) -> None:
    release = site.release()
    assert reason_of(update(site, pump, release, firmware=sha256(b"else"))) is Reason.PARAMETER_INVALID


@pytest.mark.holds("rollback-and-mix")
def test_7_an_update_is_for_this_model(site: PumpSite, pump: TestPump) -> None:
    assert reason_of(update(site, pump, site.release(model="other-9"))) is Reason.PROFILE_MISMATCH


@pytest.mark.holds("rollback-and-mix")
def test_7_a_lower_security_version_is_a_rollback(site: PumpSite, pump: TestPump) -> None:
    assert reason_of(update(site, pump, site.release(security_version=2))) is Reason.FIRMWARE_ROLLBACK


@pytest.mark.holds("rollback-and-mix")
@pytest.mark.parametrize("population", ["alone", "with-others", "others"])
def test_7_a_downgrade_authorisation_names_build_and_population(
    site: PumpSite, pump: TestPump, population: str
) -> None:
    release = site.release(security_version=2)
    others = ["dev-cccccccccccccccc", "dev-dddddddddddddddd"]
    ids = {"alone": [pump.device_id], "with-others": [pump.device_id, *others], "others": others}[population]
    downgrade = site.signed_by_maker(
        "downgrade",
        b.Downgrade(
            firmware=release.body.firmware,
            security_version=2,
            population_root=target_root(ids),
            population_count=len(ids),
            reason="the newer build stalls",
        ),
    )
    targets = ids if pump.device_id in ids else None
    answer = update(site, pump, release, downgrade=downgrade.data, device_ids=targets)
    if population == "others":
        assert reason_of(answer) is Reason.FIRMWARE_ROLLBACK
    else:
        assert receipt(answer).outcome is b.Outcome.STAGED


@pytest.mark.holds("rollback-and-mix")
def test_7_a_revoked_build_is_not_installed(site: PumpSite, pump: TestPump) -> None:
    release = site.release()
    site.revoke(b.Scope.BUILD, release.body.firmware.hex(), effect=b.RevocationEffect.NO_NEW)
    pump.answer_head()
    assert reason_of(update(site, pump, release)) is Reason.FIRMWARE_REVOKED


def test_7_a_fix_reaches_a_pump_whose_build_is_revoked(site: PumpSite, pump: TestPump) -> None:
    running = pump.hardware.slots.measure().hex()
    site.revoke(b.Scope.BUILD, running, effect=b.RevocationEffect.CORRECTIVE_ONLY)
    pump.answer_head()
    pump.command("quarantine", requester=site.safety)
    assert receipt(update(site, pump, site.release())).outcome is b.Outcome.STAGED


@pytest.mark.holds("captured-policy")
def test_7_therapy_is_out_of_reach_unless_the_manufacturer_enabled_it(site: PumpSite, pump: TestPump) -> None:
    bundle = site.bundle(pump, "set-rate", {"rate": 10}, nonce=pump.nonce(site.technician))
    assert refused_for(pump, bundle) is Reason.THERAPY_NOT_ENABLED


@pytest.mark.holds("captured-policy")
def test_7_an_enabled_therapy_action_needs_a_hand_at_the_bedside(site: PumpSite, pump: TestPump) -> None:
    bedside = pump.hardware.pump
    bedside.start_therapy(500)
    bundle = site.bundle(pump, "set-rate-here", {"rate": 80}, nonce=pump.nonce(site.technician))
    assert refused_for(pump, bundle) is Reason.BEDSIDE_CONFIRMATION_MISSING
    bedside.confirm()
    answer = pump.command("set-rate-here", {"rate": 80})
    assert receipt(answer).outcome is b.Outcome.APPLIED
    assert bedside.rate_tenths == 800
    again = pump.command("set-rate-here", {"rate": 90})
    assert reason_of(again) is Reason.BEDSIDE_CONFIRMATION_MISSING


@pytest.mark.holds("rollback-and-mix")
def test_7_a_baseline_is_the_sites_own_and_valid(site: PumpSite, pump: TestPump) -> None:
    def install(**how: Any) -> Reason:
        baseline, _ = site.baseline({"occlusion_pressure": 200}, **how)
        answer = pump.command("install-baseline", {"baseline": baseline.body.content}, release=baseline.data)
        return reason_of(answer)

    assert install(site="site-2") is Reason.NOT_IN_SCOPE
    assert install(signer=site.technician) is Reason.ROLE_NOT_PERMITTED
    assert install(models=("other-9",)) is Reason.PROFILE_MISMATCH
    assert install(baseline_kind=b.BaselineKind.DRUG_LIBRARY) is Reason.PROFILE_MISMATCH
    assert install(valid_to=site.clock.now()) is Reason.OUTSIDE_WINDOW


def test_7_an_intent_that_has_expired_or_not_begun_is_refused(site: PumpSite, pump: TestPump) -> None:
    now = site.clock.now()
    assert with_intent(site, pump, not_before=now - 10_000, expires=now) is Reason.INTENT_EXPIRED
    later = with_intent(site, pump, not_before=now + LIFETIME_MS, expires=now + 2 * LIFETIME_MS)
    assert later is Reason.OUTSIDE_WINDOW
    assert with_permit(site, pump, apply_not_after=now) is Reason.INTENT_EXPIRED


def with_intent(site: PumpSite, pump: TestPump, **values: Any) -> Reason:
    return refused_for(pump, site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician), **values))


# --- class S1


def test_s1_needs_no_permit_and_no_record(site: PumpSite, pump: TestPump) -> None:
    pump.hardware.pump.start_therapy()
    answer = pump.command("quarantine", requester=site.safety)
    assert receipt(answer).outcome is b.Outcome.APPLIED
    assert pump.agent.status().quarantined
    assert pump.hardware.pump.therapy is b.TherapyState.DELIVERING


@pytest.mark.holds("clock-steps")
@pytest.mark.parametrize(("begins", "ends"), [(3_600_000, 7_200_000), (-7_200_000, -3_600_000)])
def test_s1_at_once_does_not_fail_on_a_clock(site: PumpSite, pump: TestPump, begins: int, ends: int) -> None:
    """The pump's own nonce of five seconds says when; somebody else who binds one for it, or a later time, does not."""
    now = site.clock.now()
    window = {"not_before": now + begins, "expires": now + ends}
    wrong = Reason.OUTSIDE_WINDOW if begins > 0 else Reason.INTENT_EXPIRED
    answer = pump.command("hold", requester=site.safety, **window)
    assert receipt(answer).outcome is b.Outcome.APPLIED
    executor = {"executor": site.technician.identity.key_thumbprint}
    bundle = site.bundle(
        pump,
        "hold",
        nonce=pump.nonce(site.technician),
        requester=site.safety,
        executor=site.technician,
        intent=site.intent(pump, "hold", {}, requester=site.safety, **window, **executor),
    )
    assert refused_for(pump, bundle) is wrong


@pytest.mark.holds("stolen-safety")
def test_s1_bears_an_expired_safety_credential_for_72_hours_and_no_other(
    site: PumpSite, pump: TestPump
) -> None:
    now = site.clock.now()
    hours = 3_600_000
    for name, role, age, good in (
        ("p-late", "safety", 71 * hours, True),
        ("p-too-late", "safety", 73 * hours, False),
        ("p-late-tech", "technician", 1 * hours, False),
    ):
        person = site.pki.person(
            name, role, operational_until=now - age, not_after=now + 100 * hours, not_before=None
        )
        answer = pump.command("hold", requester=person)
        assert (answer.error is None) is good, (name, answer.error)
        if answer.error is not None:
            assert answer.error.reason is Reason.CERTIFICATE_EXPIRED


@pytest.mark.holds("stolen-safety")
def test_s1_is_refused_to_the_revoked(site: PumpSite, pump: TestPump) -> None:
    site.revoke(b.Scope.CREDENTIAL, site.safety.identity.thumbprint.hex())
    pump.answer_head()
    assert stranger(site, pump, requester=site.safety, action="quarantine") is Reason.CREDENTIAL_REVOKED


# --- order


def test_the_checks_stand_in_their_order(site: PumpSite, pump: TestPump) -> None:
    """A bundle with everything wrong is refused for the first wrong thing; mended, for the next one."""
    visitor = site.pki.person("p-visitor-2", "auditor", sites=("site-2",))
    pump.command(SET, PRESSURE, request_id=b"r" * 16)
    pump.hardware.pump.start_therapy()
    view = pump.agent._view()
    bad: dict[str, Any] = {"request_id": b"r" * 16, "requester": visitor, "permit": {"epoch": None}}

    def first(nonce: Any, known: bytes | None, **how: Any) -> Reason:
        read_one = domain.read_bundle(
            site.bundle(pump, "factory-reset", {"x": 1}, nonce=bytes(16), **{**bad, **how})
        )
        with pytest.raises(Refused) as caught:
            domain.judge_bundle(read_one, view, nonce=nonce, known_intent=known)
        return caught.value.reason

    unknown = pump.agent._nonces.take(bytes(16), credential=bytes(32))
    other = sha256(b"another intent")
    assert first(unknown, other) is Reason.NONCE_UNKNOWN
    assert first(None, other) is Reason.NOT_IN_SCOPE
    assert first(None, other, requester=None) is Reason.REQUEST_ID_REUSED
    assert first(None, None, requester=None) is Reason.EPOCH_ROLLED_BACK
    together = first(None, None, requester=None, permit={})
    assert (
        together is Reason.PARAMETER_UNKNOWN
    )  # the most fundamental of checks 6 and 7, which answer together


def test_a_judgement_leaves_the_view_alone(site: PumpSite, pump: TestPump) -> None:
    bundle = site.bundle(pump, SET, PRESSURE, nonce=bytes(16))
    before = fingerprint(pump)
    verdict = domain.judge_bundle(
        domain.read_bundle(bundle), pump.agent._view(), nonce=None, known_intent=None
    )
    assert isinstance(verdict, Admission)
    assert read(bundle.permit, b.Decision).digest == verdict.permit_digest
    assert fingerprint(pump) == before
