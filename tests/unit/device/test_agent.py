"""What the agent does: effects, receipts and their resending, staging, updates, attestation, revocations, time."""

import os
from dataclasses import replace
from typing import Any

import pytest

from tests.support.pumps import FIRMWARE, MODEL, NEW_FIRMWARE, PowerCut, PumpSite, TestPump, receipt
from vigil.core import cbor, merkle
from vigil.core.certificates import ChainVerifier
from vigil.core.digest import sha256
from vigil.core.keys import new_private_key
from vigil.core.merkle import Frontier
from vigil.core.revocations import EMPTY_CHAIN
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import check, read
from vigil.device import domain, messages
from vigil.device.pump import SELF_TEST_FAILS
from vigil.device.slots import tamper_firmware
from vigil.errors import Reason, Refused, refused

SET = "set-occlusion-pressure"
PRESSURE = {"occlusion_pressure": 300}


def of_kind(out: list[messages.Outgoing], kind: type) -> list[Any]:
    return [message for message in out if isinstance(message, kind)]


def online(pump: TestPump) -> list[messages.Outgoing]:
    pump.agent.connected()
    return pump.agent.handle(messages.Welcome("gateway-1", pump.site.clock.now(), b"", ""))


def late_receipts(out: list[messages.Outgoing]) -> list[b.Receipt]:
    return [
        read(data, b.Receipt).body for message in of_kind(out, messages.Receipts) for data in message.receipts
    ]


def leaves(pump: TestPump) -> list[dict[str, Any]]:
    return [cbor.decode(leaf) for leaf in pump.agent._log.leaves(first=0)]


# --- effects and receipts


def test_every_effect_leaves_its_line_in_the_log(pump: TestPump) -> None:
    before = pump.agent._log.size
    answer = pump.command(SET, PRESSURE)
    body = receipt(answer)
    new = leaves(pump)[before:]
    assert [leaf["kind"] for leaf in new] == ["command", "configuration", "receipt"]
    assert new[0]["digest"] == new[1]["permit"] == body.permit
    assert new[1]["digest"] == pump.hardware.configuration.digest
    assert new[2]["digest"] == read(answer.receipts[0], b.Receipt).digest
    assert body.log.size == before + 2  # the head inside the receipt is the one before the receipt's own leaf


def test_a_receipt_is_signed_by_the_attestation_key(site: PumpSite, pump: TestPump) -> None:
    statement = read(pump.command("diagnose").receipts[0], b.Receipt)
    identity = site.pki.verifier.verify(statement.chain, at=site.clock.now())
    check(statement, identity)
    assert identity.id == pump.device_id
    assert statement.body.data["battery_percent"] == "100"
    assert statement.body.udi == "(01)09504000059118(21)SN-0001"
    assert statement.body.applied == 1


@pytest.mark.holds("stolen-safety")
def test_safety_actions_take_effect_and_therapy_goes_on(site: PumpSite, pump: TestPump) -> None:
    bedside = pump.hardware.pump
    bedside.start_therapy(1_000)
    for action, parameters in (("quarantine", {}), ("hold", {}), ("alert", {"message": "call pharmacy"})):
        assert receipt(pump.command(action, parameters, requester=site.safety)).outcome is b.Outcome.APPLIED
    status = pump.agent.status()
    assert (status.quarantined, status.holds, status.alert) == (True, 1, "call pharmacy")
    site.clock.advance(36)
    assert bedside.therapy is b.TherapyState.DELIVERING
    assert bedside.readings().values["volume_infused_ml"] == "1.0"


def test_a_reset_returns_to_the_factorys_settings(site: PumpSite, pump: TestPump) -> None:
    pump.command(SET, PRESSURE)
    answer = pump.command("factory-reset", approvers=(site.approver, site.second_approver))
    assert receipt(answer).outcome is b.Outcome.APPLIED
    assert pump.hardware.configuration.settings == {"occlusion_pressure": 250, "language": "en"}
    assert [leaf["kind"] for leaf in leaves(pump)][-3:] == ["configuration", "library", "receipt"]


def test_a_receipt_is_asked_for_without_a_permit(pump: TestPump) -> None:
    answer = pump.command(SET, PRESSURE, request_id=b"q" * 16)
    (reply, *_) = pump.agent.handle(messages.ReceiptQuery(9, b"q" * 16))
    assert reply == messages.Receipts(9, answer.receipts)
    (unknown, *_) = pump.agent.handle(messages.ReceiptQuery(10, bytes(16)))
    assert isinstance(unknown, messages.Receipts)
    assert unknown.error is not None
    assert unknown.error.reason is Reason.RESOURCE_NOT_FOUND


# --- power cuts


@pytest.mark.holds("swallowed-receipt")
def test_a_swallowed_receipt_is_the_same_after_a_restart(site: PumpSite, pump: TestPump) -> None:
    intent = site.intent(pump, SET, PRESSURE)
    lost = pump.command(SET, PRESSURE, intent=intent)
    pump.restart()
    pump.release()
    again = pump.command(SET, PRESSURE, intent=intent)
    assert again.receipts == lost.receipts
    assert pump.agent.status().applied_actions == 1


@pytest.mark.parametrize(
    ("commit", "after", "outcome", "value"),
    [
        (1, False, None, 250),  # before the journal: nothing was ever asked for
        (1, True, b.Outcome.INTERRUPTED, 250),  # between 8 and 9
        (2, False, b.Outcome.INTERRUPTED, 250),  # between 9 and 10: the effect went with its receipt
        (2, True, b.Outcome.APPLIED, 300),  # after 10, before it was sent
    ],
)
@pytest.mark.holds("killed-between-steps")
def test_a_power_cut_at_each_step(  # noqa: PLR0917 - parametrized
    site: PumpSite, pump: TestPump, commit: int, after: bool, outcome: b.Outcome | None, value: int
) -> None:
    intent = site.intent(pump, SET, PRESSURE)
    bundle = site.bundle(pump, SET, nonce=pump.nonce(site.technician), intent=intent)
    pump.store.cut(commit, after=after)
    with pytest.raises(PowerCut):
        pump.send(bundle)
    pump.restart()
    pump.release()
    assert pump.hardware.configuration.settings["occlusion_pressure"] == value
    (reply, *_) = pump.agent.handle(messages.ReceiptQuery(1, intent.body.request_id))
    assert isinstance(reply, messages.Receipts)
    if outcome is None:
        assert reply.error is not None
        # The same request may be tried again.
        assert receipt(pump.command(SET, PRESSURE, intent=intent)).outcome is b.Outcome.APPLIED
        return
    assert receipt(reply).outcome is outcome
    # And is never repeated.
    again = pump.command(SET, PRESSURE, intent=intent)
    assert again.receipts == reply.receipts
    assert pump.hardware.configuration.settings["occlusion_pressure"] == value


