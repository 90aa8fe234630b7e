"""What is revoked, with what a decision needs beyond `core.revocations`: why and since when. Pure.

Compromise voids what was signed before; leaving ends new signatures only (docs/protocol.md, Policy 3). When something
was signed is taken from its record in the log, never from its own date.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from vigil.core.certificates import ChainVerifier, Identity
from vigil.core.revocations import Entry, ReadEntry, RevocationState
from vigil.core.statements.bodies import Head, RevocationEffect, RevocationReason, Scope
from vigil.core.statements.envelope import Statement
from vigil.errors import Reason

VOIDING: Final = frozenset({RevocationReason.COMPROMISE, RevocationReason.LOST})
"""Reasons after which nobody knows who signed, so that earlier signatures fall too. A lost key is in some hand."""


@dataclass(frozen=True, slots=True)
class _Mark:
    voiding: bool
    since: int  # ms
    expires: int | None  # ms


@dataclass(slots=True)
class Revocations:
    """The chain's state, and for credentials the reason and the beginning of each revocation in force."""

    state: RevocationState = field(default_factory=RevocationState)
    _marks: dict[str, dict[bytes, _Mark]] = field(default_factory=dict)

    def take(
        self, entries: Sequence[Entry], head: Statement[Head], *, verifier: ChainVerifier, at: int
    ) -> None:
        """Enforce what a head confirms. Raises what `RevocationState.advance` raises; then nothing has changed."""
        for entry in self.state.advance(entries, head, verifier=verifier, at=at):
            self._note(entry, at)

    def renewed(
        self, entries: Sequence[Entry], head: Statement[Head], *, verifier: ChainVerifier, at: int
    ) -> "Revocations":
        """What the chain of a later era makes, taken whole. Raises what `RevocationState.renewed` raises."""
        state, taken = self.state.renewed(entries, head, verifier=verifier, at=at)
        anew = Revocations(state)
        for entry in taken:
            anew._note(entry, at)
        return anew

    def effect(self, scope: Scope, name: str, *, at: int) -> RevocationEffect | None:
        """The strongest effect in force on one id."""
        return self.state.effect(scope, name, at=at)

    def signer_refusal(self, signer: Identity, *, at: int) -> Reason | None:
        """Why statements of this signer's certificate do not count any more."""
        return self.state.identity_refusal(signer, at=at)

    def voids(self, person: Identity, *, recorded_at: int | None, at: int) -> bool:
        """Whether a person's statement falls; ``recorded_at`` (ms) is when the log took it, None if it has not."""
        if self.state.credential_effect(person, at=at) is None:
            return False
        marks = [
            mark
            for name in (person.thumbprint.hex(), f"principal/{person.id}")
            for mark in self._marks.get(name, {}).values()
            if mark.expires is None or at < mark.expires
        ]
        if not marks or recorded_at is None:
            return True
        return any(mark.voiding or recorded_at >= mark.since for mark in marks)

    def _note(self, entry: ReadEntry, at: int) -> None:
        if entry.revocation is not None:
            statement = entry.revocation
            if statement.body.scope is not Scope.CREDENTIAL:
                return
            mark = _Mark(
                voiding=statement.body.reason in VOIDING,
                # The revoker's clock may run ahead; what was heard of cannot lie in the future.
                since=min(statement.issued_at * 1000, at),
                expires=statement.body.expires,
            )
            for name in statement.body.ids:
                self._marks.setdefault(name, {})[statement.digest] = mark
            return
        if not entry.reinstatements:
            return
        freed = entry.reinstatements[0].body
        if freed.scope is Scope.CREDENTIAL:
            for name in freed.ids:
                self._marks.get(name, {}).pop(freed.revocation, None)
