"""Each check of the decision path refuses with its own reason, beside everything else that refuses."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.support.pki import DEVICE, ORGANIZATION, SITE
from tests.support.policy_room import (
    HOUR_MS,
    ICU,
    LIBRARY,
    MODEL,
    NEWER,
    OLDER,
    RUNNING,
    WARD,
    PolicyRoom,
)
from vigil.api.identity.v1 import identity_pb2
from vigil.core import cbor
from vigil.core.clock import ManualClock, SystemClock
from vigil.core.digest import sha256
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import read
from vigil.errors import Reason, Refused
from vigil.feed.evidence import EvidenceAppender
from vigil.policy.case import Item, read_item
from vigil.policy.engine.bundle import DEFAULT_BUNDLE, read_bundle
from vigil.policy.engine.port import COMMAND_REASONS
from vigil.policy.engine.wasm import WasmEngine
from vigil.policy.metrics import PolicyMetrics
from vigil.policy.sentences import spoken
from vigil.policy.service import Decisions, Preview
from vigil.rpc.channel import Channels

R, Effect, Scope, Why = Reason, b.RevocationEffect, b.Scope, b.RevocationReason


class Bench:
    """A room with an engine in the process, and an evidence service that is never there."""

    def __init__(self, room: PolicyRoom, engine: WasmEngine, appender: EvidenceAppender) -> None:
        self.room = room
        self.decisions = Decisions(
            facts=room,
            engine=engine,
            scribe=room.scribe(),
            appender=appender,
            clock=room.clock,
            metrics=PolicyMetrics(CollectorRegistry()),
        )

    async def judged(self, item: Item) -> Preview:
        return await self.decisions.preview(self.room.gateway.identity, item)

    async def reasons(self, item: Item) -> list[Reason]:
        """Why not, in the order told; empty when it is allowed."""
        refusal = (await self.judged(item)).refusal
        return [] if refusal is None else [one.reason for one in refusal.refusals]

    async def obligations(self, item: Item) -> list[tuple[str, dict[str, Any]]]:
        judged = await self.judged(item)
        assert judged.refusal is None, judged.refusal
        return [(one.kind, dict(one.values)) for one in judged.obligations]


@pytest.fixture(scope="module")
def engine() -> WasmEngine:
    return WasmEngine(read_bundle(DEFAULT_BUNDLE.read_bytes()), deadline_ms=60_000)


@pytest.fixture
async def bench(tmp_path: Path, engine: WasmEngine) -> AsyncIterator[Bench]:
    room = PolicyRoom(tmp_path)
    channels = Channels(
        tls=room.pki.service("policy").tls_files, trust_domain=room.pki.trust_domain, clock=SystemClock()
    )
    # Port 9 (discard) is closed: evidence is down.
    appender = EvidenceAppender(channel=channels.service("127.0.0.1:9", "evidence"), entropy=bytes, streams=1)
    async with appender:
        yield Bench(room, engine, appender)
    await channels.close()


@pytest.fixture
def room(bench: Bench) -> PolicyRoom:
    return bench.room


def advance(room: PolicyRoom, seconds: float) -> None:
    assert isinstance(room.clock, ManualClock)
    room.clock.advance(seconds)


# --- what is allowed


async def test_each_class_has_a_command_that_is_allowed_and_what_it_owes(
    bench: Bench, room: PolicyRoom
) -> None:
    two = (room.approver, room.second_approver)
    assert await bench.obligations(room.item()) == []
    assert await bench.obligations(room.item(mode=b.Mode.IDLE)) == [("stage", {"until": "idle"})]
    assert await bench.obligations(room.item("read-diagnostics", work_order=None)) == [
        ("show_attestation", {})
    ]
    assert await bench.obligations(room.item("update-firmware", approvers=two[:1])) == [
        ("stage", {"until": "idle"})
    ]
    assert await bench.obligations(room.item("install-configuration")) == []
    assert await bench.obligations(room.item("factory-reset", approvers=two)) == []
    room.put_result(quarantined=True)
    assert await bench.obligations(room.item("release-quarantine", approvers=two[:1])) == []


async def test_the_window_is_the_intents_own(bench: Bench, room: PolicyRoom) -> None:
    later = room.clock.now() + HOUR_MS
    assert await bench.obligations(room.item(mode=b.Mode.WINDOW, not_before=later)) == [
        ("stage", {"until": "window"})
    ]
    assert await bench.obligations(room.item(mode=b.Mode.WINDOW)) == [("stage", {"until": "idle"})]
    assert await bench.reasons(room.item(not_before=later)) == [R.OUTSIDE_WINDOW]


async def test_the_operators_people_act_for_every_organization(bench: Bench, room: PolicyRoom) -> None:
    operator = room.pki.person("p-operator", "technician", organization="operator", sites=("*",))
    assert operator.identity.operator
    intent = room.intent(by=operator)
    assert await bench.reasons(room.item(intent=intent, command=room.command(intent, by=operator))) == []


# --- 1: bounds


async def test_statements_are_bounded_and_strict(room: PolicyRoom) -> None:
    intent = room.intent()
    command = room.command(intent)
    approval = room.approval(intent).data
    good: dict[str, Any] = {
        "device_id": DEVICE,
        "intent": intent.data,
        "approvals": [],
        "command": command.data,
        "proofs": (),
    }
    read_item(**good)
    for change in (
        {"intent": intent.data + b"\0"},
        {"intent": command.data},
        {"command": b""},
        {"command": intent.data},
        {"intent": b"\0" * 30_000},
        {"approvals": [approval] * 9},
        {"approvals": [approval], "proofs": room.record(intent.digest)},
        {"proofs": (replace(room.record(intent.digest)[0], path=(bytes(32),) * 65),)},
    ):
        with pytest.raises(Refused) as refusal:
            read_item(**{**good, **change})
        assert refusal.value.reason is R.STATEMENT_MALFORMED


# --- 2: profile and class


async def test_profile_and_class(bench: Bench, room: PolicyRoom) -> None:
    assert await bench.reasons(room.item("dance")) == [R.ACTION_UNKNOWN]
    assert await bench.reasons(room.item("quarantine")) == [R.POLICY_DENIED]
    room.put_device(model="unheard-of")
    assert await bench.reasons(room.item()) == [R.ACTION_UNKNOWN]
    room.known_ages["release"] = float("inf")
    assert await bench.reasons(room.item()) == [R.REPLICA_STALE]


async def test_a_profile_by_another_organization_does_not_count(bench: Bench, room: PolicyRoom) -> None:
    other = room.pki.manufacturer("other-maker")
    room.verifier_now = room.pki.verifier
    profile = room.sign(other.credential("profile"), room.profile_statement.body, numbered=True)
    room.put("model", MODEL, room.model_row(profile))
    assert await bench.reasons(room.item()) == [R.ACTION_UNKNOWN]


# --- 3: who signed


async def test_a_foreign_device_and_an_unknown_one_look_the_same(bench: Bench, room: PolicyRoom) -> None:
    room.put_device("dev-bbbbbbbbbbbbbbbb", site_id="site-2")
    told = []
    for device_id in ("dev-bbbbbbbbbbbbbbbb", "dev-cccccccccccccccc"):
        with pytest.raises(Refused) as refusal:
            await bench.judged(room.item(device_id=device_id))
        told.append(refusal.value.refusals)
    assert told[0] == told[1]
    assert [one.reason for one in told[0]] == [R.NOT_IN_SCOPE]
    room.known_ages["identity"] = 61.0
    for device_id in ("dev-bbbbbbbbbbbbbbbb", "dev-cccccccccccccccc"):
        with pytest.raises(Refused) as refusal:
            await bench.judged(room.item(device_id=device_id))
        assert refusal.value.reason is R.REPLICA_STALE


@pytest.mark.holds("stolen-technician")
async def test_scope_is_answered_alone(bench: Bench, room: PolicyRoom) -> None:
    stranger = room.pki.person("p-stranger", "technician", sites=("site-2",))
    foreigner = room.pki.person("p-foreigner", "technician", organization="elsewhere", sites=("*",))
    for person in (stranger, foreigner):
        intent = room.intent(by=person, parameters={"pressure": 10_000}, work_order=None)
        command = room.command(intent, by=person)
        refusal = (await bench.judged(room.item(intent=intent, command=command))).refusal
        assert refusal is not None
        assert [one.reason for one in refusal.refusals] == [R.NOT_IN_SCOPE]
        assert refusal.refusals[0].sentence == "What you named does not exist, or it is not in your scope."


@pytest.mark.holds("stolen-technician")
async def test_roles(bench: Bench, room: PolicyRoom) -> None:
    auditor = room.pki.person("p-auditor", "auditor")
    intent = room.intent(by=auditor)
    item = room.item(intent=intent, command=room.command(intent, by=auditor))
    assert await bench.reasons(item) == [R.ROLE_NOT_PERMITTED]


async def test_the_executor_alone_finishes_and_needs_the_role(bench: Bench, room: PolicyRoom) -> None:
    named = room.intent(executor=room.colleague.identity.key_thumbprint)
    assert await bench.reasons(room.item(intent=named, command=room.command(named, by=room.colleague))) == []
    assert await bench.reasons(room.item(intent=named)) == [R.SIGNER_NOT_CALLER]
    intent = room.intent()
    other = room.item(intent=intent, command=room.command(intent, by=room.colleague))
    assert await bench.reasons(other) == [R.SIGNER_NOT_CALLER]
    named = room.intent(executor=room.approver.identity.key_thumbprint)
    powerless = room.item(intent=named, command=room.command(named, by=room.approver))
    assert await bench.reasons(powerless) == [R.ROLE_NOT_PERMITTED]


async def test_signatures_and_the_target(bench: Bench, room: PolicyRoom) -> None:
    intent = room.intent()
    forged = room.sign(replace(room.colleague, signer=room.technician.signer), intent.body)
    assert await bench.reasons(room.item(intent=forged)) == [R.SIGNATURE_INVALID]
    by_gateway = room.sign(room.gateway, intent.body)
    assert await bench.reasons(room.item(intent=by_gateway)) == [R.CERTIFICATE_INVALID]
    for command in (
        room.command(room.intent()),
        room.command(intent, device_id="dev-cccccccccccccccc"),
        room.command(intent, path=(bytes(32),)),
    ):
        assert await bench.reasons(room.item(intent=intent, command=command)) == [R.NOT_IN_TARGET]


async def test_an_intent_of_many_devices_names_each(bench: Bench, room: PolicyRoom) -> None:
    devices = (DEVICE, "dev-bbbbbbbbbbbbbbbb", "dev-cccccccccccccccc")
    intent = room.intent(devices=devices)
    command = room.command(intent, devices=devices)
    assert await bench.reasons(room.item(intent=intent, command=command)) == []


async def test_intent_is_judged_when_recorded_and_the_command_now(bench: Bench, room: PolicyRoom) -> None:
    now = room.clock.now()
    worker = room.pki.person("p-worker", "technician", operational_until=now + HOUR_MS)
    robot = room.pki.person("p-robot", "technician", operational_until=now + 9 * HOUR_MS)
    intent = room.intent(by=worker, executor=robot.identity.key_thumbprint, expires=now + 5 * HOUR_MS)
    advance(room, 2 * 3600)
    room.put_result()
    command = room.command(intent, by=robot)
    assert await bench.reasons(room.item(intent=intent, command=command)) == [R.CERTIFICATE_EXPIRED]
    recorded = room.item(intent=intent, command=command, recorded_at=now)
    assert await bench.reasons(recorded) == []
    advance(room, 8 * 3600)
    late = room.item(intent=intent, command=command, recorded_at=now)
    assert await bench.reasons(late) == [R.CERTIFICATE_EXPIRED]


@pytest.mark.holds("stolen-signers")
async def test_a_proof_for_something_else(bench: Bench, room: PolicyRoom) -> None:
    item = replace(room.item(), proofs=room.record(sha256(b"another")))
    assert await bench.reasons(item) == [R.NOT_RECORDED]


async def test_an_intent_ends(bench: Bench, room: PolicyRoom) -> None:
    item = room.item(expires=room.clock.now() + 1000)
    assert await bench.reasons(item) == []
    advance(room, 2)
    assert await bench.reasons(item) == [R.INTENT_EXPIRED]
    assert R.STATEMENT_MALFORMED in await bench.reasons(
        room.item(expires=room.clock.now() + 200 * 24 * HOUR_MS)
    )


@pytest.mark.holds("stolen-technician")
@pytest.mark.parametrize(
    ("reason", "recorded_before", "recorded_after"),
    [
        (Why.COMPROMISE, False, False),
        (Why.LOST, False, False),
        (Why.LEAVER, True, False),
        (Why.SUPERSEDED, True, False),
    ],
)
async def test_compromise_voids_what_was_signed_before_and_leaving_does_not(
    bench: Bench, room: PolicyRoom, reason: Why, recorded_before: bool, recorded_after: bool
) -> None:
    before = room.clock.now()
    robot = room.pki.person("p-robot", "technician")
    intent = room.intent(executor=robot.identity.key_thumbprint)
    advance(room, 10)
    room.revoke(Scope.CREDENTIAL, "principal/p-technician", reason=reason)
    advance(room, 10)

    async def allowed(recorded_at: int | None) -> bool:
        command = room.command(intent, by=robot)
        reasons = await bench.reasons(room.item(intent=intent, command=command, recorded_at=recorded_at))
        assert reasons in ([], [R.CREDENTIAL_REVOKED])
        return not reasons

    assert await allowed(before) is recorded_before
    assert await allowed(room.clock.now() - 5_000) is recorded_after
    # Whoever left can date a statement back: only the log's word counts.
    assert not await allowed(None)


async def test_a_revoked_approver_executor_and_a_reinstated_one(bench: Bench, room: PolicyRoom) -> None:
    item = room.item("update-firmware", approvers=(room.approver,))
    assert await bench.reasons(item) == []
    revocation = room.revoke(Scope.CREDENTIAL, room.approver.identity.thumbprint.hex())
    assert await bench.reasons(item) == [R.CREDENTIAL_REVOKED]
    room.reinstate(revocation)
    assert await bench.reasons(item) == []
    room.revoke(Scope.CREDENTIAL, "principal/p-technician", reason=Why.LEAVER)
    assert await bench.reasons(room.item(recorded_at=room.clock.now() - 60_000)) == [R.CREDENTIAL_REVOKED]


async def test_a_suspension_ends(bench: Bench, room: PolicyRoom) -> None:
    room.revoke(Scope.CREDENTIAL, "principal/p-technician", expires=room.clock.now() + 1000)
    item = room.item()
    assert await bench.reasons(item) == [R.CREDENTIAL_REVOKED]
    advance(room, 2)
    assert await bench.reasons(item) == []


@pytest.mark.holds("stolen-signers")
async def test_revoked_signers(bench: Bench, room: PolicyRoom) -> None:
    def thumbprint(statement: str, *, maker: bool = False) -> str:
        owner = room.maker.credential(statement) if maker else room.pki.signer_credential(statement)
        return owner.identity.thumbprint.hex()

    freed = room.revoke(Scope.SIGNER, thumbprint("recorded"))
    assert await bench.reasons(room.item(recorded_at=room.clock.now())) == [R.SIGNER_REVOKED]
    assert await bench.reasons(room.item()) == []
    room.reinstate(freed)
    update = room.item("update-firmware", approvers=(room.approver,))
    room.revoke(Scope.SIGNER, thumbprint("release", maker=True))
    assert R.SIGNER_REVOKED in await bench.reasons(update)
    room.revoke(Scope.SIGNER, thumbprint("result"))
    # What a revoked signer said of a device is nothing: its therapy is unknown as well.
    assert await bench.reasons(room.item()) == [R.ATTESTATION_MISSING, R.PATIENT_CONNECTED]
    room.revoke(Scope.SIGNER, thumbprint("profile", maker=True))
    assert await bench.reasons(room.item()) == [R.SIGNER_REVOKED]


# --- 4: staleness


@pytest.mark.parametrize("name", ["attestation", "identity", "release"])
async def test_facts_go_stale_by_class(bench: Bench, room: PolicyRoom, name: str) -> None:
    change, read_only = room.item(), room.item("read-diagnostics")
    for age, refused_change, refused_reading in (
        (10.0, False, False),
        (10.1, True, False),
        (60.1, True, True),
    ):
        room.known_ages[name] = age
        for item, stale in ((change, refused_change), (read_only, refused_reading)):
            refusal = (await bench.judged(item)).refusal
            assert ([one.reason for one in refusal.refusals] if refusal else []) == (
                [R.REPLICA_STALE] if stale else []
            )
            assert refusal is None or refusal.refusals[0].values["replicas"] == name


async def test_revocations_go_stale_sooner(bench: Bench, room: PolicyRoom) -> None:
    stale = [R.REPLICA_STALE]
    for age, change, reading in ((3.0, [], []), (3.1, stale, []), (60.1, stale, stale)):
        room.known_ages["revocation"] = age
        assert await bench.reasons(room.item()) == change
        assert await bench.reasons(room.item("read-diagnostics")) == reading
    room.known_ages.update(attestation=float("inf"))
    refusal = (await bench.judged(room.item())).refusal
    assert refusal is not None
    assert refusal.refusals[0].values["replicas"] == "attestation, revocation"


# --- 5: effects, and the state at this moment


async def test_revoked_devices_and_builds(bench: Bench, room: PolicyRoom) -> None:
    update = room.item("update-firmware", approvers=(room.approver,))
    reading = room.item("read-diagnostics")
    freed = room.revoke(Scope.BUILD, RUNNING.hex(), effect=Effect.CORRECTIVE_ONLY, reason=Why.RECALL)
    assert await bench.reasons(room.item()) == [R.FIRMWARE_REVOKED]
    assert await bench.reasons(update) == []
    assert await bench.reasons(reading) == []
    room.reinstate(freed)
    assert await bench.reasons(room.item()) == []
    freed = room.revoke(Scope.BUILD, RUNNING.hex(), effect=Effect.DENY)
    assert await bench.reasons(update) == [R.FIRMWARE_REVOKED]
    assert await bench.reasons(reading) == [R.FIRMWARE_REVOKED]
    room.reinstate(freed)
    freed = room.revoke(Scope.DEVICE, DEVICE, effect=Effect.CORRECTIVE_ONLY)
    assert await bench.reasons(room.item()) == [R.DEVICE_QUARANTINED]
    assert await bench.reasons(update) == []
    room.reinstate(freed)
    room.revoke(Scope.DEVICE, DEVICE, effect=Effect.DENY)
    for item in (room.item(), reading, update):
        assert await bench.reasons(item) == [R.DEVICE_REVOKED]


async def test_one_statement_changes_every_device(bench: Bench, room: PolicyRoom) -> None:
    """The result stands as it was signed; the build's state is joined at this moment."""
    item = room.item()
    for effect in (Effect.FLAG, Effect.NO_NEW):
        room.revoke(Scope.BUILD, RUNNING.hex(), effect=effect)
        assert await bench.reasons(item) == []
    room.revoke(Scope.BUILD, RUNNING.hex(), effect=Effect.CORRECTIVE_ONLY)
    assert await bench.reasons(item) == [R.FIRMWARE_REVOKED]


