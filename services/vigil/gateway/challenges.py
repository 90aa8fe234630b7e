"""The gateway's challenges for a head, with its devices' own challenges as leaves below them. Pure.

A challenge that goes to the edge is either a nonce alone, or the RFC 6962 root over that nonce and the challenges
that devices sent meanwhile. A head that answers the root answers each device, with one level of path more.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vigil.core import merkle
from vigil.core.revocations import PathStep

KEPT_BATCHES: Final = 16
"""As many as the lease keeps challenges: older ones are not answered any more."""
LEAST_CHALLENGE, MOST_CHALLENGE = 16, 64
"""Bytes of a device's challenge."""


@dataclass(frozen=True, slots=True)
class DeviceAnswer:
    """What one device needs to find its challenge in a head: the levels from its own upwards."""

    device_id: str
    steps: tuple[PathStep, ...]


@dataclass(frozen=True, slots=True)
class _Batch:
    leaves: tuple[bytes, ...]
    devices: tuple[str, ...]


class ChallengeTree:
    """Gathers devices' challenges between two of the gateway's own."""

    def __init__(self) -> None:
        self._waiting: dict[str, bytes] = {}
        self._batches: OrderedDict[bytes, _Batch] = OrderedDict()

    def add(self, device_id: str, challenge: bytes) -> bool:
        """Take a device's newest challenge; False when its size is not that of a challenge."""
        if not LEAST_CHALLENGE <= len(challenge) <= MOST_CHALLENGE:
            return False
        self._waiting[device_id] = challenge
        return True

    def drop(self, device_id: str) -> None:
        """The device is gone."""
        self._waiting.pop(device_id, None)

    def seal(self, nonce: bytes) -> bytes:
        """Make the next challenge for the edge out of a fresh nonce and everything that waits."""
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return nonce
        leaves = tuple(merkle.leaf_hash(value) for value in (nonce, *waiting.values()))
        root = merkle.tree_root(leaves)
        self._batches[root] = _Batch(leaves, tuple(waiting))
        while len(self._batches) > KEPT_BATCHES:
            self._batches.popitem(last=False)
        return root

    def answered(self, challenge: bytes, steps: Sequence[PathStep]) -> list[DeviceAnswer]:
        """The devices below an answered challenge, each with its way up; once for each challenge."""
        batch = self._batches.pop(challenge, None)
        if batch is None:
            return []
        return [
            DeviceAnswer(
                device_id,
                (
                    PathStep(
                        place + 1, len(batch.leaves), tuple(merkle.inclusion_path(batch.leaves, place + 1))
                    ),
                    *steps,
                ),
            )
            for place, device_id in enumerate(batch.devices)
        ]
