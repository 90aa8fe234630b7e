"""Who may revoke what with which effect, when a second person is needed, and when a head may be signed. Pure.

Values in, values out. Instants in ms since the epoch; durations in seconds; digests raw SHA-256.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vigil.core import cbor, merkle
from vigil.core.certificates import EVERY, Identity
from vigil.core.classes import MAX_CLOCK_SKEW_MS
from vigil.core.digest import DIGEST_BYTES, sha256
from vigil.core.revocations import PathStep
from vigil.core.statements.bodies import Reinstatement, Revocation, RevocationEffect, Scope
from vigil.errors import Reason, Refused, refused

LOG_SUBJECT: Final = "revocation/log"
"""The subject under which the evidence log keeps every step of the chain, for the day of a restore."""
MAX_SUBJECTS: Final = 48
"""Ids of one revocation that get it into their own history; the log takes 64 subjects a record."""
ALONE_PERIOD_MS: Final = 600_000
ALONE_IDS: Final = 100
ALONE_STATEMENTS: Final = 20
"""What one person may revoke alone in 10 minutes (FAULTS, rogue revoker); past either a second person signs too."""
PROPOSAL_MS: Final = 3_600_000
"""How long the first person's statement waits for the second's."""
MAX_REINSTATEMENT_AGE_MS: Final = 86_400_000
"""Two signatures for one reinstatement are gathered within a day."""
REINSTATERS: Final = 2
"""People of the operator who must remain able to reinstate (FAULTS, rogue revoker)."""
CHALLENGE_BYTES: Final = range(16, 65)

EFFECTS: Final[Mapping[Scope, frozenset[RevocationEffect]]] = {
    Scope.CREDENTIAL: frozenset({RevocationEffect.DENY}),
    Scope.GATEWAY: frozenset({RevocationEffect.DENY}),
    Scope.SIGNER: frozenset({RevocationEffect.DENY}),
    Scope.DEVICE: frozenset({RevocationEffect.FLAG, RevocationEffect.CORRECTIVE_ONLY, RevocationEffect.DENY}),
    Scope.BUILD: frozenset(RevocationEffect),
    Scope.BASELINE: frozenset(RevocationEffect),
}
"""The effects that mean something for what is revoked (docs/revocation.md)."""

_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FORMS: Final[Mapping[Scope, re.Pattern[str]]] = {
    Scope.CREDENTIAL: re.compile(r"[0-9a-f]{64}|principal/[a-z0-9][a-z0-9-]{0,62}", re.ASCII),
    Scope.DEVICE: re.compile(r"dev-[a-z2-7]{16}", re.ASCII),
    Scope.BUILD: _HEX,
    Scope.BASELINE: _HEX,
    Scope.GATEWAY: re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII),
    Scope.SIGNER: _HEX,
}
_SUBJECT_KIND: Final[Mapping[Scope, str]] = {
    Scope.CREDENTIAL: "credential",
    Scope.DEVICE: "device",
    Scope.BUILD: "build",
    Scope.BASELINE: "baseline",
    Scope.GATEWAY: "gateway",
    Scope.SIGNER: "signer",
}
MAX_AHEAD_MS: Final = 86_400_000
"""How far a revoker's clock may stand ahead of ours."""
EVERYBODY: Final = frozenset({Scope.BUILD, Scope.SIGNER})
"""What concerns whoever runs it, and is shown to every organization."""


# --- form


def check_revocation(body: Revocation, *, issued_at_ms: int, now: int) -> None:
    """Check what a revocation says, whoever says it. Raises FIELD_INVALID."""
    _check_ids(body.scope, body.ids)
    if body.effect not in EFFECTS[body.scope]:
        allowed = ", ".join(sorted(EFFECTS[body.scope]))
        raise _field("effect", f"A {body.scope} is revoked with one of: {allowed}.")
    if body.expires is not None and body.expires <= now:
        raise _field("expires", "The revocation would be over already.")
    # What restricts is not refused for a clock that stands a little wrong, here or there (docs/decisions/0018).
    if issued_at_ms > now + MAX_AHEAD_MS:
        raise _field("iat", "The statement was signed in the future.")