async def test_the_configuration_in_force_is_revoked(bench: Bench, room: PolicyRoom) -> None:
    for digest in (WARD, LIBRARY):
        freed = room.revoke(Scope.BASELINE, digest.hex(), effect=Effect.CORRECTIVE_ONLY)
        assert await bench.reasons(room.item()) == [R.FIRMWARE_REVOKED]
        assert await bench.reasons(room.item("install-configuration")) == []
        room.reinstate(freed)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (identity_pb2.DEVICE_STATE_PENDING, R.DEVICE_QUARANTINED),
        (identity_pb2.DEVICE_STATE_QUARANTINED, R.DEVICE_QUARANTINED),
        (identity_pb2.DEVICE_STATE_STORED, R.DEVICE_QUARANTINED),
        (identity_pb2.DEVICE_STATE_RETIRED, R.DEVICE_QUARANTINED),
        (identity_pb2.DEVICE_STATE_UNSPECIFIED, R.DEVICE_QUARANTINED),
        (identity_pb2.DEVICE_STATE_BANNED, R.DEVICE_REVOKED),
    ],
)
async def test_the_registrys_state(bench: Bench, room: PolicyRoom, state: Any, reason: Reason) -> None:
    room.put_device(state=state)
    assert await bench.reasons(room.item()) == [reason]


