"""The log of the benchmarks is a log: what it says of itself is what the product makes of it."""

from pathlib import Path

import pytest

from tests.benchmarks import big_log
from vigil.evidence import reindex
from vigil.evidence.sequencer import check_log
from vigil.evidence.tables import METADATA
from vigil.storage import open_database


def test_its_index_and_tree_are_the_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIGIL_BENCH_CACHE", str(tmp_path))
    made = big_log.big_log(4_000, lambda _: None)
    database = open_database(
        made.folder / "evidence" / "evidence.db",
        metadata=METADATA,
        migrations="vigil.evidence.migrations",
    )
    try:
        assert database.read_now(check_log).size == made.size == 4_000
        checked = reindex.check(database, lambda *_: None)
        assert checked.holds, checked.to_value()
        assert checked.covered == 4_000
    finally:
        database.close()
    # The second time it is there.
    assert big_log.big_log(4_000, lambda _: pytest.fail("it was built again")) == made
