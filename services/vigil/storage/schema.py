"""Which revision a database is at, which one the code wants, and the way from one to the other.

Alembic takes 0.4 s to import, so it is imported only when a database really has to be migrated: the newest
revision is found by reading the migration files, and a new database is made from the metadata and stamped.
``assert_migrations_match`` is the test that both ways lead to the same schema.
"""

import ast
import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    inspect,
    select,
)

from vigil.errors import Reason, Refused, refused
from vigil.storage.engine import Engines, create_engines, database_url

_VERSION = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table, exactly as Alembic makes it."""


@dataclass(frozen=True, slots=True)
class History:
    """The revisions of one folder and the newest of them."""

    revisions: frozenset[str]
    head: str


def migrations_folder(migrations: Path | str) -> Path:
    """Find the folder of a package's migrations without importing it; a path is returned as it is."""
    if isinstance(migrations, Path):
        return migrations
    spec = importlib.util.find_spec(migrations)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{migrations} is not a package")
    return Path(next(iter(spec.submodule_search_locations)))


def read_history(folder: Path) -> History:
    """Read ``revision`` and ``down_revision`` of every migration; ValueError unless they form one line."""
    parents: dict[str, str | None] = {}
    for path in sorted(folder.glob("*.py")):
        if path.name.startswith("_"):
            continue
        names = _literals(path)
        revision = names.get("revision")
        if not isinstance(revision, str) or revision in parents:
            raise ValueError(f"{path} does not name a revision of its own")
        parents[revision] = names.get("down_revision")
    heads = set(parents) - {parent for parent in parents.values() if parent is not None}
    roots = [revision for revision, parent in parents.items() if parent is None]
    if len(heads) != 1 or len(roots) != 1 or not set(parents.values()) <= {*parents, None}:
        raise ValueError(f"the migrations in {folder} do not form one line")
    return History(revisions=frozenset(parents), head=heads.pop())


def prepare_schema(engines: Engines, *, metadata: MetaData, folder: Path) -> None:
    """Create or migrate the tables in one transaction; see ``open_database``."""
    history = read_history(folder)
    with engines.schema.begin() as connection:
        tables = set(inspect(connection).get_table_names())
        stored = None
        if _VERSION.name in tables:
            stored = connection.execute(select(_VERSION.c.version_num)).scalar()
        if stored == history.head:
            return
        if stored is not None:
            if stored not in history.revisions:
                raise _newer(stored, history.head)
            migrate(connection, metadata=metadata, folder=folder)
        elif tables - {_VERSION.name}:
            raise refused(
                Reason.STORAGE_UNAVAILABLE,
                "The database holds tables that Vigil did not make.",
                lifted_by="Name another database, or restore the right one.",
                who="the operator of the service",
            )
        else:
            metadata.create_all(connection)
            _VERSION.create(connection, checkfirst=True)
            connection.execute(_VERSION.insert().values(version_num=history.head))
        engines.kind.check_foreign_keys(connection)


def migrate(connection: Connection, *, metadata: MetaData, folder: Path) -> None:
    """Run every migration that is missing, inside the caller's transaction."""
    from alembic import command

    command.upgrade(alembic_config(connection, metadata=metadata, folder=folder), "head")


def alembic_config(connection: Connection, *, metadata: MetaData, folder: Path) -> Any:
    """Alembic's settings for one service's folder; the environment is shared by all services."""
    from alembic.config import Config

    config = Config()
    options = {
        "script_location": str(Path(__file__).parent / "environment"),
        "version_locations": str(folder),
        "path_separator": "newline",
        "file_template": "%(rev)s_%(slug)s",
    }
    for name, value in options.items():
        config.set_main_option(name, value.replace("%", "%%"))
    config.attributes.update(connection=connection, metadata=metadata)
    return config


def assert_migrations_match(
    metadata: MetaData, migrations: Path | str, *, databases: tuple[str, str] | None = None
) -> None:
    """Raise AssertionError unless migrating from nothing gives what the metadata gives.

    ``databases``: two empty ones to try it in, instead of two SQLite files.
    """
    folder = migrations_folder(migrations)
    with tempfile.TemporaryDirectory() as scratch:
        one, other = databases or (Path(scratch) / "created.db", Path(scratch) / "migrated.db")
        created, migrated = _engines(one), _engines(other)
        try:
            prepare_schema(created, metadata=metadata, folder=folder)
            with migrated.schema.begin() as connection:
                migrate(connection, metadata=metadata, folder=folder)
            expected, found = _describe(created), _describe(migrated)
        finally:
            created.dispose()
            migrated.dispose()
    wrong = [
        f"{name}: metadata has {expected.get(name)}, migrations give {found.get(name)}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        raise AssertionError("the migrations do not lead to the metadata:\n" + "\n".join(wrong))


def _engines(path_or_url: Path | str) -> Engines:
    return create_engines(database_url(path_or_url), readers=1)


def _describe(engines: Engines) -> Mapping[str, object]:
    """Everything about the schema that matters, by name; the order of columns does not."""
    found: dict[str, object] = {}
    with engines.schema.connect() as connection:
        inspector = inspect(connection)
        for table in inspector.get_table_names():
            for column in inspector.get_columns(table):
                found[f"{table}.{column['name']}"] = {**column, "type": str(column["type"]).upper()}
            found[f"{table} primary key"] = inspector.get_pk_constraint(table)["constrained_columns"]
            for index in inspector.get_indexes(table):
                found[f"{table} index {index['name']}"] = dict(index)
            found[f"{table} unique"] = _sorted(
                constraint["column_names"] for constraint in inspector.get_unique_constraints(table)
            )
            found[f"{table} checks"] = _sorted(
                constraint["sqltext"] for constraint in inspector.get_check_constraints(table)
            )
            found[f"{table} foreign keys"] = _sorted(
                {**key, "name": None} for key in inspector.get_foreign_keys(table)
            )
        found |= engines.kind.describe(connection)
    return found


def _sorted(values: Any) -> list[str]:
    return sorted(repr(value) for value in values)


def _literals(path: Path) -> dict[str, Any]:
    """Find the module-level names that are bound to plain literals."""
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                found[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value)):
                found[name] = value
            case _:
                continue
    return found


def _newer(stored: str, head: str) -> Refused:
    return refused(
        Reason.STORAGE_UNAVAILABLE,
        f"The database is at revision {stored}, unknown to this version of Vigil: a newer one wrote it.",
        lifted_by="Start the version that wrote it, or restore the copy made before the upgrade.",
        who="the operator of the service",
        stored=stored,
        known=head,
    )
