"""The chain of revocations: what a reader believes, and what strands it."""

import os

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.pki import Credential, TestPki
from vigil.core import merkle
from vigil.core.certificates import Kind
from vigil.core.clock import ManualClock
from vigil.core.digest import sha256
from vigil.core.keys import KeySigner
from vigil.core.revocations import (
    EMPTY_CHAIN,
    Entry,
    Lease,
    PathStep,
    RevocationState,
    answers,
    chain_hash,
)
from vigil.core.statements.bodies import (
    Era,
    Head,
    Reinstatement,
    Revocation,
    RevocationEffect,
    RevocationReason,
    RootList,
    Scope,
)
from vigil.core.statements.envelope import Scribe, Statement
from vigil.errors import Reason, Refused


class World:
    def __init__(self, pki: TestPki) -> None:
        self.pki = pki
        self.clock = ManualClock(now=pki.clock.now())
        self.recall = [
            pki.issue(Kind.PERSON, f"p-recall-{place}", roles=("recall",), sites=("*",)) for place in range(2)
        ]
        signer = pki.signer("head")
        identity = pki.verifier.remember(signer.chain)
        self.head_scribe = Scribe(
            signer=signer, issuer=f"signer/{identity.id}", clock=self.clock, entropy=os.urandom, numbered=True
        )
        self.entries: list[Entry] = []
        self.signed: list[Statement[Revocation]] = []

    def sign(self, body: object, person: Credential) -> Statement[object]:
        return Scribe(
            signer=person.signer,
            issuer=person.issuer_name,
            clock=self.clock,
            entropy=os.urandom,
            numbered=False,
        ).sign(body, subject="revocations")

    def add(self, *statements: Statement[object]) -> Entry:
        previous = self.entries[-1] if self.entries else Entry(0, (), EMPTY_CHAIN)
        entry = Entry(
            previous.epoch + 1,
            tuple(statement.data for statement in statements),
            chain_hash(previous.chain, previous.epoch + 1, [statement.digest for statement in statements]),
        )
        self.entries.append(entry)
        return entry

    def revoke(
        self, name: str, effect: RevocationEffect = RevocationEffect.DENY, expires: int | None = None
    ) -> Entry:
        body = Revocation(Scope.DEVICE, (name,), effect, RevocationReason.DEFECT, expires=expires)
        signed = self.sign(body, self.recall[0])
        self.signed.append(signed)  # type: ignore[arg-type]
        return self.add(signed)

    def rooted(self, body: object, *people: Credential, root: KeySigner | None = None) -> Entry:
        """A step that the offline root signs, and these people beside it."""
        issuer = self.pki.root
        signer = KeySigner(issuer.private_key, [issuer.certificate.public_bytes(Encoding.DER)])
        scribe = Scribe(
            signer=root or signer,
            issuer="signer/root",
            clock=self.clock,
            entropy=os.urandom,
            numbered=False,
        )
        return self.add(
            scribe.sign(body, subject="revocations"), *(self.sign(body, person) for person in people)
        )

    def era(self, era: int = 1, **values: object) -> Era:
        previous = self.entries[-1] if self.entries else Entry(0, (), EMPTY_CHAIN)
        given: dict[str, object] = {"epoch": previous.epoch + 1, "chain": previous.chain, **values}
        return Era(era, self.clock.now(), reason="restored", **given)  # type: ignore[arg-type]

    def keepers(self) -> tuple[Credential, Credential]:
        return self.pki.admin(1), self.pki.admin(2)

    def head(
        self, epoch: int | None = None, *, era: int = 0, challenges: bytes | None = None
    ) -> Statement[Head]:
        at = len(self.entries) if epoch is None else epoch
        chain = self.entries[at - 1].chain if 0 < at <= len(self.entries) else EMPTY_CHAIN
        return self.head_scribe.sign(
            Head(at, chain, era, self.clock.now(), challenges), subject="revocations"
        )

    def advance(self, state: RevocationState, entries: list[Entry], head: Statement[Head]) -> int:
        return len(state.advance(entries, head, verifier=self.pki.verifier, at=self.clock.now()))


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(TestPki(tmp_path_factory.mktemp("pki")))


