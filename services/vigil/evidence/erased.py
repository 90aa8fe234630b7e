"""What was erased: the rows that say so, and the deleting. Every function takes the connection of its transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from vigil.core.statements.log_bodies import ErasureReason, ErasureWhat
from vigil.evidence.tables import BODY, ERASED, STATEMENT
from vigil.storage import overwrite_deleted


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What was erased of a record, why, when (ms), by which two people, and where what they signed is recorded."""

    what: ErasureWhat
    reason: ErasureReason
    reference: str
    time: int
    people: tuple[str, str]
    records: tuple[int, int]

    def covers(self, what: ErasureWhat) -> bool:
        """Whether nothing more would be erased by erasing this."""
        return what is self.what or self.what is ErasureWhat.STATEMENTS


def load_erased(connection: Connection, index: int) -> Erased | None:
    """Read what was erased of one record."""
    row = connection.execute(select(ERASED).where(ERASED.c.idx == index)).one_or_none()
    if row is None:
        return None
    return Erased(
        what=ErasureWhat(row.what),
        reason=ErasureReason(row.reason),
        reference=row.reference,
        time=row.time,
        people=(row.first_person, row.second_person),
        records=(row.first_idx, row.second_idx),
    )


def erase(connection: Connection, records: Iterable[tuple[int, Sequence[bytes]]], erased: Erased) -> None:
    """Delete what is kept beside these leaves (index, body digests), and note why."""
    overwrite_deleted(connection)
    for index, bodies in records:
        if bodies:
            connection.execute(delete(BODY).where(BODY.c.digest.in_(bodies)))
        if erased.what is ErasureWhat.STATEMENTS:
            connection.execute(delete(STATEMENT).where(STATEMENT.c.idx == index))
        connection.execute(delete(ERASED).where(ERASED.c.idx == index))
        connection.execute(
            insert(ERASED),
            {
                "idx": index,
                "what": erased.what,
                "reason": erased.reason,
                "reference": erased.reference,
                "time": erased.time,
                "first_person": erased.people[0],
                "second_person": erased.people[1],
                "first_idx": erased.records[0],
                "second_idx": erased.records[1],
            },
        )
