"""For developers: write the next migration of a service from the difference to its metadata.

    python -m vigil.storage vigil.identity.store:METADATA vigil.identity.migrations "add custody"

Read the file it writes, and format it: it knows tables, columns, indexes and constraints; moving data and making
triggers is yours.
"""

import importlib
import sys
import tempfile
from pathlib import Path

from sqlalchemy import MetaData

from vigil.storage.engine import create_engines, database_url
from vigil.storage.schema import alembic_config, migrate, migrations_folder


def main(arguments: list[str]) -> int:
    """Write one migration file; the usage on stderr and 2 when the arguments are wrong."""
    if len(arguments) != 3:
        sys.stderr.write(__doc__ or "")
        return 2
    module, _, name = arguments[0].partition(":")
    metadata = getattr(importlib.import_module(module), name)
    write_migration(metadata, migrations_folder(arguments[1]), message=arguments[2])
    return 0


def write_migration(metadata: MetaData, folder: Path, *, message: str) -> None:
    """Compare the folder's newest revision with the metadata and write the next one (0001, 0002, …)."""
    from alembic import command

    number = len([path for path in folder.glob("*.py") if not path.name.startswith("_")])
    with tempfile.TemporaryDirectory() as scratch:
        engines = create_engines(database_url(Path(scratch) / "scratch.db"), readers=1)
        with engines.schema.begin() as connection:
            if number:
                migrate(connection, metadata=metadata, folder=folder)
            config = alembic_config(connection, metadata=metadata, folder=folder)
            revision = f"{number + 1:04}"
            command.revision(config, message, autogenerate=True, rev_id=revision, version_path=str(folder))
        engines.dispose()
    (path,) = folder.glob(f"{revision}_*.py")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "# ###" not in line), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
