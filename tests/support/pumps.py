"""A hospital with a pump in it: real certificates, real statements, a real device folder, and time that stands still.

site = PumpSite(tmp_path)
pump = site.pump()                         # made in the factory, enrolled, with its profile
nonce = pump.nonce(site.technician)
answer = pump.send(site.bundle(pump, "set-occlusion-pressure", {"occlusion_pressure": 300}, nonce=nonce))
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.pki import DEVICE, ORGANIZATION, SITE, Credential, TestPki
from vigil.core import cbor, merkle
from vigil.core.clock import Clock, ManualClock
from vigil.core.commands import RecordedProof, record_leaf, target_path, target_root
from vigil.core.digest import sha256
from vigil.core.keys import KeySigner
from vigil.core.revocations import EMPTY_CHAIN, Entry, PathStep, chain_hash
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Scribe, Statement, read
from vigil.core.statements.schema import Scalar
from vigil.device import enrol, messages
from vigil.device.agent import DeviceAgent
from vigil.device.factory import FirstBuild, make_pump
from vigil.device.facts import Bundle
from vigil.device.hardware import Hardware, power_on
from vigil.device.store import DeviceStore
from vigil.device.trust import SharedTrust

MODEL = "aria-3000"
MAKER = "maker"
UDI = "(01)09504000059118(21)SN-0001"
EVERY_STATE = tuple(b.TherapyState)
IDLE = (b.TherapyState.IDLE,)
FIRMWARE = b"aria firmware 1.6.3" * 50
NEW_FIRMWARE = b"aria firmware 1.6.4" * 60
LIFETIME_MS = 3_600_000


def _parameter(name: str, kind: b.ParameterType, **bounds: int) -> b.ParameterSpec:
    return b.ParameterSpec(name=name, type=kind, required=True, **bounds)  # type: ignore[arg-type]


def _action(
    name: str, action_class: b.ActionClass, effect: b.Effect, *parameters: b.ParameterSpec, **others: Any
) -> b.ActionSpec:
    values: dict[str, Any] = {"approvals": 0, "states": EVERY_STATE, **others}
    return b.ActionSpec(name=name, action_class=action_class, effect=effect, parameters=parameters, **values)


_S1, _R, _C, _U, _T, _D = (
    b.ActionClass.S1,
    b.ActionClass.R,
    b.ActionClass.C,
    b.ActionClass.U,
    b.ActionClass.T,
    b.ActionClass.D,
)
_TEXT, _INTEGER, _DIGEST = b.ParameterType.TEXT, b.ParameterType.INTEGER, b.ParameterType.DIGEST
ACTIONS = (
    _action("quarantine", _S1, b.Effect.QUARANTINE),
    _action("hold", _S1, b.Effect.HOLD),
    _action("alert", _S1, b.Effect.ALERT, _parameter("message", _TEXT)),
    _action("release-quarantine", _C, b.Effect.RELEASE_QUARANTINE, approvals=1, recovery=True),
    _action("lift-hold", _S1, b.Effect.LIFT_HOLD, approvals=1),
    _action("diagnose", _R, b.Effect.DIAGNOSE),
    _action(
        "set-occlusion-pressure",
        _C,
        b.Effect.SET,
        _parameter("occlusion_pressure", _INTEGER, minimum=50, maximum=600),
        states=IDLE,
    ),
    _action("install-baseline", _C, b.Effect.INSTALL_BASELINE, _parameter("baseline", _DIGEST), states=IDLE),
    _action("install-library", _C, b.Effect.INSTALL_LIBRARY, _parameter("library", _DIGEST), states=IDLE),
    _action(
        "update-firmware", _U, b.Effect.UPDATE, _parameter("firmware", _DIGEST), approvals=1, states=IDLE
    ),
    _action("set-rate", _T, b.Effect.THERAPY, _parameter("rate", _INTEGER)),
    _action("set-rate-here", _T, b.Effect.THERAPY, _parameter("rate", _INTEGER), therapy_enabled=True),
    _action("factory-reset", _D, b.Effect.CLEAR, approvals=2, states=IDLE),
)


class PowerCut(BaseException):
    """The battery was pulled: nothing after it runs, and no handler may take it for an error."""


class CuttingStore(DeviceStore):
    """A store whose power fails at the n-th commit from now, before or after it became durable."""

    def __init__(self, path: Path) -> None:
        self._left: int | None = None
        self._after = False
        super().__init__(path)

    def cut(self, commits: int, *, after: bool = False) -> None:
        self._left, self._after = commits, after

    def _commit(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise PowerCut
        super()._commit()
        if self._left == 0:
            raise PowerCut


class Commanded(Protocol):
    """A pump that commands are made for."""

    @property
    def device_id(self) -> str: ...
    @property
    def agent(self) -> DeviceAgent: ...


@dataclass
class TestPump:
    """One pump with its agent; ``restart`` is a power cycle."""

    site: "PumpSite"
    folder: Path
    device_id: str
    hardware: Hardware
    agent: DeviceAgent

    __test__ = False

    @property
    def store(self) -> CuttingStore:
        assert isinstance(self.hardware.store, CuttingStore)
        return self.hardware.store

    def nonce(self, person: Credential, *, safety: bool = False) -> bytes:
        (reply, *_) = self.agent.handle(messages.NonceRequest(1, person.identity.thumbprint, safety, b""))
        assert isinstance(reply, messages.NonceReply)
        assert reply.error is None, reply.error
        return reply.nonce

    def send(self, bundle: Bundle) -> messages.Receipts:
        (answer, *_) = self.agent.handle(messages.BundleMessage(7, bundle))
        assert isinstance(answer, messages.Receipts)
        return answer

    def command(
        self, action: str, parameters: Mapping[str, Scalar] | None = None, **how: Any
    ) -> messages.Receipts:
        """Prepare and send in one go."""
        executor = how.get("executor") or how.get("requester") or self.site.technician
        nonce = self.nonce(executor)
        return self.send(self.site.bundle(self, action, parameters or {}, nonce=nonce, **how))

    def release(self) -> None:
        """No patient is connected."""
        self.hardware.pump.bedside_release()

    def restart(self) -> None:
        self.hardware.power_off()
        self.hardware = power_on(
            self.folder, clock=self.site.clock, entropy=os.urandom, open_store=CuttingStore
        )
        self.agent = DeviceAgent(
            hardware=self.hardware, shared=self.site.shared, clock=self.site.clock, entropy=os.urandom
        )

    def answer_head(self, challenge: bytes | None = None, **values: Any) -> list[messages.Outgoing]:
        """A head over what the site has revoked, answering the device's challenge."""
        return self.agent.handle(self.site.revocations(challenge=challenge, **values))


