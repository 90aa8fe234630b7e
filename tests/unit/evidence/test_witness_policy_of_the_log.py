"""Where the log finds its witnesses, and that a policy which cannot be meant keeps it from starting."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.evidence.conftest import World
from vigil.core.notes import cosigner_key, verifier_key
from vigil.evidence.__main__ import open_book
from vigil.evidence.config import EvidenceConfig
from vigil.evidence.metrics import LogMetrics
from vigil.rpc.service_main import ConfigError, load_config
from vigil.run.configs import PEERS, write_service_configs
from vigil.run.layout import SERVICES, TILES, DataFolder

WITNESS = f"witness w {cosigner_key('witness.test/w', bytes(32))} http://127.0.0.1:8420"


def config_of(folder: DataFolder) -> EvidenceConfig:
    write_service_configs(
        folder,
        trust_domain="vigil.test",
        endpoints=dict.fromkeys({*SERVICES, *PEERS, TILES}, "127.0.0.1:1"),
        redis_url="redis://127.0.0.1:1",
        metrics={},
    )
    return load_config(folder.config("evidence"), EvidenceConfig)


def test_an_installation_takes_the_policy_from_its_data_folder(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    assert config_of(folder).witness_policy is None
    folder.witness_policy.write_text(f"{WITNESS}\nquorum w\n")
    assert config_of(folder).witness_policy == folder.witness_policy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"quorum w\n", "no line before names w"),
        (f"{WITNESS}\n".encode(), "there is no quorum line"),
        (b"\xff\n", "cannot be read"),
        (None, "cannot be read"),
        (
            f"log {verifier_key('other.test/evidence', bytes(32))}\n{WITNESS}\nquorum w\n".encode(),
            "is for other logs",
        ),
    ],
)
def test_a_policy_that_cannot_be_meant_is_told(
    world: World, tmp_path: Path, text: bytes | None, said: str
) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.path.mkdir()
    folder.witness_policy.write_bytes(text or b"")
    config = config_of(folder)
    if text is None:
        folder.witness_policy.unlink()
    log = world.open(started=False)
    with pytest.raises(ConfigError, match=said):
        open_book(
            config,
            database=log.database,
            log_key=world.key.verifier_key,
            metrics=LogMetrics(CollectorRegistry()),
        )


def test_the_logs_own_key_among_others_is_enough(world: World, tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.path.mkdir()
    folder.witness_policy.write_text(f"log {world.key.verifier_key}\n{WITNESS}\nquorum w\n")
    book = open_book(
        config_of(folder),
        database=world.open(started=False).database,
        log_key=world.key.verifier_key,
        metrics=LogMetrics(CollectorRegistry()),
    )
    assert list(book.policy.witnesses) == ["w"]
