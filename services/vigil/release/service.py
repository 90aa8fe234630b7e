"""The use cases: publish and read models, builds and baselines. Ports are passed in.

Everything published is written with its row in the feed and its statement in the spool to evidence, in one transaction:
whoever hears of it can prove who signed it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import ColumnElement, Connection

from vigil.core.certificates import EVERY, ChainVerifier, Identity, Kind
from vigil.core.clock import Clock
from vigil.core.digest import parse_hex_digest
from vigil.core.statements.bodies import Baseline, Profile, Release
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Reason, Refused, refused
from vigil.feed import Outbox
from vigil.release import convert, domain, sbom, store
from vigil.release.artifacts import ArtifactStore
from vigil.release.domain import BaselineRecord, BuildRecord, ModelRecord
from vigil.rpc.caller import require_organization, require_site
from vigil.rpc.paging import after_of, page_size, token_after
from vigil.storage import Database

DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 100
"""A page fits into one message of 4 MiB, statements and all."""
MAX_MODELS_A_PAGE: Final = 40
"""A profile statement has at most 64 KiB: forty fit into a message."""
_SIGNER: Final = frozenset({Kind.SIGNER})
_PERSON: Final = frozenset({Kind.PERSON})


class Spool(Protocol):
    """Takes statements for the log, in the transaction of the facts (`vigil.feed.evidence.EvidenceSpool`)."""

    def put(
        self,
        connection: Connection,
        statement: bytes,
        *,
        subjects: Sequence[str] = (),
        bodies: Sequence[bytes] = (),
        organization_id: str = "",
        site_id: str = "",
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Everything outside that the use cases touch. ``revoked`` says why a signer counts no more, or None."""

    database: Database
    outbox: Outbox
    spool: Spool
    artifacts: ArtifactStore
    verifier: Callable[[], ChainVerifier]
    revoked: Callable[[Identity], Reason | None]
    clock: Clock


