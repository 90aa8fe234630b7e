"""The device as an attester (RFC 9334): when it pushes evidence, and what stands in it.

Evidence answers the verifier's challenge and carries the log's head under the same signature; the leaves that the
verifier does not have yet travel beside it, with the permits that they name. A device pushes at a third of the
shorter lifetime (attestation, therapy), after a start, after every change, and when the gateway asks.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from vigil.core import cbor
from vigil.core.clock import Clock, Entropy
from vigil.core.statements.bodies import Evidence, LogHead, Profile
from vigil.core.statements.envelope import Statement
from vigil.core.submission import submission_digest
from vigil.device.journal import Journal
from vigil.device.measurement_log import MeasurementLog
from vigil.device.messages import Appraised, Challenge, ChallengeRequest, Submission

ANSWER_S: Final = 5.0
"""How long a challenge or a result may take before the attempt is given up."""
RETRY_S: Final = 2.0
DEFAULT_INTERVAL_S: Final = 20.0
"""Until a profile is there."""

MAX_LEAVES: Final = 4096
"""Leaves in one submission, as the verifier takes them; a longer log is sent in parts, each under its own head."""

Claims = Callable[[bytes, LogHead], Evidence]
"""Makes the evidence's body around a challenge's nonce and a head, from the device as it is at this moment."""


class Attester:
    """One attestation at a time; a change meanwhile leads to another one."""

    def __init__(
        self,
        *,
        clock: Clock,
        entropy: Entropy,
        sign: Callable[[Any], Statement[Any]],
        claims: Claims,
        settle: Callable[[], None],
        log: MeasurementLog,
        journal: Journal,
    ) -> None:
        self._clock = clock
        self._sign = sign
        self._claims = claims
        self._settle = settle
        self._log = log
        self._journal = journal
        # Call ids of attestations carry a random start, so that a late answer from before a restart meets nothing.
        self._next_call = int.from_bytes(entropy(4)) << 16 | 1
        self._calls: list[int] = []
        self._deadline = 0.0
        self._due = 0.0
        self._again = False
        # Thousands that start together do not attest together for ever.
        self._phase = 0.8 + 0.2 * entropy(1)[0] / 255

    def changed(self) -> None:
        """Something that is attested is different now: push at once."""
        self._due = 0.0
        self._again = bool(self._calls)

    def lost(self) -> None:
        """The link went down: whatever was under way is void."""
        self._calls.clear()
        self._due = 0.0

    def next_due(self) -> float:
        """Monotonic seconds at which `tick` has something to do."""
        return self._deadline if self._calls else self._due

    def tick(self) -> list[ChallengeRequest]:
        """Ask for a challenge when that is due."""
        now = self._clock.monotonic()
        if self._calls and now < self._deadline:
            return []
        self._calls.clear()
        if now < self._due:
            return []
        self._next_call += 1
        return [self.request(self._next_call)]

    def request(self, call_id: int) -> ChallengeRequest:
        """Ask for a challenge in the name of a call: the gateway's own when it asked."""
        now = self._clock.monotonic()
        self._calls.append(call_id)
        self._deadline = now + ANSWER_S
        self._due = self._deadline
        return ChallengeRequest(call_id)

    def challenged(self, challenge: Challenge) -> list[Submission]:
        """Answer a challenge that was asked for; any other is ignored. Raises STORAGE_UNAVAILABLE."""
        if challenge.call_id not in self._calls:
            return []
        # What has changed unnoticed is logged before the head is signed.
        self._settle()
        first = min(challenge.log_size, self._log.size)
        end = min(self._log.size, first + MAX_LEAVES)
        partial = end < self._log.size
        self._again = partial
        head = self._log.head_at(end) if partial else self._log.head()
        leaves = tuple(self._log.leaves(first=first, end=end))
        permits = tuple(
            self._journal.permits([leaf["permit"] for leaf in map(cbor.decode, leaves) if "permit" in leaf])
        )
        digest = submission_digest(first_leaf=first, leaves=leaves, permits=permits)
        evidence = self._sign(replace(self._claims(challenge.nonce, head), submission=digest))
        if partial:
            self._log.raise_counter()
        self._deadline = self._clock.monotonic() + ANSWER_S
        return [
            Submission(
                call_id=challenge.call_id,
                evidence=evidence.data,
                first_leaf=first,
                leaves=leaves,
                permits=permits,
            )
        ]

    def appraised(self, outcome: Appraised, profile: Profile | None) -> None:
        """One attestation ended; the next is due by the profile, or soon if it failed or something changed since."""
        if outcome.call_id not in self._calls:
            return
        self._calls.remove(outcome.call_id)
        now = self._clock.monotonic()
        if outcome.error is not None:
            self._due = now + RETRY_S
        elif self._again:
            self._due = 0.0
        else:
            self._due = now + _interval(profile) * self._phase
        self._again = False


def _interval(profile: Profile | None) -> float:
    if profile is None:
        return DEFAULT_INTERVAL_S
    return min(profile.attestation_lifetime_s, profile.therapy_lifetime_s) / 3
