"""Which kinds of records can be erased: the log holds to it, and who asks can tell beforehand."""

from typing import Final

from vigil.core.statements.envelope import StatementKind

ERASABLE: Final = frozenset(
    {
        StatementKind.EVIDENCE,
        StatementKind.RESULT,
        StatementKind.INTENT,
        StatementKind.APPROVAL,
        StatementKind.COMMAND,
        StatementKind.DECISION,
        StatementKind.RECEIPT,
        StatementKind.REFUSALS,
        StatementKind.HOLD,
        StatementKind.BEDSIDE_RELEASE,
    }
)
"""Everything else is kept: what was revoked and reinstated, what is approved and built, who erased and who read."""
MAX_SUBJECTS: Final = 60
"""Subjects of an erasure's own record: whatever the erased records were about."""
