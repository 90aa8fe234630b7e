"""What is said about the log itself: that records were erased from it, and who read what in it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from vigil.core.statements.schema import Count, Digest, Identifier, Instant, Size

MAX_ERASED = 64
"""Records in one erasure: what two people can look through before they sign."""
MAX_READS = 60
"""Reads in one statement; each subject read is a subject of its record, which has at most 64."""


class ErasureWhat(StrEnum):
    BODIES = "bodies"  # what was kept beside the statements
    STATEMENTS = "statements"  # the statements too; their leaves, digests and signers stay


class ErasureReason(StrEnum):
    REQUEST = "request"  # of the person whom the data are about (GDPR Art. 17)
    RETENTION = "retention"  # the time for which it had to be kept is over
    MISTAKE = "mistake"  # it should never have been written
    ORDER = "order"  # a court's or an authority's


@dataclass(frozen=True, slots=True)
class Erasure:
    """Two people, each signing the same body, have records erased; the log erases them as it records the second."""

    records: Annotated[tuple[Digest, ...], Size(1, MAX_ERASED)]  # digests of their statements
    what: ErasureWhat
    reason: ErasureReason
    reference: Identifier | None = None  # a case number; never a name


@dataclass(frozen=True, slots=True)
class Read:
    """One answer: how it was asked for, and the log indexes of what was shown."""

    method: Identifier
    subject: Annotated[str, Size(0, 256)]  # that was asked about; empty where one record was asked for
    at: Instant
    count: Count  # records shown
    first: Count | None = None  # lowest and highest index among them
    last: Count | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """The log says who was shown what; recorded before the answer leaves."""

    reader: Identifier
    organization: Identifier
    credential: Digest  # thumbprint
    reads: Annotated[tuple[Read, ...], Size(1, MAX_READS)]
