"""Everything that policy decides about: a site, its people, a model, devices, and statements that they really sign.

The facts come through the room's own replicas, as changes of a feed; revocations as entries under a signed head.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.pki import DEVICE, ORGANIZATION, SITE, Credential, TestPki
from vigil.api.attestation.v1 import attestation_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.api.release.v1 import release_pb2
from vigil.core import merkle
from vigil.core.certificates import ChainVerifier
from vigil.core.clock import Clock, ManualClock
from vigil.core.commands import RecordedProof, record_leaf, target_path, target_root
from vigil.core.digest import sha256
from vigil.core.keys import KeySigner
from vigil.core.revocations import EMPTY_CHAIN, Entry, chain_hash
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Scribe, Statement
from vigil.feed import Change
from vigil.policy.case import Device, Installable, Item, Verified, read_item
from vigil.policy.replicas import Devices, Published, Results
from vigil.policy.revoked import Revocations

MODEL = "aria-3000"
MAKER = "maker"
RUNNING, NEWER, OLDER = sha256(b"build 1.6.3"), sha256(b"build 1.8.0"), sha256(b"build 1.2.0")
WARD, ICU = sha256(b"ward settings"), sha256(b"icu settings")
LIBRARY = sha256(b"library")
HOUR_MS = 3_600_000


def parameter(name: str, kind: b.ParameterType, **values: Any) -> b.ParameterSpec:
    return b.ParameterSpec(name=name, type=kind, required=True, **values)


def action(
    name: str, action_class: str, effect: b.Effect, *parameters: b.ParameterSpec, **values: Any
) -> b.ActionSpec:
    given: dict[str, Any] = {"approvals": 0, "states": (b.TherapyState.IDLE,), **values}
    return b.ActionSpec(
        name=name, action_class=b.ActionClass(action_class), effect=effect, parameters=parameters, **given
    )


_DIGEST = b.ParameterType.DIGEST
ACTIONS = (
    action(
        "set-pressure",
        "C",
        b.Effect.SET,
        parameter("pressure", b.ParameterType.INTEGER, unit="mm[Hg]", minimum=50, maximum=600),
    ),
    action("fix-network", "C", b.Effect.SET, corrective_when_warning=True),
    action("install-configuration", "C", b.Effect.INSTALL_BASELINE, parameter("baseline", _DIGEST)),
    action("update-firmware", "U", b.Effect.UPDATE, parameter("firmware", _DIGEST), approvals=1),
    action("read-diagnostics", "R", b.Effect.DIAGNOSE),
    action("quarantine", "S1", b.Effect.QUARANTINE),
    action("release-quarantine", "C", b.Effect.RELEASE_QUARANTINE, recovery=True, approvals=1),
    action("set-rate", "T", b.Effect.THERAPY),
    action("titrate", "T", b.Effect.THERAPY, therapy_enabled=True),
    action("factory-reset", "D", b.Effect.CLEAR, approvals=2),
)

PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "set-pressure": {"pressure": 300},
    "install-configuration": {"baseline": ICU},
    "update-firmware": {"firmware": NEWER},
}


class PolicyRoom:
    """The facts of one policy service, as `vigil.policy.service.Facts`, and everybody who signs."""

    def __init__(self, folder: Path, *, clock: Clock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.pki = TestPki(folder, clock=self.clock)
        self.maker = self.pki.manufacturer(MAKER)
        self.technician = self.pki.person("p-technician", "technician")
        self.colleague = self.pki.person("p-colleague", "technician")
        self.approver = self.pki.person("p-approver", "approver")
        self.second_approver = self.pki.person("p-approver-2", "approver")
        self.recall = self.pki.person("p-recall", "recall")
        self.pharmacist = self.pki.person("p-pharmacist", "baseline-signer")
        self.gateway = self.pki.gateway("gateway-1")
        self.verifier_now = self.pki.verifier
        self.devices = Devices()
        self.published = Published(verifier=lambda: self.verifier_now)
        self.results = Results(verifier=lambda: self.verifier_now)
        self.revocations = Revocations()
        self.entries: list[Entry] = []
        self.era = 0
        self.known_ages = dict.fromkeys(("attestation", "identity", "release", "revocation"), 0.5)
        self.profile_statement = self._publish()
        self.put_device()
        self.put_result()

    # --- the port

    @property
    def verifier(self) -> ChainVerifier:
        return self.verifier_now

    def device(self, device_id: str) -> Device | None:
        return self.devices.get(device_id)

    def profile(self, model: str) -> Verified[b.Profile] | None:
        return self.published.profile(model)

    def result(self, device_id: str) -> Verified[b.Result] | None:
        return self.results.get(device_id)

    def installable(self, digest: bytes) -> Installable | None:
        return self.published.installable(digest)

    def ages(self) -> Mapping[str, float]:
        return self.known_ages

    # --- signing

    def sign(
        self, credential: Credential, body: Any, *, subject: str = "device/any", numbered: bool = False
    ) -> Any:
        scribe = Scribe(
            signer=credential.signer,
            issuer=credential.issuer_name,
            clock=self.clock,
            entropy=os.urandom,
            numbered=numbered,
        )
        return scribe.sign(body, subject=subject)

    def signed_by(self, statement: str, body: Any) -> Any:
        return self.sign(self.pki.signer_credential(statement), body, numbered=True)

    def signed_by_maker(self, statement: str, body: Any) -> Any:
        return self.sign(self.maker.credential(statement), body, numbered=True)

    def scribe(self) -> Scribe:
        signer = self.pki.signer_credential("decision")
        return Scribe(
            signer=signer.signer,
            issuer=signer.issuer_name,
            clock=self.clock,
            entropy=os.urandom,
            numbered=True,
        )

    # --- facts, as their owners' feeds tell them

    def _publish(self) -> Statement[b.Profile]:
        profile = self.signed_by_maker(
            "profile",
            b.Profile(
                model=MODEL,
                version=1,
                risk_class=b.RiskClass.IIB,
                attestation_lifetime_s=600,
                therapy_lifetime_s=60,
                patient_state_source="infusion-state",
                actions=ACTIONS,
            ),
        )
        self.put("model", MODEL, self.model_row(profile))
        for firmware, security_version in ((RUNNING, 3), (NEWER, 4), (OLDER, 2)):
            self.put("release", firmware.hex(), self.release_row(firmware, security_version))
        self.put("baseline", ICU.hex(), self.baseline_row(ICU))
        return profile  # type: ignore[no-any-return]

    def model_row(self, profile: Statement[b.Profile]) -> release_pb2.Model:
        return release_pb2.Model(model=MODEL, version=1, organization_id=MAKER, profile=profile.data)

    def release_row(
        self, firmware: bytes, security_version: int, *, model: str = MODEL
    ) -> release_pb2.Release:
        body = b.Release(
            model=model,
            version=f"v{security_version}",
            firmware=firmware,
            size=1024,
            security_version=security_version,
            sbom=sha256(b"sbom"),
            udi_di="09504000059118",
        )
        statement = self.signed_by_maker("release", body)
        return release_pb2.Release(
            firmware=firmware, model=model, organization_id=MAKER, statement=statement.data
        )

    def baseline_row(self, content: bytes, **values: Any) -> release_pb2.Baseline:
        now = self.clock.now()
        body = b.Baseline(
            baseline_kind=b.BaselineKind.CONFIGURATION,
            name="icu",
            site=SITE,
            organization=ORGANIZATION,
            content=content,
            size=64,
            models=(MODEL,),
            valid_from=now - HOUR_MS,
            valid_to=now + 1000 * HOUR_MS,
        )
        statement = self.sign(self.pharmacist, replace(body, **values), subject=f"site/{SITE}")
        return release_pb2.Baseline(content=content, statement=statement.data, create_time_ms=now)

    def put(self, kind: str, key: str, row: Any) -> None:
        view = {"device": self.devices, "result": self.results}.get(kind, self.published)
        view.changed(Change(1, kind, key, row.SerializeToString(), False, ""))

    def put_device(self, device_id: str = DEVICE, **values: Any) -> None:
        self.put("device", device_id, self.device_row(device_id, **values))

    @staticmethod
    def device_row(device_id: str = DEVICE, **values: Any) -> identity_pb2.Device:
        given: dict[str, Any] = {
            "organization_id": ORGANIZATION,
            "site_id": SITE,
            "model": MODEL,
            "state": identity_pb2.DEVICE_STATE_ACTIVE,
            **values,
        }
        return identity_pb2.Device(device_id=device_id, **given)

    def put_result(self, device_id: str = DEVICE, **values: Any) -> None:
        self.put("result", device_id, self.result_row(device_id, **values))

    def result_row(self, device_id: str = DEVICE, *, signer: Credential | None = None, **values: Any) -> Any:
        now = self.clock.now()
        body = b.Result(
            device=device_id,
            evidence=sha256(b"evidence"),
            status=b.TrustTier.AFFIRMING,
            vector={"instance-identity": 2, "executables": 2},
            reasons=(),
            basis=b.EvidenceBasis.ATTESTED,
            boot_count=7,
            log_size=42,
            measurements=b.Measurements(
                firmware=RUNNING, configuration=WARD, library=LIBRARY, sbom=sha256(b"sbom")
            ),
            security_version=3,
            therapy=b.Therapy(state=b.TherapyState.IDLE, patient=b.PatientState.DISCONNECTED, at=now),
            quarantined=False,
            holds=0,
            appraised_at=now,
            stale_at=now + 600_000,
            therapy_stale_at=now + 60_000,
        )
        statement = self.sign(
            signer or self.pki.signer_credential("result"), replace(body, **values), numbered=True
        )
        return attestation_pb2.DeviceTrust(device_id=device_id, result=statement.data)

    def therapy(self, state: str, patient: str) -> b.Therapy:
        return b.Therapy(state=b.TherapyState(state), patient=b.PatientState(patient), at=self.clock.now())

    # --- commands

    def intent(
        self,
        name: str = "set-pressure",
        *,
        by: Credential | None = None,
        devices: Sequence[str] = (DEVICE,),
        **values: Any,
    ) -> Statement[b.Intent]:
        now = self.clock.now()
        given: dict[str, Any] = {
            "target_root": target_root(devices),
            "target_count": len(devices),
            "action": name,
            "parameters": dict(PARAMETERS.get(name, {})),
            "request_id": os.urandom(16),
            "mode": b.Mode.NOW,
            "not_before": now,
            "expires": now + 2 * HOUR_MS,
            "work_order": "WO-1",
            **values,
        }
        return self.sign(by or self.technician, b.Intent(**given))  # type: ignore[no-any-return]

    def approval(
        self, intent: Statement[b.Intent], by: Credential | None = None, **values: Any
    ) -> Statement[b.Approval]:
        body = b.Approval(intent=intent.digest, meaning="approval", expires=intent.body.expires)
        return self.sign(by or self.approver, replace(body, **values))  # type: ignore[no-any-return]

    def command(
        self,
        intent: Statement[b.Intent],
        *,
        by: Credential | None = None,
        device_id: str = DEVICE,
        devices: Sequence[str] = (),
        **values: Any,
    ) -> Statement[b.Command]:
        index, path = target_path(devices or (device_id,), device_id)
        body = b.Command(intent=intent.digest, device=device_id, index=index, path=path, nonce=os.urandom(16))
        return self.sign(by or self.technician, replace(body, **values))  # type: ignore[no-any-return]

    def item(
        self,
        name: str = "set-pressure",
        *,
        approvers: Sequence[Credential] = (),
        recorded_at: int | None = None,
        command: Statement[b.Command] | None = None,
        intent: Statement[b.Intent] | None = None,
        device_id: str = DEVICE,
        **values: Any,
    ) -> Item:
        intent = intent or self.intent(name, devices=(device_id,), **values)
        approvals = [self.approval(intent, by) for by in approvers]
        command = command or self.command(intent, device_id=device_id)
        digests = [intent.digest, *(approval.digest for approval in approvals)]
        return read_item(
            device_id=device_id,
            intent=intent.data,
            approvals=[approval.data for approval in approvals],
            command=command.data,
            proofs=() if recorded_at is None else self.record(*digests, time=recorded_at),
        )

    def record(self, *digests: bytes, first: int = 40, time: int | None = None) -> tuple[RecordedProof, ...]:
        """One group commit of the evidence log."""
        leaves = [record_leaf(first + place, digest) for place, digest in enumerate(digests)]
        body = b.Recorded(
            root=merkle.tree_root(leaves),
            first=first,
            count=len(leaves),
            time=self.clock.now() if time is None else time,
        )
        recorded = self.signed_by("recorded", body).data
        return tuple(
            RecordedProof(recorded, first + place, tuple(merkle.inclusion_path(leaves, place)))
            for place in range(len(leaves))
        )

    # --- revocations

    def revoke(
        self,
        scope: b.Scope,
        *ids: str,
        effect: b.RevocationEffect = b.RevocationEffect.DENY,
        reason: b.RevocationReason = b.RevocationReason.COMPROMISE,
        expires: int | None = None,
    ) -> Statement[b.Revocation]:
        body = b.Revocation(scope=scope, ids=ids, effect=effect, reason=reason, expires=expires)
        statement: Statement[b.Revocation] = self.sign(self.recall, body)
        self._enter(statement)
        return statement

    def reinstate(self, revocation: Statement[b.Revocation]) -> None:
        other = self.pki.person("p-recall-2", "recall")
        body = b.Reinstatement(
            revocation=revocation.digest,
            scope=revocation.body.scope,
            ids=revocation.body.ids,
            reason="the suspicion was wrong",
        )
        self._enter(self.sign(self.recall, body), self.sign(other, body))

    def open_era(self, era: int = 1) -> None:
        """The offline root and two people of the operator open an era at the end of the chain."""
        previous = self.entries[-1].chain if self.entries else EMPTY_CHAIN
        body = b.Era(
            era=era,
            floor=self.clock.now(),
            epoch=len(self.entries) + 1,
            reason="the chain was lost",
            chain=previous,
        )
        root = self.pki.root
        scribe = Scribe(
            signer=KeySigner(root.private_key, [root.certificate.public_bytes(Encoding.DER)]),
            issuer="signer/root",
            clock=self.clock,
            entropy=os.urandom,
            numbered=False,
        )
        statements = (
            scribe.sign(body, subject="revocation/era"),
            *(self.sign(self.pki.admin(number), body) for number in (1, 2)),
        )
        digests = [statement.digest for statement in statements]
        epoch = len(self.entries) + 1
        self.entries.append(
            Entry(epoch, tuple(one.data for one in statements), chain_hash(previous, epoch, digests))
        )
        self.era = era

    def _enter(self, *statements: Statement[Any]) -> None:
        epoch = len(self.entries) + 1
        previous = self.entries[-1].chain if self.entries else EMPTY_CHAIN
        digests = [statement.digest for statement in statements]
        entry = Entry(epoch, tuple(one.data for one in statements), chain_hash(previous, epoch, digests))
        self.entries.append(entry)
        self.revocations.take([entry], self.head(), verifier=self.verifier, at=self.clock.now())

    def head(self, challenges: bytes | None = None, **values: Any) -> Statement[b.Head]:
        body = b.Head(
            epoch=len(self.entries),
            chain=self.entries[-1].chain if self.entries else EMPTY_CHAIN,
            era=self.era,
            issued=self.clock.now(),
            challenges=challenges,
        )
        return self.signed_by("head", replace(body, **values))  # type: ignore[no-any-return]
