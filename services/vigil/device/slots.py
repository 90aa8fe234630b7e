"""Two firmware slots: a build is written to the other one, started, tested, and kept or left again by itself.

The activation is journaled (slot, digest, request) before the restart. After it, what is *measured* decides: the
target whose self-test passed is *applied*, the old build *failed*, anything else *interrupted*.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vigil.core.certificates import sync_directory
from vigil.core.digest import sha256
from vigil.core.statements.bodies import Outcome
from vigil.device.store import DeviceStore
from vigil.errors import Reason, refused

SLOTS: Final = ("a", "b")
MAX_STARTS: Final = 3
"""Starts of a new build, power cuts included, before the old one is taken again."""
_ACTIVE, _PENDING, _EXPECTED = "slots.active", "slots.pending", "slots.expected"


@dataclass(frozen=True, slots=True)
class Build:
    """What is known of a build by its digest, from the manufacturer's release."""

    digest: bytes
    version: str
    security_version: int
    sbom: bytes


@dataclass(frozen=True, slots=True)
class Started:
    """What a start found: the digest now running, and the update that it decided, if one was pending."""

    digest: bytes
    request_id: bytes | None = None
    outcome: Outcome | None = None


class Slots:
    """The flash, ``a.img`` and ``b.img``, and what the journal says about it. Changes inside transactions."""

    def __init__(self, directory: Path, *, store: DeviceStore, self_test: Callable[[bytes], bool]) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = directory
        self._store = store
        self._self_test = self_test
        self._seen: tuple[int, int, int] | None = None
        self._measured = b""
        self._images = {slot: str(image_path(directory, slot)) for slot in SLOTS}
        self._builds: dict[bytes, Build] = {}
        store.on_rollback.append(self._builds.clear)

    @property
    def active(self) -> str:
        """The slot that runs: ``a`` or ``b``."""
        return str(self._store.get(_ACTIVE, SLOTS[0]))

    @property
    def image(self) -> Path:
        """The flash file of the slot that runs."""
        return image_path(self._directory, self.active)

    @property
    def build(self) -> Build:
        """The build that the slot that runs was given; what it really holds is `measure`'s to say."""
        expected = self._store.get(_EXPECTED, {}).get(self.active, b"")
        build = self._builds.get(expected)
        if build is None:
            rows = self._store.execute(
                "SELECT digest, version, security_version, sbom FROM builds WHERE digest = ?", (expected,)
            )
            build = self._builds[expected] = Build(*rows[0])
        return build

    @property
    def pending(self) -> bytes | None:
        """The request whose activation was journaled and not yet decided."""
        pending = self._store.get(_PENDING)
        return None if pending is None else pending[2]

    def manufacture(self, image: bytes, build: Build) -> None:
        """Flash slot ``a`` in the factory."""
        self._write(SLOTS[0], image)
        self._remember(SLOTS[0], build)
        self._store.put(_ACTIVE, SLOTS[0])

    def measure(self) -> bytes:
        """SHA-256 of the image that runs; read again when the flash has changed."""
        # Looked at for every command: by the name as the system takes it.
        found = os.stat(self._images[self.active])  # noqa: PTH116
        seen = (found.st_mtime_ns, found.st_ino, found.st_size)
        if seen != self._seen:
            self._measured = sha256(self.image.read_bytes())
            self._seen = seen
        return self._measured

    def write_other(self, image: bytes, build: Build) -> None:
        """Write a build into the slot that does not run, and read it back. Raises ARTIFACT_CORRUPT."""
        other = self._other()
        self._write(other, image)
        if sha256(image_path(self._directory, other).read_bytes()) != build.digest:
            raise refused(Reason.ARTIFACT_CORRUPT, "the build was not written to the other slot as it came")

    def schedule(self, request_id: bytes, build: Build) -> None:
        """Journal the activation; the next start tries it."""
        other = self._other()
        self._remember(other, build)
        self._store.put(_PENDING, [other, build.digest, request_id, self.active, 0])

    def start(self) -> Started:
        """What the boot loader does. The caller has the verdict receipted and then calls `settle`."""
        pending = self._store.get(_PENDING)
        if pending is None:
            return Started(self.measure())
        slot, target, request_id, old, starts = pending
        with self._store.transaction():
            self._store.put(_PENDING, [slot, target, request_id, old, starts + 1])
            self._store.put(_ACTIVE, slot if starts < MAX_STARTS else old)
        if starts >= MAX_STARTS:
            return self._back(old, request_id, Outcome.FAILED)
        image = self.image.read_bytes()
        if sha256(image) != target:
            return self._back(old, request_id, Outcome.INTERRUPTED)
        if not self._self_test(image):
            return self._back(old, request_id, Outcome.FAILED)
        return Started(self.measure(), request_id, Outcome.APPLIED)

    def settle(self) -> None:
        """The verdict is on record; in the same transaction as its receipt."""
        self._store.put(_PENDING, None)

    def _back(self, old: str, request_id: bytes, outcome: Outcome) -> Started:
        with self._store.transaction():
            self._store.put(_ACTIVE, old)
        return Started(self.measure(), request_id, outcome)

    def _other(self) -> str:
        return SLOTS[1 - SLOTS.index(self.active)]

    def _remember(self, slot: str, build: Build) -> None:
        self._store.execute(
            "INSERT OR REPLACE INTO builds VALUES (?, ?, ?, ?)",
            (build.digest, build.version, build.security_version, build.sbom),
        )
        self._builds.pop(build.digest, None)
        self._store.put(_EXPECTED, {**self._store.get(_EXPECTED, {}), slot: build.digest})

    def _write(self, slot: str, image: bytes) -> None:
        path = image_path(self._directory, slot)
        staged = path.with_suffix(".new")
        with staged.open("wb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
        sync_directory(self._directory)


def image_path(directory: Path, slot: str) -> Path:
    """The flash file of a slot."""
    return directory / f"{slot}.img"


def tamper_firmware(image: Path, data: bytes) -> None:
    """What an attacker with the opened device and a programmer does to its flash; no door of the product leads here."""
    image.write_bytes(data)
