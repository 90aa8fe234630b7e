"""Whom a device trusts, who it is itself, and what it knows revoked; persisted before it is acknowledged."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vigil.core import cbor
from vigil.core.certificates import ChainVerifier, Identity, Kind, TrustBundle, replace_file
from vigil.core.classes import HEAD_TOLERANCE_S
from vigil.core.clock import Clock
from vigil.core.profiles import CLASS_OF, RECOVERY
from vigil.core.revocations import Entry, PathStep, ReadEntry, RevocationState, answers
from vigil.core.statements.bodies import Head, Profile
from vigil.core.statements.envelope import Statement, check, read
from vigil.device.store import DeviceStore
from vigil.device.timekeeping import DeviceTime
from vigil.errors import Reason, Refused, refused

_LOG = logging.getLogger(__name__)

_CHAIN, _PROFILE, _ERA, _FLOOR = "chain.attestation", "profile", "era", "floor"
_MAX_HEADS: Final = 64
_MAX_ENTRY: Final = 1 << 20
FLOOR_STEP_MS: Final = 60_000
"""A floor that rose by more than this is stored at once; smaller steps wait for the next occasion."""
MAX_ASIDE: Final = 16_384
"""Entries that wait for the head which confirms them; a gateway sends long histories in several messages."""


class SharedTrust:
    """What the pumps of one process need not verify each: chains of one trust bundle, signatures of heads."""

    def __init__(self) -> None:
        self._verifiers: dict[bytes, ChainVerifier] = {}
        self._heads: dict[tuple[int, bytes], Statement[Head]] = {}

    def verifier(self, trust_json: str) -> ChainVerifier:
        """The verifier of a trust bundle. Raises CERTIFICATE_INVALID."""
        key = hashlib.sha256(trust_json.encode()).digest()
        if key not in self._verifiers:
            self._verifiers[key] = ChainVerifier(TrustBundle.from_json(trust_json))
        return self._verifiers[key]

    def head(self, data: bytes, verifier: ChainVerifier, *, at: int) -> Statement[Head]:
        """A head; its signer was valid when it was issued and is so ``at`` the floor. Raises SIGNATURE_INVALID."""
        key = (id(verifier), hashlib.sha256(data).digest())
        known = self._heads.get(key)
        head = known or read(data, Head)
        # ``at`` is the floor: a pump whose clock is wrong learns the time from heads, and judges them by their own.
        instant = max(at, head.body.issued)
        signer = verifier.verify(head.chain, at=instant, kinds=frozenset({Kind.SIGNER}))
        if known is None:
            check(head, signer)
            while len(self._heads) >= _MAX_HEADS:
                del self._heads[next(iter(self._heads))]
            self._heads[key] = head
        return head


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a message about revocations: new entries, and whether a challenge of ours was answered."""

    entries: tuple[ReadEntry, ...]
    answered: bytes | None


