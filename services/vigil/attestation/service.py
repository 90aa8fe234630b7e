"""The use cases: a challenge, an appraisal, and looking at results."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from vigil.api.attestation.v1 import attestation_pb2
from vigil.attestation import domain, store
from vigil.attestation.domain import Appraisal, Known
from vigil.attestation.replicas import DeviceFacts, Devices, ReferenceValues
from vigil.core.certificates import ChainVerifier, Identity, Kind
from vigil.core.clock import Clock, Entropy
from vigil.core.statements.bodies import (
    ActionClass,
    Answer,
    Decision,
    Evidence,
    EvidenceBasis,
    Profile,
    Result,
    TrustTier,
)
from vigil.core.statements.envelope import Scribe, Statement, check, read
from vigil.errors import Reason, Refused, refused
from vigil.feed import Outbox
from vigil.feed.evidence import EvidenceSpool
from vigil.rpc.access import not_in_scope
from vigil.storage import Database

NONCE_BYTES = 32
NONCE_S = 30.0
"""A challenge lives half a minute: a pump on a slow link answers within a few seconds."""
MAX_NONCES = 65_536
"""Challenges outstanding at once; the oldest are forgotten."""
DEFAULT_LIFETIME_S = 60
"""For a model whose profile is not known: the result says nothing good anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A nonce, when it ends (ms), and how long the verifier's copy of the log is."""

    nonce: bytes
    expires: int
    log_size: int


