"""Two people confirm a clock that heads are withheld for: ``python -m vigil.revocation.confirm``.

No ratchet without a way out. A confirmation is an era statement of the era in force, whose floor is the time confirmed.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import structlog

from vigil.core.certificates import ChainVerifier, Identity, Kind, TrustBundle, load_pair
from vigil.core.clock import SystemClock
from vigil.core.revocations import REVOKER_ROLES
from vigil.core.statements.bodies import Era
from vigil.core.statements.envelope import Scribe, Statement, check, read
from vigil.errors import Refused

FRESH_MS: Final = 86_400_000
"""A confirmation counts for a day."""
PEOPLE: Final = 2
MAX_FILES: Final = 64
MAX_BYTES: Final = 65_536


def confirmed_time(
    statements: Iterable[bytes], verifier: ChainVerifier, *, era: int, durable: int, now: int
) -> int | None:
    """The newest time between ``durable`` and ``now`` that two people of the operator confirmed; None without."""
    log = structlog.get_logger("vigil.revocation.confirm")
    people: dict[Era, set[str]] = {}
    for data in statements:
        try:
            statement = read(data, Era)
            person = _person(statement, verifier, now=now)
        except Refused as refusal:
            log.warning("confirmation_not_usable", reason=str(refusal))
            continue
        age = now - statement.issued_at * 1000
        body = statement.body
        if person is not None and age <= FRESH_MS and body.era == era and durable <= body.floor <= now:
            people.setdefault(body, set()).add(person.id)
    return max((body.floor for body, names in people.items() if len(names) >= PEOPLE), default=None)


def _person(statement: Statement[Era], verifier: ChainVerifier, *, now: int) -> Identity | None:
    person = verifier.verify(statement.chain, at=now, kinds=frozenset({Kind.PERSON}))
    check(statement, person)
    return person if person.operator and person.has_role(*REVOKER_ROLES) else None


def read_folder(folder: Path) -> list[bytes]:
    """The confirmations that lie in a folder; none when there is no folder."""
    files = sorted(folder.glob("*.cose"))[:MAX_FILES]
    return [path.read_bytes() for path in files if path.stat().st_size <= MAX_BYTES]


def main(argv: Sequence[str] | None = None) -> None:
    """Sign one confirmation to standard output."""
    parser = argparse.ArgumentParser(
        prog="vigil-revocation-confirm", description="Confirm a clock, as one of two people."
    )
    parser.add_argument("--certificate", type=Path, required=True, help="your certificate, PEM")
    parser.add_argument("--key", type=Path, required=True, help="its key, PEM")
    parser.add_argument("--trust", type=Path, required=True, help="trust.json")
    parser.add_argument(
        "--time", type=int, required=True, help="the time, ms since 1970; the same for both of you"
    )
    parser.add_argument("--era", type=int, default=0, help="the era in force")
    parser.add_argument("--reason", required=True, help="why; the same words for both of you")
    arguments = parser.parse_args(argv)
    pair = load_pair(arguments.certificate, arguments.key)
    bundle = TrustBundle.from_json(arguments.trust.read_text(encoding="utf-8"))
    person = ChainVerifier(bundle).remember(pair.chain_der)
    scribe = Scribe(
        signer=pair.signer,
        issuer=f"{person.kind}/{person.id}",
        clock=SystemClock(),
        entropy=os.urandom,
        numbered=False,
    )
    body = Era(era=arguments.era, floor=arguments.time, epoch=0, reason=arguments.reason)
    sys.stdout.buffer.write(scribe.sign(body, subject="revocation/clock").data)


if __name__ == "__main__":
    main()
