"""Build the wheel twice and compare byte by byte: ``wheel.py FOLDER``. What differs is what nobody should depend on.

The two builds happen in different folders, at different modification times, under another umask, time zone, hash seed
and home. SOURCE_DATE_EPOCH is the beginning of the year in which the format of the archive was fixed, for both.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ("pyproject.toml", "README.md", "LICENSE", "services")
SOURCE_DATE_EPOCH: Final = "1767225600"
"""2026-01-01T00:00:00Z."""


def build(home: Path, *, modified: int, umask: int, zone: str, seed: str) -> Path:
    """Build from a copy of the sources; answers the wheel. Raises CalledProcessError."""
    copy = home / "sources"
    copy.mkdir(parents=True)
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, copy / name)
    for path in copy.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        os.utime(path, (modified, modified))
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH,
        "TZ": zone,
        "PYTHONHASHSEED": seed,
        "HOME": str(home),
    }
    arguments = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run(  # noqa: S603 - our own interpreter, arguments as a list
        [sys.executable, *arguments, "--wheel-dir", str(home / "out"), str(copy)],
        check=True,
        env=environment,
        umask=umask,
    )
    [wheel] = (home / "out").glob("*.whl")
    return wheel


def reproduce(folder: Path) -> Path:
    """Build twice; the wheel in ``folder``. Raises ValueError when they differ."""
    with tempfile.TemporaryDirectory(prefix="vigil-wheel-") as name:
        first = build(Path(name, "one"), modified=1_000_000_000, umask=0o022, zone="UTC", seed="1")
        other = build(
            Path(name, "another", "deeper"),
            modified=1_700_000_000,
            umask=0o077,
            zone="Asia/Kathmandu",
            seed="2",
        )
        if first.name != other.name or first.read_bytes() != other.read_bytes():
            raise ValueError(f"two builds of {first.name} differ")
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(first, folder / first.name))


def main(arguments: list[str]) -> int:
    """Build, compare, say the digest."""
    try:
        wheel = reproduce(Path(arguments[0]))
    except ValueError as error:
        print(f"wheel: {error}", file=sys.stderr)
        return 1
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    print(f"{wheel}: twice the same, SHA-256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
