"""The device's agent: a message in, messages out. No network, no threads, no sleeping in here.

Whoever runs it carries messages (`link`), calls `tick` when `next_due` comes, and builds a new one after a restart. A
start happens in the constructor: the boot leaf, the verdict over a pending update, and what was interrupted.
"""

import logging
from typing import Any, Final

from vigil.core.clock import Clock, Entropy
from vigil.core.keys import KeySigner, key_thumbprint
from vigil.core.revocations import Lease
from vigil.core.statements.bodies import Acknowledgement, Evidence, Measurements, Scope, Therapy
from vigil.core.statements.envelope import Scribe, Statement
from vigil.device import domain, messages
from vigil.device.enrol import possession
from vigil.device.evidence import DEBUG_DISABLED_PERMANENTLY, EAT_PROFILE, UEID_RAND, Attester
from vigil.device.executor import Executor, manufacturer_hash
from vigil.device.facts import Replay, View
from vigil.device.hardware import Hardware
from vigil.device.journal import Journal
from vigil.device.measurement_log import Leaf, LeafKind, MeasurementLog
from vigil.device.messages import Incoming, Outgoing
from vigil.device.nonces import NonceBook
from vigil.device.state import DeviceState
from vigil.device.trust import SharedTrust, Trust
from vigil.errors import Reason, Refused, refused

CHALLENGE_S: Final = 1.0
"""How often the device asks for a head of its own while a staged command waits for nothing else."""
STAGED_S: Final = 0.5
"""How often staged commands are looked at."""
DOWNLOAD_S: Final = 10.0
"""How long a piece of an artifact may take before it is asked for again."""
FLOOR_S: Final = 600.0
"""How often the floor of time is stored."""
IDLE_S: Final = 5.0
"""The longest time between two looks at the flash and at what is due."""
RENEW_BEFORE_MS: Final = 30 * 86_400_000
"""A third of the 90 days of a device certificate's ordinary use."""
RENEW_RETRY_S: Final = 60.0
MAX_STATUS_INTERVAL_S: Final = 60.0

_LOG = logging.getLogger(__name__)


