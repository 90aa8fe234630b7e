"""When records may be erased. Pure: what the log holds goes in, a refusal comes out or nothing.

* Two people with the role of an administrator, both of whose scopes cover every record, signed the same body.
* What the control plane itself rests on is never erased: revocations, heads, profiles, and what tells of erasing.
* A held device's evidence stays (EU MDR Art. 89(1)).
* What may still run stays: an intent to its end, a permitted command until its pump has said how it ended.
"""

from collections.abc import Sequence
from typing import Any, Final

from vigil.core.certificates import Identity
from vigil.core.erasures import ERASABLE
from vigil.core.statements.bodies import Outcome
from vigil.core.statements.envelope import Statement, StatementKind
from vigil.core.statements.log_bodies import Erasure
from vigil.errors import Reason, Refused, refused

ERASERS: Final = ("admin",)
MAX_AGE_MS: Final = 24 * 3_600_000
"""How old what one of the two signed may be: a night lies between them, not a year."""
LOST_MS: Final = 90 * 24 * 3_600_000
"""After an intent's end, a pump that never said how it ended is not waited for any longer."""
UNKNOWN_INTENT_MS: Final = 8 * 24 * 3_600_000
"""An intent lives a week at most (core.commands); one that is not on record is over a day after that."""
FINAL: Final = frozenset(
    {Outcome.APPLIED, Outcome.ABANDONED, Outcome.FAILED, Outcome.INTERRUPTED, Outcome.REFUSED}
)


def check_pair(
    statements: Sequence[Statement[Erasure]], people: Sequence[Identity], *, caller: Identity, now: int
) -> None:
    """Two people, one of them calling, the same body, signed lately.

    Raises SECOND_PERSON_REQUIRED, SIGNER_NOT_CALLER, APPROVER_NOT_DISTINCT, ROLE_NOT_PERMITTED, NOT_IN_TARGET,
    INTENT_EXPIRED.
    """
    if len(statements) != 2:
        raise refused(
            Reason.SECOND_PERSON_REQUIRED,
            "Two people erase records, each with a statement.",
            lifted_by="the same, signed by another administrator",
            who="an admin of the organization",
        )
    if caller.id not in {person.id for person in people}:
        raise refused(
            Reason.SIGNER_NOT_CALLER,
            "The caller signed neither of these statements.",
            lifted_by="a call by one of the two",
            who="the signers",
        )
    check_two(statements, people)
    if any(abs(now - one.issued_at * 1000) > MAX_AGE_MS for one in statements):
        raise refused(
            Reason.INTENT_EXPIRED,
            "One of the two statements was not signed within a day.",
            lifted_by="a statement signed now",
            who="its signer",
        )


def check_two(statements: Sequence[Statement[Erasure]], people: Sequence[Identity]) -> None:
    """Two administrators, the same body. Raises APPROVER_NOT_DISTINCT, ROLE_NOT_PERMITTED, NOT_IN_TARGET."""
    if len({person.id for person in people}) != 2:
        raise refused(
            Reason.APPROVER_NOT_DISTINCT,
            "Both statements were signed by one person.",
            lifted_by="a statement by somebody else",
            who="an admin of the organization",
        )
    if not all(person.has_role(*ERASERS) for person in people):
        raise refused(
            Reason.ROLE_NOT_PERMITTED,
            "One of the two who signed is no administrator.",
            lifted_by="a statement by an administrator",
            who="an admin of the organization",
        )
    if statements[0].body != statements[1].body:
        raise refused(
            Reason.NOT_IN_TARGET,
            "The two statements do not say the same.",
            lifted_by="two statements with one body",
            who="the signers",
        )


def check_kind(kind: str, index: int) -> None:
    """Raises STATE_CONFLICT for a kind that is kept for good."""
    if kind not in ERASABLE:
        raise refused(
            Reason.STATE_CONFLICT,
            f"Record {index} is a {kind}, which is never erased.",
            who="nobody",
            index=index,
        )


def held(device: str) -> Refused:
    """The device is held: nothing about it is erased."""
    return refused(
        Reason.EVIDENCE_HOLD,
        f"The evidence of {device} is held.",
        lifted_by="lifting the hold, which takes two people",
        who="the people of the site",
        device=device,
    )


def running(index: int, sentence: str, lifted_by: str) -> Refused:
    """The record belongs to something that may still happen."""
    return refused(
        Reason.STATE_CONFLICT,
        f"Record {index} belongs to what may still run: {sentence}.",
        lifted_by=lifted_by,
        who="the gateway and the pump",
        index=index,
    )


def intent_digest(statement: Statement[Any]) -> bytes | None:
    """The intent that a statement is or belongs to."""
    if statement.kind is StatementKind.INTENT:
        return statement.digest
    found = getattr(statement.body, "intent", None)
    return found if isinstance(found, bytes) else None