async def test_quarantine_leaves_reading_and_the_cure(bench: Bench, room: PolicyRoom) -> None:
    room.put_result(quarantined=True)
    assert await bench.reasons(room.item()) == [R.DEVICE_QUARANTINED]
    assert await bench.reasons(room.item("install-configuration")) == [R.DEVICE_QUARANTINED]
    assert await bench.reasons(room.item("read-diagnostics")) == []
    assert await bench.reasons(room.item("update-firmware", approvers=(room.approver,))) == []
    assert await bench.reasons(room.item("release-quarantine")) == [R.APPROVALS_MISSING]


async def test_attestation(bench: Bench, room: PolicyRoom) -> None:
    update = room.item("update-firmware", approvers=(room.approver,))
    reading = room.item("read-diagnostics")
    for values, reasons in (
        ({"status": b.TrustTier.CONTRAINDICATED}, [R.ATTESTATION_CONTRAINDICATED]),
        ({"status": b.TrustTier.WARNING}, [R.ATTESTATION_WARNING]),
        ({"status": b.TrustTier.NONE}, [R.ATTESTATION_MISSING]),
        ({"basis": b.EvidenceBasis.SELF_REPORTED}, [R.ATTESTATION_MISSING]),
        ({"stale_at": room.clock.now()}, [R.ATTESTATION_STALE, R.PATIENT_CONNECTED]),
    ):
        room.put_result(**values)
        assert await bench.reasons(room.item()) == reasons
        assert await bench.reasons(update) == []
        assert await bench.reasons(reading) == []
    room.put_result(status=b.TrustTier.WARNING)
    assert await bench.reasons(room.item("fix-network")) == []