class Trust:
    """The device's certificates, profile and revocations."""

    def __init__(
        self,
        *,
        store: DeviceStore,
        trust_file: Path,
        model: str,
        manufacturer: str,
        shared: SharedTrust,
        clock: Clock,
    ) -> None:
        """Load what was installed at enrolment and learnt since. Raises STATE_CONFLICT when nothing was."""
        self._store = store
        self._file = trust_file
        self._model = model
        self.manufacturer = manufacturer
        self._shared = shared
        self._clock = clock
        self.time = DeviceTime(clock=clock, floor=int(store.get(_FLOOR, 0)))
        chain = store.get(_CHAIN)
        if chain is None or not trust_file.exists():
            raise refused(
                Reason.STATE_CONFLICT,
                "the device is not enrolled",
                lifted_by="an enrolment station",
                who="an enroller",
            )
        self.chain: tuple[bytes, ...] = tuple(chain)
        self.verifier = shared.verifier(trust_file.read_text())
        self.identity = _device_identity(self.verifier, self.chain)
        self.profile = self._stored_profile()
        self.revocations = RevocationState()
        self.revocations.restore(_stored_entries(store), era=int(store.get(_ERA, 0)))
        # What was persisted counts as held for long.
        self._held = [(float("-inf"), self.revocations.epoch)]
        self._aside: list[Entry] = []
        self._unsaved: list[ReadEntry] = []
        self._anew = False
        self.persisted = self.revocations.position
        """Era, epoch and chain hash that a restart begins with; nothing later is acknowledged."""

    @property
    def held_epoch(self) -> int:
        """The highest epoch of a head held for more than 8 s (Device check 5)."""
        now = self._clock.monotonic()
        return [epoch for since, epoch in self._held if now - since > HEAD_TOLERANCE_S][-1]

    @property
    def distrusted(self) -> frozenset[bytes]:
        """Signers on the root's own list, which is a step of the chain."""
        return self.revocations.distrusted

    @property
    def wanted_after(self) -> int:
        """The epoch after which entries are missing: 0 when the chain of a later era is to be taken whole."""
        return 0 if self._anew else self.revocations.epoch

    def take_profile(self, data: bytes) -> bool:
        """Take a newer profile of the model; False when it is not newer. Raises SIGNATURE_INVALID or others."""
        statement = self._checked_profile(data)
        if self.profile is not None and statement.body.version <= self.profile.body.version:
            return False
        with self._store.transaction():
            self._store.put(_PROFILE, data)
        self.profile = statement
        return True

    def take_trust(self, trust_json: str) -> bool:
        """Take a newer trust bundle of the same root; False when it is the same. Raises CERTIFICATE_INVALID.

        It comes from a gateway, unsigned. Intermediates and signers prove themselves under the root; the root, the
        operator and the device's own manufacturer are what enrolment installed, and no gateway changes them.
        """
        verifier = self._shared.verifier(trust_json)
        if verifier is self.verifier:
            return False
        old, new = self.verifier.bundle, verifier.bundle
        own, offered = old.manufacturers.get(self.manufacturer), new.manufacturers.get(self.manufacturer)
        if (old.root, old.trust_domain, old.operator, own) != (
            new.root,
            new.trust_domain,
            new.operator,
            offered,
        ):
            raise refused(
                Reason.CERTIFICATE_INVALID,
                "the trust bundle offered has another root, operator or manufacturer",
            )
        _device_identity(verifier, self.chain)
        replace_file(self._file, trust_json.encode())
        self.verifier = verifier
        return True

    def check_renewed(self, chain: Sequence[bytes], tls_chain: Sequence[bytes]) -> Identity:
        """Renewed certificates are this device's and newer; the site may be another. Raises CERTIFICATE_INVALID.

        An older chain of the same key would take the device back to a site that it has left.
        """
        identity, tls = _device_identity(self.verifier, chain), self.verifier.remember(tls_chain)
        same_key = identity.key_thumbprint == self.identity.key_thumbprint
        if not same_key or (identity.id, tls.id, tls.kind) != (
            self.identity.id,
            self.identity.id,
            Kind.DEVICE,
        ):
            raise refused(Reason.CERTIFICATE_INVALID, "the renewed certificates are another device's")
        if tls.statements or identity.operational_until < self.identity.operational_until:
            raise refused(
                Reason.CERTIFICATE_INVALID, "the renewed certificates are older than the device's own"
            )
        return identity

    def keep_certificates(self, chain: Sequence[bytes], identity: Identity) -> None:
        """Use what was checked from now on."""
        with self._store.transaction():
            self._store.put(_CHAIN, list(chain))
        self.chain, self.identity = tuple(chain), identity

    def take_revocations(
        self,
        entries: Sequence[Entry],
        head_bytes: bytes,
        steps: Sequence[PathStep],
        *,
        gateway_time: int,
        challenges: Sequence[bytes],
    ) -> Taken:
        """Follow a verified head, persist what is new, learn the time. Raises SNAPSHOT_REQUIRED or others.

        Entries that come without a head are kept aside until one confirms the chain that they lead to.
        """
        if not head_bytes:
            self._aside = [*self._aside, *entries][-MAX_ASIDE:]
            return Taken((), None)
        entries, self._aside = [*self._aside, *entries], []
        head = self._shared.head(head_bytes, self.verifier, at=self.time.floor())
        if head.signer in self.distrusted:
            raise refused(Reason.SIGNER_REVOKED, "the root does not trust the signer of this head")
        body, taken = head.body, self._follow(entries, head)
        try:
            self.save()
        except Refused as error:
            # Enforced all the same; `save` is called again, and until then nothing is acknowledged.
            _LOG.warning("revocations not persisted: %s", error)
        floor = self.time.floor()
        if (
            self.time.agree(head=body.issued, gateway=gateway_time)
            and self.time.floor() > floor + FLOOR_STEP_MS
        ):
            self.keep_floor()
        answered = next((one for one in challenges if answers(head, one, steps)), None)
        return Taken(taken, answered)

    @property
    def saved(self) -> bool:
        """Whether everything that is enforced is on the flash as well."""
        return not self._unsaved and self.persisted == self.revocations.position

    def save(self) -> None:
        """Write what is enforced and was not written yet. Raises STORAGE_UNAVAILABLE."""
        if self.saved:
            return
        # What could not be written before is written with what is new, so that the chain on disk has no hole.
        with self._store.transaction():
            self._persist()
        self._unsaved.clear()
        self.persisted = self.revocations.position

    def _follow(self, entries: Sequence[Entry], head: Statement[Head]) -> tuple[ReadEntry, ...]:
        """Enforce, in memory, what a verified head confirms; a later era's chain whole, in the former one's place."""
        state, body = self.revocations, head.body
        if (body.era, body.epoch, body.chain) == state.position:
            return ()
        later, at = body.era > state.era, max(self.time.floor(), body.issued)
        self._anew = self._anew and later
        try:
            _check_gapless(entries, after=self.wanted_after, epoch=body.epoch)
            if self._anew:
                self.revocations, taken = state.renewed(entries, head, verifier=self.verifier, at=at)
                self._held = [(float("-inf"), 0)]
                self._unsaved.clear()
            else:
                taken = state.advance(entries, head, verifier=self.verifier, at=at)
        except Refused as error:
            gap = error.reason is Reason.SNAPSHOT_REQUIRED and body.epoch > state.epoch
            if later and not self._anew and not gap:
                self._anew = True
                raise refused(Reason.SNAPSHOT_REQUIRED, "the chain of a later era is missing") from error
            raise
        self._anew = False
        self._unsaved += taken
        for one in taken:
            if one.era:
                # An era statement resets the floor of time.
                self.time.reset(one.era[0].body.floor)
        # A verified, chained head moves the epoch at once; permits refer to it 8 s later.
        self._hold(body.epoch)
        return taken

    def keep_floor(self) -> None:
        """Store the floor of time; inside or outside a transaction."""
        with self._store.transaction():
            self._store.put(_FLOOR, self.time.floor())

    def _hold(self, epoch: int) -> None:
        now = self._clock.monotonic()
        long = [one for one in self._held if now - one[0] > HEAD_TOLERANCE_S]
        recent = [one for one in self._held if now - one[0] <= HEAD_TOLERANCE_S]
        self._held = [*long[-1:], *recent, (now, epoch)]

    def _persist(self) -> None:
        if self.persisted[0] != self.revocations.era:
            first = min((one.entry.epoch for one in self._unsaved), default=0)
            self._store.execute("DELETE FROM entries WHERE epoch >= ?", (first,))
        for one in self._unsaved:
            entry = one.entry
            self._store.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)",
                (entry.epoch, cbor.encode(list(entry.statements)), entry.chain),
            )
        self._store.put(_ERA, self.revocations.era)
        self._store.put(_FLOOR, self.time.floor())

    def _checked_profile(self, data: bytes) -> Statement[Profile]:
        statement = read(data, Profile)
        # A profile outlives its signer's 13 months: judged when it was signed.
        signer = self.verifier.verify(
            statement.chain, at=statement.issued_at * 1000, kinds=frozenset({Kind.SIGNER})
        )
        check(statement, signer)
        if signer.organization != self.manufacturer or statement.body.model != self._model:
            raise refused(Reason.PROFILE_MISMATCH, "the profile is another manufacturer's or another model's")
        # Classes: what an effect can do decides the class, on the pump as well; leaving a restriction is its own.
        wrong = [
            action.name
            for action in statement.body.actions
            if action.action_class is not CLASS_OF[action.effect] and action.effect not in RECOVERY
        ]
        if wrong:
            raise refused(
                Reason.PROFILE_MISMATCH,
                f"the profile calls an action less than its effect is: {', '.join(wrong)}",
                lifted_by="a profile whose classes are those of its effects",
                who="the manufacturer",
            )
        return statement

    def _stored_profile(self) -> Statement[Profile] | None:
        data = self._store.get(_PROFILE)
        return None if data is None else self._checked_profile(data)


