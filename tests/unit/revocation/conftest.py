"""The database that the service's parts share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vigil.revocation import store
from vigil.storage import Database, open_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(
        tmp_path / "revocation.db", metadata=store.METADATA, migrations="vigil.revocation.migrations"
    )
    yield database
    database.close()
