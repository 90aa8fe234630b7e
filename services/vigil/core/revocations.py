"""The chain of revocations as every reader keeps it: service, edge, policy, gateway and device.

A reader holds (era, epoch, chain hash) and an index of effects. Entries arrive from anybody and are kept aside until a
*head*, signed by the revocation service's signer, confirms the chain hash that they lead to; only then do they count.
So a bus or an edge can delay, never forge (ARCHITECTURE section 5). Restricting entries need nothing more than the
chain; a reinstatement is verified person by person before it frees anything, and frees nothing when one of the two was
revoked by then. An era and the root's own list are steps of the chain as well: signed by the offline root and by two
people. So whoever holds nothing but a head signer's key restricts, and neither un-revokes nor opens an era.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vigil.core import merkle
from vigil.core.certificates import ChainVerifier, Identity, Kind
from vigil.core.classes import strongest
from vigil.core.digest import sha256
from vigil.core.statements.bodies import (
    Era,
    Head,
    Reinstatement,
    Revocation,
    RevocationEffect,
    RootList,
    Scope,
)
from vigil.core.statements.envelope import Statement, StatementKind, check, kind_of, read
from vigil.errors import Reason, Refused, refused

EMPTY_CHAIN = bytes(32)
"""The chain hash at epoch 0."""

_CHAIN_PREFIX = b"\x03"
"""Apart from RFC 6962's 0x00 and 0x01."""

REVOKER_ROLES = ("recall", "admin")

ROOT_WITNESSES = 2
"""People of the operator who sign beside the offline root (COMMANDS, Statements: era, root list)."""


def chain_hash(previous: bytes, epoch: int, digests: Sequence[bytes]) -> bytes:
    """SHA-256(0x03 || previous || epoch, 8 bytes big endian || SHA-256 of the statements' digests in order)."""
    return sha256(_CHAIN_PREFIX + previous + epoch.to_bytes(8, "big") + sha256(b"".join(digests)))


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of the chain: a revocation, the two reinstatements of two persons, or what the root signed."""

    epoch: int
    statements: tuple[bytes, ...]
    chain: bytes


@dataclass(frozen=True, slots=True)
class ReadEntry:
    """An entry whose form and place in the chain are right."""

    entry: Entry
    revocation: Statement[Revocation] | None
    reinstatements: tuple[Statement[Reinstatement], ...]
    era: tuple[Statement[Era], ...] = ()
    root_list: tuple[Statement[RootList], ...] = ()


def read_entry(entry: Entry, *, epoch: int, chain: bytes) -> ReadEntry:
    """Read the entry that follows ``(epoch, chain)``. Raises STATEMENT_MALFORMED if it does not."""
    if entry.epoch != epoch + 1:
        raise refused(Reason.STATEMENT_MALFORMED, f"epoch {entry.epoch} does not follow {epoch}")
    if not entry.statements:
        raise refused(Reason.STATEMENT_MALFORMED, "a revocation entry holds no statement")
    revocation: Statement[Revocation] | None = None
    reinstatements: tuple[Statement[Reinstatement], ...] = ()
    era: tuple[Statement[Era], ...] = ()
    root_list: tuple[Statement[RootList], ...] = ()
    statements: tuple[Statement[Any], ...]
    match kind_of(entry.statements[0]):
        case StatementKind.REVOCATION:
            if len(entry.statements) != 1:
                raise refused(Reason.STATEMENT_MALFORMED, "a revocation stands alone in its entry")
            revocation = read(entry.statements[0], Revocation)
            statements = (revocation,)
        case StatementKind.ERA:
            statements = era = tuple(read(data, Era) for data in entry.statements)
        case StatementKind.ROOT_LIST:
            statements = root_list = tuple(read(data, RootList) for data in entry.statements)
        case _:
            statements = reinstatements = tuple(read(data, Reinstatement) for data in entry.statements)
    if chain_hash(chain, entry.epoch, [statement.digest for statement in statements]) != entry.chain:
        raise refused(Reason.STATEMENT_MALFORMED, f"the chain breaks at epoch {entry.epoch}")
    return ReadEntry(entry, revocation, reinstatements, era, root_list)


def check_reinstatement(read_one: ReadEntry, verifier: ChainVerifier, *, at: int) -> None:
    """Two distinct persons with a revoker's role signed the same reinstatement. Raises SIGNATURE_INVALID or others."""
    statements = read_one.reinstatements
    if len(statements) < 2 or any(statement.body != statements[0].body for statement in statements):
        raise refused(
            Reason.SECOND_PERSON_REQUIRED, "a reinstatement needs the same words signed by two persons"
        )
    people: set[str] = set()
    for statement in statements:
        # A reader that catches up months later meets credentials long ended: judged when the statement was signed.
        signed_at = min(at, statement.issued_at * 1000)
        person = verifier.verify(statement.chain, at=signed_at, kinds=frozenset({Kind.PERSON}), grace=True)
        check(statement, person)
        if not person.has_role(*REVOKER_ROLES):
            raise refused(Reason.ROLE_NOT_PERMITTED, "a reinstatement is signed by people of the recall team")
        people.add(person.id)
    if len(people) < 2:
        raise refused(Reason.APPROVER_NOT_DISTINCT, "both reinstatements were signed by one person")


