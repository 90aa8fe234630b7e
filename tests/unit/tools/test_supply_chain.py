"""What Vigil is made of, what is known against it, and that anybody builds the same wheel."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from vigil.release.sbom import read_sbom

Tool = Callable[[str], ModuleType]
ROOT = Path(__file__).parents[3]


def record(**values: Any) -> dict[str, Any]:
    affected = {"package": {"ecosystem": "PyPI", "name": "Some_Package"}, **values.pop("affected", {})}
    return {"id": "PYSEC-1", "modified": "2026-01-02T03:04:05Z", "affected": [affected], **values}


# --- the lock files and the SBOM


def test_the_sbom_is_the_same_each_time_and_sound(tool: Tool) -> None:
    sbom, locked = tool("sbom"), tool("locked")
    data = sbom.render()
    assert sbom.render() == data
    packages = locked.read(locked.RUNTIME)
    found, value = read_sbom(data)
    assert found.component_count == len(packages) > 50
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode()) is None
    for component, package in zip(value["components"], packages, strict=True):
        assert PackageURL.from_string(component["purl"]).version == package.version
        assert [one["content"] for one in component["hashes"]] == list(package.hashes) != []
        # What is for another platform or Python is not installed here, and its metadata are not at hand.
        assert component.get("licenses") or package.marker, component["name"]
    references = {one["bom-ref"] for one in value["components"]}
    [root, *others] = value["dependencies"]
    assert root["ref"] == value["metadata"]["component"]["bom-ref"]
    assert len(root["dependsOn"]) > 20
    assert {one for part in others for one in part["dependsOn"]} <= references


def test_a_lock_file_without_a_hash_is_refused(tool: Tool, tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    for text in ("a==1\n", "a==1 \\\n    --hash=sha256:" + "0" * 64 + "\nb==2\n", "a>=1\n", "-e .\n"):
        lock.write_text(text)
        with pytest.raises(ValueError, match=r"pin|hash"):
            tool("locked").read(lock)


# --- the audit


@pytest.mark.parametrize(
    ("affected", "hit"),
    [
        ({"versions": ["1.5"]}, True),
        ({"versions": ["1.4"]}, False),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.5"}]}]}, False),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.5.1"}]}]}, True),
        (
            {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1"}, {"last_affected": "1.5"}]}]},
            True,
        ),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1.6"}]}]}, False),
        ({"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]}, False),
        (
            {
                "ranges": [
                    {
                        "type": "ECOSYSTEM",
                        "events": [
                            *({"introduced": "2"}, {"fixed": "2.1"}, {"introduced": "0"}, {"fixed": "1.6"}),
                        ],
                    }
                ]
            },
            True,
        ),
    ],
)
def test_osv_ranges(tool: Tool, affected: dict[str, Any], hit: bool) -> None:
    package = tool("locked").Locked("some-package", "1.5", "", ("0" * 64,))
    audit = tool("audit")
    assert audit.affects(record(affected=affected), package) is hit
    assert not audit.affects(record(affected=affected, withdrawn="2026-01-03T00:00:00Z"), package)
    other = tool("locked").Locked("another-package", "1.5", "", ("0" * 64,))
    assert not audit.affects(record(affected=affected), other)


def test_the_audit_names_its_database_and_what_it_found(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = tool("audit")
    locked = tool("locked").read(tool("locked").RUNTIME)[0]
    about = {"package": {"ecosystem": "PyPI", "name": locked.name}, "versions": [locked.version]}
    (tmp_path / "a.json").write_text(json.dumps(record(affected=about, summary="it is bad")))
    assert audit.main(["--osv", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "1 OSV records" in said
    assert "2026-01-02T03:04:05Z" in said
    assert f"{locked.name} {locked.version}: PYSEC-1 it is bad" in said
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("b.json", json.dumps(record(affected={"versions": ["1"]})))
    assert audit.main(["--osv", str(archive)]) == 0


def test_an_audit_without_a_database_has_found_nothing_out(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = tool("audit")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.zip").write_bytes(b"no")
    for path in (tmp_path / "absent", tmp_path / "empty", tmp_path / "no.zip"):
        assert audit.main(["--osv", str(path)]) == 2
        assert "no advisory database answered" in capsys.readouterr().err


# --- secrets


def test_something_like_a_secret_is_told_with_its_place(tool: Tool, tmp_path: Path) -> None:
    secrets = tool("secret_scan")
    path = tmp_path / "config.py"
    path.write_text('aws = "AKIA' + "IOSFODNN7EXAMPLA" + '"\n')
    findings = secrets.scan(str(path))
    assert {kind for _, kind, _ in findings} == {"AWS Access Key"}
    [told] = [one for one in secrets.judge(findings) if "config.py" in one]
    assert f"{path}:1: AWS Access Key" in told


def test_an_allowance_that_nothing_needs_is_a_fault(tool: Tool) -> None:
    secrets = tool("secret_scan")
    assert len(secrets.judge([])) == len(secrets.ALLOWED)
    assert all(secrets.ALLOWED.values())
    assert all(secrets.NOT_READ.values())


# --- the wheel


@pytest.mark.thorough
def test_two_builds_of_the_wheel_are_the_same(tool: Tool, tmp_path: Path) -> None:
    wheel = tool("wheel").reproduce(tmp_path)
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    assert "vigil/core/cbor.py" in names
    assert not [name for name in names if "tests/" in name or "__pycache__" in name]
