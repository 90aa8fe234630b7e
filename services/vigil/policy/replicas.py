"""What policy knows without asking: replicas of identity, release and attestation, in memory.

50,000 devices are slotted rows and the bytes of their results. A statement is read and its signature verified when a
decision first needs it, and again when the trust bundle changes; one that does not verify counts as absent.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from vigil.api.attestation.v1 import attestation_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.api.release.v1 import release_pb2
from vigil.core.certificates import ChainVerifier, Kind
from vigil.core.statements.bodies import Baseline, Profile, Release, Result
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Reason, Refused, refused
from vigil.feed import Change
from vigil.policy.case import Device, Installable, Verified

KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "identity": ("device",),
    "release": ("model", "release", "baseline"),
    "attestation": ("result",),
}
"""The kinds that each owner is asked for."""

_STATE_OF: Final[Mapping[int, str]] = {
    identity_pb2.DEVICE_STATE_PENDING: "pending",
    identity_pb2.DEVICE_STATE_ACTIVE: "active",
    identity_pb2.DEVICE_STATE_QUARANTINED: "quarantined",
    identity_pb2.DEVICE_STATE_BANNED: "banned",
    identity_pb2.DEVICE_STATE_STORED: "stored",
    identity_pb2.DEVICE_STATE_RETIRED: "retired",
}

B = TypeVar("B")


@dataclass(slots=True)
class _Row:
    """A statement as it came, and what was made of it. ``organization``: who must have signed, "" for any."""

    data: bytes
    body: type[Any]
    kind: Kind
    organization: str = ""
    published: int | None = None  # ms
    verifier: ChainVerifier | None = None
    verified: Verified[Any] | None = None


class Devices:
    """The registry's devices by id."""

    def __init__(self) -> None:
        self._rows: dict[str, Device] = {}

    def reset(self) -> None:
        """Begin again: a snapshot follows."""
        self._rows = {}

    def changed(self, change: Change) -> None:
        """Take one change of the feed."""
        if change.deleted:
            self._rows.pop(change.key, None)
            return
        device = identity_pb2.Device.FromString(change.value)
        self._rows[device.device_id] = Device(
            organization=sys.intern(device.organization_id),
            site=sys.intern(device.site_id),
            model=sys.intern(device.model),
            # A state that this version does not know is none in which anything is allowed.
            state=_STATE_OF.get(device.state, "retired"),
            holds=device.holds,
        )

    def get(self, device_id: str) -> Device | None:
        """A device; None when the registry has none of this id."""
        return self._rows.get(device_id)

    def __len__(self) -> int:
        return len(self._rows)


class Published:
    """Profiles, builds and baselines."""

    def __init__(self, *, verifier: Callable[[], ChainVerifier]) -> None:
        self._verifier = verifier
        self._rows: dict[tuple[str, str], _Row] = {}

    def reset(self) -> None:
        """Begin again: a snapshot follows."""
        self._rows = {}

    def changed(self, change: Change) -> None:
        """Take one change of the feed."""
        if change.deleted:
            self._rows.pop((change.kind, change.key), None)
            return
        match change.kind:
            case "model":
                model = release_pb2.Model.FromString(change.value)
                row = _Row(model.profile, Profile, Kind.SIGNER, model.organization_id)
            case "release":
                release = release_pb2.Release.FromString(change.value)
                row = _Row(release.statement, Release, Kind.SIGNER, release.organization_id)
            case "baseline":
                baseline = release_pb2.Baseline.FromString(change.value)
                created = baseline.create_time_ms
                row = _Row(baseline.statement, Baseline, Kind.PERSON, published=created)
            case _:
                return
        self._rows[change.kind, change.key] = row

    def profile(self, model: str) -> Verified[Profile] | None:
        """The profile in force for a model."""
        row = self._rows.get(("model", model))
        return None if row is None else _verified(row, self._verifier())

    def installable(self, digest: bytes) -> Installable | None:
        """The build or baseline of this content."""
        row = self._rows.get(("release", digest.hex())) or self._rows.get(("baseline", digest.hex()))
        return None if row is None else _verified(row, self._verifier())


class Results:
    """The newest attestation result of each device."""

    def __init__(self, *, verifier: Callable[[], ChainVerifier]) -> None:
        self._verifier = verifier
        self._rows: dict[str, _Row] = {}

    def reset(self) -> None:
        """Begin again: a snapshot follows."""
        self._rows = {}

    def changed(self, change: Change) -> None:
        """Take one change of the feed."""
        if change.deleted:
            self._rows.pop(change.key, None)
            return
        trust = attestation_pb2.DeviceTrust.FromString(change.value)
        self._rows[trust.device_id] = _Row(trust.result, Result, Kind.SIGNER)

    def get(self, device_id: str) -> Verified[Result] | None:
        """A device's result; None when there is none that verifies, or it is about another device."""
        row = self._rows.get(device_id)
        found: Verified[Result] | None = None if row is None else _verified(row, self._verifier())
        return found if found is not None and found.statement.body.device == device_id else None


def _verified(row: _Row, verifier: ChainVerifier) -> Verified[Any] | None:
    """What a row says, with its signer, judged when it was signed: builds outlive their signers' certificates."""
    if row.verifier is not verifier:
        row.verifier = verifier
        row.verified = None
        try:
            row.verified = _verify(row, verifier)
        except Refused as refusal:
            structlog.get_logger("vigil.policy.replicas").warning(
                "statement_not_accepted", statement=row.body.__name__, reason=refusal.reason
            )
    return row.verified


def _verify(row: _Row, verifier: ChainVerifier) -> Verified[Any]:
    statement: Statement[Any] = read(row.data, row.body)
    signer = verifier.verify(statement.chain, at=statement.issued_at * 1000, kinds=frozenset({row.kind}))
    check(statement, signer)
    if row.organization and signer.organization != row.organization:
        raise refused(Reason.SIGNATURE_INVALID, "another organization signed this")
    if row.kind is Kind.PERSON and not (
        signer.has_role("baseline-signer")
        and signer.covers_site(statement.body.organization, statement.body.site)
    ):
        raise refused(Reason.ROLE_NOT_PERMITTED, "a baseline is signed by a baseline signer of its site")
    return Verified(statement, signer, row.published)
