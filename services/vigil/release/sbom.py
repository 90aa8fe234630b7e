"""CycloneDX SBOMs: the schema's own rules, in time proportional to the document.

The schemas are those that cyclonedx-python-lib brings (1.2 to 1.7). Two things are taken out of the library's
validator, because a stranger's document would choose how long they take: its ``uniqueItems`` compares every pair, and
its check of ``iri-reference`` parses ambiguously. In draft-07 a ``format`` is an annotation; uniqueness is checked here
by content.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from vigil.core import dsse, strict_json
from vigil.core.digest import sha256
from vigil.core.keys import PublicKey
from vigil.errors import Reason, Refused, refused

MAX_SBOM_BYTES: Final = 8 << 20
MAX_COMPONENTS: Final = 50_000
"""A complete Linux distribution has fewer."""
MAX_DEPTH: Final = 48
"""Nested components use two levels each; the validator's own recursion stays far below Python's bound."""

SPEC_VERSIONS: Final = ("1.2", "1.3", "1.4", "1.5", "1.6", "1.7")
"""The versions whose JSON schema the library ships."""


@dataclass(frozen=True, slots=True)
class Sbom:
    """What is kept of an SBOM beside its bytes."""

    digest: bytes
    spec_version: str
    component_count: int


def read_sbom(document: bytes) -> tuple[Sbom, Any]:
    """Validate a CycloneDX JSON document; answers its facts and its parsed value. Raises SBOM_INVALID."""
    try:
        value = strict_json.parse(document, max_bytes=MAX_SBOM_BYTES, max_depth=MAX_DEPTH)
    except ValueError as error:
        raise _invalid(f"the SBOM cannot be read: {error}") from None
    if not isinstance(value, dict) or value.get("bomFormat") != "CycloneDX":
        raise _invalid("the SBOM is not a CycloneDX document in JSON")
    version = value.get("specVersion")
    if not isinstance(version, str) or version not in SPEC_VERSIONS:
        raise _invalid(f"the SBOM's specVersion is none of {', '.join(SPEC_VERSIONS)}")
    count = _count(value.get("components"))
    if count > MAX_COMPONENTS:
        raise _invalid(f"the SBOM names {count} components; {MAX_COMPONENTS} are the most")
    try:
        fault = next(_validator(version).iter_errors(value), None)
    except RecursionError:
        raise _invalid("the SBOM is nested too deeply") from None
    if fault is not None:
        where = "/".join(str(part) for part in fault.absolute_path)[:200] or "its top"
        raise _invalid(
            f"the SBOM breaks the schema of CycloneDX {version} at {where}: {_short(fault.message)}"
        )
    return Sbom(sha256(document), version, count), value


def check_attestation(envelope: bytes, *, key: PublicKey, firmware: bytes, predicate: Any) -> None:
    """The envelope is signed with the release's key and says this SBOM of this firmware.

    Raises SBOM_INVALID, SIGNATURE_INVALID.
    """
    statement = dsse.read_statement(dsse.verify_dsse(envelope, public_key=key))
    if firmware not in {digest for _, digest in statement.subjects}:
        raise _invalid("the SBOM's attestation is about another firmware")
    if statement.predicate_type != dsse.CYCLONEDX:
        raise _invalid(f"the attestation's predicateType is not {dsse.CYCLONEDX}")
    if not strict_json.same(statement.predicate, predicate):
        raise _invalid("the attestation holds another SBOM than the one that came with it")


def other_sbom() -> Refused:
    """The document is not the one that the release names."""
    return _invalid("the SBOM's digest is not the one in the release")


def missing_sbom() -> Refused:
    """Neither sent nor uploaded."""
    return _invalid("the SBOM that the release names was neither sent nor uploaded")


def _count(components: object) -> int:
    """Components, nested ones included."""
    count = 0
    waiting = [components]
    while waiting:
        level = waiting.pop()
        if isinstance(level, list):
            count += len(level)
            waiting.extend(one.get("components") for one in level if isinstance(one, dict))
    return count


@cache
def _validator(version: str) -> Any:
    # Imported with the first SBOM: the libraries take a second, and a service starts without them.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonValidator
    from jsonschema.exceptions import ValidationError  # type: ignore[import-untyped]
    from jsonschema.validators import Draft7Validator, extend  # type: ignore[import-untyped]

    def unique(validator: Any, wanted: object, instance: object, _schema: object) -> Iterator[Any]:
        if wanted is True and validator.is_type(instance, "array") and isinstance(instance, list):
            seen = {json.dumps(item, sort_keys=True) for item in instance}
            if len(seen) != len(instance):
                yield ValidationError("an item stands there twice")

    library = JsonValidator(SchemaVersion.from_version(version))._validator  # noqa: SLF001 - schema and references
    linear = extend(Draft7Validator, {"uniqueItems": unique})
    return linear(library.schema, registry=library._registry)  # noqa: SLF001 - as above


def _short(message: str) -> str:
    return message if len(message) <= 200 else f"{message[:200]}…"


def _invalid(sentence: str) -> Refused:
    return refused(
        Reason.SBOM_INVALID,
        sentence,
        lifted_by="a CycloneDX document in JSON that its schema accepts, attested with the release's key",
        who="the manufacturer",
    )