def check_rooted(statements: Sequence[Statement[Any]], verifier: ChainVerifier, *, at: int) -> None:
    """The offline root and two people of the operator signed the same words. Raises SIGNATURE_INVALID or others."""
    first, *others = statements
    check(first, verifier.root_identity)
    if len(others) < ROOT_WITNESSES or any(statement.body != first.body for statement in others):
        raise refused(
            Reason.SECOND_PERSON_REQUIRED, "what the root signs needs the same words signed by two persons"
        )
    people: set[str] = set()
    for statement in others:
        signed_at = min(at, statement.issued_at * 1000)
        person = verifier.verify(statement.chain, at=signed_at, kinds=frozenset({Kind.PERSON}), grace=True)
        check(statement, person)
        if not (person.operator and person.has_role(*REVOKER_ROLES)):
            raise refused(
                Reason.ROLE_NOT_PERMITTED, "what the root signs is signed by people of the operator besides"
            )
        people.add(person.id)
    if len(people) < ROOT_WITNESSES:
        raise refused(Reason.APPROVER_NOT_DISTINCT, "both signatures beside the root's are by one person")


@dataclass(slots=True)
class RevocationState:
    """What one reader knows, and enforces. ``entries`` are kept so that they can be handed on and persisted."""

    era: int = 0
    epoch: int = 0
    chain: bytes = EMPTY_CHAIN
    distrusted: frozenset[bytes] = frozenset()
    """Signers (certificate thumbprints) on the root's own list."""
    list_version: int = 0
    _effects: dict[tuple[Scope, str], dict[bytes, tuple[RevocationEffect, int | None]]] = field(
        default_factory=dict
    )

    @property
    def position(self) -> tuple[int, int, bytes]:
        """Era, epoch and chain hash."""
        return (self.era, self.epoch, self.chain)

    def advance(
        self,
        entries: Sequence[Entry],
        head: Statement[Head],
        *,
        verifier: ChainVerifier,
        at: int,
        head_signer: Identity | None = None,
    ) -> tuple[ReadEntry, ...]:
        """Take the entries that lead from here to what a verified head confirms; answer those that are new.

        Entries already known are skipped. Raises SIGNATURE_INVALID, SIGNER_REVOKED (the root's list names the
        head's signer), EPOCH_ROLLED_BACK (the head is older than what is known), SNAPSHOT_REQUIRED (entries are
        missing in between), STATEMENT_MALFORMED. Whatever it raises, nothing has changed.
        """
        check_head(head, verifier, at=at, signer=head_signer)
        if head.signer in self.distrusted:
            raise refused(Reason.SIGNER_REVOKED, "the root does not trust the signer of this head")
        body = head.body
        if body.era < self.era or (body.era == self.era and body.epoch < self.epoch):
            raise refused(
                Reason.EPOCH_ROLLED_BACK, f"a head of epoch {body.epoch} is older than the known {self.epoch}"
            )
        epoch, chain = self.epoch, self.chain
        taken: list[ReadEntry] = []
        for entry in sorted(entries, key=lambda item: item.epoch):
            if entry.epoch <= epoch or entry.epoch > body.epoch:
                continue
            taken.append(read_entry(entry, epoch=epoch, chain=chain))
            epoch, chain = entry.epoch, entry.chain
        if epoch != body.epoch:
            raise refused(
                Reason.SNAPSHOT_REQUIRED,
                f"entries after epoch {epoch} are missing",
                after=epoch,
                head=body.epoch,
            )
        if chain != body.chain:
            raise refused(Reason.SIGNATURE_INVALID, "the chain of revocations is not the one the head signs")
        # A head alone opens no era: the root and two people do, by a step of the chain.
        if body.era != self._check_steps(taken, verifier, at=at):
            raise refused(
                Reason.SIGNATURE_INVALID, f"the chain holds no statement that opens the era {body.era}"
            )
        for read_one in taken:
            self._take(read_one)
        self.epoch, self.chain = epoch, chain
        return tuple(taken)

    def renewed(
        self, entries: Sequence[Entry], head: Statement[Head], *, verifier: ChainVerifier, at: int
    ) -> tuple["RevocationState", tuple[ReadEntry, ...]]:
        """The state that a later era's chain makes, taken whole from its first entry; this one stays as it is.

        The way out for a reader whose chain was lost. Raises as ``advance``; EPOCH_ROLLED_BACK when the chain
        opens no later era.
        """
        state = RevocationState()
        taken = state.advance(entries, head, verifier=verifier, at=at)
        if state.era <= self.era:
            raise refused(Reason.EPOCH_ROLLED_BACK, "another chain counts only in a later era")
        return state, taken

    def _check_steps(self, taken: Sequence[ReadEntry], verifier: ChainVerifier, *, at: int) -> int:
        """Whatever loosens is verified person by person; answers the era after these steps."""
        era, version, chain = self.era, self.list_version, self.chain
        for read_one in taken:
            if read_one.reinstatements:
                check_reinstatement(read_one, verifier, at=at)
            if read_one.era:
                check_rooted(read_one.era, verifier, at=at)
                body = read_one.era[0].body
                # The statement names its place: what came before it is what the root and two people saw.
                if body.era <= era or (body.epoch, body.chain) != (read_one.entry.epoch, chain):
                    raise refused(
                        Reason.EPOCH_ROLLED_BACK, "an era statement opens a later era, in its place"
                    )
                era = body.era
            if read_one.root_list:
                check_rooted(read_one.root_list, verifier, at=at)
                if read_one.root_list[0].body.version <= version:
                    raise refused(Reason.EPOCH_ROLLED_BACK, "the version of the root's list only rises")
                version = read_one.root_list[0].body.version
            chain = read_one.entry.chain
        return era

    def restore(self, entries: Iterable[Entry], *, era: int) -> None:
        """Take entries that this reader itself verified and persisted before. Raises STATEMENT_MALFORMED."""
        for entry in entries:
            read_one = read_entry(entry, epoch=self.epoch, chain=self.chain)
            self._take(read_one)
            self.epoch, self.chain = entry.epoch, entry.chain
        self.era = max(self.era, era)

    def append(self, entry: Entry) -> ReadEntry:
        """Take one entry without a head: for the service that makes them. Raises STATEMENT_MALFORMED."""
        read_one = read_entry(entry, epoch=self.epoch, chain=self.chain)
        self._take(read_one)
        self.epoch, self.chain = entry.epoch, entry.chain
        return read_one

    def append_verified(self, entry: Entry, *, verifier: ChainVerifier, at: int) -> ReadEntry:
        """Take one entry without a head, but nothing that loosens without its people and the root (`_check_steps`).

        Raises as ``advance``; whatever it raises, nothing has changed.
        """
        read_one = read_entry(entry, epoch=self.epoch, chain=self.chain)
        self._check_steps((read_one,), verifier, at=at)
        self._take(read_one)
        self.epoch, self.chain = entry.epoch, entry.chain
        return read_one

    def effect(self, scope: Scope, name: str, *, at: int) -> RevocationEffect | None:
        """The strongest effect in force on one id; None when nothing is."""
        known = self._effects.get((scope, name))
        if not known:
            return None
        return strongest([effect for effect, expires in known.values() if expires is None or at < expires])

    def credential_effect(self, identity: Identity, *, at: int) -> RevocationEffect | None:
        """For a person's certificate: by its thumbprint, or for all of that person's."""
        effects = [
            self.effect(Scope.CREDENTIAL, identity.thumbprint.hex(), at=at),
            self.effect(Scope.CREDENTIAL, f"principal/{identity.id}", at=at),
        ]
        return strongest([effect for effect in effects if effect is not None])

    def identity_refusal(self, identity: Identity, *, at: int) -> Reason | None:
        """Why this holder may not act now; None when nothing is known against it."""
        match identity.kind:
            case Kind.PERSON:
                denied = self.credential_effect(identity, at=at) is not None
                return Reason.CREDENTIAL_REVOKED if denied else None
            case Kind.GATEWAY:
                denied = self.effect(Scope.GATEWAY, identity.id, at=at) is not None
                return Reason.GATEWAY_REVOKED if denied else None
            case Kind.SIGNER:
                denied = (
                    identity.thumbprint in self.distrusted
                    or self.effect(Scope.SIGNER, identity.thumbprint.hex(), at=at) is not None
                )
                return Reason.SIGNER_REVOKED if denied else None
            case _:
                return None

    def effects(self) -> Mapping[tuple[Scope, str], RevocationEffect]:
        """Every id under some effect, whatever its expiry; for showing."""
        out = {}
        for key, known in self._effects.items():
            worst = strongest([effect for effect, _ in known.values()])
            if worst is not None:
                out[key] = worst
        return out

    def _take(self, read_one: ReadEntry) -> None:
        if read_one.revocation is not None:
            body = read_one.revocation.body
            for name in body.ids:
                known = self._effects.setdefault((body.scope, name), {})
                known[read_one.revocation.digest] = (body.effect, body.expires)
        elif read_one.era:
            self.era = read_one.era[0].body.era
        elif read_one.root_list:
            body_of_list = read_one.root_list[0].body
            self.distrusted, self.list_version = frozenset(body_of_list.signers), body_of_list.version
        elif self._may_free(read_one.reinstatements):
            freed = read_one.reinstatements[0].body
            for name in freed.ids:
                self._effects.get((freed.scope, name), {}).pop(freed.revocation, None)

    def _may_free(self, statements: Sequence[Statement[Reinstatement]]) -> bool:
        """Whether two of the people who reinstate are not revoked themselves, as the chain stands at this step.

        A step by revoked people stays in the chain, so that nobody is stranded, and frees nothing.
        """
        people = {
            statement.issuer
            for statement in statements
            if not any(
                self.effect(Scope.CREDENTIAL, name, at=statement.issued_at * 1000)
                for name in (
                    statement.signer.hex(),
                    f"principal/{statement.issuer.removeprefix(f'{Kind.PERSON}/')}",
                )
            )
        }
        return len(people) >= 2


