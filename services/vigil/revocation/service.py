"""Revoking and reinstating: who may, what is written, and what a person is shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection

from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.certificates import EVERY, ChainVerifier, Identity, Kind
from vigil.core.clock import Clock
from vigil.core.revocations import (
    REVOKER_ROLES,
    Entry,
    ReadEntry,
    chain_hash,
    check_reinstatement,
)
from vigil.core.statements.bodies import Reinstatement, Revocation, Scope
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Reason, Refused, refused
from vigil.feed import Outbox
from vigil.feed.evidence import EvidenceSpool
from vigil.revocation import store
from vigil.revocation.chain import Chain, entry_of
from vigil.revocation.directory import Directory
from vigil.revocation.domain import (
    EVERYBODY,
    LOG_SUBJECT,
    check_not_head_signer,
    check_reinstatement_form,
    check_reinstaters,
    check_revocation,
    check_scope,
    content_digest,
    needs_second_person,
    not_in_scope,
    record_body,
    second_person_required,
    subjects_of,
)
from vigil.rpc import paging
from vigil.storage import Database, after_commit

PAGE: Final = 100
MAX_PAGE: Final = 500
LIST: Final = "revocations"
"""What its page tokens are bound to."""

RevocationEntry = revocation_pb2.RevocationEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A step that is to be written: everything but its place in the chain."""

    statements: tuple[Statement[Any], ...]
    scope: Scope
    names: tuple[str, ...]
    revoker: str
    revoker_organization: str
    organization: str
    alone: bool


@dataclass(frozen=True, slots=True)
class Page:
    entries: tuple[bytes, ...]
    next_token: str


class ChainWriter:
    """Writes steps: one transaction holds the entry, its epoch, the feed's row and the record for the log."""

    def __init__(self, *, chain: Chain, outbox: Outbox, spool: EvidenceSpool, clock: Clock) -> None:
        self._chain = chain
        self._outbox = outbox
        self._spool = spool
        self._clock = clock

    def append(
        self,
        connection: Connection,
        draft: Draft,
        *,
        recorded_at: int | None = None,
        taken_at: int | None = None,
    ) -> bytes:
        """Inside a write function: the next step of the chain; answers the entry's bytes.

        The same statement again answers the entry that it made. ``recorded_at`` is the time of a step that the
        log already has, ``taken_at`` that of one that was in the chain before and may not have reached the log.
        """
        for statement in draft.statements:
            known = store.epoch_of(connection, statement.digest)
            if known is not None:
                return store.entry_value(connection, known) or b""
        before = store.position(connection)
        epoch = before.epoch + 1
        digests = [statement.digest for statement in draft.statements]
        chain = chain_hash(before.chain, epoch, digests)
        time = recorded_at if recorded_at is not None else taken_at
        time = self._clock.now() if time is None else time
        value = RevocationEntry(
            epoch=epoch,
            statements=[statement.data for statement in draft.statements],
            chain=chain,
            create_time_ms=time,
        ).SerializeToString()
        entry = store.NewEntry(
            epoch=epoch,
            chain=chain,
            value=value,
            digests=tuple(digests),
            revoker=draft.revoker,
            revoker_organization=draft.revoker_organization,
            organization=draft.organization,
            ids=len(draft.names),
            alone=draft.alone,
            create_time=time,
        )
        store.put_entry(connection, entry)
        self._outbox.put(connection, "entry", f"{epoch:020}", value)
        if recorded_at is None:
            body = record_body(epoch=epoch, chain=chain, time=time)
            self._record(connection, draft, (body,))
        after_commit(connection, lambda: self._chain.taken(value))
        return value

    def witness(self, connection: Connection, draft: Draft, first: bytes) -> None:
        """Inside a write function: keep the first person's word on record, beside the chain and not in it."""
        subjects = [name for name in subjects_of(draft.scope, draft.names) if name != LOG_SUBJECT]
        self._spool.put(connection, first, subjects=subjects, organization_id=draft.revoker_organization)

    def _record(self, connection: Connection, draft: Draft, bodies: Sequence[bytes]) -> None:
        for statement in draft.statements:
            self._spool.put(
                connection,
                statement.data,
                subjects=(*subjects_of(draft.scope, draft.names), f"person/{draft.revoker}"),
                bodies=bodies,
                organization_id=draft.revoker_organization,
            )


