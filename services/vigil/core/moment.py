"""What a record tells of a device's state at one moment: the log picks by it, and a reader checks it."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from vigil.core import cbor
from vigil.core.salted import unsalted
from vigil.errors import Refused

REVOCATION_LOG: Final = "revocation/log"
"""The subject of every step of the chain of revocations."""
STEPS: Final = frozenset({"revocation", "reinstatement", "era", "root-list"})
"""Kinds that are steps of the chain of revocations; the body beside them says which, and when it was taken."""


class Role(IntEnum):
    """What a record tells of the moment; the numbers are the contract's."""

    EVIDENCE_BEFORE = 1
    RESULT_BEFORE = 2
    EVIDENCE_AFTER = 3
    RESULT_AFTER = 4
    DECISION_BEFORE = 5
    DECISION_AFTER = 6
    EPOCH_BEFORE = 7
    EPOCH_AFTER = 8
    HOLD = 9
    REVOCATION = 10
    RECEIPT = 11
    ENROLMENT = 12
    BUILD = 13
    NEIGHBOUR_BEFORE = 14
    NEIGHBOUR_AFTER = 15
    NEWEST = 16


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the chain of revocations: its epoch, and when it was taken (ms)."""

    epoch: int
    time: int


def read_step(body: bytes) -> Step | None:
    """Read the body beside a step, as the log keeps it; None when it is something else."""
    try:
        match cbor.decode(unsalted(body)):
            case {"chain": bytes(), "epoch": int(epoch), "time": int(time)} if (
                0 < epoch < 2**63 and 0 <= time < 2**63
            ):
                return Step(epoch, time)
    except Refused:
        return None
    return None