def check_reinstatement_form(
    body: Reinstatement, revoked: Revocation, *, issued: Iterable[int], now: int
) -> None:
    """Check that a reinstatement frees what was revoked, and is fresh. Raises FIELD_INVALID, INTENT_EXPIRED."""
    _check_ids(body.scope, body.ids)
    if body.scope is not revoked.scope or not set(body.ids) <= set(revoked.ids):
        raise _field("ids", "The revocation does not name what the reinstatement frees.")
    for moment in issued:
        if moment > now + MAX_CLOCK_SKEW_MS:
            raise _field("iat", "The statement was signed in the future.")
        if now - moment > MAX_REINSTATEMENT_AGE_MS:
            raise refused(
                Reason.INTENT_EXPIRED,
                "A signature under this reinstatement is older than a day.",
                lifted_by="signing it anew",
                who="the people of the recall team",
            )


def _check_ids(scope: Scope, ids: Sequence[str]) -> None:
    if len(set(ids)) != len(ids):
        raise _field("ids", "An id is named twice.")
    for name in ids:
        if not _FORMS[scope].fullmatch(name):
            raise _field("ids", f"{name!r} is no id of a {scope}.")


def _field(name: str, sentence: str) -> Refused:
    return refused(Reason.FIELD_INVALID, sentence, lifted_by="a field of that form", who="caller", field=name)


# --- scope


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a thing is. ``sites`` empty: it belongs to the organization as a whole."""

    organization: str
    sites: tuple[str, ...] = ()


FindOwner = Callable[[Scope, str], Owner | None]
"""Looks an id up in the replicas; None when nobody knows it. Raises REPLICA_STALE when that cannot be told."""


def check_scope(caller: Identity, scope: Scope, ids: Sequence[str], *, find: FindOwner) -> None:
    """A person revokes and reinstates inside the own scope only; an unknown id is the operator's alone.

    Raises NOT_IN_SCOPE, the same for what is somebody else's and for what does not exist, or ROLE_NOT_PERMITTED.
    """
    everything = caller.operator and EVERY in caller.sites
    if scope is Scope.SIGNER:
        if not everything:
            raise not_in_scope(scope)
        if not caller.has_role("admin"):
            raise refused(
                Reason.ROLE_NOT_PERMITTED,
                "A signer is revoked by an administrator of the operator.",
                lifted_by="a statement by one of them",
                who="an administrator of the operator",
            )
        return
    if everything:
        return
    for name in ids:
        owner = find(scope, name)
        if owner is None or not _covers(caller, owner):
            raise not_in_scope(scope)


def _covers(caller: Identity, owner: Owner) -> bool:
    if not caller.covers_organization(owner.organization):
        return False
    if EVERY in caller.sites:
        return True
    # What belongs to the organization as a whole is out of reach of somebody bound to sites.
    return bool(owner.sites) and all(site in caller.sites for site in owner.sites)


def not_in_scope(what: str) -> Refused:
    """The one answer for what is somebody else's and for what does not exist."""
    return refused(
        Reason.NOT_IN_SCOPE,
        f"There is no such {what} in your scope.",
        lifted_by="the right id, or a credential whose organization and sites cover it",
        who="an administrator of the organization that owns it",
    )


def check_not_head_signer(ids: Sequence[str], head_signers: frozenset[str]) -> None:
    """Signers of heads are out of reach: a chain could not confirm its own end. Raises STATE_CONFLICT."""
    if head_signers.intersection(ids):
        raise refused(
            Reason.STATE_CONFLICT,
            "A signer of heads cannot be revoked here: only the root's own list withdraws it.",
            lifted_by="a root list signed with the offline root and by two people",
            who="the keepers of the root",
        )


# --- the last reinstaters


@dataclass(frozen=True, slots=True)
class Reinstater:
    """Someone of the operator with a revoker's role; thumbprints are hex."""

    principal_id: str
    thumbprints: tuple[str, ...]


