"""Write the SBOM of Vigil itself: CycloneDX in JSON, out of the lock file. The same bytes from the same lock file.

Each package has its purl, the SHA-256 of each file that may be installed, the condition under which it is, and its
licence as its own metadata say it (of those that are installed here).
"""

import importlib.metadata
import json
import sys
import tomllib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from locked import ROOT, RUNTIME, Locked, normal, read
from packageurl import PackageURL
from packaging.requirements import InvalidRequirement, Requirement

SPEC_VERSION: Final = "1.6"
NAMESPACE: Final = uuid.UUID("5d1a3b0e-0c86-4f5e-9a58-7d1c3b7f6c10")
"""Under which the document's serial number is made of the lock file's content (RFC 9562, version 5)."""
_OSI: Final = "License :: OSI Approved :: "
_LONG: Final = 100
"""Characters from which a licence field holds the licence's text, not its name."""


def render(lock: Path = RUNTIME, project: Path = ROOT / "pyproject.toml") -> bytes:
    """The document. Raises ValueError, OSError."""
    packages = read(lock)
    about = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    vigil = f"pkg:pypi/{about['name']}@{about['version']}"
    references = {one.name: _purl(one) for one in packages}
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, lock.read_text(encoding='utf-8') + vigil)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": vigil,
                "name": about["name"],
                "version": about["version"],
                "description": about["description"],
                "licenses": [{"expression": about["license"]}],
                "purl": vigil,
            }
        },
        "components": [_component(one) for one in packages],
        "dependencies": [
            {"ref": vigil, "dependsOn": _named(about["dependencies"], references)},
            *({"ref": _purl(one), "dependsOn": _named(_requires(one), references)} for one in packages),
        ],
    }
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _purl(one: Locked) -> str:
    return PackageURL("pypi", None, one.name, one.version).to_string()


def _component(one: Locked) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": _purl(one),
        "name": one.name,
        "version": one.version,
        "hashes": [{"alg": "SHA-256", "content": digest} for digest in one.hashes],
        "purl": _purl(one),
    }
    licences = list(_licences(one))
    if licences:
        component["licenses"] = licences
    if one.marker:
        component["properties"] = [{"name": "vigil:marker", "value": one.marker}]
    return component


def _licences(one: Locked) -> Iterator[dict[str, Any]]:
    try:
        metadata = importlib.metadata.metadata(one.name)
    except importlib.metadata.PackageNotFoundError:
        return  # for another platform or Python
    expression, words = metadata.get("License-Expression"), metadata.get("License", "").strip()
    if expression:
        yield {"expression": expression}
        return
    named = [text.removeprefix(_OSI) for text in metadata.get_all("Classifier", []) if text.startswith(_OSI)]
    for name in named or ([words] if words and len(words) < _LONG and "\n" not in words else []):
        yield {"license": {"name": name}}


def _requires(one: Locked) -> list[str]:
    try:
        return importlib.metadata.requires(one.name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _named(requirements: Iterable[str], references: Mapping[str, str]) -> list[str]:
    """Those of the lock file that are needed here, without extras that nobody asked for."""
    found = set()
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.add(references.get(normal(requirement.name), ""))
    return sorted(found - {""})


def main(arguments: list[str]) -> int:
    """Write to the file named."""
    target = Path(arguments[0])
    data = render()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    print(f"{target}: {len(json.loads(data)['components'])} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