class Revocations:
    """The use cases. ``verifier`` answers the one for the trust bundle in force."""

    def __init__(
        self,
        *,
        database: Database,
        chain: Chain,
        writer: ChainWriter,
        directory: Directory,
        verifier: Callable[[], ChainVerifier],
        head_signers: frozenset[str],
        clock: Clock,
    ) -> None:
        self._database = database
        self._chain = chain
        self._writer = writer
        self._directory = directory
        self._verifier = verifier
        self._own_head_signers = head_signers
        self._clock = clock
        self._log = structlog.get_logger("vigil.revocation")

    async def revoke(self, caller: Identity, data: bytes) -> bytes:
        """Revoke; answers the entry's bytes once it is durable.

        Raises SIGNER_NOT_CALLER, SIGNATURE_INVALID, FIELD_INVALID, NOT_IN_SCOPE, ROLE_NOT_PERMITTED,
        SECOND_PERSON_REQUIRED, STATE_CONFLICT, REPLICA_STALE.
        """
        statement = read(data, Revocation)
        _check_own(statement, caller)
        now, body = self._clock.now(), statement.body
        check_revocation(body, issued_at_ms=statement.issued_at * 1000, now=now)
        await self._directory.arrived(body.scope)
        check_scope(caller, body.scope, body.ids, find=self._directory.owner)
        if body.scope is Scope.SIGNER:
            check_not_head_signer(body.ids, self._head_signers())
        if body.scope is Scope.CREDENTIAL:
            self._check_reinstaters(body, now)
        content = content_digest(statement.sign1.payload)
        draft = Draft(
            statements=(statement,),
            scope=body.scope,
            names=body.ids,
            revoker=caller.id,
            revoker_organization=caller.organization,
            organization=self._organization(body.scope, body.ids),
            alone=True,
        )

        def run(connection: Connection) -> bytes | None:
            return self._revoke(connection, draft, body, content, now)

        value = await self._database.write(run, vital=True)
        if value is None:
            raise second_person_required(content)
        self._log.info(
            "revoked", epoch=entry_of(value).epoch, scope=body.scope, ids=len(body.ids), revoker=caller.id
        )
        return value

    def _revoke(
        self, connection: Connection, draft: Draft, body: Revocation, content: bytes, now: int
    ) -> bytes | None:
        statement = draft.statements[0]
        known = store.epoch_of(connection, statement.digest)
        if known is not None:
            return store.entry_value(connection, known)
        recent = store.recent_of(connection, draft.revoker, now=now)
        if needs_second_person(recent, body):
            first = store.proposal_of_another(connection, content=content, revoker=draft.revoker, now=now)
            if first is None:
                store.propose(
                    connection, content=content, revoker=draft.revoker, statement=statement.data, now=now
                )
                return None
            draft = replace(draft, alone=False)
            self._writer.witness(connection, draft, first)
        store.forget_proposals(connection, content)
        return self._writer.append(connection, draft)

    async def reinstate(self, caller: Identity, data: Sequence[bytes]) -> bytes:
        """Take ids out of an earlier revocation: the same words, signed by two people, one of them the caller.

        Raises as ``revoke``, APPROVER_NOT_DISTINCT and CREDENTIAL_REVOKED.
        """
        if len(data) != 2:
            raise refused(
                Reason.SECOND_PERSON_REQUIRED,
                "A reinstatement needs the same words signed by two persons.",
                lifted_by="a second person's signature",
                who="the recall team",
            )
        statements = tuple(read(one, Reinstatement) for one in data)
        if caller.thumbprint not in {statement.signer for statement in statements}:
            raise _not_own()
        now, body = self._clock.now(), statements[0].body
        check_reinstatement(ReadEntry(Entry(0, tuple(data), b""), None, statements), self._verifier(), at=now)
        value = await self._revocation_of(body.revocation)
        revoked = None if value is None else read(entry_of(value).statements[0], Revocation).body
        await self._directory.arrived(body.scope)
        for statement in statements:
            person = self._verifier().verify(
                statement.chain, at=now, kinds=frozenset({Kind.PERSON}), grace=True
            )
            reason = self._chain.refusal(person)
            if reason is not None:
                raise refused(reason, "One of the two signers' credentials is revoked.")
            check_scope(person, body.scope, body.ids, find=self._directory.owner)
        if revoked is None:
            raise not_in_scope("revocation")
        check_reinstatement_form(
            body, revoked, issued=[statement.issued_at * 1000 for statement in statements], now=now
        )
        draft = Draft(
            statements=statements,
            scope=body.scope,
            names=body.ids,
            revoker=caller.id,
            revoker_organization=caller.organization,
            organization=self._organization(body.scope, body.ids),
            alone=False,
        )
        value = await self._database.write(
            lambda connection: self._writer.append(connection, draft), vital=True
        )
        self._log.info("reinstated", epoch=entry_of(value).epoch, scope=body.scope, ids=len(body.ids))
        return value

    async def get(self, caller: Identity, epoch: int) -> bytes:
        """One entry. Raises NOT_IN_SCOPE, the same for another's and for none."""
        organization = _sees(caller)
        value = await self._database.read(
            lambda connection: store.visible_entry(connection, epoch, organization=organization)
        )
        if value is None:
            raise not_in_scope("revocation")
        return value

    async def list(self, caller: Identity, *, page_size: int, page_token: str) -> Page:
        """A page of entries, oldest first. Raises FIELD_INVALID."""
        organization, after = _sees(caller), _after(page_token)
        limit = paging.page_size(page_size, default=PAGE, most=MAX_PAGE)
        rows = await self._database.read(
            lambda connection: store.visible_page(
                connection, organization=organization, after=after, limit=limit + 1
            )
        )
        page = rows[:limit]
        size = 0
        for place, (_, value) in enumerate(page):
            size += len(value)
            if place and size > 2 << 20:  # one more still fits into a gRPC message of 4 MiB
                page = page[:place]
                break
        more = len(page) < len(rows)
        token = paging.token_after(str(page[-1][0]), LIST) if more else ""
        return Page(tuple(value for _, value in page), token)

    async def _revocation_of(self, digest: bytes) -> bytes | None:
        def run(connection: Connection) -> bytes | None:
            epoch = store.epoch_of(connection, digest)
            return None if epoch is None else store.entry_value(connection, epoch)

        return await self._database.read(run)

    def _organization(self, scope: Scope, ids: tuple[str, ...]) -> str:
        return EVERY if scope in EVERYBODY else self._directory.organization(scope, ids)

    def _head_signers(self) -> frozenset[str]:
        verifier = self._verifier()
        known = {
            identity.thumbprint.hex()
            for certificate in verifier.bundle.signers
            if (identity := verifier.remember((certificate.public_bytes(Encoding.DER),))).may_sign("head")
        }
        return self._own_head_signers | known

    def _check_reinstaters(self, body: Revocation, now: int) -> None:
        operator = self._verifier().bundle.operator
        people = self._directory.reinstaters(operator)

        def is_revoked(name: str) -> bool:
            return self._chain.state.effect(Scope.CREDENTIAL, name, at=now) is not None

        check_reinstaters(body, people, is_revoked=is_revoked)


