"""What the offline root and two people sign: an era, the root's own list of signers. Steps of the chain like any other.

Each of the three signs a file of the same words with ``python -m vigil.revocation.rooted``; the files go into
`<data>/revocation/root-statements`, and are taken at the next start. Nothing else can make such a step.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate
from sqlalchemy import Connection

from vigil.core.certificates import EVERY, ChainVerifier, Kind, TrustBundle, load_pair
from vigil.core.clock import Clock, SystemClock
from vigil.core.keys import KeySigner, load_private_key
from vigil.core.revocations import check_rooted
from vigil.core.statements.bodies import Era, RootList, Scope
from vigil.core.statements.envelope import Scribe, Statement, StatementKind, read_any
from vigil.errors import Refused
from vigil.revocation.chain import Chain
from vigil.revocation.service import ChainWriter, Draft
from vigil.storage import Database

ROOTED: Final = (StatementKind.ERA, StatementKind.ROOT_LIST)
ROOT_ISSUER: Final = "signer/root"


def draft_of_rooted(statements: tuple[Statement[Any], ...]) -> Draft:
    """A step of the root, as it is written: it concerns everybody."""
    return Draft(
        statements=statements,
        scope=Scope.SIGNER,
        names=(),
        revoker=statements[-1].issuer.removeprefix(f"{Kind.PERSON}/"),
        revoker_organization=EVERY,
        organization=EVERY,
        alone=False,
    )


class RootSteps:
    """Enters what the root and two people signed, where it fits the chain as it stands."""

    def __init__(
        self,
        *,
        database: Database,
        chain: Chain,
        writer: ChainWriter,
        verifier: Callable[[], ChainVerifier],
        clock: Clock,
        on_era: Callable[[Connection, int], None],
    ) -> None:
        """``on_era`` is called in the transaction of an era's step, with its floor (ms)."""
        self._database = database
        self._chain = chain
        self._writer = writer
        self._verifier = verifier
        self._clock = clock
        self._on_era = on_era
        self._log = structlog.get_logger("vigil.revocation.rooted")

    async def enter(self, found: Iterable[bytes]) -> int:
        """Enter every complete step that opens a later era or brings a later list; answers how many there were."""
        entered = 0
        for statements in self._complete(found):
            if not self._fits(statements[0].body):
                continue
            await self._database.write(partial(self._append, statements=statements), vital=True)
            entered += 1
            self._log.warning("root_step", kind=str(statements[0].kind), epoch=self._chain.state.epoch)
        return entered

    def _append(self, connection: Connection, statements: tuple[Statement[Any], ...]) -> None:
        self._writer.append(connection, draft_of_rooted(statements))
        body = statements[0].body
        if isinstance(body, Era):
            # Time: an era resets the floor, of signed time as well.
            self._on_era(connection, body.floor)

    def _complete(self, found: Iterable[bytes]) -> list[tuple[Statement[Any], ...]]:
        groups: dict[tuple[StatementKind, bytes], dict[str, Statement[Any]]] = {}
        for data in found:
            try:
                statement = read_any(data)
            except Refused as refusal:
                self._log.warning("root_statement_not_usable", reason=str(refusal))
                continue
            if statement.kind in ROOTED:
                said = groups.setdefault((statement.kind, statement.sign1.payload), {})
                said[statement.issuer] = statement
        complete = []
        for said in groups.values():
            root = said.pop(ROOT_ISSUER, None)
            statements = (*(() if root is None else (root,)), *(said[name] for name in sorted(said)))
            try:
                check_rooted(statements, self._verifier(), at=self._clock.now())
            except Refused as refusal:
                self._log.warning("root_step_not_complete", reason=str(refusal))
                continue
            complete.append(statements)
        return sorted(complete, key=lambda statements: _place(statements[0].body))

    def _fits(self, body: Era | RootList) -> bool:
        state = self._chain.state
        if isinstance(body, RootList):
            return body.version > state.list_version
        return body.era > state.era and (body.epoch, body.chain) == (state.epoch + 1, state.chain)


def _place(body: Era | RootList) -> tuple[int, int]:
    """An era names its place, so that nothing may come before it; lists follow by version."""
    return (0, body.era) if isinstance(body, Era) else (1, body.version)


def main(argv: Sequence[str] | None = None) -> None:
    """Sign one of the three statements to standard output."""
    parser = argparse.ArgumentParser(
        prog="vigil-revocation-rooted",
        description="Sign an era or the root's list, as the root or one of two.",
    )
    parser.add_argument(
        "--certificate", type=Path, required=True, help="your certificate, or the root's, PEM"
    )
    parser.add_argument("--key", type=Path, required=True, help="its key, PEM")
    parser.add_argument("--passphrase-file", type=Path, help="of the root's key")
    parser.add_argument("--trust", type=Path, required=True, help="trust.json")
    kinds = parser.add_subparsers(dest="kind", required=True)
    era = kinds.add_parser("era", help="open an era: a new floor, and this chain as the one that counts")
    era.add_argument("--era", type=int, required=True, help="later than the one in force")
    era.add_argument("--floor", type=int, required=True, help="the time, ms since 1970")
    era.add_argument("--epoch", type=int, required=True, help="the epoch that this step gets: the next one")
    era.add_argument("--chain", type=bytes.fromhex, required=True, help="the chain hash before it, hex")
    era.add_argument("--reason", required=True, help="why; the same words for all three")
    listed = kinds.add_parser("root-list", help="signers that the root no longer trusts, all of them")
    listed.add_argument("--version", type=int, required=True, help="later than the one in force")
    listed.add_argument(
        "--signer", type=bytes.fromhex, action="append", default=[], help="a certificate's SHA-256, hex"
    )
    given = parser.parse_args(argv)
    body: Era | RootList = (
        Era(given.era, given.floor, given.epoch, given.reason, given.chain)
        if given.kind == "era"
        else RootList(given.version, tuple(sorted(given.signer)))
    )
    sys.stdout.buffer.write(_scribe(given).sign(body, subject=f"revocation/{given.kind}").data)


def _scribe(given: argparse.Namespace) -> Scribe:
    bundle = TrustBundle.from_json(given.trust.read_text(encoding="utf-8"))
    certificate = load_pem_x509_certificate(given.certificate.read_bytes())
    if certificate == bundle.root:
        words = given.passphrase_file
        passphrase = words.read_bytes().split(b"\n", 1)[0].rstrip(b"\r") if words else None
        key = load_private_key(given.key, passphrase)
        signer, issuer = KeySigner(key, [certificate.public_bytes(Encoding.DER)]), ROOT_ISSUER
    else:
        pair = load_pair(given.certificate, given.key)
        person = ChainVerifier(bundle).remember(pair.chain_der)
        signer, issuer = pair.signer, f"{person.kind}/{person.id}"
    return Scribe(signer=signer, issuer=issuer, clock=SystemClock(), entropy=os.urandom, numbered=False)


if __name__ == "__main__":
    main()