async def test_a_result_lapses_at_its_moment(bench: Bench, room: PolicyRoom) -> None:
    item = room.item()
    advance(room, 59)
    assert await bench.reasons(item) == []
    advance(room, 1)
    assert await bench.reasons(item) == [R.PATIENT_CONNECTED]
    assert await bench.reasons(room.item(mode=b.Mode.IDLE)) == []
    advance(room, 540)
    assert await bench.reasons(item) == [R.ATTESTATION_STALE, R.PATIENT_CONNECTED]


@pytest.mark.holds("stolen-signers")
async def test_a_lying_verifier_is_believed_and_the_rest_still_holds(bench: Bench, room: PolicyRoom) -> None:
    """Whoever has the verifier's key calls a sick pump healthy: for the profile's lifetimes, and not in advance."""
    item, now = room.item(), room.clock.now()
    room.put_result(status=b.TrustTier.CONTRAINDICATED)
    assert await bench.reasons(item) == [R.ATTESTATION_CONTRAINDICATED]
    room.put_result()
    assert await bench.reasons(item) == []
    assert R.APPROVALS_MISSING in await bench.reasons(room.item("update-firmware"))
    assert await bench.reasons(room.item(work_order=None)) == [R.WORK_ORDER_MISSING]
    ever = now + 10 * 365 * 24 * HOUR_MS
    room.put_result(stale_at=ever, therapy_stale_at=ever)
    advance(room, 600)
    assert await bench.reasons(item) == [R.ATTESTATION_STALE, R.PATIENT_CONNECTED]
    room.put_result(appraised_at=ever - HOUR_MS, stale_at=ever, therapy_stale_at=ever)
    assert await bench.reasons(item) == [R.ATTESTATION_STALE, R.PATIENT_CONNECTED]