def draft_of_record(statements: tuple[Statement[Any], ...], signer: Identity) -> Draft:
    """A step that the log kept, as it is written again after a restore."""
    body = statements[0].body
    return Draft(
        statements=statements,
        scope=body.scope,
        names=body.ids,
        revoker=signer.id,
        revoker_organization=signer.organization,
        organization=EVERY if body.scope in EVERYBODY else "",
        alone=False,
    )


def _check_own(statement: Statement[Any], caller: Identity) -> None:
    # Gateway check 2, here as well: the signer is the caller.
    if statement.signer != caller.thumbprint:
        raise _not_own()
    check(statement, caller)
    if not caller.has_role(*REVOKER_ROLES):
        raise refused(
            Reason.ROLE_NOT_PERMITTED, "Revocations are signed by the recall team and administrators."
        )


def _not_own() -> Refused:
    return refused(
        Reason.SIGNER_NOT_CALLER,
        "The statement was signed with another certificate than the one of this call.",
        lifted_by="signing it with the credential of the call",
        who="caller",
    )


def _sees(caller: Identity) -> str:
    return EVERY if caller.operator else caller.organization


def _after(token: str) -> int:
    """The epoch after which a page begins. Raises FIELD_INVALID."""
    text = paging.after_of(token, LIST)
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):  # below 2^63
        raise paging.foreign()
    return int(text)
