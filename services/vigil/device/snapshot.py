"""The device at one moment: as its own checks see it, as it attests itself, as it shows itself."""

from typing import Final

from vigil.core.digest import sha256
from vigil.core.keys import key_thumbprint
from vigil.core.statements.bodies import Evidence, LogHead, Measurements, Therapy
from vigil.device.facts import View
from vigil.device.hardware import Hardware
from vigil.device.messages import Status
from vigil.device.state import DeviceState
from vigil.device.trust import Trust
from vigil.errors import Reason, refused

EAT_PROFILE: Final = "tag:vigil.dev,2026:device-evidence:1"
"""RFC 9711 4.3.2: names this shape of an EAT."""
UEID_RAND: Final = b"\x01"
"""RFC 9711 4.2.1.1, type RAND: followed by 256 bits, the thumbprint of the identity key."""
DEBUG_DISABLED_PERMANENTLY: Final = 3
"""RFC 9711 4.2.9, disabled-permanently."""
OEMID_BYTES: Final = 16
"""RFC 9711 4.2.3.1, a random-based oemid: here the digest's start stands for the manufacturer's organization."""


def view(*, trust: Trust, hardware: Hardware, state: DeviceState, bound_size: int) -> View:
    """What the device's checks judge by. Raises PROFILE_MISMATCH while it has no profile."""
    if trust.profile is None:
        raise refused(
            Reason.PROFILE_MISMATCH,
            "the device has no profile of its model yet",
            lifted_by="its gateway handing it one",
            who="the manufacturer",
        )
    return View(
        device_id=trust.identity.id,
        organization=trust.identity.organization,
        site=trust.identity.sites[0],
        manufacturer=trust.manufacturer,
        now=trust.time.now(),
        operational_until=trust.identity.operational_until,
        profile=trust.profile,
        verifier=trust.verifier,
        revocations=trust.revocations,
        distrusted=trust.distrusted,
        held_epoch=trust.held_epoch,
        boot_count=state.boot_count,
        bound_size=bound_size,
        therapy=hardware.pump.therapy,
        patient=hardware.pump.patient,
        bedside_confirmed=hardware.pump.bedside_confirmed,
        on_mains=hardware.pump.on_mains,
        quarantined=state.quarantined,
        holds=state.holds,
        firmware=hardware.slots.measure(),
        configuration=hardware.configuration.digest,
        library=hardware.configuration.library_digest,
        security_version=hardware.slots.build.security_version,
    )


def claims(
    nonce: bytes, *, hardware: Hardware, state: DeviceState, log: LogHead, now: int, uptime: int
) -> Evidence:
    """The EAT around a challenge's nonce; ``now`` in ms, ``uptime`` in seconds."""
    build, label, running = hardware.slots.build, hardware.label, hardware.slots.measure()
    return Evidence(
        eat_nonce=nonce,
        ueid=UEID_RAND + key_thumbprint(hardware.identity_key.public_key()),
        oemid=sha256(label.manufacturer.encode())[:OEMID_BYTES],
        hwmodel=label.model.encode()[:32],
        oemboot=running == build.digest,
        dbgstat=DEBUG_DISABLED_PERMANENTLY,
        eat_profile=EAT_PROFILE,
        bootcount=state.boot_count,
        swname=f"{label.model} firmware",
        swversion=(build.version,),
        measurements=Measurements(
            firmware=running,
            configuration=hardware.configuration.digest,
            library=hardware.configuration.library_digest,
            sbom=build.sbom,
        ),
        log=log,
        therapy=Therapy(hardware.pump.therapy, hardware.pump.patient, now),
        security_version=build.security_version,
        uptime=uptime,
        quarantined=state.quarantined,
        holds=state.holds,
        applied=state.applied,
    )


def status(*, hardware: Hardware, state: DeviceState, staged: int, epoch: int, now: int) -> Status:
    """What a pump shows of itself, unsigned."""
    return Status(
        therapy_state=str(hardware.pump.therapy),
        patient_state=str(hardware.pump.patient),
        firmware_version=hardware.slots.build.version,
        applied_actions=state.applied,
        staged_commands=staged,
        quarantined=state.quarantined,
        holds=state.holds,
        revocation_epoch=epoch,
        boot_count=state.boot_count,
        device_time=now,
        alert=state.alert,
        readings=hardware.pump.readings().values,
        settings={name: _text(value) for name, value in hardware.configuration.settings.items()},
    )


def _text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
