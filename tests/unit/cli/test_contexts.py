import json
import stat
from pathlib import Path

import pytest

from tests.support.pki import TestPki
from tests.unit.cli.support import conforms, run
from vigil.cli.contexts import KnownGateway, read_contexts, remember_gateways
from vigil.errors import Refused
from vigil.run.layout import DataFolder


@pytest.fixture
def pki(tmp_path: Path) -> TestPki:
    return TestPki(tmp_path / "pki")


def credential_folder(
    pki: TestPki, folder: Path, person: str = "p-ada", *, roles: tuple[str, ...] = ("technician",)
) -> Path:
    made = pki.person(person, *roles)
    folder.mkdir()
    (folder / "tls.pem").write_bytes(made.tls_files.certificate.read_bytes())
    (folder / "tls.key").write_bytes(made.tls_files.key.read_bytes())
    (folder / "trust.json").write_text(pki.bundle.to_json())
    seed = {
        "principal": person,
        "trust_domain": pki.trust_domain,
        "endpoints": {"identity": "127.0.0.1:7441"},
    }
    (folder / "context.json").write_text(json.dumps(seed))
    return folder


def test_a_credential_becomes_a_context(pki: TestPki, tmp_path: Path) -> None:
    folder, data = credential_folder(pki, tmp_path / "ada"), tmp_path / "data"
    made = run("context", "import", folder, "--output", "json", data=data)
    assert made.code == 0
    conforms(made.json, "context")
    assert made.json["name"] == "ada"
    assert made.json["current"] is True

    listed = run("context", "list", "--output", "json", data=data)
    conforms(listed.json, "contexts")
    assert [one["principal"] for one in listed.json["contexts"]] == ["p-ada"]

    shown = run("context", "show", "--output", "json", data=data)
    conforms(shown.json, "context")
    assert shown.json["roles"] == ["technician"]
    assert shown.json["trust"] == str(folder / "trust.json")
    assert stat.S_IMODE((data / "contexts.json").stat().st_mode) == 0o600


def test_another_context_becomes_current(pki: TestPki, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for person in ("p-ada", "p-eve"):
        assert (
            run("context", "import", credential_folder(pki, tmp_path / person, person), data=data).code == 0
        )
    assert run("context", "use", "eve", data=data).code == 0
    assert read_contexts(DataFolder(data)).current == "eve"
    assert run("context", "use", "bob", data=data).code == 2
    assert read_contexts(DataFolder(data)).current == "eve"


def test_a_key_that_is_not_the_certificates_is_refused(pki: TestPki, tmp_path: Path) -> None:
    folder = credential_folder(pki, tmp_path / "ada")
    (folder / "tls.key").write_bytes(pki.person("p-eve", "admin").tls_files.key.read_bytes())
    done = run("context", "import", folder, "--output", "json", data=tmp_path / "data")
    assert done.code == 3
    conforms(done.json, "error")
    assert done.json["error"]["reason"] == "CERTIFICATE_INVALID"
    assert not (tmp_path / "data" / "contexts.json").exists()


def test_a_certificate_of_another_domain_is_refused(pki: TestPki, tmp_path: Path) -> None:
    folder = credential_folder(pki, tmp_path / "ada")
    (folder / "trust.json").write_text(
        TestPki(tmp_path / "other", trust_domain="other.test").bundle.to_json()
    )
    assert run("context", "import", folder, data=tmp_path / "data").code == 3


def test_without_a_context_the_way_out_is_told(tmp_path: Path) -> None:
    done = run("site", "list", "--output", "json", data=tmp_path)
    assert done.code == 2
    conforms(done.json, "error")
    assert "vigil up" in done.json["error"]["sentence"]


def test_a_torn_file_is_told_and_kept(tmp_path: Path) -> None:
    (tmp_path / "contexts.json").write_text('{"current": "a"')
    with pytest.raises(Refused):
        read_contexts(DataFolder(tmp_path))
    assert run("context", "list", data=tmp_path).code == 3
    assert (tmp_path / "contexts.json").read_text() == '{"current": "a"'


def test_gateways_are_remembered(pki: TestPki, tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    run("context", "import", credential_folder(pki, tmp_path / "ada"), data=data.path)
    remember_gateways(data, "ada", {"gw-1": KnownGateway("10.0.0.1:7450", "site-1")})
    before = data.contexts_file.stat().st_ino
    remember_gateways(data, "ada", {"gw-1": KnownGateway("10.0.0.1:7450", "site-1")})
    assert data.contexts_file.stat().st_ino == before
    assert read_contexts(data).get("ada").gateways == {"gw-1": KnownGateway("10.0.0.1:7450", "site-1")}


def test_the_services_of_this_machine_stand_before_the_remembered_ones(pki: TestPki, tmp_path: Path) -> None:
    data = tmp_path / "data"
    run("context", "import", credential_folder(pki, tmp_path / "ada"), data=data)
    DataFolder(data).write_endpoints({"identity": "127.0.0.1:9001", "gw-1": "127.0.0.1:9002"})
    shown = run("context", "show", "--output", "json", data=data).json
    assert shown["endpoints"] == {"identity": "127.0.0.1:9001"}


def test_status_tells_what_is_down(pki: TestPki, tmp_path: Path) -> None:
    data = tmp_path / "data"
    nothing = run("status", "--output", "json", data=data)
    assert nothing.code == 1
    conforms(nothing.json, "status")

    run("context", "import", credential_folder(pki, tmp_path / "ada"), data=data)
    DataFolder(data).write_endpoints({"identity": "127.0.0.1:1"})
    down = run("status", "--output", "json", data=data)
    assert down.code == 1
    conforms(down.json, "status")
    assert down.json["ready"] is False
    assert not any(one["healthy"] for one in down.json["services"])


def test_a_service_that_does_not_answer_is_no_refusal(pki: TestPki, tmp_path: Path) -> None:
    data = tmp_path / "data"
    run("context", "import", credential_folder(pki, tmp_path / "ada"), data=data)
    DataFolder(data).write_endpoints({"identity": "127.0.0.1:1"})
    done = run("site", "list", "--output", "json", data=data)
    assert done.code == 1
    conforms(done.json, "error")
    assert done.json["error"]["values"]["service"] == "identity"
    assert "127.0.0.1:1" in done.json["error"]["sentence"]


def test_a_request_for_a_remote_person_keeps_its_key_private(tmp_path: Path) -> None:
    done = run("credential", "request", tmp_path / "new", "--output", "json")
    conforms(done.json, "credential-requested")
    assert stat.S_IMODE((tmp_path / "new" / "tls.key").stat().st_mode) == 0o600
    assert run("credential", "request", tmp_path / "new").code == 1
