"""What the gateway knows of its site without asking: devices, profiles, builds and baselines.

Two replicas (identity's, release's) keep it current; every row is also kept in the gateway's own database, so that
scope and class S1 work after a restart with no network. A snapshot replaces what is kept only when it is whole.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from vigil.api.identity.v1 import identity_pb2
from vigil.api.release.v1 import release_pb2
from vigil.core.statements.bodies import ActionSpec, Profile
from vigil.core.statements.envelope import read
from vigil.errors import Refused
from vigil.gateway import store
from vigil.storage import Database

IDENTITY, RELEASE = "identity", "release"
KINDS: Final = {
    IDENTITY: ("device", "organization"),
    RELEASE: ("model", "release", "baseline"),
}
"""The kinds that each source is asked for."""
SAVE_INTERVAL_S = 0.2
"""Changes wait this long for others: the database is a copy, memory answers."""


class FeedChange(Protocol):
    """A change as a replica delivers it."""

    @property
    def kind(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def value(self) -> bytes: ...
    @property
    def deleted(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Model:
    """A device model with its profile, read once."""

    message: release_pb2.Model
    profile: Profile
    actions: dict[str, ActionSpec]


@dataclass(slots=True)
class _Tables:
    """Rows by kind and key, decoded, with the indexes that people's words are looked up in."""

    rows: dict[tuple[str, str], bytes] = field(default_factory=dict)
    devices: dict[str, identity_pb2.Device] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    releases: dict[bytes, release_pb2.Release] = field(default_factory=dict)
    baselines: dict[bytes, release_pb2.Baseline] = field(default_factory=dict)

    def put(self, kind: str, key: str, value: bytes) -> None:
        self.drop(kind, key)
        self.rows[kind, key] = value
        match kind:
            case "device":
                device = identity_pb2.Device.FromString(value)
                self.devices[device.device_id] = device
                for name in _names(device):
                    self.names.setdefault(name, set()).add(device.device_id)
            case "model":
                message = release_pb2.Model.FromString(value)
                profile = read(message.profile, Profile).body
                self.models[message.model] = Model(
                    message, profile, {action.name: action for action in profile.actions}
                )
            case "release":
                release = release_pb2.Release.FromString(value)
                self.releases[release.firmware] = release
            case "baseline":
                baseline = release_pb2.Baseline.FromString(value)
                self.baselines[baseline.content] = baseline
            case _:
                pass

    def drop(self, kind: str, key: str) -> None:
        value = self.rows.pop((kind, key), None)
        if value is None:
            return
        match kind:
            case "device":
                device = identity_pb2.Device.FromString(value)
                self.devices.pop(device.device_id, None)
                for name in _names(device):
                    known = self.names.get(name, set())
                    known.discard(device.device_id)
                    if not known:
                        self.names.pop(name, None)
            case "model":
                self.models.pop(release_pb2.Model.FromString(value).model, None)
            case "release":
                self.releases.pop(release_pb2.Release.FromString(value).firmware, None)
            case "baseline":
                self.baselines.pop(release_pb2.Baseline.FromString(value).content, None)
            case _:
                pass


def _names(device: identity_pb2.Device) -> set[str]:
    return {name for name in (device.udi, device.serial, device.asset_tag) if name}