class Challenges:
    """Nonces in memory: one use, one winner. A restart forgets them, and the device asks again."""

    def __init__(self, *, clock: Clock, entropy: Entropy) -> None:
        self._clock = clock
        self._entropy = entropy
        self._issued: dict[bytes, tuple[str, float]] = {}

    def issue(self, device_id: str) -> bytes:
        """Make a nonce for one device."""
        nonce = self._entropy(NONCE_BYTES)
        self._issued[nonce] = (device_id, self._clock.monotonic())
        while len(self._issued) > MAX_NONCES:
            self._issued.pop(next(iter(self._issued)))
        return nonce

    def use(self, nonce: bytes, device_id: str) -> None:
        """Use a nonce up. Raises NONCE_UNKNOWN or NONCE_EXPIRED; it is gone in any case."""
        device, issued = self._issued.pop(nonce, ("", 0.0))
        if device != device_id:
            raise refused(Reason.NONCE_UNKNOWN, "the evidence answers no challenge of this device")
        if self._clock.monotonic() - issued > NONCE_S:
            raise refused(Reason.NONCE_EXPIRED, "the challenge has expired", lifted_by="a new challenge")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What a device sent in answer to a challenge."""

    evidence: bytes
    first_leaf: int
    leaves: tuple[bytes, ...]
    permits: tuple[bytes, ...]


class Attestation:
    """Appraises evidence and keeps the live state of every device."""

    def __init__(
        self,
        *,
        database: Database,
        outbox: Outbox,
        spool: EvidenceSpool,
        verifier: Callable[[], ChainVerifier],
        devices: Devices,
        references: ReferenceValues,
        revoked: Callable[[Identity], Reason | None],
        scribe: Scribe,
        clock: Clock,
        entropy: Entropy,
        on_stored: Callable[[int], object] = lambda _time: None,
    ) -> None:
        """``on_stored`` hears the time (ms) of each result that is durable."""
        self._database = database
        self._outbox = outbox
        self._spool = spool
        self._verifier = verifier
        self._devices = devices
        self._references = references
        self._revoked = revoked
        self._scribe = scribe
        self._clock = clock
        self._on_stored = on_stored
        self._challenges = Challenges(clock=clock, entropy=entropy)
        self._known: dict[str, Known] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._log = structlog.get_logger("vigil.attestation")

    async def challenge(self, gateway: Identity, device_id: str) -> Challenge:
        """A nonce for a device of this gateway's site. Raises NOT_IN_SCOPE."""
        self._device(gateway, device_id)
        known = await self._load(device_id)
        nonce = self._challenges.issue(device_id)
        expires = self._clock.now() + round(NONCE_S * 1000)
        return Challenge(nonce=nonce, expires=expires, log_size=known.frontier.size)

    async def submit(self, gateway: Identity, device_id: str, submitted: Submitted) -> bytes:
        """Appraise; answers the signed result once evidence, result and frontier are durable.

        Raises NOT_IN_SCOPE, STATEMENT_MALFORMED, SIGNATURE_INVALID, NONCE_UNKNOWN, NONCE_EXPIRED, and STATE_CONFLICT
        while the clock leaps (docs/protocol.md, "Time").
        """
        device = self._device(gateway, device_id)
        async with self._turns.setdefault(device_id, asyncio.Lock()):
            evidence = self._read_evidence(device, submitted.evidence)
            self._challenges.use(evidence.body.eat_nonce, device_id)
            known = await self._load(device_id)
            domain.check_submission(
                known,
                evidence.body,
                first_leaf=submitted.first_leaf,
                leaves=submitted.leaves,
                permits=submitted.permits,
            )
            appraisal = self._appraise(device, evidence.body, submitted, known)
            return await self._keep(device, evidence, appraisal)

    def _device(self, gateway: Identity, device_id: str) -> DeviceFacts:
        device = self._devices.get(device_id)
        if device is None or not gateway.covers_site(device.organization, device.site):
            raise not_in_scope()
        return device

    def _read_evidence(self, device: DeviceFacts, data: bytes) -> Statement[Evidence]:
        evidence = read(data, Evidence)
        # The registry's certificate, not the one that travelled: the key that was enrolled is the one that counts.
        attester = self._verifier().verify(
            device.attestation_chain, at=self._clock.now(), kinds=frozenset({Kind.DEVICE}), grace=True
        )
        check(evidence, attester)
        if attester.id != device.device_id or evidence.subject != f"device/{device.device_id}":
            raise refused(Reason.SIGNATURE_INVALID, "the evidence speaks of another device")
        return evidence

    def _appraise(
        self, device: DeviceFacts, evidence: Evidence, submitted: Submitted, known: Known
    ) -> Appraisal:
        permits = self._permits(device, submitted.permits)
        references = self._references.of(device, now=self._clock.now())
        try:
            return domain.appraise(
                evidence, leaves=submitted.leaves, permits=permits, known=known, references=references
            )
        except Refused:
            raise
        except Exception:  # noqa: BLE001 - the device is then untrusted (ARCHITECTURE section 4)
            self._log.exception("appraisal_failed", device=device.device_id)
            return domain.malfunction(known)

    def _permits(self, device: DeviceFacts, permits: Sequence[bytes]) -> dict[bytes, ActionClass]:
        """Allows for this device that a decision signer signed; anything else counts for nothing."""
        found: dict[bytes, ActionClass] = {}
        for data in permits:
            try:
                permit = read(data, Decision)
                body = permit.body
                signer = self._verifier().verify(
                    permit.chain, at=body.decided_at, kinds=frozenset({Kind.SIGNER}), grace=True
                )
                check(permit, signer)
                reason = self._revoked(signer)
                if reason is not None:
                    raise refused(reason, "the permit's signer is revoked")
            except Refused as error:
                self._log.warning("permit_ignored", device=device.device_id, reason=error.reason)
                continue
            if body.answer is Answer.ALLOW and body.device == device.device_id and body.action_class:
                found[permit.digest] = body.action_class
        return found

    async def _keep(self, device: DeviceFacts, evidence: Statement[Evidence], appraisal: Appraisal) -> bytes:
        profile = self._references.profile(device.model)
        result = self._scribe.sign(
            _result(device, evidence, appraisal, profile, now=self._now()),
            subject=f"device/{device.device_id}",
        )
        trust = _trust(device, evidence.body, result)
        row = store.Row(
            device_id=device.device_id,
            organization=device.organization,
            site=device.site,
            status=str(result.body.status),
            firmware=result.body.measurements.firmware,
            stale_at=result.body.stale_at,
            known=appraisal.known,
            trust=trust.SerializeToString(),
        )

        def write(connection: Connection) -> None:
            store.save(connection, row)
            self._outbox.put(connection, "result", device.device_id, row.trust, device.site)
            for statement in (evidence.data, result.data):
                self._spool.put(
                    connection,
                    statement,
                    subjects=[f"device/{device.device_id}"],
                    organization_id=device.organization,
                    site_id=device.site,
                )

        await self._database.write(write)
        self._on_stored(result.issued_at * 1000)
        self._known[device.device_id] = appraisal.known
        return result.data

    def _now(self) -> int:
        """Time: what is signed now carries this. Raises STATE_CONFLICT, which is logged, while the clock leaps."""
        try:
            return self._scribe.now()
        except Refused as refusal:
            self._log.error("results_withheld", reason=str(refusal))
            raise

    async def _load(self, device_id: str) -> Known:
        known = self._known.get(device_id)
        if known is None:
            known = await self._database.read(lambda connection: store.load_known(connection, device_id))
            known = self._known.setdefault(device_id, known)
        return known


