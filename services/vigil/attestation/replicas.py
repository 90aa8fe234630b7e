"""What attestation knows of its neighbours: devices from identity, reference values from release. In memory."""

from collections.abc import Mapping
from dataclasses import dataclass

from vigil.api.identity.v1 import identity_pb2
from vigil.api.release.v1 import release_pb2
from vigil.attestation.domain import References
from vigil.core.statements.bodies import Baseline, BaselineKind, Profile, Release
from vigil.core.statements.envelope import read
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


class ReferenceValues:
    """Builds, profiles and baselines as release published them, after checking each statement."""

    def __init__(self) -> None:
        self._profiles: dict[str, Profile] = {}
        self._releases: dict[str, dict[bytes, Release]] = {}
        self._baselines: dict[str, Baseline] = {}

    def reset(self) -> None:
        """Begin again: a snapshot follows."""
        self._profiles, self._releases, self._baselines = {}, {}, {}

    def changed(self, change: Change) -> None:
        """Take one change of the feed."""
        if change.kind == "baseline":
            self._baselines.pop(change.key, None)
        if change.deleted:
            return
        match change.kind:
            case "model":
                model = release_pb2.Model.FromString(change.value)
                self._profiles[model.model] = read(model.profile, Profile).body
            case "release":
                release = release_pb2.Release.FromString(change.value)
                body = read(release.statement, Release).body
                self._releases.setdefault(body.model, {})[body.firmware] = body
            case "baseline":
                baseline = release_pb2.Baseline.FromString(change.value)
                self._baselines[change.key] = read(baseline.statement, Baseline).body
            case _:
                pass

    def profile(self, model: str) -> Profile | None:
        """The profile in force for a model."""
        return self._profiles.get(model)

    def of(self, device: DeviceFacts, *, now: int) -> References:
        """The reference values for one device at this moment."""
        valid = [
            baseline
            for baseline in self._baselines.values()
            if baseline.site == device.site
            and baseline.organization == device.organization
            and device.model in baseline.models
            and baseline.valid_from <= now < baseline.valid_to
        ]
        releases: Mapping[bytes, Release] = self._releases.get(device.model, {})
        return References(
            model_known=device.model in self._profiles,
            releases=releases,
            configurations=frozenset(
                one.content for one in valid if one.baseline_kind is BaselineKind.CONFIGURATION
            ),
            libraries=frozenset(
                one.content for one in valid if one.baseline_kind is BaselineKind.DRUG_LIBRARY
            ),
        )
