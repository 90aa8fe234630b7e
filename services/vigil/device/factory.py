"""Where a simulated pump is made: its silicon, its first firmware, its settings, and what its voucher is to say."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vigil.core import udi as gs1
from vigil.core.certificates import sync_directory, write_file
from vigil.core.clock import Clock, Entropy
from vigil.core.digest import sha256
from vigil.core.keys import key_thumbprint
from vigil.core.statements.schema import Scalar
from vigil.device.fuzzy_extractor import enrol
from vigil.device.hardware import CELLS_FILE, DEVICE_FILE, HELPER_FILE, power_on
from vigil.device.puf import SRAM_BYTES, SimulatedSramPuf
from vigil.device.slots import Build


@dataclass(frozen=True, slots=True)
class Manufactured:
    """What the manufacturer signs a voucher over: UDI, model, RFC 9679 thumbprint of the identity key."""

    folder: Path
    udi: str
    model: str
    identity_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBuild:
    """The firmware that a pump leaves the factory with; ``sbom`` is the digest of its SBOM document."""

    image: bytes
    version: str
    security_version: int
    sbom: bytes


def make_pump(
    folder: Path,
    *,
    udi: str,
    model: str,
    manufacturer: str,
    firmware: FirstBuild,
    settings: Mapping[str, Scalar],
    clock: Clock,
    entropy: Entropy,
) -> Manufactured:
    """Make one pump's folder (0700). ``manufacturer`` is the organization whose root signs for it.

    Raises UDI_INVALID, FileExistsError for a folder that is there already.
    """
    canonical = gs1.parse(udi).canonical
    folder.mkdir(mode=0o700, parents=True)
    cells = entropy(SRAM_BYTES)
    write_file(folder / CELLS_FILE, cells, mode=0o600)
    write_file(
        folder / HELPER_FILE, enrol(SimulatedSramPuf(cells, entropy=entropy), entropy=entropy).encode()
    )
    label = {"udi": canonical, "model": model, "manufacturer": manufacturer}
    write_file(folder / DEVICE_FILE, (json.dumps(label, indent=1) + os.linesep).encode())
    hardware = power_on(folder, clock=clock, entropy=entropy)
    try:
        with hardware.store.transaction():
            build = Build(sha256(firmware.image), firmware.version, firmware.security_version, firmware.sbom)
            hardware.slots.manufacture(firmware.image, build)
            hardware.configuration.manufacture(settings)
            hardware.store.put("floor", clock.now())
        sync_directory(folder)
        return Manufactured(folder, canonical, model, key_thumbprint(hardware.identity_key.public_key()))
    finally:
        hardware.power_off()
