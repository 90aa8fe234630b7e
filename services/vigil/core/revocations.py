"""The chain of revocations as every reader keeps it: service, edge, policy, gateway and device.

A reader holds (era, epoch, chain hash) and an index of effects. Entries arrive from anybody and are kept aside until a
*head*, signed by the revocation service's signer, confirms the chain hash that they lead to; only then do they count.
So a bus or an edge can delay, never forge (ARCHITECTURE section 5). Restricting entries need nothing more than the
chain; a reinstatement is verified person by person before it frees anything.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vigil.core import merkle
from vigil.core.certificates import ChainVerifier, Identity, Kind
from vigil.core.classes import strongest
from vigil.core.digest import sha256
from vigil.core.statements.bodies import Head, Reinstatement, Revocation, RevocationEffect, Scope
from vigil.core.statements.envelope import Statement, StatementKind, check, kind_of, read
from vigil.errors import Reason, Refused, refused

EMPTY_CHAIN = bytes(32)
"""The chain hash at epoch 0."""

_CHAIN_PREFIX = b"\x03"
"""Apart from RFC 6962's 0x00 and 0x01."""

REVOKER_ROLES = ("recall", "admin")


def chain_hash(previous: bytes, epoch: int, digests: Sequence[bytes]) -> bytes:
    """SHA-256(0x03 || previous || epoch, 8 bytes big endian || SHA-256 of the statements' digests in order)."""
    return sha256(_CHAIN_PREFIX + previous + epoch.to_bytes(8, "big") + sha256(b"".join(digests)))


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of the chain: a revocation, or the two reinstatements of two persons."""

    epoch: int
    statements: tuple[bytes, ...]
    chain: bytes


@dataclass(frozen=True, slots=True)
class ReadEntry:
    """An entry whose form and place in the chain are right."""

    entry: Entry
    revocation: Statement[Revocation] | None
    reinstatements: tuple[Statement[Reinstatement], ...]


def read_entry(entry: Entry, *, epoch: int, chain: bytes) -> ReadEntry:
    """Read the entry that follows ``(epoch, chain)``. Raises STATEMENT_MALFORMED if it does not."""
    if entry.epoch != epoch + 1:
        raise refused(Reason.STATEMENT_MALFORMED, f"epoch {entry.epoch} does not follow {epoch}")
    if not entry.statements:
        raise refused(Reason.STATEMENT_MALFORMED, "a revocation entry holds no statement")
    revocation: Statement[Revocation] | None = None
    reinstatements: tuple[Statement[Reinstatement], ...] = ()
    if kind_of(entry.statements[0]) is StatementKind.REVOCATION:
        if len(entry.statements) != 1:
            raise refused(Reason.STATEMENT_MALFORMED, "a revocation stands alone in its entry")
        revocation = read(entry.statements[0], Revocation)
        digests = [revocation.digest]
    else:
        reinstatements = tuple(read(data, Reinstatement) for data in entry.statements)
        digests = [statement.digest for statement in reinstatements]
    if chain_hash(chain, entry.epoch, digests) != entry.chain:
        raise refused(Reason.STATEMENT_MALFORMED, f"the chain breaks at epoch {entry.epoch}")
    return ReadEntry(entry, revocation, reinstatements)


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


@dataclass(slots=True)
class RevocationState:
    """What one reader knows, and enforces. ``entries`` are kept so that they can be handed on and persisted."""

    era: int = 0
    epoch: int = 0
    chain: bytes = EMPTY_CHAIN
    _effects: dict[tuple[Scope, str], dict[bytes, tuple[RevocationEffect, int | None]]] = field(
        default_factory=dict
    )

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

        Entries already known are skipped. Raises SIGNATURE_INVALID, EPOCH_ROLLED_BACK (the head is older than
        what is known), SNAPSHOT_REQUIRED (entries are missing in between), STATEMENT_MALFORMED. Whatever it
        raises, nothing has changed.
        """
        check_head(head, verifier, at=at, signer=head_signer)
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
        for read_one in taken:
            if read_one.reinstatements:
                check_reinstatement(read_one, verifier, at=at)
        for read_one in taken:
            self._take(read_one)
        self.era, self.epoch, self.chain = body.era, epoch, chain
        return tuple(taken)

    def restore(self, entries: Iterable[Entry], *, era: int) -> None:
        """Take entries that this reader itself verified and persisted before. Raises STATEMENT_MALFORMED."""
        for entry in entries:
            read_one = read_entry(entry, epoch=self.epoch, chain=self.chain)
            self._take(read_one)
            self.epoch, self.chain = entry.epoch, entry.chain
        self.era = era

    def append(self, entry: Entry) -> ReadEntry:
        """Take one entry without a head: for the service that makes them. Raises STATEMENT_MALFORMED."""
        read_one = read_entry(entry, epoch=self.epoch, chain=self.chain)
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
                denied = self.effect(Scope.SIGNER, identity.thumbprint.hex(), at=at) is not None
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
            return
        freed = read_one.reinstatements[0].body
        for name in freed.ids:
            self._effects.get((freed.scope, name), {}).pop(freed.revocation, None)


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
