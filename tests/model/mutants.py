"""Variants that are broken on purpose: a checker that does not find them proves nothing.

Each replaces one thing in the schedule's own process; `tests/model/test_model.py` has each of them found. The product
holds no switch for any of this.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from tests.model import disk as disks
from vigil.core.classes import RULES
from vigil.core.digest import sha256
from vigil.core.revocations import RevocationState
from vigil.core.statements.bodies import ActionClass
from vigil.core.statements.envelope import StatementKind
from vigil.device import checks, domain
from vigil.device.journal import Journal
from vigil.evidence.intake import Ready
from vigil.evidence.sequencer import Sequencer
from vigil.gateway import domain as gateway_domain
from vigil.gateway.receipts import Receipts
from vigil.gateway.revocations import RevocationFollower, RevocationView
from vigil.storage.writer import _deliver, _flush, _run


def acknowledges_before_commit() -> None:
    """Every writer tells its callers first, and writes some time afterwards."""

    def turn(self: Any) -> None:
        self._turning = False
        if self._queue.empty():
            return
        batch, _ = self._take()
        with self._engine.connect() as connection:
            transaction = connection.begin()
            for job in batch:
                _run(connection, transaction, job)
            _flush(connection, batch)
            transaction.rollback()
        _deliver(batch)
        self._disk.loop.on_later(self._node, 0.3, self._commit, batch)

    disks.SimWriter._turn = turn  # type: ignore[method-assign]


def promises_without_record() -> None:
    """The log signs that decisions are on record, and writes something else in their place."""
    original = Sequencer._commit

    def commit(self: Any, connection: Any, batch: Any) -> Any:
        savepoint = connection.begin_nested()
        promised = original(self, connection, batch)
        savepoint.rollback()
        written = original(self, connection, [_another(ready) for ready in batch])
        written.places = promised.places
        return written

    Sequencer._commit = commit  # type: ignore[method-assign]


def _another(ready: Ready) -> Ready:
    if ready.admitted.kind != StatementKind.DECISION:
        return ready
    digest = sha256(ready.admitted.digest)
    admitted, entry = replace(ready.admitted, digest=digest), replace(ready.entry, digest=digest)
    return replace(ready, admitted=admitted, entry=entry)


def forgets_its_journal() -> None:
    """A pump does not look whether it has done a request before."""
    admit, begin = domain.admit, Journal.begin

    def admitted(*args: Any, known_intent: bytes | None, **named: Any) -> Any:
        assert known_intent is None or known_intent
        return admit(*args, known_intent=None, **named)

    def begun(self: Journal, admission: Any, *state: Any) -> Any:
        self._store.execute("DELETE FROM journal WHERE request_id = ?", (admission.intent.request_id,))
        self._store.execute("DELETE FROM receipts WHERE request_id = ?", (admission.intent.request_id,))
        return begin(self, admission, *state)

    domain.admit = admitted
    Journal.begin = begun  # type: ignore[method-assign]


def ignores_revocations() -> None:
    """Nobody at gateway, policy and pump asks who is revoked."""
    RevocationState.identity_refusal = lambda *_args, **_named: None  # type: ignore[method-assign]
    RevocationState.effect = lambda *_args, **_named: None  # type: ignore[method-assign]
    checks.check_not_revoked = lambda *_args, **_named: None


def refuses_safety_without_lease() -> None:
    """A gateway without a lease refuses S1 as it refuses the rest."""
    rules = {**RULES, ActionClass.S1: replace(RULES[ActionClass.S1], without_lease_s=0.0)}
    gateway_domain.RULES = rules


def drops_late_receipts() -> None:
    """A gateway confirms receipts that nobody waits for, and keeps none."""

    async def keep(_self: Any, _late: Any) -> None:
        return

    Receipts.keep = keep  # type: ignore[method-assign]


def tells_no_device() -> None:
    """A gateway enforces revocations and tells its devices nothing."""

    async def enforced(_news: Any) -> None:
        return

    RevocationFollower._on_enforced = property(lambda _self: enforced, lambda *_: None)  # type: ignore[assignment]


def acknowledges_from_memory() -> None:
    """A gateway acknowledges an epoch that it has only in memory."""

    async def persist(_self: Any) -> None:
        return

    RevocationView.persist = persist  # type: ignore[method-assign]


MUTANTS: Final[Mapping[str, tuple[Callable[[], None], str]]] = {
    "acknowledges-before-commit": (acknowledges_before_commit, "durable"),
    "promises-without-record": (promises_without_record, "recorded"),
    "forgets-its-journal": (forgets_its_journal, "once"),
    "ignores-revocations": (ignores_revocations, "bound"),
    "refuses-safety-without-lease": (refuses_safety_without_lease, "safety"),
    "drops-late-receipts": (drops_late_receipts, "converges"),
    "tells-no-device": (tells_no_device, "converges"),
    "acknowledges-from-memory": (acknowledges_from_memory, "durable"),
}
"""By name: what it breaks, and the property that must be found broken."""
