"""Hold what the lock files pin against known advisories, and say which database answered, and of when.

``audit.py`` asks PyPI's advisories through pip-audit. ``audit.py --osv PATH`` reads an export of OSV instead, for where
there is no network: a folder or a zip of records in the OSV format, such as the export of the ecosystem PyPI that
osv.dev offers, or a checkout of the PyPA's advisory database converted to JSON. Ends with 0 when nothing is known
against any package, with 1 when something is, and with 2 when no database answered for every one of them: an audit that
could not look has found nothing out.
"""

import argparse
import datetime as dt
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from locked import DEVELOPMENT, RUNTIME, Locked, normal, read
from packaging.version import InvalidVersion, Version

FOUND: Final = 1
UNKNOWN: Final = 2


def records(path: Path) -> Iterator[Mapping[str, Any]]:
    """OSV records of a folder (searched through) or a zip. Raises OSError, ValueError, BadZipFile."""
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            yield json.loads(file.read_text(encoding="utf-8"))
        return
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".json"):
                yield json.loads(archive.read(name))


def affects(record: Mapping[str, Any], package: Locked) -> bool:
    """Whether a record names this version (OSV schema, "Evaluation")."""
    if record.get("withdrawn"):
        return False
    for affected in record.get("affected", ()):
        about = affected.get("package", {})
        if about.get("ecosystem") != "PyPI" or normal(about.get("name", "")) != package.name:
            continue
        if package.version in affected.get("versions", ()):
            return True
        ranges = (one for one in affected.get("ranges", ()) if one.get("type") == "ECOSYSTEM")
        if any(_inside(one.get("events", ()), Version(package.version)) for one in ranges):
            return True
    return False


def _inside(events: Iterable[Mapping[str, str]], version: Version) -> bool:
    """Walk the events in the order of their versions; the last that applies decides."""
    placed = [(_version(value), kind) for event in events for kind, value in event.items()]
    placed.sort(key=lambda one: one[0])
    inside = False
    for at, kind in placed:
        if kind == "introduced" and version >= at:
            inside = True
        elif (kind == "fixed" and version >= at) or (kind == "last_affected" and version > at):
            inside = False
    return inside


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")  # "0" stands for the beginning; what nobody can order is taken as early


def from_osv(path: Path, packages: Sequence[Locked]) -> int:
    """Audit against an export; prints and answers the exit code."""
    known, newest, hits = 0, "", []
    try:
        for record in records(path):
            if not any(
                one.get("package", {}).get("ecosystem") == "PyPI" for one in record.get("affected", ())
            ):
                continue
            known += 1
            newest = max(newest, str(record.get("modified", "")))
            hits += [(package, record) for package in packages if affects(record, package)]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        return _no_answer(f"{path} cannot be read: {error}")
    if not known:
        return _no_answer(f"{path} holds no record about PyPI")
    print(
        f"audit: {len(packages)} packages against {known} OSV records of {path.name}, the newest of {newest}"
    )
    for package, record in hits:
        print(f"audit: {package.name} {package.version}: {record['id']} {record.get('summary', '')}")
    return FOUND if hits else 0


def from_pypi(locks: Sequence[Path]) -> int:
    """Audit against PyPI's advisories, each package asked for by its exact version; prints, answers the exit code."""
    arguments = [sys.executable, "-m", "pip_audit", "--strict", "--disable-pip", "--progress-spinner", "off"]
    arguments += ["--format", "json", *(part for lock in locks for part in ("-r", str(lock)))]
    finished = subprocess.run(arguments, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    try:
        answer = json.loads(finished.stdout)["dependencies"]
    except (ValueError, KeyError):
        words = finished.stderr.strip().splitlines() or ["pip-audit said nothing"]
        return _no_answer(words[-1])
    skipped = [one["name"] for one in answer if "skip_reason" in one]
    if skipped:
        return _no_answer(f"nobody answered for {', '.join(skipped[:5])} and {max(0, len(skipped) - 5)} more")
    today = dt.datetime.now(dt.UTC).date().isoformat()
    print(f"audit: {len(answer)} packages, those for this platform, against PyPI's advisories of {today}")
    hits = [(one, found) for one in answer for found in one["vulns"]]
    for one, found in hits:
        fixed = ", ".join(found["fix_versions"]) or "no version"
        print(f"audit: {one['name']} {one['version']}: {found['id']}, fixed in {fixed}")
    return FOUND if hits else 0


def _no_answer(why: str) -> int:
    print(
        f"audit: no advisory database answered: {why}. Nothing is known, neither good nor bad. Where PyPI's advisories "
        "cannot be reached, give an export: make audit OSV=/path/to/osv-export",
        file=sys.stderr,
    )
    return UNKNOWN


def main(arguments: list[str]) -> int:
    """Answers the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--osv", type=Path, help="a folder or zip of OSV records")
    given = parser.parse_args(arguments)
    packages = sorted(
        {one for lock in (RUNTIME, DEVELOPMENT) for one in read(lock)}, key=lambda one: one.name
    )
    return from_osv(given.osv, packages) if given.osv else from_pypi((RUNTIME, DEVELOPMENT))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
