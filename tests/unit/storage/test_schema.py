import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError

from tests.support.databases import Place
from tests.support.postgres import PostgresServer
from tests.unit.storage.schema import METADATA, PUMPS, SITES
from vigil.errors import Reason, Refused
from vigil.storage import Database, assert_migrations_match, open_database
from vigil.storage.__main__ import write_migration
from vigil.storage.engine import create_engines, database_url
from vigil.storage.schema import migrate, migrations_folder, read_history

MIGRATIONS = Path(__file__).parent / "migrations"
SPOKEN = "correct horse battery".replace(" ", "-")


def _open(at: Path | str, *, metadata: MetaData = METADATA, migrations: Path = MIGRATIONS) -> Database:
    return open_database(at, metadata=metadata, migrations=migrations)


def _only_first(folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(MIGRATIONS / "0001_first.py", folder)
    return folder


def _at_first_revision(at: Path | str, first: Path) -> None:
    engines = create_engines(database_url(at), readers=1)
    with engines.schema.begin() as connection:
        migrate(connection, metadata=METADATA, folder=first)
    engines.dispose()


def test_a_new_database_has_the_tables_and_the_newest_revision(place: Place) -> None:
    database = _open(place.at)
    names = database.read_now(lambda connection: set(inspect(connection).get_table_names()))
    assert names == {"sites", "pumps", "alembic_version"}
    version = database.read_now(lambda c: c.execute(text("SELECT version_num FROM alembic_version")).all())
    assert version == [("0002",)]
    database.close()


def test_a_new_file_is_ours_alone(tmp_path: Path) -> None:
    _open(tmp_path / "folder" / "a.db").close()
    assert stat.S_IMODE((tmp_path / "folder" / "a.db").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700


def test_an_older_database_is_migrated_and_keeps_its_rows(tmp_path: Path, place: Place) -> None:
    first = _only_first(tmp_path / "first")
    _at_first_revision(place.at, first)
    old = _open(place.at, migrations=first)
    old.write_now(lambda c: c.execute(text("INSERT INTO sites VALUES ('st-mary')")).close())
    old.write_now(lambda c: c.execute(text("INSERT INTO pumps VALUES (7, 'st-mary', 'S-1')")).close())
    old.close()
    new = _open(place.at)
    assert new.read_now(lambda c: c.execute(select(SITES)).all()) == [("st-mary", "")]
    # The rebuilt table was dropped on the way; its rows and those that refer to it are still there.
    assert new.read_now(lambda c: c.execute(select(PUMPS)).all()) == [(7, "st-mary", "S-1")]
    new.close()


def test_a_migration_that_breaks_references_changes_nothing(tmp_path: Path, place: Place) -> None:
    first = _only_first(tmp_path / "first")
    _at_first_revision(place.at, first)
    database = _open(place.at, migrations=first)
    database.write_now(lambda c: c.execute(text("INSERT INTO sites VALUES ('st-mary')")).close())
    database.write_now(lambda c: c.execute(text("INSERT INTO pumps VALUES (7, 'st-mary', 'S-1')")).close())
    database.close()
    (first / "0002_wrong.py").write_text(
        "from alembic import op\n\nrevision = '0002'\ndown_revision = '0001'\n\n"
        "def upgrade() -> None:\n    op.execute('DELETE FROM sites')\n"
    )
    # SQLite is asked at the end, PostgreSQL refuses at once.
    with pytest.raises((RuntimeError, IntegrityError), match=r"lost what they refer to|foreign key"):
        _open(place.at, migrations=first)
    (first / "0002_wrong.py").unlink()
    database = _open(place.at, migrations=first)
    assert database.read_now(lambda c: c.execute(text("SELECT * FROM sites")).all()) == [("st-mary",)]
    database.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path, place: Place) -> None:
    _open(place.at).close()
    with pytest.raises(Refused, match="a newer one wrote it") as refusal:
        _open(place.at, migrations=_only_first(tmp_path / "first"))
    assert refusal.value.reason is Reason.STORAGE_UNAVAILABLE
    _open(place.at).close()


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    foreign = MetaData()
    Table("songs", foreign, Column("id", Integer, primary_key=True))
    engines = create_engines(database_url(tmp_path / "a.db"), readers=1)
    foreign.create_all(engines.schema)
    engines.dispose()
    (tmp_path / "b.db").write_bytes(b"this is not a database, and it is long enough to be one" * 40)
    for name in ("a.db", "b.db"):
        with pytest.raises(Refused) as refusal:
            _open(tmp_path / name)
        assert refusal.value.reason is Reason.STORAGE_UNAVAILABLE


@pytest.mark.parametrize(
    "url",
    [
        "mysql://localhost/x",
        "sqlite://",
        "sqlite:///:memory:",
        "",
        f"postgresql://vigil:{SPOKEN}@localhost",
        f"postgresql://vigil:{SPOKEN}@localhost:port/x",
        f"://{SPOKEN}",
    ],
)
def test_what_cannot_be_opened_is_refused_by_name(url: str) -> None:
    with pytest.raises(Refused) as refusal:
        open_database(url, metadata=METADATA, migrations=MIGRATIONS)
    assert refusal.value.reason is Reason.FIELD_INVALID
    assert SPOKEN not in f"{refusal.value!r} {refusal.value} {refusal.value.__context__}"


def test_migrations_lead_to_the_metadata() -> None:
    assert_migrations_match(METADATA, MIGRATIONS)


def test_migrations_lead_to_the_metadata_in_postgresql(postgres: PostgresServer) -> None:
    assert_migrations_match(METADATA, MIGRATIONS, databases=(postgres.create(), postgres.create()))


def test_a_missing_migration_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"pumps_by_site[\s\S]*sites\.name"):
        assert_migrations_match(METADATA, _only_first(tmp_path / "first"))