def _result(
    device: DeviceFacts,
    evidence: Statement[Evidence],
    appraisal: Appraisal,
    profile: Profile | None,
    *,
    now: int,
) -> Result:
    body = evidence.body
    lifetime = profile.attestation_lifetime_s if profile else DEFAULT_LIFETIME_S
    therapy_lifetime = profile.therapy_lifetime_s if profile else DEFAULT_LIFETIME_S
    return Result(
        device=device.device_id,
        evidence=evidence.digest,
        status=TrustTier(appraisal.status),
        vector=appraisal.vector,
        reasons=appraisal.reasons,
        basis=EvidenceBasis.ATTESTED,
        boot_count=body.bootcount,
        log_size=body.log.size,
        measurements=body.measurements,
        security_version=body.security_version,
        therapy=body.therapy,
        quarantined=body.quarantined,
        holds=body.holds,
        appraised_at=now,
        stale_at=now + lifetime * 1000,
        therapy_stale_at=now + therapy_lifetime * 1000,
    )


def _trust(device: DeviceFacts, evidence: Evidence, result: Statement[Result]) -> attestation_pb2.DeviceTrust:
    body = result.body
    return attestation_pb2.DeviceTrust(
        device_id=device.device_id,
        organization_id=device.organization,
        site_id=device.site,
        status=str(body.status),
        reasons=body.reasons,
        vector=body.vector,
        basis=str(body.basis),
        firmware=body.measurements.firmware,
        software_version=evidence.swversion[0],
        configuration=body.measurements.configuration,
        therapy_state=str(body.therapy.state),
        patient_state=str(body.therapy.patient),
        appraise_time_ms=body.appraised_at,
        stale_time_ms=body.stale_at,
        result=result.data,
    )


class Results:
    """Looking at results, inside a person's scope."""

    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def get(self, device_id: str) -> tuple[str, str, attestation_pb2.DeviceTrust] | None:
        """Organization, site and trust of one device; None when it never attested."""
        found = await self._database.read(lambda connection: store.load_trust(connection, device_id))
        if found is None:
            return None
        return found[0], found[1], attestation_pb2.DeviceTrust.FromString(found[2])

    async def page(
        self, visible: store.Visible, *, after: str, limit: int, status: str, firmware: bytes, site: str
    ) -> list[tuple[str, attestation_pb2.DeviceTrust]]:
        """A page of devices, in the order of their ids."""
        rows = await self._database.read(
            lambda connection: store.list_trust(
                connection, visible, after=after, limit=limit, status=status, firmware=firmware, site=site
            )
        )
        return [(device_id, attestation_pb2.DeviceTrust.FromString(trust)) for device_id, trust in rows]

    async def count(self, visible: store.Visible, *, firmware: bytes) -> tuple[dict[str, int], int]:
        """Devices by status, and the stale ones."""
        now = self._clock.now()
        by_status, stale = await self._database.read(
            lambda connection: store.count_trust(connection, visible, now=now, firmware=firmware)
        )
        return dict(by_status), stale