def check_reinstaters(
    body: Revocation, people: Iterable[Reinstater], *, is_revoked: Callable[[str], bool]
) -> None:
    """Two people of the operator must remain who can take a revocation back. Raises STATE_CONFLICT.

    ``is_revoked`` tells it of one id of a credential as things stand. Credentials that ended do not count
    against a person: a new one can be had; a revoked person gets none.
    """
    if body.scope is not Scope.CREDENTIAL:
        return
    named = set(body.ids)
    everyone = tuple(people)
    before = sum(_able(person, is_revoked) for person in everyone)
    after = sum(_able(person, lambda name: name in named or is_revoked(name)) for person in everyone)
    if after < min(before, REINSTATERS):
        raise refused(
            Reason.STATE_CONFLICT,
            "This would leave fewer than two people who can take a revocation back.",
            lifted_by="appointing others first, or the offline root",
            who="the keepers of the root",
        )


def _able(person: Reinstater, is_revoked: Callable[[str], bool]) -> bool:
    if is_revoked(f"principal/{person.principal_id}"):
        return False
    return not person.thumbprints or not all(is_revoked(name) for name in person.thumbprints)


# --- the second person


@dataclass(frozen=True, slots=True)
class Recent:
    """What one person revoked in the last 10 minutes."""

    statements: int
    ids: int


def needs_second_person(recent: Recent, body: Revocation) -> bool:
    """Whether this statement takes its signer past what one person may revoke alone."""
    return recent.statements + 1 > ALONE_STATEMENTS or recent.ids + len(body.ids) > ALONE_IDS


def second_person_required(content: bytes) -> Refused:
    """Tell the first person that the statement waits for another's over the same words."""
    return refused(
        Reason.SECOND_PERSON_REQUIRED,
        f"One person revokes at most {ALONE_IDS} ids and {ALONE_STATEMENTS} statements in 10 minutes alone. "
        "Your statement is kept for an hour.",
        lifted_by="another person submitting the same revocation, signed by that person",
        who="the recall team",
        content=content.hex(),
    )


# --- the record of a step


def record_body(*, epoch: int, chain: bytes, time: int) -> bytes:
    """What the evidence log keeps beside each statement, so that the chain can be made again."""
    return cbor.encode({"chain": chain, "epoch": epoch, "time": time})


@dataclass(frozen=True, slots=True)
class Step:
    """The place of a statement in the chain, as the log kept it."""

    epoch: int
    chain: bytes
    time: int


def read_record_body(data: bytes) -> Step | None:
    """Read ``record_body``; None when it is something else."""
    try:
        match cbor.decode(data):
            case {"chain": bytes(chain), "epoch": int(epoch), "time": int(time)} if (
                len(chain) == DIGEST_BYTES and 0 < epoch < 2**63 and 0 <= time < 2**63
            ):
                return Step(epoch, chain, time)
    except Refused:
        return None
    return None


def subjects_of(scope: Scope, ids: Sequence[str]) -> tuple[str, ...]:
    """The histories that a statement about these ids belongs to."""
    named = (
        f"person/{name.removeprefix('principal/')}"
        if name.startswith("principal/")
        else f"{_SUBJECT_KIND[scope]}/{name}"
        for name in ids[:MAX_SUBJECTS]
    )
    return (LOG_SUBJECT, *named)


# --- heads


def root_and_paths(values: Sequence[bytes]) -> tuple[bytes, list[PathStep]]:
    """The Merkle root over challenges and every challenge's way to it, in one pass (RFC 6962)."""
    size = len(values)
    level = [merkle.leaf_hash(value) for value in values]
    places = list(range(size))
    paths: list[list[bytes]] = [[] for _ in values]
    while len(level) > 1:
        for leaf, place in enumerate(places):
            if place ^ 1 < len(level):
                paths[leaf].append(level[place ^ 1])
            places[leaf] = place >> 1
        above = [merkle.node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    root = level[0] if level else merkle.EMPTY_ROOT
    return root, [PathStep(index, size, tuple(path)) for index, path in enumerate(paths)]


def content_digest(payload: bytes) -> bytes:
    """Identifies what is said apart from who says it: two people who sign the same words share it."""
    return sha256(payload)