@pytest.mark.holds("stolen-signers")
async def test_a_result_that_is_forged_or_about_another_device_is_none(
    bench: Bench, room: PolicyRoom
) -> None:
    forger = room.pki.signer_credential("decision")
    for row in (room.result_row(signer=forger), room.result_row("dev-cccccccccccccccc")):
        row.device_id = DEVICE
        room.put("result", DEVICE, row)
        assert await bench.reasons(room.item()) == [R.ATTESTATION_MISSING, R.PATIENT_CONNECTED]


# --- 6: parameters and what is installed


@pytest.mark.holds("policy-editor")
@pytest.mark.parametrize(
    ("parameters", "reasons"),
    [
        ({"pressure": 601}, [R.PARAMETER_OUT_OF_RANGE]),
        ({"pressure": 49}, [R.PARAMETER_OUT_OF_RANGE]),
        ({"pressure": "300"}, [R.PARAMETER_INVALID]),
        ({"pressure": True}, [R.PARAMETER_INVALID]),
        ({}, [R.PARAMETER_INVALID]),
        ({"pressure": 300, "turbo": 1}, [R.PARAMETER_UNKNOWN]),
    ],
)
async def test_parameters_are_held_in_code(
    bench: Bench, room: PolicyRoom, parameters: dict[str, Any], reasons: list[Reason]
) -> None:
    assert await bench.reasons(room.item(parameters=parameters)) == reasons


