"""What a step expected, what came, and the words for both: the vocabulary of `vigil demo --output json`."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Word(StrEnum):
    """``expected`` and ``outcome`` of a step (docs/demo.md)."""

    APPLIED = "applied"  # the device carried it out and signed so
    REFUSED = "refused"  # somebody said no, with the reason that was expected
    ONCE = "once"  # asked twice, carried out once
    CONTAINED = "contained"  # changes refused, safety and cure allowed, therapy untouched
    REVOKED = "revoked"  # every gateway enforces it, what was open is cut
    DELIVERED = "delivered"  # every gateway enforces it although the bus is silent
    RECOVERED = "recovered"  # refused while cut off, works again afterwards
    PROVED = "proved"  # every proof verified offline
    DIFFERENT = "different"  # something else came; the detail says what


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One step as it went."""

    step: str
    title: str
    expected: Word
    outcome: Word
    reason: str
    detail: str
    elapsed_ms: int

    @property
    def as_expected(self) -> bool:
        return self.outcome is self.expected

    def to_value(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Different(Exception):  # noqa: N818 - it is an outcome
    """Something else came than was expected."""


@dataclass(frozen=True, slots=True)
class Came:
    """What a step found: the reason identifier that belongs to it, and the story in one line."""

    reason: str
    detail: str


def expect(condition: bool, words: str) -> None:
    """Raise ``Different`` unless the condition holds."""
    if not condition:
        raise Different(words)
