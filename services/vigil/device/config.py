"""What a device process is told. Validated before anything starts."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vigil.device.link import Gateway
from vigil.errors import Reason, Refused, refused


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """One pump's folder or a folder of many; relative paths are relative to the working folder.

    ``data``: the folder of one pump. ``fleet``: a folder whose subfolders are pumps. ``gateway``: host:port that they
    dial, ``gateway_id``: who must answer there; a pump's own ``link.json`` stands before both. ``control``: the local
    socket; ``control.sock`` in the folder by default. ``set_clock``: the program that sets the machine's clock when it
    stands below the pump's floor, given ``@SECONDS`` besides (``["date", "--set"]``); for a pump with its own machine.
    """

    data: Path | None = None
    fleet: Path | None = None
    gateway: str = ""
    gateway_id: str = ""
    control: Path | None = None
    set_clock: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.data is None) == (self.fleet is None):
            raise _wrong("either one pump's folder (data) or a folder of pumps (fleet) is named")
        if bool(self.gateway) != bool(self.gateway_id):
            raise _wrong("a gateway is named by its address and by its id")
        if self.gateway and not self.gateway.rpartition(":")[2].isdecimal():
            raise _wrong("a gateway's address is host:port")

    @property
    def folder(self) -> Path:
        """The folder that was named."""
        folder = self.data or self.fleet
        if folder is None:
            raise _wrong("no folder is named")
        return folder

    @property
    def dialled(self) -> Gateway | None:
        """The gateway that pumps without a ``link.json`` dial."""
        return Gateway(self.gateway, self.gateway_id) if self.gateway else None

    @property
    def control_socket(self) -> Path:
        """Where the control socket is."""
        return self.control or self.folder / "control.sock"

    def pumps(self) -> list[Path]:
        """The folders that may be pumps, in order."""
        if self.data is not None:
            return [self.data]
        return sorted(path for path in self.folder.iterdir() if path.is_dir())


def read_config(path: Path | None, **overrides: Any) -> DeviceConfig:
    """A TOML file's values, and before them what was given by hand. Raises FIELD_INVALID."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _wrong(f"{path} cannot be read: {error}") from error
    values.update({name: value for name, value in overrides.items() if value is not None})
    for name in ("data", "fleet", "control"):
        if name in values:
            values[name] = Path(values[name])
    if "set_clock" in values:
        values["set_clock"] = tuple(str(word) for word in values["set_clock"])
    try:
        return DeviceConfig(**values)
    except TypeError as error:
        raise _wrong(f"an unknown setting: {error}") from error


def _wrong(sentence: str) -> Refused:
    return refused(Reason.FIELD_INVALID, f"the device's configuration cannot be used: {sentence}")