def test_entries_count_once_a_head_confirms_them_whatever_their_order(world: World) -> None:
    state = RevocationState()
    for name in ("a", "b", "c"):
        world.revoke(name)
    assert world.advance(state, list(reversed(world.entries)) + world.entries, world.head()) == 3
    assert state.epoch == 3
    assert state.effect(Scope.DEVICE, "b", at=0) is RevocationEffect.DENY
    assert state.effect(Scope.DEVICE, "z", at=0) is None
    assert world.advance(state, world.entries, world.head()) == 0


@pytest.mark.holds("captured-bus")
def test_a_gap_asks_for_what_is_missing_and_changes_nothing(world: World) -> None:
    state = RevocationState()
    for name in ("a", "b", "c"):
        world.revoke(name)
    with pytest.raises(Refused) as refusal:
        world.advance(state, [world.entries[0], world.entries[2]], world.head())
    assert refusal.value.reason is Reason.STATEMENT_MALFORMED
    with pytest.raises(Refused) as refusal:
        world.advance(state, world.entries[:2], world.head())
    assert refusal.value.reason is Reason.SNAPSHOT_REQUIRED
    assert (state.epoch, state.chain) == (0, EMPTY_CHAIN)


@pytest.mark.holds("captured-bus")
def test_a_claim_of_a_far_epoch_strands_nobody(world: World) -> None:
    state = RevocationState()
    world.revoke("a")
    with pytest.raises(Refused):
        world.advance(state, world.entries, world.head(2**63 - 1))
    assert state.epoch == 0
    assert world.advance(state, world.entries, world.head()) == 1


@pytest.mark.holds("captured-bus")
def test_an_older_head_is_a_rollback(world: World) -> None:
    state = RevocationState()
    world.revoke("a")
    world.revoke("b")
    world.advance(state, world.entries, world.head())
    with pytest.raises(Refused) as refusal:
        world.advance(state, world.entries, world.head(1))
    assert refusal.value.reason is Reason.EPOCH_ROLLED_BACK


@pytest.mark.holds("captured-bus")
def test_an_invented_entry_does_not_match_the_head(world: World) -> None:
    state = RevocationState()
    world.revoke("a")
    other = World(world.pki)
    other.revoke("innocent")
    with pytest.raises(Refused) as refusal:
        world.advance(state, other.entries, world.head())
    assert refusal.value.reason is Reason.SIGNATURE_INVALID
    assert state.effect(Scope.DEVICE, "innocent", at=0) is None


@pytest.mark.holds("captured-bus")
def test_a_head_signed_by_another_signer_is_refused(world: World) -> None:
    world.revoke("a")
    signer = world.pki.signer("decision")
    identity = world.pki.verifier.remember(signer.chain)
    forged = Scribe(
        signer=signer, issuer=f"signer/{identity.id}", clock=world.clock, entropy=os.urandom, numbered=True
    ).sign(Head(1, world.entries[0].chain, 0, world.clock.now()), subject="revocations")
    with pytest.raises(Refused) as refusal:
        world.advance(RevocationState(), world.entries, forged)
    assert refusal.value.reason is Reason.SIGNATURE_INVALID


def test_the_strongest_effect_in_force_wins_and_expiry_ends_one(world: World) -> None:
    state = RevocationState()
    soon = world.clock.now() + 1000
    world.revoke("a", RevocationEffect.DENY, expires=soon)
    world.revoke("a", RevocationEffect.FLAG)
    world.advance(state, world.entries, world.head())
    assert state.effect(Scope.DEVICE, "a", at=soon - 1) is RevocationEffect.DENY
    assert state.effect(Scope.DEVICE, "a", at=soon) is RevocationEffect.FLAG


@pytest.mark.holds("stolen-signers")
def test_a_reinstatement_takes_two_distinct_people(world: World) -> None:
    state = RevocationState()
    world.revoke("a")
    body = Reinstatement(world.signed[0].digest, Scope.DEVICE, ("a",), "repaired")
    world.add(world.sign(body, world.recall[0]), world.sign(body, world.recall[0]))
    with pytest.raises(Refused) as refusal:
        world.advance(state, world.entries, world.head())
    assert refusal.value.reason is Reason.APPROVER_NOT_DISTINCT
    assert state.epoch == 0
    world.entries.pop()
    world.add(world.sign(body, world.recall[0]), world.sign(body, world.recall[1]))
    world.advance(state, world.entries, world.head())
    assert state.effect(Scope.DEVICE, "a", at=0) is None