def store_enrolment(
    store: DeviceStore, trust_file: Path, *, chain: Sequence[bytes], trust_json: str
) -> Identity:
    """Install what an enrolment station brings: the roots and the first certificates. Raises CERTIFICATE_INVALID.

    Where certificates are installed already, their root stays: an enrolled device is not taken over by another one.
    """
    bundle = TrustBundle.from_json(trust_json)
    if trust_file.exists() and TrustBundle.from_json(trust_file.read_text()).root != bundle.root:
        raise refused(Reason.DEVICE_ALREADY_ENROLLED, "the device trusts another root already")
    identity = _device_identity(ChainVerifier(bundle), chain)
    replace_file(trust_file, trust_json.encode())
    with store.transaction():
        store.put(_CHAIN, list(chain))
    return identity


def _check_gapless(entries: Sequence[Entry], *, after: int, epoch: int) -> None:
    steps_on = {entry.epoch for entry in entries if after < entry.epoch <= epoch}
    if len(steps_on) != max(0, epoch - after):
        raise refused(Reason.SNAPSHOT_REQUIRED, f"entries after epoch {after} are missing")


def _device_identity(verifier: ChainVerifier, chain: Sequence[bytes]) -> Identity:
    identity = verifier.remember(chain)
    if identity.kind is not Kind.DEVICE or "receipt" not in identity.statements:
        raise refused(Reason.CERTIFICATE_INVALID, "the certificate is not one of a device's attestation key")
    return identity


def _stored_entries(store: DeviceStore) -> list[Entry]:
    rows = store.execute("SELECT epoch, statements, chain FROM entries ORDER BY epoch")
    return [
        Entry(epoch, tuple(cbor.decode(statements, max_bytes=_MAX_ENTRY)), chain)
        for epoch, statements, chain in rows
    ]