@pytest.mark.holds("rollback-and-mix")
async def test_what_an_update_leads_to(bench: Bench, room: PolicyRoom) -> None:
    async def reasons(firmware: bytes) -> list[Reason]:
        parameters = {"firmware": firmware}
        return await bench.reasons(
            room.item("update-firmware", approvers=(room.approver,), parameters=parameters)
        )

    assert await reasons(RUNNING) == []
    assert await reasons(OLDER) == [R.FIRMWARE_ROLLBACK]
    assert (await reasons(sha256(b"never published")))[0] is R.PARAMETER_INVALID
    assert R.PROFILE_MISMATCH in await reasons(ICU)
    other = sha256(b"for another model")
    room.put("release", other.hex(), room.release_row(other, 9, model="other-model"))
    assert R.PROFILE_MISMATCH in await reasons(other)
    room.revoke(Scope.BUILD, NEWER.hex(), effect=Effect.NO_NEW)
    assert await reasons(NEWER) == [R.FIRMWARE_REVOKED]


@pytest.mark.holds("rollback-and-mix")
async def test_a_sick_device_is_still_updated_and_never_backwards(bench: Bench, room: PolicyRoom) -> None:
    update = room.item("update-firmware", approvers=(room.approver,))
    room.put_result(status=b.TrustTier.CONTRAINDICATED, therapy=room.therapy("delivering", "connected"))
    assert await bench.obligations(update) == [("stage", {"until": "bedside_release"})]
    back = room.item("update-firmware", approvers=(room.approver,), parameters={"firmware": OLDER})
    assert await bench.reasons(back) == [R.FIRMWARE_ROLLBACK]


