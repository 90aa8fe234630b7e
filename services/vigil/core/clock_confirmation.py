"""Two people's word about a clock that signers wait for (docs/protocol.md, "Time"): no ratchet without a way out.

A confirmation is an era statement of the era in force, whose floor is the time confirmed.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vigil.core.certificates import ChainVerifier, Identity, Kind
from vigil.core.revocations import REVOKER_ROLES
from vigil.core.statements.bodies import Era
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Refused

FRESH_MS: Final = 86_400_000
"""A confirmation counts for a day."""
PEOPLE: Final = 2
MAX_FILES: Final = 64
MAX_BYTES: Final = 65_536


def confirmed_time(
    statements: Iterable[bytes], verifier: ChainVerifier, *, era: int | None, durable: int, now: int
) -> int | None:
    """The newest time between ``durable`` and ``now`` that two people of the operator confirmed; None without.

    ``era``: the one in force, None where none is known.
    """
    log = logging.getLogger(__name__)
    people: dict[Era, set[str]] = {}
    for data in statements:
        try:
            statement = read(data, Era)
            person = _person(statement, verifier, now=now)
        except Refused as refusal:
            log.warning("a confirmation cannot be used: %s", refusal)
            continue
        age = now - statement.issued_at * 1000
        body = statement.body
        if (
            person is not None
            and age <= FRESH_MS
            and era in (None, body.era)
            and durable <= body.floor <= now
        ):
            people.setdefault(body, set()).add(person.id)
    return max((body.floor for body, names in people.items() if len(names) >= PEOPLE), default=None)


def _person(statement: Statement[Era], verifier: ChainVerifier, *, now: int) -> Identity | None:
    person = verifier.verify(statement.chain, at=now, kinds=frozenset({Kind.PERSON}))
    check(statement, person)
    return person if person.operator and person.has_role(*REVOKER_ROLES) else None


def start_time(folder: Path, verifier: ChainVerifier, *, durable: int | None, now: int) -> int | None:
    """What a signer that knows no era measures its clock by at a start: a later time confirmed, or what is durable."""
    if durable is None:
        return None
    confirmed = confirmed_time(read_folder(folder), verifier, era=None, durable=durable, now=now)
    if confirmed is not None:
        logging.getLogger(__name__).warning("the clock was confirmed: %d after %d", confirmed, durable)
    return confirmed or durable


def read_folder(folder: Path) -> list[bytes]:
    """The confirmations that lie in a folder; none when there is no folder."""
    files = sorted(folder.glob("*.cose"))[:MAX_FILES]
    return [path.read_bytes() for path in files if path.stat().st_size <= MAX_BYTES]