@pytest.mark.holds("stolen-signers")
def test_a_head_signer_withholds_what_is_new_and_takes_back_nothing(world: World) -> None:
    """With the head's key and the way to the readers: fresh heads over an old epoch keep news away, for as long as it
    is held. Whoever heard before refuses them as a rollback; a newcomer, who heard nothing, is shown the old chain.
    """
    heard, newcomer, kept_back = RevocationState(), RevocationState(), RevocationState()
    world.revoke("a")
    world.advance(kept_back, world.entries, world.head())
    world.revoke("b")
    world.advance(heard, world.entries, world.head())
    for _ in range(3):
        world.clock.advance(60)
        old = world.head(epoch=1)
        assert world.advance(kept_back, world.entries[:1], old) == 0
        with pytest.raises(Refused) as refusal:
            world.advance(heard, world.entries[:1], old)
        assert refusal.value.reason is Reason.EPOCH_ROLLED_BACK
    world.advance(newcomer, world.entries[:1], world.head(epoch=1))
    effects = [state.effect(Scope.DEVICE, "b", at=0) for state in (heard, newcomer, kept_back)]
    assert effects == [RevocationEffect.DENY, None, None]
    assert world.advance(kept_back, world.entries, world.head()) == 1


@pytest.mark.holds("stolen-signers")
def test_a_head_signer_alone_opens_no_era(world: World) -> None:
    state = RevocationState()
    world.revoke("a")
    world.advance(state, world.entries, world.head())
    for head in (world.head(era=1), world.head(era=2**62), world.head(0, era=1)):
        with pytest.raises(Refused):
            world.advance(state, world.entries, head)
        with pytest.raises(Refused):
            state.renewed(world.entries, head, verifier=world.pki.verifier, at=world.clock.now())
    assert (state.era, state.epoch) == (0, 1)
    assert state.effect(Scope.DEVICE, "a", at=0) is RevocationEffect.DENY
    assert world.advance(state, world.entries, world.head()) == 0


def test_the_root_and_two_people_open_an_era_in_its_place(world: World) -> None:
    state, restored = RevocationState(), RevocationState()
    world.revoke("a")
    world.rooted(world.era(), *world.keepers())
    world.revoke("b")
    with pytest.raises(Refused):
        world.advance(state, world.entries, world.head())
    world.advance(state, world.entries, world.head(era=1))
    assert (state.era, state.epoch) == (1, 3)
    assert state.effect(Scope.DEVICE, "a", at=0) is RevocationEffect.DENY
    restored.restore(world.entries, era=0)
    assert restored.era == 1


@pytest.mark.holds("stolen-signers")
@pytest.mark.parametrize(
    "fault", ["one person", "one twice", "not the operator's", "no root", "elsewhere", "again"]
)
def test_an_era_that_nobody_opened_is_refused(world: World, fault: str) -> None:
    state = RevocationState()
    world.revoke("a")
    one, other = world.keepers()
    body = world.era()
    match fault:
        case "one person":
            world.rooted(body, one)
        case "one twice":
            world.rooted(body, one, one)
        case "not the operator's":
            world.rooted(body, *world.recall)
        case "no root":
            world.rooted(body, one, other, root=one.signer)
        case "elsewhere":
            world.rooted(world.era(chain=EMPTY_CHAIN), one, other)
        case "again":
            world.rooted(body, one, other)
            world.rooted(world.era(), one, other)
    with pytest.raises(Refused):
        world.advance(state, world.entries, world.head(era=1))
    assert (state.era, state.epoch) == (0, 0)