def test_history_must_be_one_line(tmp_path: Path) -> None:
    assert read_history(MIGRATIONS).head == "0002"
    first = _only_first(tmp_path / "first")
    for text_ in (
        "revision = 'x'\ndown_revision = None\n",
        "revision = '0001'\n",
        "",
        "revision = 'x'\ndown_revision = 'y'\n",
    ):
        (first / "other.py").write_text(text_)
        with pytest.raises(ValueError, match=r"line|revision of its own"):
            read_history(first)


def test_a_package_name_finds_its_folder() -> None:
    assert migrations_folder("vigil.storage.environment").name == "environment"
    with pytest.raises(ValueError, match="not a package"):
        migrations_folder("vigil.errors")


def test_the_written_migration_leads_to_the_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    write_migration(METADATA, folder, message="first")
    assert [path.name for path in folder.glob("*.py")] == ["0001_first.py"]
    assert_migrations_match(METADATA, folder)
    larger = MetaData()
    for table in METADATA.sorted_tables:
        table.to_metadata(larger)
    Table("wards", larger, Column("ward", Integer, primary_key=True))
    write_migration(larger, folder, message="add wards")
    assert read_history(folder).head == "0002"
    assert_migrations_match(larger, folder)


def test_a_normal_start_does_not_import_alembic(tmp_path: Path) -> None:
    """Nor the driver of the other kind of database."""
    program = (
        "import sys; from pathlib import Path; from vigil.storage import open_database\n"
        "from tests.unit.storage.schema import METADATA\n"
        "for _ in range(2):\n"
        "    open_database(Path(sys.argv[1]), metadata=METADATA, migrations=Path(sys.argv[2])).close()\n"
        "sys.exit(bool({'alembic', 'psycopg'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    path = f"{root}:{root / 'services'}"
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.db"), str(MIGRATIONS)],
        check=True,
        env={"PYTHONPATH": path},
        timeout=60,
    )


def test_the_writer_keeps_foreign_keys(place: Place) -> None:
    database = _open(place.at)
    with pytest.raises(IntegrityError):
        database.write_now(
            lambda c: c.execute(insert(PUMPS).values(number=1, site_id="no", serial="1")).close()
        )
    database.close()