@pytest.mark.parametrize("after", [False, True])
def test_a_reading_is_durable_in_one_step_before_its_receipt_leaves(
    site: PumpSite, pump: TestPump, after: bool
) -> None:
    intent = site.intent(pump, "diagnose", {})
    bundle = site.bundle(pump, "diagnose", nonce=pump.nonce(site.technician), intent=intent)
    before, applied = len(leaves(pump)), pump.agent.status().applied_actions
    pump.store.cut(1, after=after)
    with pytest.raises(PowerCut):
        pump.send(bundle)
    pump.restart()
    assert [leaf["kind"] for leaf in leaves(pump)[before:]] == (["command", "receipt"] if after else []) + [
        "boot"
    ]
    (kept, *_) = pump.agent.handle(messages.ReceiptQuery(1, intent.body.request_id))
    assert isinstance(kept, messages.Receipts)
    again = pump.command("diagnose", intent=intent)
    assert receipt(again).outcome is b.Outcome.APPLIED
    if after:
        # The commit was reached: the very receipt, and no second reading.
        assert again.receipts == kept.receipts
    else:
        assert kept.error is not None
    assert pump.agent.status().applied_actions == applied + 1


@pytest.mark.holds("storage-failures")
def test_a_full_disk_refuses_and_leaves_nothing_half_done(site: PumpSite, pump: TestPump) -> None:
    bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
    pages = pump.store.execute("PRAGMA page_count")[0][0]
    pump.store.execute(f"PRAGMA max_page_count = {pages}")
    filler = 0
    size = pump.agent._log.size
    while True:  # the file has some room inside its last page
        answer = pump.send(bundle)
        if answer.error is not None:
            break
        filler += 1
        size = pump.agent._log.size
        bundle = site.bundle(pump, SET, PRESSURE, nonce=pump.nonce(site.technician))
        assert filler < 50
    assert answer.error.reason is Reason.STORAGE_UNAVAILABLE
    assert answer.receipts == ()
    pump.store.execute(f"PRAGMA max_page_count = {pages + 1000}")
    held = Frontier.empty().extend(merkle.leaf_hash(leaf) for leaf in pump.agent._log.leaves(first=0))
    assert held.root() == pump.agent._log.head().root
    assert pump.agent._log.size >= size