class ReleaseService:
    """Models, builds and baselines."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._database = ports.database
        self._artifacts = ports.artifacts
        # SBOMs are validated one at a time: each may take a core for seconds.
        self._validating = asyncio.Semaphore(1)

    # --- models

    async def publish_model(self, caller: Identity, data: bytes) -> ModelRecord:
        """Publish a profile. The same statement again answers the same model."""
        statement = read(data, Profile)
        signer = self._manufacturer(statement, caller)
        body = statement.body
        domain.check_subject(statement, f"model/{body.model}")
        domain.check_published_profile(body)
        record = ModelRecord(
            model=body.model,
            version=body.version,
            organization_id=signer.organization,
            profile=data,
            digest=statement.digest,
            create_time=self._ports.clock.now(),
        )

        def write(connection: Connection) -> ModelRecord:
            known = store.find(connection, ModelRecord, store.MODEL.c.model == body.model)
            if known:
                if known[0].digest == statement.digest:
                    return known[0]
                domain.check_newer(statement, known[0], signer.organization)
            self._publish(connection, record, statement)
            return record

        return await self._database.write(write)

    async def get_model(self, model: str) -> ModelRecord:
        """The newest profile of a model. Raises RESOURCE_NOT_FOUND."""
        found = await self._model(model)
        if found is None:
            raise domain.unknown_model(model)
        return found

    async def list_models(self, *, size: int, token: str) -> tuple[list[ModelRecord], str]:
        """A page of models by name."""
        return await self._page(ModelRecord, (), min(_rows(size), MAX_MODELS_A_PAGE), token, "models")

    # --- builds

    async def publish_release(
        self, caller: Identity, data: bytes, *, attestation: bytes, document: bytes
    ) -> BuildRecord:
        """Publish a build whose artifact was uploaded. An empty ``document`` was uploaded as well.

        The same statement again answers the same build.
        """
        statement = read(data, Release)
        signer = self._manufacturer(statement, caller)
        body = statement.body
        domain.check_subject(statement, f"build/{body.firmware.hex()}")
        known = await self._database.read(lambda connection: _same_build(connection, statement))
        if known is not None:
            return known
        size = await asyncio.to_thread(self._artifacts.size, body.firmware)
        domain.check_release(
            body, model=await self._model(body.model), organization=signer.organization, size=size
        )
        async with self._validating:
            facts = await asyncio.to_thread(self._keep_sbom, body, signer, attestation, document)
        record = BuildRecord(
            firmware=body.firmware,
            model=body.model,
            version=body.version,
            security_version=body.security_version,
            size=body.size,
            organization_id=signer.organization,
            statement=data,
            digest=statement.digest,
            sbom=facts.digest,
            sbom_attestation=await asyncio.to_thread(self._artifacts.put, attestation),
            component_count=facts.component_count,
            create_time=self._ports.clock.now(),
        )

        def write(connection: Connection) -> BuildRecord:
            again = _same_build(connection, statement)
            if again is not None:
                return again
            self._publish(connection, record, statement, also=(f"model/{body.model}",))
            return record

        return await self._database.write(write)

    async def get_release(self, name: str) -> BuildRecord:
        """A build by firmware digest in hex, or ``<model>@<version>``. Raises RESOURCE_NOT_FOUND, FIELD_INVALID."""
        condition = (
            store.BUILD.c.place == name if "@" in name else store.BUILD.c.firmware == parse_hex_digest(name)
        )
        found = await self._database.read(lambda connection: store.find(connection, BuildRecord, condition))
        if not found:
            raise refused(
                Reason.RESOURCE_NOT_FOUND,
                "no such build is published",
                lifted_by="publishing it, or another name: a firmware digest or <model>@<version>",
                who="the manufacturer",
            )
        return found[0]

    async def list_releases(self, *, model: str, size: int, token: str) -> tuple[list[BuildRecord], str]:
        """A page of builds by model and version."""
        conditions = (store.BUILD.c.model == model,) if model else ()
        return await self._page(BuildRecord, conditions, _rows(size), token, "releases", model)

    # --- baselines

    async def publish_baseline(self, caller: Identity, data: bytes, content: bytes) -> BaselineRecord:
        """Publish what a person of the site signed. The same statement again answers the same baseline."""
        statement = read(data, Baseline)
        body = statement.body
        domain.check_slugs(body)
        require_site(caller, body.organization, body.site)
        now = self._ports.clock.now()
        at = domain.check_signed_lately(statement, now=now)
        # Devices judge the signer at the moment of signing, for as long as the baseline is valid: so do we.
        signer = self._signer(statement, at=at, kinds=_PERSON)
        domain.check_baseline_signer(signer, caller, body)
        domain.check_subject(statement, f"site/{body.site}")
        profiles = {model: await self._profile(model) for model in body.models}
        domain.check_baseline(body, content, profiles=profiles, now=now)
        await asyncio.to_thread(self._artifacts.put, content)
        record = BaselineRecord(
            digest=statement.digest,
            content=body.content,
            kind=str(body.baseline_kind),
            name=body.name,
            site_id=body.site,
            organization_id=body.organization,
            models=body.models,
            valid_from=body.valid_from,
            valid_to=body.valid_to,
            size=body.size,
            statement=data,
            create_time=now,
        )

        def write(connection: Connection) -> BaselineRecord:
            table = store.BASELINE.c
            known = store.find(
                connection, BaselineRecord, table.content == body.content, table.site_id == body.site
            )
            for one in known:
                if one.digest == statement.digest:
                    return one
            domain.check_renewal(record, known, now=now)
            self._publish(connection, record, statement)
            return record

        return await self._database.write(write)

    async def list_baselines(
        self, caller: Identity, *, site: str, size: int, token: str
    ) -> tuple[list[BaselineRecord], str]:
        """A page of the baselines of the caller's sites."""
        table = store.BASELINE.c
        conditions: list[ColumnElement[bool]] = []
        if not caller.operator:
            conditions.append(table.organization_id == caller.organization)
        if EVERY not in caller.sites:
            conditions.append(table.site_id.in_(caller.sites))
        if site:
            conditions.append(table.site_id == site)
        return await self._page(BaselineRecord, conditions, _rows(size), token, "baselines", site)

    async def may_fetch(self, caller: Identity, digest: bytes) -> bool:
        """A gateway gets what is published, and of baselines only its own site's; people anything by digest."""
        if caller.kind is Kind.PERSON:
            return True

        def look(connection: Connection) -> bool:
            sites = store.find(connection, BaselineRecord, store.BASELINE.c.content == digest)
            if any(caller.covers_site(one.organization_id, one.site_id) for one in sites):
                return True
            return bool(store.find(connection, BuildRecord, store.BUILD.c.firmware == digest))

        return await self._database.read(look)

    # --- what they share

    def _manufacturer(self, statement: Statement[Any], caller: Identity) -> Identity:
        """The manufacturer's signer behind a statement; the caller must belong to it. Raises its refusals."""
        signer = self._signer(statement, at=self._ports.clock.now(), kinds=_SIGNER)
        require_organization(caller, signer.organization)
        return signer

    def _signer(self, statement: Statement[Any], *, at: int, kinds: frozenset[Kind]) -> Identity:
        signer = self._ports.verifier().verify(statement.chain, at=at, kinds=kinds)
        check(statement, signer)
        reason = self._ports.revoked(signer)
        if reason is not None:
            raise refused(
                reason,
                f"the signer of this {statement.kind} is revoked",
                lifted_by="signing it with a key that is not",
                who="its signer",
            )
        return signer

    def _keep_sbom(self, body: Release, signer: Identity, attestation: bytes, document: bytes) -> sbom.Sbom:
        """Check SBOM and attestation, keep the document. In a thread. Raises SBOM_INVALID, SIGNATURE_INVALID."""
        if not document:
            size = self._artifacts.size(body.sbom)
            if size is None:
                raise sbom.missing_sbom()
            document = self._artifacts.read(body.sbom, length=sbom.MAX_SBOM_BYTES + 1)
        facts, value = sbom.read_sbom(document)
        if facts.digest != body.sbom:
            raise sbom.other_sbom()
        sbom.check_attestation(attestation, key=signer.public_key, firmware=body.firmware, predicate=value)
        self._artifacts.put(document)
        return facts

    async def _model(self, model: str) -> ModelRecord | None:
        found = await self._database.read(
            lambda connection: store.find(connection, ModelRecord, store.MODEL.c.model == model)
        )
        return found[0] if found else None

    async def _profile(self, model: str) -> Profile | None:
        found = await self._model(model)
        return None if found is None else read(found.profile, Profile).body

    async def _page(
        self,
        kind: type[store.R],
        conditions: Sequence[ColumnElement[bool]],
        size: int,
        token: str,
        *asked: str,
    ) -> tuple[list[store.R], str]:
        after = after_of(token, *asked)
        rows, place = await self._database.read(
            lambda connection: store.page(connection, kind, *conditions, after=after, size=size)
        )
        return rows, token_after(place, *asked)

    def _publish(
        self,
        connection: Connection,
        record: store.Record,
        statement: Statement[Any],
        *,
        also: tuple[str, ...] = (),
    ) -> None:
        """Row, feed and evidence, in one transaction."""
        store.put(connection, record)
        message: Any
        match record:
            case ModelRecord():
                message, kind, key, site = convert.model_to(record), "model", record.model, ""
            case BuildRecord():
                message, kind, key, site = convert.build_to(record), "release", record.firmware.hex(), ""
            case BaselineRecord():
                # Two sites may approve the same bytes: each has its own row.
                key = f"{record.content.hex()}@{record.site_id}"
                message, kind, site = convert.baseline_to(record), "baseline", record.site_id
        self._ports.outbox.put(connection, kind, key, message.SerializeToString(deterministic=True), site)
        self._ports.spool.put(
            connection,
            statement.data,
            subjects=(statement.subject, *also),
            organization_id=record.organization_id,
            site_id=site,
        )


def _same_build(connection: Connection, statement: Statement[Release]) -> BuildRecord | None:
    """The build of this very statement. Raises RESOURCE_EXISTS when its name or firmware is another's."""
    body = statement.body
    found = store.find(
        connection,
        BuildRecord,
        (store.BUILD.c.place == f"{body.model}@{body.version}") | (store.BUILD.c.firmware == body.firmware),
    )
    for one in found:
        if one.digest == statement.digest:
            return one
    if found:
        what = (
            f"{body.model} {body.version}"
            if found[0].name == f"{body.model}@{body.version}"
            else f"this firmware (as {found[0].name})"
        )
        raise domain.exists(what)
    return None


def _rows(asked: int) -> int:
    return page_size(asked, default=DEFAULT_PAGE, most=MAX_PAGE)


def not_found(digest: bytes) -> Refused:
    """No such artifact for this caller, whether it exists or not."""
    return refused(
        Reason.RESOURCE_NOT_FOUND, "no such artifact is here", lifted_by="uploading it", digest=digest.hex()
    )