class DeviceAgent:
    """One start of one device. Raises STATE_CONFLICT when the device is not enrolled."""

    def __init__(self, *, hardware: Hardware, shared: SharedTrust, clock: Clock, entropy: Entropy) -> None:
        self._hardware = hardware
        self._clock = clock
        self._entropy = entropy
        store = hardware.store
        self._trust = Trust(
            store=store,
            trust_file=hardware.trust_file,
            model=hardware.label.model,
            manufacturer=hardware.label.manufacturer,
            shared=shared,
            clock=clock,
        )
        self._time = self._trust.time
        self._state = DeviceState(store=store)
        self._log = MeasurementLog(store=store, secure_element=hardware.secure_element)
        self._journal = Journal(store=store)
        self._nonces = NonceBook(clock=clock, entropy=entropy)
        self._lease = Lease(keep=4)
        self.device_id = self._trust.identity.id
        self._subject = f"device/{self.device_id}"
        self._scribe = self._new_scribe()
        self._executor = Executor(
            hardware=hardware,
            state=self._state,
            log=self._log,
            journal=self._journal,
            time=self._time,
            sign=self._sign,
            device_id=self.device_id,
            on_change=self._changed,
        )
        self._attester = Attester(
            clock=clock,
            entropy=entropy,
            sign=self._sign,
            claims=self._claims,
            log=self._log,
            journal=self._journal,
        )
        self._started = clock.monotonic()
        self._online = False
        self._show_status = False
        self._status_every: float | None = None
        self._status_due = float("inf")
        self._challenge_due = 0.0
        self._renew_due = 0.0
        self._floor_due = self._started + FLOOR_S
        self._asked: tuple[tuple[bytes, int], float] | None = None
        self.reconnect_wanted = False
        hardware.pump.on_change = self._changed
        self._running = self._start()

    @property
    def restart_wanted(self) -> bool:
        """An update was written and journaled: the power is to be cycled now."""
        return self._executor.restart_wanted

    @property
    def trust(self) -> Trust:
        """Certificates, profile, revocations; for looking."""
        return self._trust

    def connected(self) -> list[Outgoing]:
        """The link came up: what the device says first."""
        self._online = True
        self._asked = None
        self._status_every, self._status_due = None, float("inf")
        self._attester.lost()
        profile, revocations = self._trust.profile, self._trust.revocations
        hello = messages.Hello(
            model=self._hardware.label.model,
            firmware_version=self._hardware.slots.build.version,
            boot_count=self._state.boot_count,
            profile_version=0 if profile is None else profile.body.version,
            revocation_epoch=revocations.epoch,
            revocation_chain=revocations.chain,
            attestation_chain=self._trust.chain,
            status=self.status(),
        )
        return [hello, self._acknowledgement(), *self.tick()]

    def disconnected(self) -> None:
        """The link went down. Therapy, staged commands and time go on."""
        self._online = False
        self._attester.lost()

    def handle(self, message: Incoming) -> list[Outgoing]:
        """Answer one message from the gateway. Never raises for what it says."""
        try:
            return [*self._answer(message), *self._news()]
        except Refused as error:
            # Nothing waits for an answer to this message, or none can be signed: the next one finds us as we were.
            _LOG.warning("%s: %s ignored: %s", self.device_id, type(message).__name__, error)
            return []

    def tick(self) -> list[Outgoing]:
        """Do what is due."""
        now = self._clock.monotonic()
        self._check_flash()
        out: list[Outgoing] = []
        if self._executor.staged and self._trust.profile is not None:
            age = self._lease.age(monotonic=now)
            head_wanted = self._executor.advance(self._view(), head_age_s=age)
            if head_wanted and self._online and now >= self._challenge_due:
                self._challenge_due = now + CHALLENGE_S
                challenge = self._entropy(16)
                self._lease.sent(challenge, monotonic=now)
                out.append(messages.HeadChallenge(challenge))
        if now >= self._floor_due:
            self._floor_due = now + FLOOR_S
            self._trust.keep_floor()
        if self._online:
            out += self._attester.tick()
            out += self._download(now)
            out += self._renew(now)
            if now >= self._status_due and self._status_every is not None:
                self._status_due = now + self._status_every
                self._show_status = True
            out += self._news()
        return out

    def next_due(self) -> float:
        """Monotonic seconds at which `tick` should be called at the latest."""
        now = self._clock.monotonic()
        due = [now + IDLE_S, self._status_due, self._floor_due]
        if self._executor.staged:
            due.append(now + STAGED_S)
        if self._online:
            due.append(self._attester.next_due())
        return min(due)

    def status(self) -> messages.Status:
        """The device's own report of itself."""
        hardware, state = self._hardware, self._state
        return messages.Status(
            therapy_state=str(hardware.pump.therapy),
            patient_state=str(hardware.pump.patient),
            firmware_version=hardware.slots.build.version,
            applied_actions=state.applied,
            staged_commands=len(self._executor.staged),
            quarantined=state.quarantined,
            holds=state.holds,
            revocation_epoch=self._trust.revocations.epoch,
            boot_count=state.boot_count,
            device_time=self._time.now(),
            alert=state.alert,
            readings=hardware.pump.readings().values,
            settings={name: _text(value) for name, value in hardware.configuration.settings.items()},
        )

    # --- messages

    def _answer(self, message: Incoming) -> list[Outgoing]:
        match message:
            case messages.Welcome():
                self._welcome(message)
            case messages.NonceRequest():
                return [self._nonce(message)]
            case messages.BundleMessage():
                return [self._bundle(message)]
            case messages.Challenge():
                return list(self._attester.challenged(message))
            case messages.Appraised():
                profile = self._trust.profile
                self._attester.appraised(message, None if profile is None else profile.body)
            case messages.ArtifactChunk():
                return self._piece(message)
            case messages.Revocations():
                return self._revocations(message)
            case messages.AttestNow():
                return [self._attester.request(message.call_id)]
            case messages.ReceiptQuery():
                return [self._receipts(message)]
            case messages.StatusInterval():
                every = min(message.interval_ms / 1000, MAX_STATUS_INTERVAL_S)
                self._status_every = every if every > 0 else None
                self._status_due = self._clock.monotonic() if every > 0 else float("inf")
            case messages.Renewed():
                self._renewed(message)
        return []

    def _welcome(self, message: messages.Welcome) -> None:
        if message.trust_json:
            self._trust.take_trust(message.trust_json)
        if message.profile:
            self._trust.take_profile(message.profile)

    def _nonce(self, message: messages.NonceRequest) -> messages.NonceReply:
        try:
            if len(message.credential) != 32:
                raise refused(
                    Reason.FIELD_INVALID, "a credential is named by its SHA-256", field="credential"
                )
            if message.profile:
                self._trust.take_profile(message.profile)
            nonce = self._nonces.issue(message.credential, safety=message.safety)
        except Refused as error:
            return messages.NonceReply(message.call_id, error=error)
        return messages.NonceReply(message.call_id, nonce)

    def _bundle(self, message: messages.BundleMessage) -> messages.Receipts:
        """The checks in their order (see `domain`); nothing is done before all of them have passed."""
        try:
            read_one = domain.read_bundle(message.bundle)
        except Refused as error:
            return messages.Receipts(message.call_id, error=error)
        # Device check 2: used up before anything else happens.
        nonce = self._nonces.take(read_one.command.body.nonce, credential=read_one.command.signer)
        request_id = read_one.intent.body.request_id
        parties = None
        try:
            view = self._view()
            parties = domain.authenticate(read_one, view, nonce=nonce)
            row = self._journal.find(request_id)
            verdict = domain.admit(read_one, parties, view, known_intent=None if row is None else row.intent)
        except Refused as error:
            # A stranger gets no signature; whoever proved to be a person of the site gets the device's own word.
            signed = () if parties is None else (self._executor.refusal(read_one, parties, error),)
            return messages.Receipts(message.call_id, signed, error)
        try:
            if isinstance(verdict, Replay):
                return messages.Receipts(message.call_id, self._journal.receipts(request_id))
            self._show_status = True
            return messages.Receipts(message.call_id, self._executor.run(verdict))
        except Refused as error:
            return messages.Receipts(message.call_id, error=error)

    def _receipts(self, message: messages.ReceiptQuery) -> messages.Receipts:
        receipts = self._journal.receipts(message.request_id)
        if receipts:
            return messages.Receipts(message.call_id, receipts)
        error = refused(Reason.RESOURCE_NOT_FOUND, "the device has no receipt of such a request")
        return messages.Receipts(message.call_id, error=error)

    def _revocations(self, message: messages.Revocations) -> list[Outgoing]:
        try:
            taken = self._trust.take_revocations(
                message.entries,
                message.head,
                message.steps,
                gateway_time=message.gateway_time,
                challenges=self._lease.outstanding(),
            )
        except Refused as error:
            if error.reason is Reason.SNAPSHOT_REQUIRED:
                return [messages.RevocationsAfter(self._trust.revocations.epoch)]
            raise
        if taken.answered is not None:
            self._lease.answered(taken.answered)
        for one in taken.entries:
            if one.revocation is not None and one.revocation.body.scope is Scope.CREDENTIAL:
                for name in one.revocation.body.ids:
                    self._nonces.drop(name)
        out: list[Outgoing] = [self._acknowledgement()] if taken.entries else []
        if taken.entries:
            self._show_status = True
        # A staged command may have waited for exactly this head.
        return [*out, *(self.tick() if taken.answered is not None else [])]

    def _acknowledgement(self) -> messages.AcknowledgementMessage:
        """Signed after what it says was persisted."""
        state = self._trust.revocations
        body = Acknowledgement(state.epoch, state.chain, state.era, self._time.now())
        return messages.AcknowledgementMessage(self._sign(body).data)

    # --- artifacts, certificates, news

    def _download(self, now: float) -> list[Outgoing]:
        wanted = self._hardware.artifacts.next()
        if wanted is None:
            self._asked = None
            return []
        if self._asked is not None and self._asked[0] == wanted and now < self._asked[1]:
            return []
        self._asked = (wanted, now + DOWNLOAD_S)
        return [messages.ArtifactRequest(*wanted)]

    def _piece(self, message: messages.ArtifactChunk) -> list[Outgoing]:
        if message.error is not None:
            _LOG.warning("%s: no artifact %s: %s", self.device_id, message.digest.hex(), message.error)
            return []
        if self._hardware.artifacts.take(message.digest, offset=message.offset, chunk=message.chunk):
            return self.tick()
        return self._download(self._clock.monotonic())

    def _renew(self, now: float) -> list[Outgoing]:
        """Prove the PUF key for new certificates in time; the nonce is the device's id and its time (identity)."""
        at = self._time.now()
        if now < self._renew_due or at < self._trust.identity.operational_until - RENEW_BEFORE_MS:
            return []
        self._renew_due = now + RENEW_RETRY_S
        nonce = self.device_id.encode() + at.to_bytes(8, "big")
        return [messages.Renew(possession(self._hardware, nonce))]

    def _renewed(self, message: messages.Renewed) -> None:
        if message.error is not None or message.certificates is None:
            _LOG.warning("%s: certificates not renewed: %s", self.device_id, message.error)
            return
        certificates = message.certificates
        KeySigner(self._hardware.attestation_key, certificates.attestation_chain)
        self._trust.take_certificates(certificates.attestation_chain, certificates.trust_json)
        self._hardware.secure_element.install_tls(certificates.tls_chain)
        self._scribe = self._new_scribe()
        self.reconnect_wanted = True

    def _news(self) -> list[Outgoing]:
        """Receipts that nobody waited for, and the status after a change."""
        if not self._online:
            return []
        out: list[Outgoing] = []
        if self._executor.news:
            unsent = self._journal.unsent()
            out += [messages.Receipts(0, receipts) for _, receipts in unsent]
            with self._hardware.store.transaction():
                for request_id, _ in unsent:
                    self._journal.sent(request_id)
            self._executor.news = False
            self._show_status = self._show_status or bool(unsent)
        if self._show_status:
            self._show_status = False
            out.append(self.status())
        return out

    # --- the device itself

    def _start(self) -> bytes:
        """Count the start, log it, settle what it decided. Answers the digest that runs."""
        started = self._hardware.slots.start()
        with self._hardware.store.transaction():
            self._state.started()
            self._leaf(LeafKind.BOOT, started.digest, self._hardware.slots.build.version)
            self._executor.after_start(started)
            self._trust.keep_floor()
        if self._trust.profile is not None:
            self._executor.restore(self._view())
        return started.digest

    def _check_flash(self) -> None:
        """What runs is measured again when the flash has changed; a change nobody ordered is logged and attested."""
        measured = self._hardware.slots.measure()
        if measured != self._running:
            with self._hardware.store.transaction():
                self._leaf(LeafKind.INTEGRITY, measured, "the running image has changed")
            self._running = measured
            self._changed()

    def _changed(self) -> None:
        self._show_status = True
        self._attester.changed()

    def _leaf(self, kind: LeafKind, digest: bytes, detail: str) -> None:
        self._log.append(
            Leaf(
                kind=kind,
                time=self._time.now(),
                boot=self._state.boot_count,
                digest=digest,
                detail=detail,
            )
        )

    def _view(self) -> View:
        """What the device knows at this moment. Raises PROFILE_MISMATCH while it has no profile."""
        trust, hardware, state = self._trust, self._hardware, self._state
        if trust.profile is None:
            raise refused(
                Reason.PROFILE_MISMATCH,
                "the device has no profile of its model yet",
                lifted_by="its gateway handing it one",
                who="the manufacturer",
            )
        return View(
            device_id=self.device_id,
            organization=trust.identity.organization,
            site=trust.identity.sites[0],
            manufacturer=trust.manufacturer,
            now=self._time.now(),
            operational_until=trust.identity.operational_until,
            profile=trust.profile,
            verifier=trust.verifier,
            revocations=trust.revocations,
            distrusted=trust.distrusted,
            held_epoch=trust.held_epoch,
            boot_count=state.boot_count,
            bound_size=self._log.bound_size,
            therapy=hardware.pump.therapy,
            patient=hardware.pump.patient,
            bedside_confirmed=hardware.pump.bedside_confirmed,
            on_mains=hardware.pump.on_mains,
            quarantined=state.quarantined,
            holds=state.holds,
            firmware=hardware.slots.measure(),
            configuration=hardware.configuration.digest,
            library=hardware.configuration.library_digest,
            security_version=hardware.slots.build.security_version,
        )

    def _claims(self, nonce: bytes) -> Evidence:
        """The EAT's claims about this moment; a change of the flash is logged before the head is signed."""
        self._check_flash()
        hardware, build = self._hardware, self._hardware.slots.build
        label = hardware.label
        return Evidence(
            eat_nonce=nonce,
            ueid=UEID_RAND + key_thumbprint(hardware.identity_key.public_key()),
            oemid=manufacturer_hash(label.manufacturer),
            hwmodel=label.model.encode()[:32],
            oemboot=self._running == build.digest,
            dbgstat=DEBUG_DISABLED_PERMANENTLY,
            eat_profile=EAT_PROFILE,
            bootcount=self._state.boot_count,
            swname=f"{label.model} firmware",
            swversion=(build.version,),
            measurements=Measurements(
                firmware=self._running,
                configuration=hardware.configuration.digest,
                library=hardware.configuration.library_digest,
                sbom=build.sbom,
            ),
            log=self._log.head(),
            therapy=Therapy(hardware.pump.therapy, hardware.pump.patient, self._time.now()),
            security_version=build.security_version,
            uptime=int(self._clock.monotonic() - self._started),
            quarantined=self._state.quarantined,
            holds=self._state.holds,
            applied=self._state.applied,
        )

    def _new_scribe(self) -> Scribe:
        return Scribe(
            signer=KeySigner(self._hardware.attestation_key, self._trust.chain),
            issuer=self._subject,
            clock=self._time,
            entropy=self._entropy,
            numbered=True,
        )

    def _sign(self, body: Any) -> Statement[Any]:
        return self._scribe.sign(body, subject=self._subject)


def _text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
