"""A log of any size, written through the log's own arithmetic and tables; only its statements are nobody's."""

import os

from tests.support.pki import TestPki
from vigil.core import cose
from vigil.core.clock import Clock
from vigil.core.statements import bodies
from vigil.core.statements.envelope import Scribe
from vigil.evidence import store
from vigil.evidence.domain import Admitted, Commit, LogState, sequence
from vigil.evidence.store import NewEntry, SignedCommit
from vigil.storage import Database

A_COMMIT = 8192


def grow(database: Database, pki: TestPki, *, count: int, clock: Clock) -> list[bytes]:
    """Append `count` entries in commits of many; answers their leaves."""
    recorded = pki.signer_credential("recorded")
    scribe = Scribe(
        signer=recorded.signer, issuer=recorded.issuer_name, clock=clock, entropy=os.urandom, numbered=True
    )
    leaves: list[bytes] = []
    state = database.read_now(store.load_state)
    size = state.size + count
    while state.size < size:
        numbers = range(state.size, min(state.size + A_COMMIT, size))
        commit = _commit(database, state, numbers, scribe=scribe, chain=recorded.chain, now=clock.now())
        state = commit.after
        leaves.extend(commit.leaves)
    return leaves


def _commit(
    database: Database, state: LogState, numbers: range, *, scribe: Scribe, chain: tuple[bytes, ...], now: int
) -> Commit:
    items = [
        Admitted("receipt", number.to_bytes(32, "big"), scribe.thumbprint, None, (f"device/d-{number}",), ())
        for number in numbers
    ]
    commit = sequence(state, items, heads={}, now=now)
    body = bodies.Recorded(commit.root, commit.first, len(items), commit.after.time)
    statement = cose.without_chain(scribe.sign(body, subject="log/vigil.test/evidence").data)
    entries = [NewEntry(item.digest, item.kind, "org", "site", b"", {}) for item in items]
    signed = SignedCommit(statement, scribe.thumbprint)
    database.write_now(
        lambda connection: store.write_commit(
            connection, commit, entries, signed=signed, chains={scribe.thumbprint: chain}
        )
    )
    return commit
