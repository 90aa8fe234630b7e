"""What an append to the log is made of, each part alone and warm in this process, with nobody at the other end."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from tests.benchmarks.parts import Part, least
from tests.support.pki import ORGANIZATION, SITE, Credential
from vigil.core.clock import SystemClock
from vigil.core.statements.envelope import Scribe, check, read_envelope
from vigil.evidence import index_store, store
from vigil.evidence.domain import Admitted, LogState, SubjectHead
from vigil.evidence.intake import Submission, admitted_of
from vigil.evidence.sequencer import write_commit
from vigil.evidence.store import NewEntry
from vigil.evidence.tables import METADATA
from vigil.storage import open_database

SHARING: Final = 32
"""Statements in one commit, about as many as 64 writers bring about."""
COMMITS: Final = 24
IN: Final = {"evidence": 1}


def measure(signer: Credential, recorder: Credential, statements: Sequence[bytes]) -> tuple[Part, ...]:
    """Measure with statements of the signer, SHARING x COMMITS of them at least; the recorder signs for the log."""
    data = statements[0]
    envelope = read_envelope(data)
    with tempfile.TemporaryDirectory(prefix="vigil-parts-") as name:
        committed, indexed = _behind(Path(name), recorder, statements)
    return (
        Part(name="a statement's form read", each=least(lambda: read_envelope(data), 200), times=IN),
        Part(
            name="its signature verified", each=least(lambda: check(envelope, signer.identity), 100), times=IN
        ),
        Part(
            name=f"its share of a commit of {SHARING} (numbered, hashed, promised, durable)",
            each=committed,
            times=IN,
        ),
        Part(name="its rows of the index, behind the log", each=indexed, times=IN),
    )


def _behind(folder: Path, recorder: Credential, statements: Sequence[bytes]) -> tuple[float, float]:
    """Microseconds of CPU of one statement in a commit, and in the index."""
    database = open_database(folder / "log.db", metadata=METADATA, migrations="vigil.evidence.migrations")
    scribe = Scribe(
        signer=recorder.signer,
        issuer=recorder.issuer_name,
        clock=SystemClock(),
        entropy=os.urandom,
        numbered=True,
    )
    heads: dict[str, SubjectHead] = {}
    state = database.read_now(store.load_state)
    commits = []
    try:
        for place in range(COMMITS):
            batch = [_admitted(one) for one in statements[place * SHARING : (place + 1) * SHARING]]
            began = time.process_time()
            state = database.write_now(_commit(scribe, state, batch, heads))
            commits.append((time.process_time() - began) / SHARING * 1e6)
        began = time.process_time()
        rows = database.read_now(lambda connection: index_store.read_batch(connection, 0, state.size))
        database.write_now(lambda connection: index_store.write_batch(connection, rows))
        indexed = (time.process_time() - began) / state.size * 1e6
    finally:
        database.close()
    return min(commits), indexed


def _admitted(data: bytes) -> tuple[Admitted, NewEntry]:
    submission = Submission(statement=data, subjects=(f"site/{SITE}",), organization=ORGANIZATION, site=SITE)
    return admitted_of(submission, read_envelope(data), os.urandom)


def _commit(
    scribe: Scribe, state: LogState, batch: Sequence[tuple[Admitted, NewEntry]], heads: dict[str, SubjectHead]
) -> Callable[[Connection], LogState]:
    """As the sequencer does it."""

    def write(connection: Connection) -> LogState:
        store.find_digests(connection, [admitted.digest for admitted, _ in batch])
        commit, _ = write_commit(
            connection,
            state,
            batch,
            chains={},
            heads=heads,
            now=SystemClock().now(),
            scribe=scribe,
            subject="log/vigil.test",
        )
        heads.update(commit.heads)
        return commit.after

    return write
