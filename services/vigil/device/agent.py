"""The device's agent: a message in, messages out. No network, no threads, no sleeping in here.

Whoever runs it carries messages (`link`), calls `tick` when `next_due` comes, and builds a new one after a restart. A
start happens in the constructor: the boot leaf, the verdict over a pending update, and what was interrupted.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from vigil.core.clock import Clock, Entropy
from vigil.core.keys import KeySigner
from vigil.core.revocations import Lease
from vigil.core.statements.bodies import Acknowledgement, Effect, Evidence, LogHead, Scope
from vigil.core.statements.envelope import Scribe, Statement
from vigil.device import domain, messages, snapshot
from vigil.device.enrol import possession
from vigil.device.evidence import Attester
from vigil.device.executor import Executor
from vigil.device.facts import Replay, View
from vigil.device.hardware import Hardware
from vigil.device.journal import Journal
from vigil.device.measurement_log import Leaf, LeafKind, MeasurementLog
from vigil.device.messages import Incoming, Outgoing
from vigil.device.nonces import NonceBook
from vigil.device.state import DeviceState
from vigil.device.trust import SharedTrust, Trust
from vigil.device.unconfirmed import Unconfirmed
from vigil.errors import Reason, Refused, refused

CHALLENGE_S: Final = 1.0
"""How often the device asks for a head of its own while a staged command waits for nothing else."""
STAGED_S: Final = 0.5
"""How often staged commands are looked at."""
DOWNLOAD_S: Final = 10.0
"""How long a piece of an artifact may take before it is asked for again."""
SAVE_AGAIN_S: Final = 1.0
"""How soon revocations that the flash did not take are written again."""
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
            settle=self._check_flash,
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
        self._save_due = 0.0
        self._floor_due = self._started + FLOOR_S
        self._unconfirmed = Unconfirmed(clock=clock)
        self._asked: tuple[tuple[bytes, int], float] | None = None
        self.reconnect_wanted = False
        hardware.pump.on_change = self._changed
        self._running = self._start()

    @property
    def restart_wanted(self) -> bool:
        """An update was written and journaled: the power is to be cycled now."""
        return self._executor.restart_wanted

    @property
    def online(self) -> bool:
        """Whether a link is up."""
        return self._online

    @property
    def trust(self) -> Trust:
        """Certificates, profile, revocations; for looking."""
        return self._trust

    def connected(self) -> list[Outgoing]:
        """A stream was opened: what the device says first. It counts as online when it is welcomed."""
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
        return [hello]

    def disconnected(self) -> None:
        """The link went down. Therapy, staged commands and time go on."""
        self._online = False
        self._attester.lost()
        # What was said last may not have arrived: it is said again.
        self._unconfirmed.clear()
        self._executor.news = True

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
        self._executor.settle()
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
            out += self._save_revocations(now)
            # What nobody has confirmed, though the link is up, the gateway could not keep: it is said again.
            self._executor.news |= self._unconfirmed.give_up()
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
            if not self._trust.saved:
                due.append(max(now, self._save_due))
        return min(due)

    def status(self) -> messages.Status:
        """The device's own report of itself."""
        return snapshot.status(
            hardware=self._hardware,
            state=self._state,
            staged=len(self._executor.staged),
            epoch=self._trust.revocations.epoch,
            now=self._time.now(),
        )

    # --- messages

    def _answer(self, message: Incoming) -> list[Outgoing]:
        match message:
            case messages.Welcome():
                return self._welcome(message)
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
            case messages.ReceiptsKept():
                self._kept(message)
            case messages.StatusInterval():
                every = min(message.interval_ms / 1000, MAX_STATUS_INTERVAL_S)
                self._status_every = every if every > 0 else None
                self._status_due = self._clock.monotonic() if every > 0 else float("inf")
            case messages.Renewed():
                self._renewed(message)
        return []

    def _welcome(self, message: messages.Welcome) -> list[Outgoing]:
        self._online = True
        self._asked = None
        self._status_every, self._status_due = None, float("inf")
        self._attester.lost()
        if message.trust_json:
            self._offered(lambda: self._trust.take_trust(message.trust_json))
        if message.profile:
            self._offered(lambda: self._trust.take_profile(message.profile))
        return [self._acknowledgement(), *self.tick()]

    def _offered(self, take: Callable[[], bool]) -> None:
        try:
            take()
        except Refused as error:
            _LOG.warning("%s: what the gateway offers is not taken: %s", self.device_id, error)

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
            # A reading changes nothing that is shown but a count, which the next status tells.
            self._show_status |= verdict.staged or verdict.action.effect is not Effect.DIAGNOSE
            receipts = self._executor.run(verdict)
            self._unconfirmed.leave(request_id, len(receipts))
            return messages.Receipts(message.call_id, receipts)
        except Refused as error:
            return messages.Receipts(message.call_id, error=error)

    def _receipts(self, message: messages.ReceiptQuery) -> messages.Receipts:
        receipts = self._journal.receipts(message.request_id)
        if receipts:
            return messages.Receipts(message.call_id, receipts)
        error = refused(Reason.RESOURCE_NOT_FOUND, "the device has no record of such a request")
        if self._journal.find(message.request_id) is not None:
            error = refused(Reason.OUTCOME_UNKNOWN, "the device has not come to the end of this request")
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
                return [messages.RevocationsAfter(self._trust.wanted_after)]
            raise
        if taken.answered is not None:
            self._lease.answered(taken.answered)
        for one in taken.entries:
            if one.revocation is not None and one.revocation.body.scope is Scope.CREDENTIAL:
                for name in one.revocation.body.ids:
                    self._nonces.drop(name)
        out: list[Outgoing] = [self._acknowledgement()] if taken.entries and self._trust.saved else []
        if taken.entries:
            self._show_status = True
        # A staged command may have waited for exactly this head.
        return [*out, *(self.tick() if taken.answered is not None else [])]

    def _acknowledgement(self) -> messages.AcknowledgementMessage:
        """Signed after what it says was persisted."""
        era, epoch, chain = self._trust.persisted
        body = Acknowledgement(epoch, chain, era, self._time.now())
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
        if self._asked is not None and self._asked[0] == (message.digest, message.offset):
            self._asked = None
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
        if certificates.trust_json:
            self._trust.take_trust(certificates.trust_json)
        KeySigner(self._hardware.attestation_key, certificates.attestation_chain)
        identity = self._trust.check_renewed(certificates.attestation_chain, certificates.tls_chain)
        self._hardware.secure_element.install_tls(certificates.tls_chain)
        self._trust.keep_certificates(certificates.attestation_chain, identity)
        self._scribe = self._new_scribe()
        self.reconnect_wanted = True

    def _news(self) -> list[Outgoing]:
        """Receipts that nobody waited for, and the status after a change."""
        if not self._online:
            return []
        out: list[Outgoing] = []
        if self._executor.news:
            self._executor.news = False
            for request_id, receipts in self._journal.unsent():
                if self._unconfirmed.count(request_id) < len(receipts):
                    self._unconfirmed.leave(request_id, len(receipts))
                    out.append(messages.Receipts(0, receipts))
                    self._show_status = True
        if self._show_status:
            self._show_status = False
            out.append(self.status())
        return out

    def _kept(self, message: messages.ReceiptsKept) -> None:
        """The gateway has them on its disk: they need not be said again."""
        with self._hardware.store.transaction():
            self._journal.sent(message.request_id, up_to=message.up_to)
        self._unconfirmed.keep(message.request_id, up_to=message.up_to)

    def _save_revocations(self, now: float) -> list[Outgoing]:
        """What is enforced from memory, because the flash did not take it, is written as soon as it does."""
        if self._trust.saved or now < self._save_due:
            return []
        self._save_due = now + SAVE_AGAIN_S
        try:
            self._trust.save()
        except Refused as error:
            _LOG.warning("%s: revocations not persisted: %s", self.device_id, error)
            return []
        return [self._acknowledgement()]

    # --- the device itself

    def _start(self) -> bytes:
        """Count the start, log it, settle what it decided. Answers the digest that runs."""
        started = self._hardware.slots.start()
        with self._hardware.store.transaction():
            self._state.started()
            self._leaf(LeafKind.BOOT, started.digest, self._hardware.slots.build.version)
            self._executor.after_start(started)
            self._log_measurements(started.digest)
            self._trust.keep_floor()
        if self._trust.profile is not None:
            self._executor.restore(self._view())
        return started.digest

    def _log_measurements(self, firmware: bytes) -> None:
        """What is in force now, where the log says otherwise or nothing yet: nobody's permit led to it."""
        configuration = self._hardware.configuration
        for kind, digest in (
            (LeafKind.FIRMWARE, firmware),
            (LeafKind.CONFIGURATION, configuration.digest),
            (LeafKind.LIBRARY, configuration.library_digest),
        ):
            if self._log.last(kind) != digest:
                self._leaf(kind, digest, "found at start")

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
        return snapshot.view(
            trust=self._trust, hardware=self._hardware, state=self._state, bound_size=self._log.bound_size
        )

    def _claims(self, nonce: bytes, head: LogHead) -> Evidence:
        return snapshot.claims(
            nonce,
            hardware=self._hardware,
            state=self._state,
            log=head,
            now=self._time.now(),
            uptime=int(self._clock.monotonic() - self._started),
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
