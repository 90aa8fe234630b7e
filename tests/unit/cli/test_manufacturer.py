import os
from pathlib import Path

from tests.unit.cli.support import conforms, run
from vigil.core.certificates import load_pair
from vigil.core.clock import SystemClock
from vigil.core.digest import sha256
from vigil.core.statements.bodies import Voucher
from vigil.core.statements.envelope import read
from vigil.device.factory import FirstBuild, make_pump

UDI = "(01)09504000059118(21)SN-0001"


def test_a_manufacturer_vouches_for_a_pump(tmp_path: Path) -> None:
    maker = tmp_path / "maker"
    made = run("manufacturer", "init", "maker", maker, "--output", "json")
    conforms(made.json, "manufacturer")
    assert Path(made.json["root"]).read_text().startswith("-----BEGIN CERTIFICATE-----")
    pump = make_pump(
        tmp_path / "pump",
        udi=UDI,
        model="aria-3000",
        manufacturer="maker",
        firmware=FirstBuild(image=b"image", version="1.0", security_version=1, sbom=sha256(b"sbom")),
        settings={},
        clock=SystemClock(),
        entropy=os.urandom,
    )
    signed = run("voucher", "sign", pump.folder, "--signer", maker, "--output", "json")
    assert signed.code == 0
    conforms(signed.json, "voucher")
    voucher = read((pump.folder / "voucher.cose").read_bytes(), Voucher)
    assert voucher.body == Voucher(udi=UDI, model="aria-3000", identity_key=pump.identity_key)
    assert voucher.subject == f"device/{signed.json['device_id']}"
    assert (
        voucher.signer
        == load_pair(
            maker / "signers" / "voucher.pem", maker / "signers" / "voucher.key"
        ).signer.certificate_thumbprint
    )


def test_a_second_root_never_replaces_the_first(tmp_path: Path) -> None:
    run("manufacturer", "init", "maker", tmp_path / "maker")
    before = (tmp_path / "maker" / "root" / "root.pem").read_bytes()
    again = run("manufacturer", "init", "maker", tmp_path / "maker", "--output", "json")
    assert again.code == 3
    conforms(again.json, "error")
    assert (tmp_path / "maker" / "root" / "root.pem").read_bytes() == before


def test_what_is_no_pump_gets_no_voucher(tmp_path: Path) -> None:
    run("manufacturer", "init", "maker", tmp_path / "maker")
    done = run("voucher", "sign", tmp_path, "--signer", tmp_path / "maker", "--output", "json")
    assert done.code == 3
    assert done.json["error"]["reason"] == "FIELD_INVALID"


def test_version() -> None:
    done = run("version", "--output", "json")
    conforms(done.json, "version")
    assert done.code == 0