def check_head(
    head: Statement[Head], verifier: ChainVerifier, *, at: int, signer: Identity | None = None
) -> Identity:
    """A head is signed by a signer made for heads. Raises SIGNATURE_INVALID or the chain's refusal."""
    holder = signer or verifier.verify(head.chain, at=at, kinds=frozenset({Kind.SIGNER}))
    check(head, holder)
    return holder


@dataclass(frozen=True, slots=True)
class PathStep:
    """One level of the way from a challenge to the root inside a head."""

    index: int
    size: int
    path: tuple[bytes, ...]


def answers(head: Statement[Head], challenge: bytes, steps: Sequence[PathStep]) -> bool:
    """Whether a head answers this challenge: level by level, each root is the next level's leaf (as Roughtime)."""
    value = challenge
    try:
        for step in steps:
            value = merkle.root_of_path(
                leaf=merkle.leaf_hash(value), index=step.index, size=step.size, path=step.path
            )
    except (ValueError, Refused):
        return False
    return bool(steps) and head.body.challenges == value


class Lease:
    """Counts from the *sending* of the newest answered challenge, on a clock that counts suspended time."""

    def __init__(self, *, keep: int = 16) -> None:
        self._sent: dict[bytes, float] = {}
        self._answered: float | None = None
        self._keep = keep

    def sent(self, challenge: bytes, *, monotonic: float) -> None:
        """Note a challenge at the moment before it is sent; only the newest few can be answered."""
        self._sent[challenge] = monotonic
        while len(self._sent) > self._keep:
            self._sent.pop(next(iter(self._sent)))

    def outstanding(self) -> tuple[bytes, ...]:
        """Challenges not answered yet, newest first."""
        return tuple(reversed(self._sent))

    def answered(self, challenge: bytes) -> bool:
        """A verified head answered this challenge; False if it is none of ours."""
        moment = self._sent.pop(challenge, None)
        if moment is None:
            return False
        if self._answered is None or moment > self._answered:
            self._answered = moment
        return True

    def age(self, *, monotonic: float) -> float:
        """Seconds since the sending of the newest answered challenge; infinite if none was."""
        return float("inf") if self._answered is None else max(0.0, monotonic - self._answered)
