"""One simulated pump's body in one folder, and what comes up when its power comes on.

device.json          what the factory made: UDI, model, manufacturer
puf.cells helper     the simulated SRAM, and the public helper data beside it
secure-element/      counter, TLS key and certificate
flash/               a.img, b.img
artifacts/           what is being fetched
pump.db              log, journal, settings, revocations
trust.json           the roots, once an enrolment station has installed them
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from vigil.core.clock import Clock, Entropy
from vigil.device.artifacts import Artifacts
from vigil.device.configuration import Configuration
from vigil.device.fuzzy_extractor import ATTESTATION_KEY, IDENTITY_KEY, HelperData, reproduce
from vigil.device.puf import TYPICAL_BIT_ERROR_RATE, SimulatedSramPuf
from vigil.device.pump import SimulatedPump, self_test
from vigil.device.secure_element import SimulatedSecureElement
from vigil.device.slots import Slots
from vigil.device.store import DeviceStore

DEVICE_FILE, CELLS_FILE, HELPER_FILE = "device.json", "puf.cells", "helper"
SECURE_ELEMENT, FLASH, ARTIFACTS, STORE_FILE, TRUST_FILE = (
    "secure-element",
    "flash",
    "artifacts",
    "pump.db",
    "trust.json",
)


@dataclass(frozen=True, slots=True)
class Label:
    """What the factory prints on a pump, and builds into it."""

    udi: str
    model: str
    manufacturer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Everything below the agent. The keys are derived from the PUF at each start and live in memory alone."""

    folder: Path
    label: Label
    identity_key: ec.EllipticCurvePrivateKey
    attestation_key: ec.EllipticCurvePrivateKey
    store: DeviceStore
    secure_element: SimulatedSecureElement
    slots: Slots
    artifacts: Artifacts
    configuration: Configuration
    pump: SimulatedPump

    @property
    def trust_file(self) -> Path:
        """The roots that enrolment installed."""
        return self.folder / TRUST_FILE

    @property
    def enrolled(self) -> bool:
        """Whether certificates were installed."""
        return self.trust_file.exists() and self.secure_element.certificate.exists()

    def power_off(self) -> None:
        """Let go of the files; what was not committed is lost, as it is with a battery."""
        self.store.close()


def power_on(
    folder: Path,
    *,
    clock: Clock,
    entropy: Entropy,
    open_store: Callable[[Path], DeviceStore] = DeviceStore,
) -> Hardware:
    """Start a pump from its folder. Raises POSSESSION_NOT_PROVED, STORAGE_UNAVAILABLE, OSError."""
    puf = SimulatedSramPuf.from_file(
        folder / CELLS_FILE, entropy=entropy, bit_error_rate=TYPICAL_BIT_ERROR_RATE
    )
    secret = reproduce(puf, HelperData.decode((folder / HELPER_FILE).read_bytes()))
    store = open_store(folder / STORE_FILE)
    return Hardware(
        folder=folder,
        label=Label(**json.loads((folder / DEVICE_FILE).read_text())),
        identity_key=secret.derive_key(IDENTITY_KEY),
        attestation_key=secret.derive_key(ATTESTATION_KEY),
        store=store,
        secure_element=SimulatedSecureElement(folder / SECURE_ELEMENT),
        slots=Slots(folder / FLASH, store=store, self_test=self_test),
        artifacts=Artifacts(folder / ARTIFACTS),
        configuration=Configuration(store=store),
        pump=SimulatedPump(clock=clock),
    )
