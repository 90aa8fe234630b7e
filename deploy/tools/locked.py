"""What a lock file pins: for the audit and the SBOM."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
RUNTIME: Final = ROOT / "requirements.lock"
DEVELOPMENT: Final = ROOT / "requirements-dev.lock"

_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?:\s*;\s*(?P<marker>[^\\]+?))?\s*\\?")
_HASH = re.compile(r"\s+--hash=sha256:(?P<hash>[0-9a-f]{64})\s*\\?")


@dataclass(frozen=True, slots=True)
class Locked:
    """One package; ``hashes`` are SHA-256, in hex, of each of its files that may be installed."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def normal(name: str) -> str:
    """A name as PyPI compares them (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(path: Path) -> list[Locked]:
    """Every package of a lock file, by name. Raises ValueError for a line that pins nothing, or without a hash."""
    found: list[Locked] = []
    hashes: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        pin, digest = _PIN.fullmatch(line), _HASH.fullmatch(line)
        if pin is not None:
            _close(found, hashes)
            found.append(Locked(normal(pin["name"]), pin["version"], pin["marker"] or "", ()))
        elif digest is not None and found:
            hashes.append(digest["hash"])
        elif line.strip() and not line.startswith("#"):
            raise ValueError(f"{path.name}: this line pins nothing: {line}")
    _close(found, hashes)
    return sorted(found, key=lambda one: one.name)


def _close(found: list[Locked], hashes: list[str]) -> None:
    if not found:
        return
    last = found[-1]
    if not hashes:
        raise ValueError(f"{last.name} is pinned without a hash")
    found[-1] = Locked(last.name, last.version, last.marker, tuple(sorted(hashes)))
    hashes.clear()
