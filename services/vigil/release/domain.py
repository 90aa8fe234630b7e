"""What is published, and what it must hold to. Pure: bytes and verified identities in, values or refusals out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vigil.core import baselines
from vigil.core.certificates import Identity, Kind
from vigil.core.digest import sha256
from vigil.core.profiles import check_profile
from vigil.core.statements.bodies import Baseline, BaselineKind, Profile, Release
from vigil.core.statements.envelope import Statement
from vigil.errors import Reason, Refusal, Refused, refused

BASELINE_ROLE: Final = "baseline-signer"
MAX_STATEMENT_AGE_MS: Final = 86_400_000
"""A baseline is published within a day of being signed: its signer's credential lives for hours."""
MAX_SKEW_MS: Final = 30_000

MODEL_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}", re.ASCII)
VERSION_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,62}", re.ASCII)
"""Neither holds an @, so that ``<model>@<version>`` names one build."""
_SLUG: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """The newest profile of a model. ``profile`` is the statement with its chain, ``digest`` its own."""

    model: str
    version: int
    organization_id: str
    profile: bytes
    digest: bytes
    create_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecord:
    """A firmware build. ``sbom`` and ``sbom_attestation`` are digests of artifacts."""

    firmware: bytes
    model: str
    version: str
    security_version: int
    size: int
    organization_id: str
    statement: bytes
    digest: bytes
    sbom: bytes
    sbom_attestation: bytes
    component_count: int
    create_time: int

    @property
    def name(self) -> str:
        """As people write it."""
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRecord:
    """A configuration or drug library that a site approved; instants in ms."""

    digest: bytes
    content: bytes
    kind: str
    name: str
    site_id: str
    organization_id: str
    models: tuple[str, ...]
    valid_from: int
    valid_to: int
    size: int
    statement: bytes
    create_time: int

    @property
    def place(self) -> str:
        """Where it stands in a list: by site, name, begin."""
        return f"{self.site_id}/{self.name}/{self.valid_from:016d}/{self.digest.hex()}"


def check_subject(statement: Statement[Any], subject: str) -> None:
    """A statement stands in the history of what it is about, and of nothing else's. Raises STATEMENT_MALFORMED."""
    if statement.subject != subject:
        raise refused(
            Reason.STATEMENT_MALFORMED,
            f"the {statement.kind}'s subject must be {subject}",
            lifted_by="signing it with that subject",
            who="its signer",
            field="sub",
        )


def check_published_profile(profile: Profile) -> None:
    """Raises FIELD_INVALID with every fault."""
    refusals = check_profile(profile)
    if MODEL_NAME.fullmatch(profile.model) is None:
        refusals.append(
            Refusal(
                Reason.FIELD_INVALID,
                "a model's name has lowercase letters, digits, dots and hyphens, 63 at most",
                values={"field": "profile.model"},
            )
        )
    if refusals:
        raise Refused(refusals)


def check_newer(statement: Statement[Profile], known: ModelRecord, organization: str) -> None:
    """The version only rises, and a model stays its manufacturer's. Raises NOT_IN_SCOPE, STATE_CONFLICT."""
    if known.organization_id != organization:
        raise refused(Reason.NOT_IN_SCOPE, "another manufacturer's model has this name")
    if statement.body.version <= known.version:
        raise refused(
            Reason.STATE_CONFLICT,
            f"version {known.version} of the profile of {known.model} is published; a profile's version only rises",
            lifted_by=f"a version above {known.version}",
            who="the manufacturer",
            version=known.version,
        )


def check_release(body: Release, *, model: ModelRecord | None, organization: str, size: int | None) -> None:
    """A build fits its model and its uploaded bytes. Raises FIELD_INVALID, RESOURCE_NOT_FOUND, NOT_IN_SCOPE.

    ``size`` is that of the artifact of this digest; None when there is none.
    """
    if VERSION_NAME.fullmatch(body.version) is None:
        raise refused(
            Reason.FIELD_INVALID,
            "a version has letters, digits and any of . + _ - and 63 characters at most",
            lifted_by="such a version",
            who="the manufacturer",
            field="release.version",
        )
    if model is None:
        raise unknown_model(body.model)
    if model.organization_id != organization:
        raise refused(Reason.NOT_IN_SCOPE, "the model is another manufacturer's")
    if size is None:
        raise refused(
            Reason.RESOURCE_NOT_FOUND,
            "the firmware's bytes are not here",
            lifted_by="uploading the artifact first",
            who="the publisher",
            digest=body.firmware.hex(),
        )
    if size != body.size:
        raise refused(
            Reason.FIELD_INVALID,
            f"the release says {body.size} bytes, the artifact has {size}",
            lifted_by="a release signed over the artifact's true size",
            who="the manufacturer",
            field="release.size",
        )