def test_a_chain_of_a_later_era_replaces_one_that_was_lost(world: World) -> None:
    state = RevocationState()
    for name in ("a", "b", "c"):
        world.revoke(name)
    world.advance(state, world.entries, world.head())
    del world.entries[1:]
    without = list(world.entries)
    with pytest.raises(Refused) as refusal:
        state.renewed(without, world.head(), verifier=world.pki.verifier, at=world.clock.now())
    assert refusal.value.reason is Reason.EPOCH_ROLLED_BACK
    world.rooted(world.era(), *world.keepers())
    renewed, taken = state.renewed(
        world.entries, world.head(era=1), verifier=world.pki.verifier, at=world.clock.now()
    )
    assert (renewed.era, renewed.epoch, len(taken)) == (1, 2, 2)
    assert (state.era, state.epoch) == (0, 3)


@pytest.mark.holds("stolen-signers")
def test_the_roots_own_list_reaches_the_head_signer(world: World) -> None:
    state = RevocationState()
    signer = world.pki.signer_credential("head").identity
    body = RootList(version=1, signers=(signer.thumbprint,))
    world.rooted(body, world.keepers()[0])
    with pytest.raises(Refused):
        world.advance(state, world.entries, world.head())
    world.entries.pop()
    world.rooted(body, *world.keepers())
    world.advance(state, world.entries, world.head())
    assert state.identity_refusal(signer, at=0) is Reason.SIGNER_REVOKED
    with pytest.raises(Refused) as refusal:
        world.advance(state, world.entries, world.head())
    assert refusal.value.reason is Reason.SIGNER_REVOKED


@pytest.mark.holds("stolen-signers")
def test_people_who_are_revoked_reinstate_nothing(world: World) -> None:
    state = RevocationState()
    world.revoke("a")
    principal = f"principal/{world.recall[1].identity.id}"
    world.add(
        world.sign(
            Revocation(Scope.CREDENTIAL, (principal,), RevocationEffect.DENY, RevocationReason.COMPROMISE),
            world.recall[0],
        )
    )
    body = Reinstatement(world.signed[0].digest, Scope.DEVICE, ("a",), "repaired")
    world.add(world.sign(body, world.recall[0]), world.sign(body, world.recall[1]))
    world.advance(state, world.entries, world.head())
    # Nobody is stranded by such a step, and it frees nothing.
    assert state.epoch == 3
    assert state.effect(Scope.DEVICE, "a", at=0) is RevocationEffect.DENY


def test_restore_equals_what_was_advanced(world: World) -> None:
    state, restored = RevocationState(), RevocationState()
    for name in ("a", "b"):
        world.revoke(name)
    world.advance(state, world.entries, world.head())
    restored.restore(world.entries, era=0)
    assert (restored.epoch, restored.chain) == (state.epoch, state.chain)
    assert restored.effects() == state.effects()


@pytest.mark.holds("captured-bus")
def test_a_head_answers_a_challenge_level_by_level(world: World) -> None:
    mine = [bytes([place]) * 16 for place in range(5)]
    lower = merkle.tree_root([merkle.leaf_hash(item) for item in mine])
    edges = [sha256(b"other"), lower]
    upper = merkle.tree_root([merkle.leaf_hash(item) for item in edges])
    head = world.head(challenges=upper)
    steps = [
        PathStep(3, 5, tuple(merkle.inclusion_path([merkle.leaf_hash(item) for item in mine], 3))),
        PathStep(1, 2, tuple(merkle.inclusion_path([merkle.leaf_hash(item) for item in edges], 1))),
    ]
    assert answers(head, mine[3], steps)
    assert not answers(head, mine[2], steps)
    assert not answers(head, mine[3], steps[:1])
    assert not answers(head, mine[3], [])
    assert not answers(world.head(), mine[3], steps)


@pytest.mark.holds("captured-bus")
def test_the_lease_runs_from_sending_not_from_the_answer() -> None:
    lease = Lease()
    assert lease.age(monotonic=0.0) == float("inf")
    lease.sent(b"one", monotonic=10.0)
    lease.sent(b"two", monotonic=12.0)
    assert lease.answered(b"two")
    assert lease.answered(b"one")
    assert not lease.answered(b"one")
    assert not lease.answered(b"never sent")
    assert lease.age(monotonic=25.0) == 13.0