@pytest.mark.holds("storage-failures")
def test_what_a_failing_flash_left_open_is_settled_when_it_takes_something_again(
    site: PumpSite, pump: TestPump, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent = site.intent(pump, SET, PRESSURE)
    bundle = site.bundle(pump, SET, nonce=pump.nonce(site.technician), intent=intent)
    commit, begun = pump.store._commit, 0

    def failing() -> None:
        nonlocal begun
        begun += 1
        if begun > 1:
            raise refused(Reason.STORAGE_UNAVAILABLE, "the disk is full")
        commit()

    with monkeypatch.context() as patched:
        patched.setattr(pump.store, "_commit", failing)
        answer = pump.send(bundle)
        assert answer.error is not None
        assert answer.error.reason is Reason.STORAGE_UNAVAILABLE
        pump.agent.tick()
    assert begun > 2
    # Another command that goes through does not hide what was left.
    assert receipt(pump.command("diagnose")).outcome is b.Outcome.APPLIED
    assert receipt(pump.command(SET, {"occlusion_pressure": 260})).outcome is b.Outcome.APPLIED
    # Without a restart.
    pump.agent.tick()
    (said,) = of_kind(pump.agent.handle(messages.ReceiptQuery(1, intent.body.request_id)), messages.Receipts)
    assert receipt(said).outcome is b.Outcome.INTERRUPTED
    assert pump.hardware.configuration.settings["occlusion_pressure"] == 260
    assert pump.command(SET, PRESSURE, intent=intent).receipts == said.receipts


# --- staged commands


def staged(_site: PumpSite, pump: TestPump, **how: Any) -> b.Receipt:
    answer = pump.command(SET, PRESSURE, mode=b.Mode.IDLE, **how)
    assert answer.error is None, answer.error
    return receipt(answer)


def challenge_of(out: list[messages.Outgoing]) -> bytes:
    (one,) = of_kind(out, messages.HeadChallenge)
    challenge: bytes = one.challenge
    return challenge


def test_a_staged_command_waits_for_idleness_and_a_fresh_head(site: PumpSite, pump: TestPump) -> None:
    online(pump)
    pump.hardware.pump.start_therapy()
    assert staged(site, pump).outcome is b.Outcome.STAGED
    assert of_kind(pump.agent.tick(), messages.HeadChallenge) == []
    pump.hardware.pump.stop_therapy()
    assert of_kind(pump.agent.tick(), messages.HeadChallenge) == [], "the patient is still connected"
    pump.release()
    challenge = challenge_of(pump.agent.tick())
    assert pump.hardware.configuration.settings["occlusion_pressure"] == 250
    # A head that answers somebody else's challenge is no answer.
    pump.answer_head(os.urandom(16))
    assert pump.hardware.configuration.settings["occlusion_pressure"] == 250
    out = pump.answer_head(challenge)
    assert pump.hardware.configuration.settings["occlusion_pressure"] == 300
    (first, second) = late_receipts(out)
    assert (first.outcome, second.outcome) == (b.Outcome.STAGED, b.Outcome.APPLIED)
    assert (first.number, second.number) == (1, 2)
    assert pump.agent.status().staged_commands == 0


@pytest.mark.holds("malicious-gateway")
def test_an_old_answer_does_not_apply_a_staged_command(site: PumpSite, pump: TestPump) -> None:
    online(pump)
    staged(site, pump)
    challenge = challenge_of(pump.agent.tick())
    site.clock.advance(11)
    pump.answer_head(challenge)
    assert pump.hardware.configuration.settings["occlusion_pressure"] == 250


def test_a_staged_command_survives_a_restart(site: PumpSite, pump: TestPump) -> None:
    staged(site, pump)
    pump.restart()
    online(pump)
    assert pump.agent.status().staged_commands == 1
    pump.release()
    pump.answer_head(challenge_of(pump.agent.tick()))
    assert pump.hardware.configuration.settings["occlusion_pressure"] == 300


@pytest.mark.holds("stolen-technician")
@pytest.mark.parametrize("who", ["requester", "device", "signer"])
def test_a_revocation_reaches_a_staged_command(site: PumpSite, pump: TestPump, who: str) -> None:
    online(pump)
    staged(site, pump)
    challenge = challenge_of(pump.agent.tick())
    scope, name = {
        "requester": (b.Scope.CREDENTIAL, site.technician.identity.thumbprint.hex()),
        "device": (b.Scope.DEVICE, pump.device_id),
        "signer": (b.Scope.SIGNER, site.pki.signer_credential("decision").identity.thumbprint.hex()),
    }[who]
    site.revoke(scope, name)
    out = pump.answer_head(challenge)
    assert late_receipts(out)[-1].outcome is b.Outcome.ABANDONED
    assert pump.hardware.configuration.settings["occlusion_pressure"] == 250


@pytest.mark.holds("stolen-signers")
@pytest.mark.parametrize("statement", ["decision", "recorded"])
def test_a_revoked_signer_reaches_a_staged_command_after_a_restart(
    site: PumpSite, pump: TestPump, statement: str
) -> None:
    staged(site, pump)
    pump.restart()
    site.revoke(b.Scope.SIGNER, site.pki.signer_credential(statement).identity.thumbprint.hex())
    pump.answer_head()
    pump.agent.tick()
    assert pump.agent.status().staged_commands == 0


def test_a_staged_command_does_not_follow_the_pump_to_another_site(site: PumpSite, pump: TestPump) -> None:
    request_id = staged(site, pump).request_id
    _, admission = pump.agent._executor.staged[request_id]
    view = pump.agent._view()
    assert domain.judge_staged(admission, view, head_age_s=0.0, ready=True) is None
    with pytest.raises(Refused) as refusal:
        domain.judge_staged(admission, replace(view, site="site-2"), head_age_s=0.0, ready=True)
    assert refusal.value.reason is Reason.NOT_IN_SCOPE


def test_a_hold_stops_a_staged_command_until_it_is_lifted(site: PumpSite, pump: TestPump) -> None:
    online(pump)
    staged(site, pump)
    pump.command("hold", requester=site.safety)
    assert of_kind(pump.agent.tick(), messages.HeadChallenge) == []
    pump.command("lift-hold", requester=site.safety, approvers=(site.approver,))
    site.clock.advance(1)
    pump.answer_head(challenge_of(pump.agent.tick()))
    assert pump.hardware.configuration.settings["occlusion_pressure"] == 300


def test_a_staged_command_is_abandoned_at_its_last_moment_without_any_link(
    site: PumpSite, pump: TestPump
) -> None:
    staged(site, pump, permit={"apply_not_after": site.clock.now() + 30_000})
    site.clock.advance(29)
    pump.agent.tick()
    assert pump.agent.status().staged_commands == 1
    site.clock.advance(1)
    pump.agent.tick()
    assert pump.agent.status().staged_commands == 0
    out = online(pump)
    assert [body.outcome for body in late_receipts(out)] == [b.Outcome.STAGED, b.Outcome.ABANDONED]


def test_the_last_moment_is_at_most_that_of_the_approvals(site: PumpSite, pump: TestPump) -> None:
    now = site.clock.now()
    staged(site, pump, expires=now + 20_000, permit={"apply_not_after": now + 60_000})
    site.clock.advance(20)
    pump.agent.tick()
    assert pump.agent.status().staged_commands == 0


def test_a_new_profile_with_tighter_limits_ends_a_staged_command(site: PumpSite, pump: TestPump) -> None:
    online(pump)
    staged(site, pump)
    tighter = [
        replace(action, parameters=(replace(action.parameters[0], maximum=200),))
        if action.name == SET
        else action
        for action in site.profile.body.actions
    ]
    newer = site.signed_by_maker("profile", replace(site.profile.body, version=2, actions=tuple(tighter)))
    out = pump.agent.handle(messages.Welcome("gateway-1", site.clock.now(), newer.data, ""))
    abandoned = late_receipts(out)[-1]
    assert (abandoned.outcome, abandoned.reason) == (b.Outcome.ABANDONED, "PARAMETER_OUT_OF_RANGE")


def test_late_receipts_go_out_again_when_the_link_broke(site: PumpSite, pump: TestPump) -> None:
    staged(site, pump, permit={"apply_not_after": site.clock.now() + 1_000})
    site.clock.advance(1)
    pump.agent.tick()
    assert len(late_receipts(online(pump))) == 2
    pump.agent.disconnected()
    assert len(late_receipts(online(pump))) == 2, "nobody knows whether they arrived"
    site.clock.advance(6)
    pump.agent.tick()
    pump.agent.disconnected()
    assert len(late_receipts(online(pump))) == 2, (
        "a link that stays up proves nothing about the gateway's disk"
    )
    site.clock.advance(11)
    again = late_receipts(pump.agent.tick())
    assert len(again) == 2, "nobody has confirmed them"
    pump.agent.handle(messages.ReceiptsKept(again[0].request_id, 1))
    pump.agent.disconnected()
    assert len(late_receipts(online(pump))) == 2, "one of them is not confirmed"
    pump.agent.handle(messages.ReceiptsKept(again[0].request_id, 2))
    pump.agent.disconnected()
    assert late_receipts(online(pump)) == []


def test_a_receipt_that_was_the_answer_is_said_again_until_it_is_kept(pump: TestPump) -> None:
    online(pump)
    answered = receipt(pump.command("diagnose"))
    pump.agent.disconnected()
    (again,) = late_receipts(online(pump))
    assert again == answered
    pump.restart()
    assert late_receipts(online(pump)) == [answered]
    pump.agent.handle(messages.ReceiptsKept(answered.request_id, 1))
    pump.restart()
    assert late_receipts(online(pump)) == []


# --- installing


def deliver(
    pump: TestPump, data: bytes, out: list[messages.Outgoing], *, chunk: int = 400
) -> list[messages.Outgoing]:
    """A gateway that serves pieces of one artifact as long as the device asks."""
    everything = list(out)
    while requests := of_kind(out, messages.ArtifactRequest):
        (request,) = requests[:1]
        assert request.digest == sha256(data)
        piece = data[request.offset : request.offset + chunk]
        out = pump.agent.handle(messages.ArtifactChunk(request.digest, request.offset, piece, None))
        everything += out
    return everything


def test_a_baseline_is_fetched_and_applied_when_idle(site: PumpSite, pump: TestPump) -> None:
    online(pump)
    baseline, data = site.baseline({"occlusion_pressure": 222, "language": "de", "ward": "icu"})
    answer = pump.command("install-baseline", {"baseline": baseline.body.content}, release=baseline.data)
    assert receipt(answer).outcome is b.Outcome.STAGED
    out = deliver(pump, data, pump.agent.tick(), chunk=7)
    out = pump.answer_head(challenge_of(out))
    assert late_receipts(out)[-1].outcome is b.Outcome.APPLIED
    assert pump.hardware.configuration.settings["ward"] == "icu"
    assert pump.hardware.configuration.digest == baseline.body.content
    assert list((pump.folder / "artifacts").iterdir()) == []


def test_a_baseline_outside_the_hard_limits_fails_and_changes_nothing(site: PumpSite, pump: TestPump) -> None:
    online(pump)
    baseline, data = site.baseline({"occlusion_pressure": 9_999})
    pump.command("install-baseline", {"baseline": baseline.body.content}, release=baseline.data)
    out = pump.answer_head(challenge_of(deliver(pump, data, pump.agent.tick())))
    failed = late_receipts(out)[-1]
    assert (failed.outcome, failed.reason) == (b.Outcome.FAILED, "PARAMETER_OUT_OF_RANGE")
    assert pump.hardware.configuration.settings["occlusion_pressure"] == 250


def test_a_library_is_measured(site: PumpSite, pump: TestPump) -> None:
    online(pump)
    baseline, data = site.baseline(b"drug library 7" * 100, baseline_kind=b.BaselineKind.DRUG_LIBRARY)
    pump.command("install-library", {"library": baseline.body.content}, release=baseline.data)
    pump.answer_head(challenge_of(deliver(pump, data, pump.agent.tick())))
    assert pump.hardware.configuration.library_digest == baseline.body.content
    pump.restart()
    assert pump.hardware.configuration.library_digest == baseline.body.content


def ready_update(
    site: PumpSite, pump: TestPump, image: bytes = NEW_FIRMWARE, served: bytes | None = None
) -> tuple[bytes, list[messages.Outgoing]]:
    """Staged and downloaded; answers the request id and what the device said last."""
    online(pump)
    release = site.release(image)
    request_id = os.urandom(16)
    answer = pump.command(
        "update-firmware",
        {"firmware": release.body.firmware},
        approvers=(site.approver,),
        release=release.data,
        request_id=request_id,
    )
    assert receipt(answer).outcome is b.Outcome.STAGED
    return request_id, deliver(pump, image if served is None else served, pump.agent.tick())


def outcomes(pump: TestPump, request_id: bytes) -> list[b.Outcome]:
    return [read(data, b.Receipt).body.outcome for data in pump.agent._journal.receipts(request_id)]


def test_an_update_is_staged_activated_and_proved_by_measurement(site: PumpSite, pump: TestPump) -> None:
    request_id, out = ready_update(site, pump)
    pump.answer_head(challenge_of(out))
    assert pump.agent.restart_wanted
    assert outcomes(pump, request_id) == [b.Outcome.STAGED]
    assert pump.hardware.slots.measure() == sha256(FIRMWARE), "the old build runs until the restart"
    pump.restart()
    assert outcomes(pump, request_id) == [b.Outcome.STAGED, b.Outcome.APPLIED]
    assert pump.hardware.slots.measure() == sha256(NEW_FIRMWARE)
    assert pump.agent.status().firmware_version == "1.6.4"
    started = [leaf for leaf in leaves(pump) if leaf["kind"] == "firmware"]
    assert [leaf["digest"] for leaf in started] == [sha256(FIRMWARE), sha256(NEW_FIRMWARE)]
    assert "permit" not in started[0]
    staged_permit = read(pump.agent._journal.receipts(request_id)[0], b.Receipt).body.permit
    assert started[1]["permit"] == staged_permit
    pump.restart()
    assert outcomes(pump, request_id) == [b.Outcome.STAGED, b.Outcome.APPLIED]


@pytest.mark.holds("update-power-cut")
def test_an_update_never_activates_while_a_patient_may_be_connected(site: PumpSite, pump: TestPump) -> None:
    request_id, out = ready_update(site, pump)
    challenge = challenge_of(out)
    pump.hardware.pump.start_therapy()
    pump.answer_head(challenge)
    pump.hardware.pump.stop_therapy()
    site.clock.advance(2)
    assert of_kind(pump.agent.tick(), messages.HeadChallenge) == []
    assert not pump.agent.restart_wanted
    pump.release()
    pump.hardware.pump.on_mains = False
    assert of_kind(pump.agent.tick(), messages.HeadChallenge) == [], "not on battery either"
    assert not pump.agent.restart_wanted
    pump.hardware.pump.on_mains = True
    pump.agent.tick()  # the head that answered before is still young enough
    assert pump.agent.restart_wanted
    pump.restart()
    assert outcomes(pump, request_id)[-1] is b.Outcome.APPLIED


@pytest.mark.holds("update-power-cut")
def test_a_build_that_fails_its_self_test_is_left_again(site: PumpSite, pump: TestPump) -> None:
    request_id, out = ready_update(site, pump, NEW_FIRMWARE + SELF_TEST_FAILS)
    pump.answer_head(challenge_of(out))
    pump.restart()
    assert outcomes(pump, request_id)[-1] is b.Outcome.FAILED
    assert pump.hardware.slots.measure() == sha256(FIRMWARE)
    assert pump.agent.status().firmware_version == "1.6.3"


@pytest.mark.holds("rollback-and-mix", "update-power-cut")
def test_an_image_that_was_changed_in_the_other_slot_is_not_kept(site: PumpSite, pump: TestPump) -> None:
    request_id, out = ready_update(site, pump)
    pump.answer_head(challenge_of(out))
    tamper_firmware(pump.folder / "flash" / "b.img", b"not what was written")
    pump.restart()
    assert outcomes(pump, request_id)[-1] is b.Outcome.INTERRUPTED
    assert pump.hardware.slots.measure() == sha256(FIRMWARE)


@pytest.mark.parametrize("commit", range(1, 6))
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.holds("update-power-cut")
def test_a_power_cut_anywhere_in_an_update_leaves_a_build_that_runs(
    site: PumpSite, pump: TestPump, commit: int, after: bool
) -> None:
    request_id, out = ready_update(site, pump)
    challenge = challenge_of(out)
    pump.store.cut(commit, after=after)
    try:
        pump.answer_head(challenge)
        pump.restart()
        pump.store.cut(commit, after=after)
        online(pump)
    except PowerCut:
        pass
    for _ in range(3):
        pump.restart()
    online(pump)
    measured = pump.hardware.slots.measure()
    told = outcomes(pump, request_id)
    assert measured in (sha256(FIRMWARE), sha256(NEW_FIRMWARE))
    assert len([one for one in told if one is not b.Outcome.STAGED]) <= 1, "one outcome, once"
    if told[-1] is b.Outcome.APPLIED:
        assert measured == sha256(NEW_FIRMWARE)
    if told[-1] in (b.Outcome.STAGED, b.Outcome.FAILED):
        assert measured == sha256(FIRMWARE)


@pytest.mark.holds("update-power-cut")
def test_starts_that_are_cut_three_times_take_the_old_build_again(site: PumpSite, pump: TestPump) -> None:
    request_id, out = ready_update(site, pump)
    pump.answer_head(challenge_of(out))
    for _ in range(3):
        pump.hardware.slots.start()  # the boot loader alone: power fails before anything is settled
    pump.restart()
    assert outcomes(pump, request_id)[-1] is b.Outcome.FAILED
    assert pump.hardware.slots.measure() == sha256(FIRMWARE)


def test_an_activation_abandons_what_else_was_staged(site: PumpSite, pump: TestPump) -> None:
    online(pump)
    pump.hardware.pump.start_therapy()
    other = staged(site, pump).request_id
    pump.hardware.pump.stop_therapy()
    _, out = ready_update(site, pump)
    assert of_kind(out, messages.HeadChallenge) == []
    pump.hardware.slots._self_test = lambda _image: True
    # The setting is held back so that the update comes first.
    row, admission = pump.agent._executor.staged[other]
    not_yet = replace(
        admission.read.intent, body=replace(admission.intent, not_before=site.clock.now() + 60_000)
    )
    pump.agent._executor.staged[other] = (
        row,
        replace(admission, read=replace(admission.read, intent=not_yet)),
    )
    pump.release()
    site.clock.advance(1)
    pump.answer_head(challenge_of(pump.agent.tick()))
    assert pump.agent.restart_wanted
    pump.restart()
    assert outcomes(pump, other) == [b.Outcome.STAGED, b.Outcome.ABANDONED]


@pytest.mark.holds("malicious-gateway", "rollback-and-mix")
def test_a_wrong_artifact_is_never_installed_and_is_given_up(site: PumpSite, pump: TestPump) -> None:
    online(pump)
    release = site.release()
    parameters = {"firmware": release.body.firmware}
    pump.command("update-firmware", parameters, approvers=(site.approver,), release=release.data)
    rounds = 0
    out = pump.agent.tick()
    while requests := of_kind(out, messages.ArtifactRequest):
        rounds += 1
        assert rounds < 20
        size = release.body.size - requests[0].offset
        out = pump.agent.handle(
            messages.ArtifactChunk(release.body.firmware, requests[0].offset, bytes(size), None)
        )
        out += pump.agent.tick()
    assert rounds == 3
    out += pump.agent.tick()
    assert late_receipts(out)[-1].reason == "ARTIFACT_CORRUPT"
    assert pump.hardware.slots.measure() == sha256(FIRMWARE)


@pytest.mark.holds("update-power-cut")
def test_a_download_goes_on_where_a_power_cut_left_it(site: PumpSite, pump: TestPump) -> None:
    online(pump)
    release = site.release()
    parameters = {"firmware": release.body.firmware}
    pump.command("update-firmware", parameters, approvers=(site.approver,), release=release.data)
    pump.agent.handle(messages.ArtifactChunk(release.body.firmware, 0, NEW_FIRMWARE[:100], None))
    pump.restart()
    (request,) = of_kind(online(pump), messages.ArtifactRequest)
    assert request.offset == 100
    (request,) = of_kind(
        pump.agent.handle(messages.ArtifactChunk(request.digest, 0, NEW_FIRMWARE[:100], None)),
        messages.ArtifactRequest,
    ) or (request,)
    assert request.offset == 100, "a piece that does not continue is not kept"


# --- attestation


def attest(pump: TestPump, out: list[messages.Outgoing], *, log_size: int = 0) -> messages.Submission:
    (asked,) = of_kind(out, messages.ChallengeRequest)
    reply = pump.agent.handle(messages.Challenge(asked.call_id, b"n" * 32, log_size))
    (submission,) = of_kind(reply, messages.Submission)
    assert isinstance(submission, messages.Submission)
    return submission


def test_evidence_proves_its_log(site: PumpSite, pump: TestPump) -> None:
    submission = attest(pump, online(pump))
    evidence = read(submission.evidence, b.Evidence)
    identity = site.pki.verifier.verify(evidence.chain, at=site.clock.now())
    check(evidence, identity)
    body = evidence.body
    assert body.eat_nonce == b"n" * 32
    assert body.measurements.firmware == sha256(FIRMWARE)
    assert body.hwmodel == MODEL.encode()
    assert (body.oemboot, body.bootcount) == (True, 1)
    held = Frontier.empty().extend(merkle.leaf_hash(leaf) for leaf in submission.leaves)
    assert (held.size, held.root()) == (body.log.size, body.log.root)
    pump.agent.handle(messages.Appraised(submission.call_id, None))
    # The next one sends only what is new, with the permit that a configuration leaf names.
    answer = pump.command(SET, PRESSURE)
    later = attest(pump, pump.agent.tick(), log_size=held.size)
    assert later.first_leaf == held.size
    held = held.extend(merkle.leaf_hash(leaf) for leaf in later.leaves)
    head = read(later.evidence, b.Evidence).body.log
    assert (held.size, held.root()) == (head.size, head.root)
    assert head.counter > body.log.counter
    assert [read(permit, b.Decision).digest for permit in later.permits] == [receipt(answer).permit]


def test_evidence_is_pushed_in_time_and_at_every_change(site: PumpSite, pump: TestPump) -> None:
    submission = attest(pump, online(pump))
    pump.agent.handle(messages.Appraised(submission.call_id, None))
    assert of_kind(pump.agent.tick(), messages.ChallengeRequest) == []
    pump.hardware.pump.start_therapy()
    submission = attest(pump, pump.agent.tick())
    assert read(submission.evidence, b.Evidence).body.therapy.state is b.TherapyState.DELIVERING
    pump.agent.handle(messages.Appraised(submission.call_id, None))
    site.clock.advance(14)
    assert of_kind(pump.agent.tick(), messages.ChallengeRequest) == []
    site.clock.advance(7)
    assert len(of_kind(pump.agent.tick(), messages.ChallengeRequest)) == 1, "a third of 60 s"


def test_a_change_while_evidence_is_on_its_way_leads_to_another_one(pump: TestPump) -> None:
    submission = attest(pump, online(pump))
    pump.hardware.pump.start_therapy()
    assert of_kind(pump.agent.tick(), messages.ChallengeRequest) == []
    pump.agent.handle(messages.Appraised(submission.call_id, None))
    assert len(of_kind(pump.agent.tick(), messages.ChallengeRequest)) == 1


def test_what_is_in_force_is_logged_once_and_again_when_it_was_changed_behind_the_logs_back(
    pump: TestPump,
) -> None:
    measured = ("firmware", "configuration", "library")
    assert [leaf["kind"] for leaf in leaves(pump) if leaf["kind"] in measured] == list(measured)
    tamper_firmware(pump.hardware.slots.image, b"malware")
    pump.restart()
    pump.restart()
    found = [leaf for leaf in leaves(pump) if leaf["kind"] in measured][3:]
    assert [(leaf["kind"], leaf["digest"]) for leaf in found] == [("firmware", sha256(b"malware"))]


def test_a_long_log_travels_in_parts(pump: TestPump, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vigil.device.evidence.MAX_LEAVES", 3)
    held, counter = Frontier.empty(), -1
    out = online(pump)
    for part in range(10):
        submission = attest(pump, out, log_size=held.size)
        assert len(submission.leaves) <= 3
        held = held.extend(merkle.leaf_hash(leaf) for leaf in submission.leaves)
        head = read(submission.evidence, b.Evidence).body.log
        assert (held.size, held.root()) == (head.size, head.root)
        assert head.counter > counter
        counter = head.counter
        pump.agent.handle(messages.Appraised(submission.call_id, None))
        out = pump.agent.tick()
        if held.size == pump.agent._log.size:
            assert part > 0
            assert of_kind(out, messages.ChallengeRequest) == []
            return
    raise AssertionError("the log never arrived")


def test_the_gateway_may_ask_at_any_time(pump: TestPump) -> None:
    online(pump)
    out = pump.agent.handle(messages.AttestNow(4711))
    assert of_kind(out, messages.ChallengeRequest) == [messages.ChallengeRequest(4711)]
    assert attest(pump, out).call_id == 4711
    # A challenge that was never asked for is not answered.
    assert of_kind(pump.agent.handle(messages.Challenge(99, b"n" * 32, 0)), messages.Submission) == []


@pytest.mark.holds("rollback-and-mix")
def test_a_tampered_flash_shows_without_a_restart(pump: TestPump) -> None:
    submission = attest(pump, online(pump))
    pump.agent.handle(messages.Appraised(submission.call_id, None))
    tamper_firmware(pump.hardware.slots.image, b"malware")
    submission = attest(pump, pump.agent.tick())
    body = read(submission.evidence, b.Evidence).body
    assert body.measurements.firmware == sha256(b"malware")
    assert not body.oemboot
    assert leaves(pump)[-1]["kind"] == "integrity"


def test_the_keys_come_from_the_puf_and_no_key_lies_in_the_folder(pump: TestPump) -> None:
    before = pump.hardware.attestation_key.private_numbers().private_value
    pump.restart()
    assert pump.hardware.attestation_key.private_numbers().private_value == before
    secrets = [
        key.private_numbers().private_value.to_bytes(32)
        for key in (pump.hardware.attestation_key, pump.hardware.identity_key)
    ]
    for path in pump.folder.rglob("*"):
        if path.is_file():
            assert not any(secret in path.read_bytes() for secret in secrets), path
            private = path.suffix in (".key", ".db") or "wal" in path.name or path.name == "puf.cells"
            if private and path.suffix == ".key":
                assert path.stat().st_mode & 0o077 == 0, path


# --- revocations and time


def test_a_revocation_is_persisted_before_it_is_acknowledged(site: PumpSite, pump: TestPump) -> None:
    site.revoke(b.Scope.DEVICE, "dev-cccccccccccccccc")
    pump.store.cut(1)
    with pytest.raises(PowerCut):
        pump.answer_head()
    pump.restart()
    assert pump.agent.status().revocation_epoch == 0
    out = pump.answer_head()
    (acknowledgement,) = of_kind(out, messages.AcknowledgementMessage)
    assert read(acknowledgement.acknowledgement, b.Acknowledgement).body.epoch == 1
    pump.restart()
    assert pump.agent.status().revocation_epoch == 1


@pytest.mark.holds("storage-failures")
def test_what_could_not_be_written_is_enforced_not_acknowledged_and_written_later(
    site: PumpSite, pump: TestPump, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise refused(Reason.STORAGE_UNAVAILABLE, "the disk is full")

    site.revoke(b.Scope.DEVICE, "dev-cccccccccccccccc")
    with monkeypatch.context() as patched:
        patched.setattr(pump.store, "_commit", full)
        assert pump.answer_head() == []
        assert pump.agent.trust.revocations.epoch == 1
        welcomed = pump.agent.handle(messages.Welcome("gateway-1", site.clock.now(), b"", ""))
        (early,) = of_kind(welcomed, messages.AcknowledgementMessage)
        assert read(early.acknowledgement, b.Acknowledgement).body.epoch == 0
        assert not of_kind(pump.agent.tick(), messages.AcknowledgementMessage)
    # The flash takes it again: it is written and acknowledged without anything new having to come.
    site.clock.advance(1)
    (now,) = of_kind(pump.agent.tick(), messages.AcknowledgementMessage)
    assert read(now.acknowledgement, b.Acknowledgement).body.epoch == 1
    site.revoke(b.Scope.DEVICE, "dev-dddddddddddddddd")
    (late,) = of_kind(pump.answer_head(), messages.AcknowledgementMessage)
    assert read(late.acknowledgement, b.Acknowledgement).body.epoch == 2
    pump.restart()
    assert pump.agent.status().revocation_epoch == 2


@pytest.mark.holds("stolen-signers")
def test_a_head_signer_alone_opens_no_era(site: PumpSite, pump: TestPump) -> None:
    site.revoke(b.Scope.CREDENTIAL, "principal/p-technician")
    pump.answer_head()
    for values in ({"era": 1}, {"era": 2**62}, {"era": 1, "epoch": 0, "chain": EMPTY_CHAIN}):
        pump.answer_head(**values)
        pump.answer_head(**values)
        assert pump.agent.trust.revocations.position[:2] == (0, 1)
    site.revoke(b.Scope.DEVICE, "dev-cccccccccccccccc")
    assert of_kind(pump.answer_head(entries=site.entries[1:]), messages.AcknowledgementMessage)


def test_an_era_of_the_root_and_two_people_is_followed_through_a_lost_chain(
    site: PumpSite, pump: TestPump
) -> None:
    """The way out of a bad ratchet: epoch and floor begin again, and a restart finds them so."""
    for place in range(3):
        site.revoke(b.Scope.DEVICE, f"dev-cccccccccccccc{place + 2}c")
    pump.answer_head()
    site.clock.advance(9)
    ahead = pump.agent.trust.time.floor()
    del site.entries[1:]
    site.open_era(floor=ahead - 3_600_000)
    assert pump.answer_head(entries=()) == [messages.RevocationsAfter(0)]
    assert pump.agent.trust.revocations.epoch == 3
    assert of_kind(
        pump.answer_head(gateway_time=site.clock.now() - 3_600_000), messages.AcknowledgementMessage
    )
    assert pump.agent.trust.revocations.position[:2] == (1, 2)
    assert pump.agent.trust.time.floor() < ahead
    assert pump.agent.trust.held_epoch == 0
    pump.restart()
    assert pump.agent.trust.revocations.position[:2] == (1, 2)


@pytest.mark.holds("malicious-gateway")
def test_no_gateway_brings_a_root_for_the_pumps_own_manufacturer(site: PumpSite, pump: TestPump) -> None:
    trust, bundle = pump.agent.trust, site.pki.bundle
    trust.verifier = ChainVerifier(replace(bundle, manufacturers={}))
    with pytest.raises(Refused):
        trust.take_trust(bundle.to_json())
    trust.verifier = ChainVerifier(bundle)
    with pytest.raises(Refused):
        trust.take_trust(replace(bundle, manufacturers={}).to_json())


def test_a_gap_is_asked_for_and_long_histories_come_in_pieces(site: PumpSite, pump: TestPump) -> None:
    for place in range(3):
        site.revoke(b.Scope.DEVICE, f"dev-cccccccccccccc{place + 2}c")
    out = pump.answer_head(entries=site.entries[2:])
    assert of_kind(out, messages.RevocationsAfter) == [messages.RevocationsAfter(0)]
    early = messages.Revocations(tuple(site.entries[:2]), b"", (), site.clock.now())
    assert pump.agent.handle(early) == []
    pump.answer_head(entries=site.entries[2:])
    assert pump.agent.status().revocation_epoch == 3


@pytest.mark.holds("captured-bus")
def test_an_unconfirmed_entry_restricts_nobody_and_a_forged_head_confirms_nothing(
    site: PumpSite, pump: TestPump
) -> None:
    entry = site.revoke(b.Scope.CREDENTIAL, "principal/p-technician")
    head = site.head()
    forged = head.data[:-1] + bytes([head.data[-1] ^ 1])
    assert pump.agent.handle(messages.Revocations((entry,), forged, (), site.clock.now())) == []
    wrong = site.sign(site.pki.signer_credential("decision"), head.body, subject="revocation/head")
    assert pump.agent.handle(messages.Revocations((entry,), wrong.data, (), site.clock.now())) == []
    assert pump.agent.status().revocation_epoch == 0
    assert pump.command(SET, PRESSURE, permit={"epoch": 0}).error is None


@pytest.mark.holds("malicious-gateway")
def test_an_older_head_takes_nothing_back(site: PumpSite, pump: TestPump) -> None:
    old = site.revocations()
    site.revoke(b.Scope.CREDENTIAL, "principal/p-technician")
    pump.answer_head()
    pump.agent.handle(old)
    assert pump.agent.status().revocation_epoch == 1


@pytest.mark.holds("stolen-technician")
def test_a_revoked_credential_loses_its_nonce(site: PumpSite, pump: TestPump) -> None:
    nonce = pump.nonce(site.technician)
    site.revoke(b.Scope.CREDENTIAL, site.technician.identity.thumbprint.hex())
    pump.answer_head()
    refusal = pump.agent._nonces.take(nonce, credential=site.technician.identity.thumbprint)
    assert refusal is not None
    assert refusal.reason is Reason.NONCE_EXPIRED


def test_a_pump_that_lost_its_clock_learns_the_time_from_a_head_and_the_gateway(tmp_path: Any) -> None:
    site = PumpSite(tmp_path)
    pump = site.pump()
    month = 30 * 86_400_000
    real = site.clock.now() + 1_000
    site.clock.set_now(real - month)
    pump.restart()
    assert pump.agent._time.now() >= real - 1_000, "never below the floor"
    # Forward, only where both agree.
    far = real + month
    pump.answer_head(issued=far, gateway_time=real)
    assert pump.agent._time.now() < real + 60_000
    pump.answer_head(issued=far, gateway_time=far - 10_001)
    assert pump.agent._time.now() < real + 60_000
    pump.answer_head(issued=far, gateway_time=far - 10_000)
    assert pump.agent._time.now() == far
    site.clock.advance(7)
    assert pump.agent._time.floor() == far + 7_000
    pump.restart()
    assert pump.agent._time.floor() >= far


@pytest.mark.holds("malicious-gateway")
def test_a_clock_that_runs_ahead_is_set_back_to_a_signed_time_but_never_below_the_floor(
    tmp_path: Any,
) -> None:
    site = PumpSite(tmp_path)
    pump = site.pump()
    real = site.clock.now()
    site.clock.set_now(real + 10 * 365 * 86_400_000)
    pump.restart()
    site.clock.set_now(real + 1_000)
    pump.answer_head()
    assert pump.agent._time.now() == real + 1_000
    site.clock.set_now(real - 86_400_000)
    pump.answer_head()
    assert pump.agent._time.now() >= real


# --- nonces, profiles, trust, certificates


@pytest.mark.holds("floods-by-credential")
def test_a_flood_of_nonces_leaves_a_slot_for_safety(site: PumpSite, pump: TestPump) -> None:
    replies = [
        pump.agent.handle(messages.NonceRequest(place, bytes([place]) * 32, False, b""))[0]
        for place in range(20)
    ]
    errors = [
        reply.error.reason for reply in replies if isinstance(reply, messages.NonceReply) and reply.error
    ]
    assert errors == [Reason.QUOTA_EXCEEDED] * 13
    assert pump.nonce(site.safety, safety=True)
    site.clock.advance(5)
    assert pump.nonce(site.technician)


def test_a_prepare_can_bring_a_newer_profile(site: PumpSite, pump: TestPump) -> None:
    newer = site.signed_by_maker("profile", replace(site.profile.body, version=5))
    (reply, *_) = pump.agent.handle(messages.NonceRequest(1, bytes(32), False, newer.data))
    assert isinstance(reply, messages.NonceReply)
    assert reply.error is None
    assert pump.agent.trust.profile is not None
    assert pump.agent.trust.profile.body.version == 5
    older = site.signed_by_maker("profile", replace(site.profile.body, version=4))
    pump.agent.handle(messages.Welcome("gateway-1", site.clock.now(), older.data, ""))
    assert pump.agent.trust.profile.body.version == 5
    forged = site.sign(site.pki.signer_credential("decision"), replace(site.profile.body, version=9))
    (reply, *_) = pump.agent.handle(messages.NonceRequest(2, bytes(32), False, forged.data))
    assert isinstance(reply, messages.NonceReply)
    assert reply.error is not None
    pump.restart()
    assert pump.agent.trust.profile is not None
    assert pump.agent.trust.profile.body.version == 5


@pytest.mark.holds("malicious-gateway")
@pytest.mark.parametrize(
    "action", ["set-rate-here", "factory-reset", "update-firmware", "set-occlusion-pressure"]
)
def test_a_profile_that_calls_an_action_harmless_is_not_taken(
    site: PumpSite, pump: TestPump, action: str
) -> None:
    """Not even the manufacturer's signer brings a therapy past policy."""
    body = site.profile.body
    actions = tuple(
        replace(one, action_class=b.ActionClass.S1) if one.name == action else one for one in body.actions
    )
    worse = site.signed_by_maker(
        "profile", replace(body, version=7, actions=actions), subject=f"model/{MODEL}"
    )
    pump.agent.handle(messages.Welcome("gateway-1", site.clock.now(), worse.data, ""))
    assert pump.agent.trust.profile is not None
    assert pump.agent.trust.profile.body.version == body.version


@pytest.mark.holds("malicious-gateway")
def test_no_profile_lowers_the_approvals_of_a_class(site: PumpSite, pump: TestPump) -> None:
    body = site.profile.body
    actions = tuple(replace(one, approvals=0) for one in body.actions)
    lower = site.signed_by_maker(
        "profile", replace(body, version=8, actions=actions), subject=f"model/{MODEL}"
    )
    pump.agent.handle(messages.Welcome("gateway-1", site.clock.now(), lower.data, ""))
    answer = pump.command("factory-reset", approvers=(site.approver,), permit={"profile": lower.digest})
    assert answer.error is not None
    assert answer.error.reason is Reason.APPROVALS_MISSING


def test_without_a_profile_nothing_is_done(site: PumpSite) -> None:
    pump = site.pump(with_profile=False)
    answer = pump.command("quarantine", requester=site.safety)
    assert answer.error is not None
    assert answer.error.reason is Reason.PROFILE_MISMATCH


@pytest.mark.holds("malicious-gateway")
def test_a_gateway_changes_no_root_operator_or_manufacturer(
    site: PumpSite, pump: TestPump, tmp_path: Any
) -> None:
    bundle = site.pki.bundle
    rogue = PumpSite(tmp_path).pki.bundle
    for offered in (
        rogue,
        replace(bundle, operator="hospital"),
        replace(bundle, manufacturers={**bundle.manufacturers, "maker": rogue.manufacturers["maker"]}),
    ):
        before = pump.agent.trust.verifier
        pump.agent.handle(messages.Welcome("gateway-1", site.clock.now(), b"", offered.to_json()))
        assert pump.agent.trust.verifier is before
    added = bundle.with_manufacturer("another-maker", rogue.manufacturers["maker"])
    pump.agent.handle(messages.Welcome("gateway-1", site.clock.now(), b"", added.to_json()))
    assert "another-maker" in pump.agent.trust.verifier.bundle.manufacturers
    pump.restart()
    assert "another-maker" in pump.agent.trust.verifier.bundle.manufacturers


def test_certificates_are_renewed_in_time_by_the_puf_key(site: PumpSite, pump: TestPump) -> None:
    assert of_kind(online(pump), messages.Renew) == []
    trust = pump.agent.trust
    trust.identity = replace(trust.identity, operational_until=site.clock.now() + 86_400_000)
    (renew,) = of_kind(pump.agent.tick(), messages.Renew)
    at = int.from_bytes(renew.possession.nonce[-8:])
    assert renew.possession.nonce[:-8].decode() == pump.device_id
    assert abs(at - site.clock.now()) < 1_000
    assert of_kind(pump.agent.tick(), messages.Renew) == [], "once a minute is enough"
    key = pump.hardware.secure_element.pending_tls_key()
    tls = site.pki.device(pump.device_id, private_key=key, sites=("site-2",))
    attester = site.pki.attester(pump.device_id, private_key=pump.hardware.attestation_key, sites=("site-2",))
    foreign = site.pki.attester(pump.device_id, private_key=new_private_key())
    older = site.pki.attester(
        pump.device_id,
        private_key=pump.hardware.attestation_key,
        operational_until=site.clock.now() + 3_600_000,
        not_after=site.clock.now() + 7_200_000,
    )
    for wrong in (foreign.chain, older.chain, tls.chain):
        pump.agent.handle(messages.Renewed(messages.Certificates(tls.chain, wrong, ""), None))
        assert not pump.agent.reconnect_wanted
    pump.agent.handle(messages.Renewed(messages.Certificates(tls.chain, attester.chain, ""), None))
    assert pump.agent.reconnect_wanted
    assert pump.agent.trust.identity.sites == ("site-2",)
    answer = pump.command("quarantine", requester=site.safety)
    assert answer.error is not None
    assert answer.error.reason is Reason.NOT_IN_SCOPE, "the device has moved to another site"
    pump.restart()
    assert pump.agent.trust.identity.sites == ("site-2",)


def test_status_is_sent_while_somebody_follows(site: PumpSite, pump: TestPump) -> None:
    online(pump)
    pump.agent.tick()
    assert of_kind(pump.agent.tick(), messages.Status) == []
    assert (
        len(of_kind(pump.agent.handle(messages.StatusInterval(1_000)) + pump.agent.tick(), messages.Status))
        == 1
    )
    site.clock.advance(1)
    assert len(of_kind(pump.agent.tick(), messages.Status)) == 1
    pump.agent.handle(messages.StatusInterval(0))
    site.clock.advance(5)
    assert of_kind(pump.agent.tick(), messages.Status) == []
