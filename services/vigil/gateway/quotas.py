"""What one credential may ask for; safety actions have their own share, so that nothing else uses it up."""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from vigil.core.classes import NONCE_LIFETIME_S, SAFETY_DEVICES, SAFETY_PERIOD_S
from vigil.core.clock import Clock
from vigil.errors import Reason, Refusal, Refused, refused

MAX_CREDENTIALS: Final = 16_384
"""Credentials remembered; the ones unused for longest go first, and their allowance is full again by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Per credential: a minute's worth of each kind of request, and what may be open at once."""

    commands: int = 600
    """Ten a second: a script that walks a ward, far above a person."""
    safety: int = 60
    """Class S1, apart from the others: one a second for a minute."""
    degraded: int = 30
    """Class R without a lease: enough to look after one device, too few to walk through a hospital."""
    previews: int = 120
    reads: int = 1_200
    intents: int = 60
    nonces: int = 64
    """Prepared and not yet used or lapsed."""
    concurrent: int = 64
    """Commands under way."""
    streams: int = 16
    """Devices followed at once."""


@dataclass(slots=True)
class Allowance:
    """A bucket of ``limit`` tokens that fills up again in a minute."""

    limit: int
    tokens: float
    at: float

    def take(self, now: float) -> bool:
        """Take one token, if there is one."""
        self.tokens = min(float(self.limit), self.tokens + (now - self.at) * self.limit / 60.0)
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


@dataclass(slots=True)
class _Usage:
    allowances: dict[str, Allowance] = field(default_factory=dict)
    nonces: dict[str, float] = field(default_factory=dict)
    dead: dict[str, float] = field(default_factory=dict)
    """When the newest nonce of a device is dead for certain."""
    open: dict[str, int] = field(default_factory=dict)


class Quotas:
    """Counts by credential (certificate thumbprint). For one event loop."""

    def __init__(self, *, clock: Clock, limits: Limits | None = None) -> None:
        self._clock = clock
        self._limits = limits or Limits()
        self._usage: OrderedDict[bytes, _Usage] = OrderedDict()
        self._touched: dict[str, deque[tuple[float, str]]] = {}
        self._refused: Counter[bytes] = Counter()

    def take(self, credential: bytes, kind: str, *, step: str = "") -> None:
        """Count one request of a kind named in `Limits`, each step of it apart. Raises QUOTA_EXCEEDED."""
        usage = self._of(credential)
        now = self._clock.monotonic()
        name = f"{kind}/{step}"
        allowance = usage.allowances.get(name)
        if allowance is None:
            limit = int(getattr(self._limits, kind))
            allowance = usage.allowances[name] = Allowance(limit, float(limit), now)
        if not allowance.take(now):
            raise self._exceeded(
                credential, f"more than {allowance.limit} {kind} a minute", "waiting a minute", kind
            )

    @contextmanager
    def under_way(self, credential: bytes, kind: str = "concurrent") -> Iterator[None]:
        """Hold one place while something runs. Raises QUOTA_EXCEEDED."""
        usage = self._of(credential)
        limit = int(getattr(self._limits, kind))
        if usage.open.get(kind, 0) >= limit:
            raise self._exceeded(credential, f"more than {limit} at once", "letting one of them end", kind)
        usage.open[kind] = usage.open.get(kind, 0) + 1
        try:
            yield
        finally:
            usage.open[kind] -= 1

    def nonce_wanted(self, credential: bytes, device_id: str) -> None:
        """Count a nonce about to be asked for; a device holds one for each credential. Raises QUOTA_EXCEEDED."""
        usage = self._of(credential)
        now = self._clock.monotonic()
        usage.nonces = {device: end for device, end in usage.nonces.items() if end > now}
        if device_id not in usage.nonces and len(usage.nonces) >= self._limits.nonces:
            raise self._exceeded(
                credential, f"more than {self._limits.nonces} nonces outstanding", "using them", "nonces"
            )
        usage.nonces[device_id] = now + NONCE_LIFETIME_S
        usage.dead.pop(device_id, None)

    def nonce_given(self, credential: bytes, device_id: str) -> None:
        """The device's nonce has come: from this moment it lives at most as long as a nonce does."""
        dead = self._of(credential).dead
        dead.pop(device_id, None)
        while len(dead) >= self._limits.nonces:
            dead.pop(next(iter(dead)))
        dead[device_id] = self._clock.monotonic() + NONCE_LIFETIME_S

    def nonce_used(self, credential: bytes, device_id: str) -> bool:
        """The nonce is spent; False for one that is known to be dead already. Of others the device knows."""
        usage = self._of(credential)
        usage.nonces.pop(device_id, None)
        dead_at = usage.dead.pop(device_id, None)
        return dead_at is None or self._clock.monotonic() <= dead_at

    def drop_nonces(self, credential: bytes) -> None:
        """Forget the outstanding nonces of a credential that was revoked."""
        usage = self._usage.get(credential)
        if usage is not None:
            usage.nonces.clear()
            usage.dead.clear()

    def safety_admits(self, principal: str, device_id: str) -> bool:
        """Whether this device is among the three that one person may touch alone in ten minutes.

        By person, not by credential: a renewed credential does not begin again.
        """
        touched = self._touched.get(principal)
        if touched is None:
            return True
        oldest = self._clock.monotonic() - SAFETY_PERIOD_S
        while touched and touched[0][0] < oldest:
            touched.popleft()
        if not touched:
            del self._touched[principal]
        devices = {device for _, device in touched}
        return device_id in devices or len(devices) < SAFETY_DEVICES

    def safety_touched(self, principal: str, device_id: str, *, ago: float = 0.0) -> None:
        """Note an S1 command that went out alone ``ago`` seconds before now (after a restart, from the record)."""
        self._touched.setdefault(principal, deque()).append((self._clock.monotonic() - ago, device_id))

    def refused(self) -> list[tuple[bytes, int]]:
        """Credentials that were turned away past a quota since this was asked last, and how often."""
        counted = list(self._refused.items())
        self._refused.clear()
        return counted

    def _exceeded(self, credential: bytes, what: str, lifted_by: str, kind: str) -> Refused:
        self._refused[credential] += 1
        return exceeded(what, lifted_by, kind)

    def _of(self, credential: bytes) -> _Usage:
        usage = self._usage.get(credential)
        if usage is None:
            usage = self._usage[credential] = _Usage()
            while len(self._usage) > MAX_CREDENTIALS:
                idle = next((key for key, one in self._usage.items() if not any(one.open.values())), None)
                if idle is None or idle == credential:
                    break
                del self._usage[idle]
        else:
            self._usage.move_to_end(credential)
        return usage


def exceeded(what: str, lifted_by: str, kind: str) -> Refused:
    """The refusal past a quota."""
    return refused(
        Reason.QUOTA_EXCEEDED,
        f"Your credential asked for {what}.",
        lifted_by=lifted_by,
        who="you",
        quota=kind,
    )


def second_person() -> Refusal:
    """More devices than one person touches alone."""
    return Refusal(
        Reason.SECOND_PERSON_REQUIRED,
        f"One person touches {SAFETY_DEVICES} devices in {int(SAFETY_PERIOD_S // 60)} minutes alone.",
        "an intent that another person approves (`vigil command approve`), or waiting",
        "an approver or safety officer of the site",
    )