@pytest.mark.holds("rollback-and-mix")
async def test_what_a_baseline_must_be(bench: Bench, room: PolicyRoom) -> None:
    now, item = room.clock.now(), room.item("install-configuration")
    assert await bench.reasons(item) == []
    for change, reason in (
        ({"site": "site-2"}, R.PARAMETER_INVALID),
        ({"organization": "elsewhere"}, R.PARAMETER_INVALID),
        ({"models": ("other",)}, R.PROFILE_MISMATCH),
        ({"baseline_kind": b.BaselineKind.DRUG_LIBRARY}, R.PROFILE_MISMATCH),
        ({"valid_to": now}, R.OUTSIDE_WINDOW),
        ({"valid_from": now + 1}, R.OUTSIDE_WINDOW),
    ):
        room.put("baseline", ICU.hex(), room.baseline_row(ICU, **change))
        assert await bench.reasons(item) == [reason]
    room.put("baseline", ICU.hex(), room.baseline_row(ICU))
    room.revoke(Scope.BASELINE, ICU.hex(), effect=Effect.NO_NEW)
    assert await bench.reasons(item) == [R.FIRMWARE_REVOKED]
    advance(room, 60)
    room.put_result()
    room.revoke(Scope.CREDENTIAL, "principal/p-pharmacist")
    assert R.CREDENTIAL_REVOKED in await bench.reasons(item)


# --- 7: what Rego says


@pytest.mark.holds("stolen-technician")
async def test_approvals(bench: Bench, room: PolicyRoom) -> None:
    outsider = room.pki.person("p-outside", "approver", sites=("site-2",))
    both = (room.approver, room.second_approver)

    async def reasons(*approvers: Any) -> list[Reason]:
        return await bench.reasons(room.item("factory-reset", approvers=approvers))

    assert await reasons(*both) == []
    assert await reasons(room.approver) == [R.APPROVALS_MISSING]
    assert await reasons(room.approver, outsider) == [R.APPROVALS_MISSING]
    assert await reasons(room.approver, room.colleague) == [R.APPROVALS_MISSING]
    assert await reasons(room.approver, room.approver) == [R.APPROVER_NOT_DISTINCT]


async def test_an_approval_of_something_else_or_of_yesterday_does_not_count(
    bench: Bench, room: PolicyRoom
) -> None:
    intent = room.intent("update-firmware")
    command = room.command(intent)
    for approval in (
        room.approval(room.intent("update-firmware")),
        room.approval(intent, expires=room.clock.now()),
    ):
        item = read_item(
            device_id=DEVICE, intent=intent.data, approvals=[approval.data], command=command.data
        )
        assert await bench.reasons(item) == [R.APPROVALS_MISSING]


async def test_therapy_patient_holds_and_work_order(bench: Bench, room: PolicyRoom) -> None:
    both = (room.approver, room.second_approver)
    assert await bench.reasons(room.item("set-rate")) == [R.THERAPY_NOT_ENABLED]
    assert await bench.reasons(room.item("titrate")) == [R.BEDSIDE_CONFIRMATION_MISSING]
    assert await bench.reasons(room.item(work_order=None)) == [R.WORK_ORDER_MISSING]
    for patient in ("connected", "unknown"):
        room.put_result(therapy=room.therapy("idle", patient))
        assert await bench.reasons(room.item()) == [R.PATIENT_CONNECTED]
    room.put_result(holds=1)
    assert await bench.reasons(room.item("factory-reset", approvers=both)) == [R.EVIDENCE_HOLD]
    room.put_result()
    room.put_device(holds=2)
    assert await bench.reasons(room.item("factory-reset", approvers=both)) == [R.EVIDENCE_HOLD]
    assert await bench.reasons(room.item()) == []