def unknown_model(model: str) -> Refused:
    """Nobody published this model."""
    return refused(
        Reason.RESOURCE_NOT_FOUND,
        f"no model {model} is published",
        lifted_by="publishing the model's profile first",
        who="the manufacturer",
        model=model,
    )


def exists(what: str) -> Refused:
    """Something else has the name or the digest."""
    return refused(
        Reason.RESOURCE_EXISTS,
        f"{what} is published already, by another statement",
        lifted_by="a new version",
        who="the manufacturer",
    )


def check_baseline_signer(signer: Identity, caller: Identity, body: Baseline) -> None:
    """The caller signed it in person, with the role, for its own site. Raises SIGNER_NOT_CALLER and its kin."""
    # Gateway check 2 holds here as well: the signer is the caller.
    if signer.kind is not Kind.PERSON or (signer.id, signer.organization) != (caller.id, caller.organization):
        raise refused(Reason.SIGNER_NOT_CALLER, "a baseline is published by the person who signed it")
    if not signer.has_role(BASELINE_ROLE):
        raise refused(
            Reason.ROLE_NOT_PERMITTED, f"a baseline is signed by somebody with the role {BASELINE_ROLE}"
        )
    if not signer.covers_site(body.organization, body.site):
        raise refused(Reason.NOT_IN_SCOPE, "the site is not in your scope")


def check_baseline(
    body: Baseline, content: bytes, *, profiles: Mapping[str, Profile | None], now: int
) -> None:
    """Digest, form, hard limits, validity. ``profiles`` by model; None for one that nobody published.

    Raises ARTIFACT_CORRUPT, FIELD_INVALID, REQUEST_TOO_LARGE, RESOURCE_NOT_FOUND, PARAMETER_OUT_OF_RANGE.
    """
    if sha256(content) != body.content or len(content) != body.size:
        raise refused(
            Reason.ARTIFACT_CORRUPT,
            "the content is not what was signed: digest or size differ",
            lifted_by="sending the bytes that were signed",
            who="the signer",
        )
    if not body.valid_from < body.valid_to or body.valid_to <= now:
        raise refused(
            Reason.FIELD_INVALID,
            "a baseline is valid from one moment to a later one that has not passed",
            lifted_by="a baseline with another validity",
            who="the signer",
            field="baseline.valid_to",
        )
    if len(set(body.models)) != len(body.models):
        raise refused(Reason.FIELD_INVALID, "a model is named twice", field="baseline.models")
    value = baselines.check_content(body.baseline_kind, content)
    refusals: list[Refusal] = []
    for model, profile in profiles.items():
        if profile is None:
            raise unknown_model(model)
        if body.baseline_kind is BaselineKind.CONFIGURATION:
            refusals += baselines.limit_refusals(value, profile)
    if refusals:
        raise Refused(refusals)


def check_slugs(body: Baseline) -> None:
    """Site and organization are ids. Raises FIELD_INVALID."""
    for field, value in (("site", body.site), ("organization", body.organization)):
        if _SLUG.fullmatch(value) is None:
            raise refused(
                Reason.FIELD_INVALID, f"{value!r} is the id of no {field}", field=f"baseline.{field}"
            )


def check_renewal(record: BaselineRecord, known: Sequence[BaselineRecord], *, now: int) -> None:
    """Approved again, the same bytes stay valid without a gap: readers keep one row for site and content.

    Raises STATE_CONFLICT.
    """
    if record.valid_from > now and any(one.valid_from <= now < one.valid_to for one in known):
        raise refused(
            Reason.STATE_CONFLICT,
            "the site has approved this content already; a renewal is valid at once",
            lifted_by="a baseline that is valid from now on",
            who="the signer",
        )


def check_signed_lately(statement: Statement[Any], *, now: int) -> int:
    """When it was signed, in ms, if that was within a day. Raises FIELD_INVALID."""
    at = statement.issued_at * 1000
    if not now - MAX_STATEMENT_AGE_MS <= at <= now + MAX_SKEW_MS:
        raise refused(
            Reason.FIELD_INVALID,
            "a baseline is published within a day after it was signed",
            lifted_by="signing it again",
            who="the signer",
            field="iat",
        )
    return at
