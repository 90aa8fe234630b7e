"""Appraisal: evidence in, an attestation result out (RFC 9334 Verifier; AR4SI trust vector). Pure.

What is *about the message* (signature, nonce, form, missing leaves) was refused before and changes nothing. What is
*about the device* is said here, in a result that the device's own signature supports:

1. identity: the log only grows, the counter only rises, boots only rise; two diverging logs of one key are a clone.
2. what is measured is what the log says was started or configured last.
3. firmware, its SBOM, version and security version are one published build (no mix-and-match, no rollback).
4. the configuration and the drug library are a valid baseline of the site, or were reached by permits.
5. the debug port is closed and the boot was the manufacturer's.

Whether the build is revoked or vulnerable is not asked here: it is joined at decision time, so that one statement
changes every answer at once (ARCHITECTURE section 4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from vigil.core import cbor
from vigil.core.digest import sha256
from vigil.core.merkle import Frontier, leaf_hash
from vigil.core.statements.bodies import ActionClass, Evidence, Release, TrustTier
from vigil.core.submission import submission_digest
from vigil.errors import Reason, Refused, refused

EAT_PROFILE: Final = "tag:vigil.dev,2026:device-evidence:1"
MAX_LEAVES: Final = 4096
"""Leaves in one submission: a pump that was away for weeks still fits; more come with the next challenge."""
MAX_LEAF_BYTES: Final = 512
NO_LIBRARY: Final = sha256(b"")

# AR4SI trust claims (draft-ietf-rats-ar4si, section 2.3).
OK: Final = 2
APPROVED_BOOT: Final = 3
UNSAFE: Final = 32
CONTRAINDICATED: Final = 96
UNRECOGNIZED_INSTANCE: Final = 97
VERIFIER_MALFUNCTION: Final = -1

CONFIGURING: Final = frozenset({ActionClass.C, ActionClass.D})
UPDATING: Final = frozenset({ActionClass.U})


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One line of a device's measurement log, as far as the verifier reads it."""

    kind: str
    boot: int
    digest: bytes
    permit: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the verifier keeps of one device between appraisals."""

    frontier: Frontier = field(default_factory=Frontier.empty)
    boot_count: int = 0
    counter: int = 0
    security_version: int = 0
    firmware: bytes = b""  # newest firmware leaf
    configuration: bytes = b""  # newest configuration leaf
    library: bytes = b""  # newest library leaf
    configuration_by_permit: bool = False
    library_by_permit: bool = False
    firmware_by_permit: bool = False
    diverged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Reference values (RFC 9334) for one device: builds of its model, baselines of its site valid now."""

    model_known: bool
    releases: Mapping[bytes, Release]
    configurations: frozenset[bytes]
    libraries: frozenset[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """The outcome: the tier, the vector, the reasons, and what to keep."""

    status: TrustTier
    vector: Mapping[str, int]
    reasons: tuple[str, ...]
    known: Known


def read_leaf(data: bytes) -> Leaf:
    """Read one leaf. Raises STATEMENT_MALFORMED."""
    value = cbor.decode(data, max_bytes=MAX_LEAF_BYTES)
    match value:
        case {"kind": str(kind), "boot": int(boot), "digest": bytes(digest), "time": int(time)} if (
            len(digest) == 32 and min(boot, time) >= 0 and bool not in {type(boot), type(time)}
        ):
            permit = value.get("permit")
            if permit is None or (type(permit) is bytes and len(permit) == 32):
                return Leaf(kind=kind, boot=boot, digest=digest, permit=permit)
    raise refused(Reason.STATEMENT_MALFORMED, "a leaf of the measurement log cannot be read")


def check_submission(
    known: Known,
    evidence: Evidence,
    *,
    first_leaf: int,
    leaves: Sequence[bytes],
    permits: Sequence[bytes] = (),
) -> None:
    """What the leaves must be for an appraisal to be possible at all. Raises STATEMENT_MALFORMED.

    What the device signed with its evidence is told from what a gateway made of it: a clone is a clone for good, so
    nobody on the way may make one by altering the leaves, leaving permits out, or telling the device another size.
    """
    if len(leaves) > MAX_LEAVES:
        raise refused(Reason.STATEMENT_MALFORMED, f"one submission carries at most {MAX_LEAVES} leaves")
    if evidence.log.size >= known.frontier.size and first_leaf != known.frontier.size:
        raise refused(
            Reason.STATEMENT_MALFORMED,
            f"the leaves must begin at {known.frontier.size}, where the verifier's copy ends",
            first=known.frontier.size,
        )
    if evidence.submission is not None:
        digest = submission_digest(first_leaf=first_leaf, leaves=leaves, permits=permits)
        if digest != evidence.submission:
            raise refused(
                Reason.STATEMENT_MALFORMED, "leaves or permits are not those that the device signed"
            )
        # A log that is really shorter has nothing after its end; the device began elsewhere as it was told to.
        if first_leaf not in (known.frontier.size, evidence.log.size):
            raise refused(
                Reason.STATEMENT_MALFORMED, "the device was told another size of the verifier's copy"
            )
    if evidence.eat_profile != EAT_PROFILE:
        raise refused(Reason.STATEMENT_MALFORMED, "the evidence follows another EAT profile")


def appraise(
    evidence: Evidence,
    *,
    leaves: Sequence[bytes],
    permits: Mapping[bytes, ActionClass],
    known: Known,
    references: References,
) -> Appraisal:
    """Appraise one device's evidence. ``permits``: verified allows for this device, by statement digest.

    Raises STATEMENT_MALFORMED for leaves that cannot be read; nothing is then kept.
    """
    read = [read_leaf(leaf) for leaf in leaves]
    reasons: list[str] = []
    vector: dict[str, int] = {}
    identity, kept = _identity(evidence, leaves, known)
    reasons += identity
    vector["instance-identity"] = CONTRAINDICATED if identity else OK
    if not identity:
        kept = _walk(kept, read, permits, references)
    for name, (value, why) in {
        "executables": _executables(evidence, kept, known, references),
        "configuration": _configuration(evidence, kept, references),
        "sourced-data": _library(evidence, kept, references),
        "runtime-opaque": _runtime(evidence),
        "hardware": (OK, []) if references.model_known else (UNRECOGNIZED_INSTANCE, ["model_unknown"]),
    }.items():
        vector[name] = value
        reasons += why
    status = tier(vector.values())
    if not identity and status is not TrustTier.CONTRAINDICATED:
        kept = replace(kept, security_version=evidence.security_version)
    if not identity and vector["configuration"] == OK:
        # A device logs its configuration when it changes; the first one is known from what it measured.
        kept = replace(kept, configuration=evidence.measurements.configuration)
    return Appraisal(status=status, vector=vector, reasons=tuple(reasons), known=kept)


def malfunction(known: Known) -> Appraisal:
    """The appraisal itself failed: the device is untrusted until one succeeds (ARCHITECTURE section 4)."""
    vector = {"instance-identity": VERIFIER_MALFUNCTION}
    return Appraisal(status=TrustTier.NONE, vector=vector, reasons=("verifier_malfunction",), known=known)


def tier(claims: "Sequence[int] | Any") -> TrustTier:
    """The worst tier of a vector. 0 claims nothing; -1 and 1 say that nothing can be said (AR4SI 2.3.2)."""
    worst = TrustTier.NONE
    order = [TrustTier.NONE, TrustTier.AFFIRMING, TrustTier.WARNING, TrustTier.CONTRAINDICATED]
    for claim in claims:
        if claim in (-1, 1):
            return TrustTier.NONE
        if claim == 0:
            continue
        if 2 <= claim <= 31 or -32 <= claim <= -2:
            found = TrustTier.AFFIRMING
        elif 32 <= claim <= 95 or -96 <= claim <= -33:
            found = TrustTier.WARNING
        else:
            found = TrustTier.CONTRAINDICATED
        worst = max(worst, found, key=order.index)
    return worst


def _identity(evidence: Evidence, leaves: Sequence[bytes], known: Known) -> tuple[list[str], Known]:
    """Rule 1. The verifier appends the leaves itself and must arrive at the signed root."""
    if known.diverged:
        return ["log_diverged"], known
    log = evidence.log
    if log.size < known.frontier.size:
        return ["log_shortened"], replace(known, diverged=True)
    frontier = known.frontier.extend([leaf_hash(leaf) for leaf in leaves])
    if frontier.size != log.size or frontier.root() != log.root:
        return ["log_diverged"], replace(known, diverged=True)
    if log.counter < known.counter or (leaves and log.counter == known.counter):
        return ["counter_not_risen"], replace(known, diverged=True)
    if evidence.bootcount < known.boot_count:
        return ["boot_count_fell"], replace(known, diverged=True)
    return [], replace(known, frontier=frontier, counter=log.counter, boot_count=evidence.bootcount)


def _walk(
    known: Known, leaves: Sequence[Leaf], permits: Mapping[bytes, ActionClass], references: References
) -> Known:
    """Follow what was started and configured, leaf by leaf, and by which permit."""
    for leaf in leaves:
        by = permits.get(leaf.permit) if leaf.permit is not None else None
        match leaf.kind:
            case "firmware":
                same = leaf.digest == known.firmware
                permitted = known.firmware_by_permit if same else by in UPDATING
                known = replace(known, firmware=leaf.digest, firmware_by_permit=permitted)
            case "configuration":
                same = leaf.digest == known.configuration
                rooted = known.configuration_by_permit or known.configuration in references.configurations
                permitted = known.configuration_by_permit if same else rooted and by in CONFIGURING
                known = replace(known, configuration=leaf.digest, configuration_by_permit=permitted)
            case "library":
                same = leaf.digest == known.library
                permitted = known.library_by_permit if same else by in CONFIGURING
                known = replace(known, library=leaf.digest, library_by_permit=permitted)
    return known


def _executables(
    evidence: Evidence, kept: Known, before: Known, references: References
) -> tuple[int, list[str]]:
    """Rules 2 and 3."""
    measured = evidence.measurements.firmware
    if kept.firmware and measured != kept.firmware:
        return CONTRAINDICATED, ["firmware_not_logged"]
    release = references.releases.get(measured)
    if release is None:
        return CONTRAINDICATED, ["firmware_unrecognized"]
    reasons = []
    if evidence.measurements.sbom != release.sbom:
        reasons.append("sbom_mismatch")
    if evidence.swversion != (release.version,):
        reasons.append("version_mismatch")
    if evidence.security_version != release.security_version:
        reasons.append("security_version_mismatch")
    if release.security_version < before.security_version and not kept.firmware_by_permit:
        reasons.append("firmware_rollback")
    return (CONTRAINDICATED, reasons) if reasons else (APPROVED_BOOT, [])


def _configuration(evidence: Evidence, kept: Known, references: References) -> tuple[int, list[str]]:
    """Rules 2 and 4."""
    measured = evidence.measurements.configuration
    if kept.configuration and measured != kept.configuration:
        return CONTRAINDICATED, ["configuration_not_logged"]
    if measured in references.configurations or (
        kept.configuration_by_permit and kept.configuration == measured
    ):
        return OK, []
    return UNSAFE, ["configuration_unapproved"]


def _library(evidence: Evidence, kept: Known, references: References) -> tuple[int, list[str]]:
    """Rules 2 and 4; a pump without a drug library claims nothing about one."""
    measured = evidence.measurements.library
    if kept.library and measured != kept.library:
        return CONTRAINDICATED, ["library_not_logged"]
    if measured == NO_LIBRARY:
        return 0, []
    if measured in references.libraries or (kept.library_by_permit and kept.library == measured):
        return OK, []
    return UNSAFE, ["library_unapproved"]


def _runtime(evidence: Evidence) -> tuple[int, list[str]]:
    """Rule 5 (RFC 9711 4.2.8 oemboot, 4.2.9 dbgstat: 0 is enabled, 1 disabled)."""
    if evidence.dbgstat == 0:
        return CONTRAINDICATED, ["debug_enabled"]
    if not evidence.oemboot:
        return UNSAFE, ["boot_not_authorized"]
    return OK, []


def encode_known(known: Known) -> bytes:
    """Keep what is known as deterministic CBOR."""
    return cbor.encode(
        [
            known.frontier.to_list(),
            known.boot_count,
            known.counter,
            known.security_version,
            known.firmware,
            known.configuration,
            known.library,
            known.configuration_by_permit,
            known.library_by_permit,
            known.firmware_by_permit,
            known.diverged,
        ]
    )


def decode_known(data: bytes) -> Known:
    """Read what was kept. Raises STORAGE_UNAVAILABLE when it cannot be."""
    try:
        frontier, boots, counter, version, firmware, configuration, library, *flags = cbor.decode(data)
        by_configuration, by_library, by_firmware, diverged = flags
    except (Refused, ValueError, TypeError) as error:
        raise refused(Reason.STORAGE_UNAVAILABLE, "what is known of a device cannot be read") from error
    return Known(
        frontier=Frontier.from_list(frontier),
        boot_count=boots,
        counter=counter,
        security_version=version,
        firmware=firmware,
        configuration=configuration,
        library=library,
        configuration_by_permit=by_configuration,
        library_by_permit=by_library,
        firmware_by_permit=by_firmware,
        diverged=diverged,
    )