async def test_everything_is_told_at_once_the_most_fundamental_first(bench: Bench, room: PolicyRoom) -> None:
    room.known_ages["revocation"] = 5.0
    room.put_result(status=b.TrustTier.WARNING, therapy=room.therapy("delivering", "connected"))
    room.revoke(Scope.BUILD, RUNNING.hex(), effect=Effect.CORRECTIVE_ONLY)
    item = room.item(parameters={"pressure": 900, "turbo": 1}, work_order=None)
    refusal = (await bench.judged(item)).refusal
    assert refusal is not None
    assert [one.reason for one in refusal.refusals] == [
        R.FIRMWARE_REVOKED,
        R.PARAMETER_UNKNOWN,
        R.PARAMETER_OUT_OF_RANGE,
        R.WORK_ORDER_MISSING,
        R.REPLICA_STALE,
        R.ATTESTATION_WARNING,
        R.PATIENT_CONNECTED,
    ]
    for one in refusal.refusals:
        assert all((one.sentence, one.lifted_by, one.who)), one
        assert "unknown" not in one.sentence or one.reason is R.PATIENT_CONNECTED, one


def test_every_reason_that_a_policy_may_give_has_words() -> None:
    assert spoken() >= COMMAND_REASONS


# --- the decision


async def test_a_refusal_leaves_signed_without_evidence_and_an_allow_does_not(
    bench: Bench, room: PolicyRoom
) -> None:
    item = room.item(parameters={"pressure": 900})
    outcome = await bench.decisions.decide(room.gateway.identity, item, deadline_ms=0)
    assert outcome.recorded is None
    assert outcome.refusal is not None
    decision = read(outcome.decision, b.Decision).body
    assert item.command is not None
    assert (decision.answer, decision.command, decision.nonce) == (b.Answer.REFUSE, item.command.digest, None)
    assert [one.reason for one in decision.reasons] == ["PARAMETER_OUT_OF_RANGE"]
    allowed = room.item()
    with pytest.raises(Refused) as refusal:
        await bench.decisions.decide(room.gateway.identity, allowed, deadline_ms=0)
    assert refusal.value.reason is R.EVIDENCE_UNAVAILABLE
    # Asked again, it is the same decision that is still to be recorded: none was taken anew.
    assert bench.decisions.taken == 2
    with pytest.raises(Refused):
        await bench.decisions.decide(room.gateway.identity, allowed, deadline_ms=0)
    assert bench.decisions.taken == 2
    again = await bench.decisions.decide(room.gateway.identity, item, deadline_ms=0)
    assert again.decision == outcome.decision


async def test_a_deadline_that_has_passed(bench: Bench, room: PolicyRoom) -> None:
    with pytest.raises(Refused) as refusal:
        await bench.decisions.decide(room.gateway.identity, room.item(), deadline_ms=room.clock.now() - 1)
    assert refusal.value.reason is R.POLICY_UNAVAILABLE
    assert bench.decisions.taken == 0


async def test_the_input_names_everything_that_was_looked_at(bench: Bench, room: PolicyRoom) -> None:
    from vigil.policy.domain import judge
    from vigil.policy.question import input_document

    item = room.item()
    device = room.device(DEVICE)
    assert device is not None
    assert (device.organization, device.site) == (ORGANIZATION, SITE)
    view = bench.decisions._view(item, device)
    document = cbor.decode(input_document(item, view, judge(item, view), gateway_id="gateway-1"))
    assert document["intent"] == item.intent.digest
    assert document["profile"] == room.profile_statement.digest
    assert json.loads(document["question"])["requester"]["id"] == "p-technician"
    assert document["ages_ms"]["revocation"] == 500


# --- overload


@pytest.mark.holds("floods")
async def test_one_gateways_flood_leaves_room_for_the_others(bench: Bench, room: PolicyRoom) -> None:
    item, places = room.item("read-diagnostics"), bench.decisions._room
    gateway, other = room.gateway.identity, replace(room.gateway.identity, id="gw-other")
    for _ in range(places.places // 2):
        places.enter(gateway.id)
    with pytest.raises(Refused) as caught:
        await bench.decisions.decide(gateway, item, deadline_ms=0)
    assert caught.value.reason is R.SERVICE_UNAVAILABLE
    with pytest.raises(Refused) as caught:
        await bench.judged(item)
    assert caught.value.reason is R.SERVICE_UNAVAILABLE
    assert bench.decisions.taken == 0
    assert (await bench.decisions.preview(other, item)).refusal is None
    places.leave(gateway.id)
    assert (await bench.judged(item)).refusal is None
