"""`vigil ceremony`: with the offline root back, and without it."""

import os
from pathlib import Path

import pytest

from tests.unit.cli.support import conforms, run
from vigil.core.certificates import ChainVerifier, load_pair
from vigil.core.clock import SystemClock
from vigil.identity import ceremony


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    ceremony.first_start(
        made,
        trust_domain="vigil.test",
        operator_organization="operator",
        clock=SystemClock(),
        entropy=os.urandom,
    )
    return made


def carried_away(data: Path) -> Path:
    away = data.parent / "safe"
    (data / "pki" / "root").rename(away)
    return away


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_yearly_signers(data: Path) -> None:
    away = carried_away(data)
    former = {path.name: path.read_bytes() for path in (data / "pki/signers").glob("*.pem")}
    done = run(
        "ceremony",
        "signers",
        "--root",
        away,
        "--passphrase",
        away / "passphrase",
        "--output",
        "json",
        data=data,
    )
    assert done.code == 0
    conforms(done.json, "signers")
    assert {one["name"] for one in done.json["signers"]} == {Path(name).stem for name in former}
    verifier = ChainVerifier(ceremony.read_bundle(data))
    for name, before in former.items():
        path = data / "pki/signers" / name
        assert path.read_bytes() != before
        pair = load_pair(path, path.with_suffix(".key"))
        assert verifier.verify(pair.chain_der, at=SystemClock().now()).id == path.stem
    # What the former ones signed stays known.
    assert len(ceremony.read_bundle(data).signers) == 2 * len(former)


def test_an_administrator_comes_back(data: Path) -> None:
    before = (data / "people/p-admin-1/tls.pem").read_bytes()
    done = run("ceremony", "admin", "p-admin-1", "--output", "json", data=data)
    assert done.code == 0
    conforms(done.json, "admin-renewed")
    assert done.json["name"] == "p-admin-1"
    assert (data / "people/p-admin-1/tls.pem").read_bytes() != before
    assert "p-admin-2" in run("ceremony", "admin", "p-admin-2", data=data).out


@pytest.mark.parametrize("command", [("signers",), ("admin", "p-admin-1")])
def test_nothing_changes_without_the_root(data: Path, command: tuple[str, ...], tmp_path: Path) -> None:
    away = carried_away(data)
    wrong = tmp_path / "wrong"
    wrong.write_text("not the passphrase of this root\n")
    short = tmp_path / "short"
    short.write_text("short\n")
    before = files(data)
    for options, word in (
        ((), "--root DIR"),
        (("--root", away, "--passphrase", wrong), "passphrase"),
        (("--root", away, "--passphrase", short), "longer passphrase"),
        (("--root", away, "--passphrase", tmp_path / "none"), "There is no"),
    ):
        refused = run("ceremony", *command, *options, data=data)
        assert (refused.code, word in refused.err) == (3, True), refused.err
    assert files(data) == before


def test_another_root_signs_nothing_here(data: Path, tmp_path: Path) -> None:
    ceremony.first_start(
        tmp_path / "other",
        trust_domain="other.test",
        operator_organization="operator",
        clock=SystemClock(),
        entropy=os.urandom,
    )
    before = files(data)
    for command in (("signers",), ("admin", "p-admin-1")):
        refused = run("ceremony", *command, "--root", tmp_path / "other/pki/root", data=data)
        assert refused.code == 3
    # Nor does this one for somebody else.
    assert run("ceremony", "admin", "p-somebody", data=data).code == 3
    assert files(data) == before