class PumpSite:
    """The trust domain, the manufacturer, the people of one site, and everybody who signs."""

    def __init__(
        self, tmp_path: Path, *, actions: Sequence[b.ActionSpec] = ACTIONS, clock: Clock | None = None
    ) -> None:
        self.tmp_path = tmp_path
        self.clock: Any = clock or ManualClock()
        self.pki = TestPki(tmp_path, clock=self.clock)
        self.maker = self.pki.manufacturer(MAKER)
        self.shared = SharedTrust()
        self.technician = self.pki.person("p-technician", "technician")
        self.colleague = self.pki.person("p-colleague", "technician")
        self.approver = self.pki.person("p-approver", "approver")
        self.second_approver = self.pki.person("p-approver-2", "approver")
        self.safety = self.pki.person("p-safety", "safety")
        self.recall = self.pki.person("p-recall", "recall")
        self.pharmacist = self.pki.person("p-pharmacist", "baseline-signer")
        self.entries: list[Entry] = []
        self.era = 0
        self.profile = self.signed_by_maker(
            "profile",
            b.Profile(
                model=MODEL,
                version=1,
                risk_class=b.RiskClass.IIB,
                attestation_lifetime_s=600,
                therapy_lifetime_s=60,
                patient_state_source="infusion-state",
                actions=tuple(actions),
            ),
            subject=f"model/{MODEL}",
        )
        self._pumps = 0

    # --- signing

    def sign(
        self, credential: Credential, body: Any, *, subject: str = "device/any", numbered: bool = False
    ) -> Statement[Any]:
        scribe = Scribe(
            signer=credential.signer,
            issuer=credential.issuer_name,
            clock=self.clock,
            entropy=os.urandom,
            numbered=numbered,
        )
        return scribe.sign(body, subject=subject)

    def signed_by_maker(self, statement: str, body: Any, *, subject: str = "build/any") -> Statement[Any]:
        return self.sign(self.maker.credential(statement), body, subject=subject, numbered=True)

    def signed_by(self, statement: str, body: Any, *, subject: str = "device/any") -> Statement[Any]:
        """By the ceremony's signer of this kind of statement."""
        return self.sign(self.pki.signer_credential(statement), body, subject=subject, numbered=True)

    def record(self, *digests: bytes, first: int = 40, time: int | None = None) -> tuple[RecordedProof, ...]:
        """One group commit of the evidence log."""
        leaves = [record_leaf(first + place, digest) for place, digest in enumerate(digests)]
        body = b.Recorded(
            root=merkle.tree_root(leaves),
            first=first,
            count=len(leaves),
            time=self.clock.now() if time is None else time,
        )
        recorded = self.signed_by("recorded", body, subject="log/evidence").data
        return tuple(
            RecordedProof(recorded, first + place, tuple(merkle.inclusion_path(leaves, place)))
            for place in range(len(leaves))
        )

    # --- pumps

    def pump(self, *, device_id: str = DEVICE, with_profile: bool = True) -> TestPump:
        folder = self.make()
        hardware = power_on(folder, clock=self.clock, entropy=os.urandom, open_store=CuttingStore)
        tls = self.pki.device(device_id, private_key=hardware.secure_element.pending_tls_key())
        attester = self.pki.attester(device_id, private_key=hardware.attestation_key)
        enrol.install(hardware, messages.Certificates(tls.chain, attester.chain, self.pki.bundle.to_json()))
        agent = DeviceAgent(hardware=hardware, shared=self.shared, clock=self.clock, entropy=os.urandom)
        if with_profile:
            agent.handle(messages.Welcome("gateway-1", self.clock.now(), self.profile.data, ""))
            agent.disconnected()
        return TestPump(self, folder, device_id, hardware, agent)

    def make(self, folder: Path | None = None) -> Path:
        """A pump as it leaves the factory."""
        self._pumps += 1
        folder = folder or self.tmp_path / f"pump-{self._pumps}"
        make_pump(
            folder,
            udi=UDI,
            model=MODEL,
            manufacturer=MAKER,
            firmware=FirstBuild(image=FIRMWARE, version="1.6.3", security_version=3, sbom=sha256(b"sbom")),
            settings={"occlusion_pressure": 250, "language": "en"},
            clock=self.clock,
            entropy=os.urandom,
        )
        return folder

    # --- commands

    def intent(
        self,
        pump: Commanded,
        action: str,
        parameters: Mapping[str, Scalar],
        *,
        requester: Credential | None = None,
        device_ids: Sequence[str] | None = None,
        **values: Any,
    ) -> Statement[b.Intent]:
        ids = device_ids or [pump.device_id]
        now = self.clock.now()
        body = b.Intent(
            target_root=target_root(ids),
            target_count=len(ids),
            action=action,
            parameters=dict(parameters),
            request_id=values.pop("request_id", None) or os.urandom(16),
            mode=values.pop("mode", b.Mode.NOW),
            not_before=now,
            expires=now + LIFETIME_MS,
            work_order="WO-1",
        )
        signed: Statement[b.Intent] = self.sign(requester or self.technician, replace(body, **values))
        return signed

    def bundle(
        self,
        pump: Commanded,
        action: str,
        parameters: Mapping[str, Scalar] | None = None,
        *,
        nonce: bytes,
        requester: Credential | None = None,
        executor: Credential | None = None,
        approvers: Sequence[Credential] = (),
        intent: Statement[b.Intent] | None = None,
        device_ids: Sequence[str] | None = None,
        release: bytes = b"",
        downgrade: bytes = b"",
        permit: Mapping[str, Any] | None = None,
        command: Mapping[str, Any] | None = None,
        change_permit: Callable[[Statement[b.Decision]], bytes] | None = None,
        **values: Any,
    ) -> Bundle:
        """A whole bundle that a device accepts, but for what the arguments spoil.

        ``permit`` and ``command`` replace fields of those bodies; ``values`` go into the intent.
        """
        requester = requester or self.technician
        signed = intent or self.intent(
            pump, action, parameters or {}, requester=requester, device_ids=device_ids, **values
        )
        index, path = target_path(device_ids or [pump.device_id], pump.device_id)
        body = b.Command(intent=signed.digest, device=pump.device_id, index=index, path=path, nonce=nonce)
        ordered = self.sign(executor or requester, replace(body, **(command or {})))
        approvals = [self.approval(signed, approver) for approver in approvers]
        spec = next((one for one in self.profile.body.actions if one.name == action), None)
        proofs: tuple[RecordedProof, ...] = ()
        decision, decision_proof = b"", None
        if spec is None or spec.action_class is not b.ActionClass.S1:
            decided = self.permit(pump, signed, ordered, spec, permit or {})
            *proofs_of, decision_proof = self.record(
                signed.digest, *(approval.digest for approval in approvals), decided.digest
            )
            proofs = tuple(proofs_of)
            decision = change_permit(decided) if change_permit else decided.data
        return Bundle(
            intent=signed.data,
            command=ordered.data,
            approvals=tuple(approval.data for approval in approvals),
            statements_recorded=proofs,
            permit=decision,
            permit_recorded=decision_proof,
            release=release,
            downgrade=downgrade,
        )

    def approval(self, intent: Statement[b.Intent], approver: Credential) -> Statement[b.Approval]:
        body = b.Approval(intent=intent.digest, meaning="approval", expires=intent.body.expires)
        signed: Statement[b.Approval] = self.sign(approver, body)
        return signed

    def permit(
        self,
        pump: Commanded,
        intent: Statement[b.Intent],
        command: Statement[b.Command],
        spec: b.ActionSpec | None,
        values: Mapping[str, Any],
    ) -> Statement[b.Decision]:
        view = pump.agent
        body = b.Decision(
            command=command.digest,
            intent=intent.digest,
            device=pump.device_id,
            answer=b.Answer.ALLOW,
            input=sha256(b"input"),
            bundle="policy-1",
            decided_at=self.clock.now(),
            action_class=spec.action_class if spec else b.ActionClass.C,
            nonce=command.body.nonce,
            profile=self.profile.digest,
            boot_count=view._state.boot_count,
            log_size=view._log.size,
            epoch=len(self.entries),
            era=self.era,
            mode="online",
            apply_not_after=intent.body.expires,
        )
        signed: Statement[b.Decision] = self.signed_by("decision", replace(body, **values))
        return signed

    # --- what is installed

    def release(self, image: bytes = NEW_FIRMWARE, **values: Any) -> Statement[b.Release]:
        body = b.Release(
            model=MODEL,
            version="1.6.4",
            firmware=sha256(image),
            size=len(image),
            security_version=4,
            sbom=sha256(b"sbom 2"),
            udi_di="09504000059118",
        )
        return self.signed_by_maker("release", replace(body, **values))

    def baseline(
        self, content: bytes | Mapping[str, Scalar], *, signer: Credential | None = None, **values: Any
    ) -> tuple[Statement[b.Baseline], bytes]:
        data = content if isinstance(content, bytes) else cbor.encode(dict(content))
        body = b.Baseline(
            baseline_kind=b.BaselineKind.CONFIGURATION,
            name="ward",
            site=SITE,
            organization=ORGANIZATION,
            content=sha256(data),
            size=len(data),
            models=(MODEL,),
            valid_from=self.clock.now() - 1,
            valid_to=self.clock.now() + 10 * LIFETIME_MS,
        )
        return self.sign(signer or self.pharmacist, replace(body, **values), subject=f"site/{SITE}"), data

    # --- revocations

    def revoke(
        self,
        scope: b.Scope,
        *ids: str,
        effect: b.RevocationEffect = b.RevocationEffect.DENY,
        reason: b.RevocationReason = b.RevocationReason.COMPROMISE,
    ) -> Entry:
        statement = self.sign(
            self.recall,
            b.Revocation(scope=scope, ids=ids, effect=effect, reason=reason),
            subject="revocation/any",
        )
        epoch = len(self.entries) + 1
        previous = self.entries[-1].chain if self.entries else EMPTY_CHAIN
        entry = Entry(epoch, (statement.data,), chain_hash(previous, epoch, [statement.digest]))
        self.entries.append(entry)
        return entry

    def open_era(self, era: int = 1, *, floor: int | None = None) -> Entry:
        """The offline root and two people of the operator open an era at the end of the chain."""
        body = b.Era(
            era=era,
            floor=self.clock.now() if floor is None else floor,
            epoch=len(self.entries) + 1,
            reason="the chain was lost",
            chain=self.entries[-1].chain if self.entries else EMPTY_CHAIN,
        )
        self.era = era
        return self.rooted(body)

    def rooted(self, body: b.Era | b.RootList) -> Entry:
        """A step that the offline root and two people of the operator sign."""
        root = self.pki.root
        scribe = Scribe(
            signer=KeySigner(root.private_key, [root.certificate.public_bytes(Encoding.DER)]),
            issuer="signer/root",
            clock=self.clock,
            entropy=os.urandom,
            numbered=False,
        )
        statements = (
            scribe.sign(body, subject="revocation/root"),
            *(self.sign(self.pki.admin(number), body, subject="revocation/root") for number in (1, 2)),
        )
        epoch = len(self.entries) + 1
        previous = self.entries[-1].chain if self.entries else EMPTY_CHAIN
        digests = [statement.digest for statement in statements]
        entry = Entry(epoch, tuple(one.data for one in statements), chain_hash(previous, epoch, digests))
        self.entries.append(entry)
        return entry

    def head(self, challenges: bytes | None = None, **values: Any) -> Statement[b.Head]:
        body = b.Head(
            epoch=len(self.entries),
            chain=self.entries[-1].chain if self.entries else EMPTY_CHAIN,
            era=self.era,
            issued=self.clock.now(),
            challenges=challenges,
        )
        return self.signed_by("head", replace(body, **values), subject="revocation/head")

    def revocations(
        self,
        *,
        challenge: bytes | None = None,
        entries: Sequence[Entry] | None = None,
        gateway_time: int | None = None,
        **values: Any,
    ) -> messages.Revocations:
        """What a gateway tells its devices; the challenge stands alone in its tree."""
        root = None if challenge is None else merkle.leaf_hash(challenge)
        return messages.Revocations(
            tuple(self.entries if entries is None else entries),
            self.head(root, **values).data,
            () if challenge is None else (PathStep(0, 1, ()),),
            self.clock.now() if gateway_time is None else gateway_time,
        )


def receipt(answer: messages.Receipts, place: int = -1) -> b.Receipt:
    """A receipt's body."""
    return read(answer.receipts[place], b.Receipt).body
