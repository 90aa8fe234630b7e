import stat
from pathlib import Path

from tests.unit.cli.support import conforms, run
from vigil.core.notes import parse_cosigner_key, verifier_key
from vigil.rpc.service_main import load_config
from vigil.witness.config import WitnessConfig
from vigil.witness.founding import open_witness

LOG = verifier_key("vigil.test/evidence", bytes(32))


def test_a_witness_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "witness"
    arguments = ("witness", "init", folder, "--name", "witness.test/one", "--log", LOG, "--output", "json")
    made = run(*arguments)
    conforms(made.json, "witness")
    assert parse_cosigner_key(made.json["verifier_key"])[0] == "witness.test/one"
    assert stat.S_IMODE((folder / "witness.key").stat().st_mode) == 0o600
    config = load_config(Path(made.json["config"]), WitnessConfig)
    assert config.logs == (LOG,)
    key, memory = open_witness(config.witness_key, config.database, name=config.name)
    memory.close()
    assert key.verifier_key == made.json["verifier_key"]
    before = (folder / "witness.key").read_bytes()
    again = run(*arguments)
    assert again.code == 1
    conforms(again.json, "error")
    assert (folder / "witness.key").read_bytes() == before


def test_what_cannot_be_meant_makes_nothing(tmp_path: Path) -> None:
    name = run("witness", "init", tmp_path / "a", "--name", "two words", "--log", LOG)
    assert name.code == 2
    key = run("witness", "init", tmp_path / "b", "--name", "w", "--log", LOG[:-4])
    assert key.code == 3
    assert not any(tmp_path.iterdir())


def test_a_folder_without_a_witness_runs_none(tmp_path: Path) -> None:
    assert run("witness", "run", tmp_path, "--output", "json").code == 1
