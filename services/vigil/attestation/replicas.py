"""What attestation knows of its neighbours: devices from identity, reference values from release. In memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from vigil.api.identity.v1 import identity_pb2
from vigil.api.release.v1 import release_pb2
from vigil.attestation.domain import References
from vigil.core.certificates import ChainVerifier, Identity, Kind
from vigil.core.statements.bodies import Baseline, BaselineKind, Profile, Release
from vigil.core.statements.envelope import Statement, check, read
from vigil.errors import Refused
from vigil.feed import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """One device of the registry."""

    device_id: str
    organization: str
    site: str
    model: str
    state: int
    attestation_chain: tuple[bytes, ...]


class Devices:
    """The registry's devices, by id."""

    def __init__(self) -> None:
        self._devices: dict[str, DeviceFacts] = {}

    def reset(self) -> None:
        """Begin again: a snapshot follows."""
        self._devices = {}

    def changed(self, change: Change) -> None:
        """Take one change of the feed."""
        if change.kind != "device":
            return
        if change.deleted:
            self._devices.pop(change.key, None)
            return
        device = identity_pb2.Device.FromString(change.value)
        self._devices[device.device_id] = DeviceFacts(
            device_id=device.device_id,
            organization=device.organization_id,
            site=device.site_id,
            model=device.model,
            state=device.state,
            attestation_chain=tuple(device.attestation_chain),
        )

    def get(self, device_id: str) -> DeviceFacts | None:
        """A device; None when the registry has none of this id."""
        return self._devices.get(device_id)


@dataclass(slots=True)
class _Row:
    """A statement as it came, and its body and signer where it verifies under one trust bundle."""

    data: bytes
    body: type[Any]
    under: ChainVerifier | None = None
    verified: tuple[Any, Identity] | None = None


@dataclass(slots=True)
class _Index:
    """What of the published statements verifies under one trust bundle."""

    profiles: dict[str, Profile] = field(default_factory=dict)
    releases: dict[str, dict[bytes, Release]] = field(default_factory=dict)  # by model
    baselines: list[Baseline] = field(default_factory=list)


class ReferenceValues:
    """Builds, profiles and baselines as release published them.

    What counts is whose signature is under a statement, never that release sent it: one that does not verify counts
    as absent. A model is its profile's signer's, and builds by anybody else are not that model's.
    """

    def __init__(self, *, verifier: Callable[[], ChainVerifier]) -> None:
        self._verifier = verifier
        self._rows: dict[tuple[str, str], _Row] = {}
        self._known: _Index | None = None
        self._under: ChainVerifier | None = None
        self._log = structlog.get_logger("vigil.attestation.replicas")

    def reset(self) -> None:
        """Begin again: a snapshot follows."""
        self._rows, self._known = {}, None

    def changed(self, change: Change) -> None:
        """Take one change of the feed."""
        name, self._known = (change.kind, change.key), None
        if change.deleted:
            self._rows.pop(name, None)
            return
        match change.kind:
            case "model":
                self._rows[name] = _Row(release_pb2.Model.FromString(change.value).profile, Profile)
            case "release":
                self._rows[name] = _Row(release_pb2.Release.FromString(change.value).statement, Release)
            case "baseline":
                self._rows[name] = _Row(release_pb2.Baseline.FromString(change.value).statement, Baseline)
            case _:
                pass

    def profile(self, model: str) -> Profile | None:
        """The profile in force for a model."""
        return self._index().profiles.get(model)

    def of(self, device: DeviceFacts, *, now: int) -> References:
        """The reference values for one device at this moment."""
        index = self._index()
        valid = [
            baseline
            for baseline in index.baselines
            if baseline.site == device.site
            and baseline.organization == device.organization
            and device.model in baseline.models
            and baseline.valid_from <= now < baseline.valid_to
        ]
        releases: Mapping[bytes, Release] = index.releases.get(device.model, {})
        return References(
            model_known=device.model in index.profiles,
            releases=releases,
            configurations=frozenset(
                one.content for one in valid if one.baseline_kind is BaselineKind.CONFIGURATION
            ),
            libraries=frozenset(
                one.content for one in valid if one.baseline_kind is BaselineKind.DRUG_LIBRARY
            ),
        )

    def _index(self) -> _Index:
        """Read again after a change here or of the trust bundle: a manufacturer may become known later."""
        verifier = self._verifier()
        if self._known is None or self._under is not verifier:
            self._known, self._under = self._read_all(verifier), verifier
        return self._known

    def _read_all(self, verifier: ChainVerifier) -> _Index:
        index = _Index()
        makers: dict[str, str] = {}
        for profile, signer in self._verified("model", verifier):
            index.profiles[profile.model], makers[profile.model] = profile, signer.organization
        for release, signer in self._verified("release", verifier):
            if makers.get(release.model) == signer.organization:
                index.releases.setdefault(release.model, {})[release.firmware] = release
        for baseline, signer in self._verified("baseline", verifier):
            if _may_lay_down(signer, baseline):
                index.baselines.append(baseline)
        return index

    def _verified(self, kind: str, verifier: ChainVerifier) -> Iterator[tuple[Any, Identity]]:
        """The statements of one kind that verify, each tried once under a trust bundle."""
        for (named, _), row in self._rows.items():
            if named != kind:
                continue
            if row.under is not verifier:
                row.under, row.verified = verifier, None
                try:
                    row.verified = _verify(row, verifier)
                except Refused as refusal:
                    self._log.warning(
                        "statement_not_accepted", statement=row.body.__name__, reason=refusal.reason
                    )
            if row.verified is not None:
                yield row.verified


def _verify(row: _Row, verifier: ChainVerifier) -> tuple[Any, Identity]:
    """Judged when it was signed: builds outlive their signers' certificates, baselines their signers'."""
    statement: Statement[Any] = read(row.data, row.body)
    kind = Kind.PERSON if row.body is Baseline else Kind.SIGNER
    signer = verifier.verify(statement.chain, at=statement.issued_at * 1000, kinds=frozenset({kind}))
    check(statement, signer)
    return statement.body, signer


def _may_lay_down(person: Identity, baseline: Baseline) -> bool:
    """A baseline is signed by a baseline signer of its site."""
    return person.has_role("baseline-signer") and person.covers_site(baseline.organization, baseline.site)