class Source:
    """One source's rows: what is in force, and the snapshot that is still coming in."""

    def __init__(self, *, name: str, database: Database, on_row: Callable[[str, str, bytes], None]) -> None:
        self.name = name
        self._database = database
        self._on_row = on_row
        self.tables = _Tables()
        self._staging: _Tables | None = None
        self._dirty: dict[tuple[str, str], bytes | None] = {}
        self._whole = False
        self._wake = asyncio.Event()

    def restore(self) -> None:
        """Take what the database kept. Call once, before anything else."""
        for kind, key, value in self._database.read_now(lambda conn: store.load_directory(conn, self.name)):
            try:
                self.tables.put(kind, key, value)
            except Refused:
                # Kept by another version that read it otherwise: the next snapshot brings it again.
                continue

    def on_reset(self) -> None:
        """A snapshot begins: it is laid beside what is in force."""
        self._staging = _Tables()

    def on_change(self, change: FeedChange) -> None:
        """One change, of the snapshot or after it."""
        target = self.tables if self._staging is None else self._staging
        if change.deleted:
            target.drop(change.kind, change.key)
        else:
            target.put(change.kind, change.key, change.value)
            self._on_row(change.kind, change.key, change.value)
        if self._staging is None:
            self._dirty[change.kind, change.key] = None if change.deleted else change.value
            self._wake.set()

    def complete(self) -> None:
        """The snapshot is whole: it replaces what was in force."""
        if self._staging is None:
            return
        self.tables, self._staging = self._staging, None
        self._dirty.clear()
        self._whole = True
        self._wake.set()

    async def save(self) -> None:
        """Write what changed, or the whole snapshot, to the database. Raises STORAGE_UNAVAILABLE."""
        if self._whole:
            rows = [(kind, key, value) for (kind, key), value in self.tables.rows.items()]
            self._whole = False
            self._dirty.clear()
            try:
                await self._database.write(lambda conn: store.replace_directory(conn, self.name, rows))
            except Refused:
                self._whole = True
                raise
            return
        dirty, self._dirty = self._dirty, {}
        changes = [(kind, key, value) for (kind, key), value in dirty.items()]
        try:
            await self._database.write(lambda conn: store.change_directory(conn, self.name, changes))
        except Refused:
            self._dirty = {**dirty, **self._dirty}
            raise

    def touch(self) -> None:
        """Have the saver look again."""
        self._wake.set()

    async def changed(self) -> None:
        """Wait until there is something to save."""
        await self._wake.wait()
        self._wake.clear()


class Directory:
    """Look-ups over both sources."""

    def __init__(
        self, *, database: Database, site_id: str, on_manufacturer: Callable[[str, str], None]
    ) -> None:
        self._site_id = site_id
        self._on_manufacturer = on_manufacturer
        self.identity = Source(name=IDENTITY, database=database, on_row=self._row)
        self.release = Source(name=RELEASE, database=database, on_row=lambda _kind, _key, _value: None)

    def restore(self) -> None:
        """Take what the database kept."""
        self.identity.restore()
        self.release.restore()

    @property
    def sources(self) -> tuple[Source, Source]:
        return (self.identity, self.release)

    def device(self, name: str) -> identity_pb2.Device | None:
        """A device of this site by id, UDI, serial or asset tag; None when there is none, or several."""
        tables = self.identity.tables
        device = tables.devices.get(name)
        if device is None:
            known = tables.names.get(name, set())
            device = tables.devices[next(iter(known))] if len(known) == 1 else None
        if device is None or device.site_id != self._site_id:
            return None
        return device

    def devices(self) -> list[identity_pb2.Device]:
        """Every device of this site, by id."""
        found = self.identity.tables.devices
        return [found[key] for key in sorted(found) if found[key].site_id == self._site_id]

    def model(self, model: str) -> Model | None:
        """A model with its newest profile."""
        return self.release.tables.models.get(model)

    def artifact_size(self, digest: bytes) -> int | None:
        """The size of a published build, configuration or library; None for anything else."""
        release = self.release.tables.releases.get(digest)
        if release is not None:
            return release.size
        baseline = self.release.tables.baselines.get(digest)
        return None if baseline is None else baseline.size

    def installation(self, digest: bytes) -> bytes:
        """The signed release or baseline behind a digest; empty when there is none."""
        release = self.release.tables.releases.get(digest)
        if release is not None:
            return release.statement
        baseline = self.release.tables.baselines.get(digest)
        return b"" if baseline is None else baseline.statement

    def _row(self, kind: str, key: str, value: bytes) -> None:
        if kind == "organization":
            organization = identity_pb2.Organization.FromString(value)
            if organization.manufacturer_root_pem:
                self._on_manufacturer(key, organization.manufacturer_root_pem)
