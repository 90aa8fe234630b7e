"""Makes the index again from the log alone, or holds it against the log: ``python -m vigil.evidence.reindex``.

Both work beside a running service: each batch is a transaction of its own that appends wait for no longer than for
another append, and what the service adds meanwhile is seen. While the index is made again, questions that need it are
refused with how far it is.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Table, func, select, tuple_

from vigil.errors import VigilError
from vigil.evidence import index_store
from vigil.evidence.config import EvidenceConfig
from vigil.evidence.index import Rows
from vigil.evidence.tables import ENTRY, KIND_TIME, METADATA, REFERENCE, SUBJECT_TIME
from vigil.rpc.service_main import load_config
from vigil.storage import Database, open_database

BATCH: Final = 4_096
"""Entries in one transaction: tens of milliseconds."""
COUNTED: Final = 65_536
"""Entries counted in one look."""
MAX_NAMED: Final = 20
"""Rows that differ which are named; all are counted."""
DIFFERS: Final = 3
"""Exit code: the index differs from the log, or the log lacks what it is made of."""

Told = Callable[[int, int], None]
"""``told(done, all)``."""


class HoleError(VigilError):
    """The log lacks an entry, or has one that is none: no index can be made of it."""


def size_of(database: Database) -> int:
    """Entries in the log."""
    newest = database.read_now(lambda connection: connection.execute(select(func.max(ENTRY.c.idx))).scalar())
    return 0 if newest is None else int(newest) + 1


def first_missing(database: Database) -> int | None:
    """The first entry that the log lacks; None where it has all."""
    size = size_of(database)
    for first in range(0, size, COUNTED):
        end = min(size, first + COUNTED)
        inside = ENTRY.c.idx.between(first, end - 1)
        query = select(func.count()).select_from(ENTRY).where(inside)
        if database.read_now(lambda connection: connection.execute(query).scalar_one()) != end - first:  # noqa: B023 - called at once
            indexes = select(ENTRY.c.idx).where(inside)
            found = database.read_now(lambda connection: set(connection.execute(indexes).scalars()))  # noqa: B023 - called at once
            return min(set(range(first, end)) - found)
    return None


def rebuild(database: Database, told: Told) -> int:
    """Empty the index and make it again from the log; answers how many entries it covers.

    Raises HoleError for a log that lacks an entry: an index that is older than the hole knows more than one made now.
    """
    missing = first_missing(database)
    if missing is not None:
        raise HoleError(f"the log lacks the entry {missing}: the index was left as it is")
    database.write_now(index_store.begin_clearing)
    try:
        return catch_up(database, told)
    except LookupError as error:
        done = database.read_now(index_store.covered)
        raise HoleError(f"{error}: the index covers {max(done, 0)} entries and cannot go on") from error


def catch_up(database: Database, told: Told) -> int:
    """Add to the index what the log has beyond it."""
    done = database.write_now(index_store.prepare)
    while done < 0:
        done = database.write_now(index_store.clear_some)
    while done < (size := size_of(database)):
        end = min(size, done + BATCH)
        batch = database.read_now(lambda connection: index_store.read_batch(connection, done, end))  # noqa: B023 - called at once
        done = database.write_now(lambda connection: index_store.write_batch(connection, batch))  # noqa: B023 - called at once
        told(done, size)
    return done


@dataclass(slots=True)
class Tally:
    """Rows counted, and a digest of all of them that does not depend on their order: the sum of their hashes."""

    rows: int = 0
    digest: int = 0

    def add(self, table: str, row: Sequence[object]) -> None:
        """Count one row."""
        words = repr((table, *row)).encode()
        self.rows += 1
        self.digest = (self.digest + int.from_bytes(hashlib.sha256(words).digest())) % 2**256

    def to_value(self) -> dict[str, Any]:
        """As JSON."""
        return {"rows": self.rows, "digest": f"{self.digest:064x}"}


@dataclass(slots=True)
class Checked:
    """What came of holding the index against the log."""

    covered: int
    size: int
    log: Tally = field(default_factory=Tally)
    index: Tally = field(default_factory=Tally)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    differing: int = 0
    erased: set[int] = field(default_factory=set)
    """What the index says of these was read from statements that are gone: it cannot be held against them."""

    @property
    def holds(self) -> bool:
        """Whether the index is what the log says it is."""
        return not self.differing and (self.log.rows, self.log.digest) == (self.index.rows, self.index.digest)

    def to_value(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "holds": self.holds,
            "covered": self.covered,
            "size": self.size,
            "erased": len(self.erased),
            "log": self.log.to_value(),
            "index": self.index.to_value(),
            "differing": self.differing,
            "missing": self.missing,
            "extra": self.extra,
        }


def check(database: Database, told: Told) -> Checked:
    """Hold every row of the index against the log: what it covers, no more and no less. Raises HoleError."""
    found = Checked(database.read_now(index_store.covered), size_of(database))
    try:
        _hold(database, found, told)
    except LookupError as error:
        raise HoleError(f"{error}: the index cannot be held against it") from error
    return found


def _hold(database: Database, found: Checked, told: Told) -> None:
    for first in range(0, found.covered, BATCH):
        end = min(found.covered, first + BATCH)
        batch = database.read_now(lambda connection: index_store.read_batch(connection, first, end))  # noqa: B023 - called at once
        found.erased |= batch.erased
        for table, row in _rows(batch.rows):
            if row[-1] not in batch.erased:
                found.log.add(table.name, row)
        told(end // 2, found.covered)
    for table in index_store.INDEX_TABLES:
        for row in _stored(database, table, found.covered):
            if row[-1] not in found.erased:
                found.index.add(table.name, row)
    told(found.covered, found.covered)
    if not found.holds:
        _name(database, found)


def _rows(rows: Rows) -> Iterator[tuple[Table, tuple[Any, ...]]]:
    for table, made in ((SUBJECT_TIME, rows.subjects), (KIND_TIME, rows.kinds), (REFERENCE, rows.references)):
        for row in made:
            yield table, row


def _stored(database: Database, table: Table, below: int) -> Iterator[tuple[Any, ...]]:
    """The rows of a table in pages, by its key; those of entries that came since do not count."""
    key = list(table.primary_key)
    last: tuple[Any, ...] | None = None
    while True:
        query = select(*key).order_by(*key).limit(BATCH)
        if last is not None:
            query = query.where(_after(key, last))
        page = database.read_now(lambda connection: [tuple(row) for row in connection.execute(query)])  # noqa: B023 - called at once
        yield from (row for row in page if row[-1] < below)
        if len(page) < BATCH:
            return
        last = page[-1]


def _after(key: Sequence[Any], last: Sequence[Any]) -> Any:
    """The condition of a row that stands after another in the order of the key."""
    return tuple_(*key) > tuple(last)


def _name(database: Database, found: Checked) -> None:
    """Find the rows that differ: those that the log has and the index has not, and the other way round."""
    expected = 0
    for first in range(0, found.covered, BATCH):
        end = min(found.covered, first + BATCH)

        def missing(connection: Connection) -> list[str]:
            rows = index_store.read_batch(connection, first, end).rows  # noqa: B023 - called at once
            return [
                _words(table, row)
                for table, row in _rows(rows)
                if row[-1] not in found.erased and not _is_stored(connection, table, row)
            ]

        absent = database.read_now(missing)
        expected += len(absent)
        found.missing += absent[: MAX_NAMED - len(found.missing)]
    surplus = 0
    for table in index_store.INDEX_TABLES:
        for row in _stored(database, table, found.covered):
            right = partial(_is_right, table=table, row=row)
            if row[-1] not in found.erased and not database.read_now(right):
                surplus += 1
                if len(found.extra) < MAX_NAMED:
                    found.extra.append(_words(table, row))
    found.differing = expected + surplus


def _is_stored(connection: Connection, table: Table, row: Sequence[Any]) -> bool:
    key = list(table.primary_key)
    query = select(key[-1]).where(*(column == value for column, value in zip(key, row, strict=True)))
    return connection.execute(query).first() is not None


def _is_right(connection: Connection, *, table: Table, row: Sequence[Any]) -> bool:
    """Whether the entry that a row names gives this row."""
    try:
        rows = index_store.read_batch(connection, row[-1], row[-1] + 1).rows
    except LookupError:
        return False
    return any(one is table and made == tuple(row) for one, made in _rows(rows))


def _words(table: Table, row: Iterable[Any]) -> str:
    parts = (value.hex() if isinstance(value, bytes) else str(value) for value in row)
    return f"{table.name}: {', '.join(parts)}"


def main(arguments: Sequence[str]) -> int:
    """Rebuild or check, with a progress bar on stderr and one JSON object on stdout; 3 when the index differs.

    A log with a hole is refused with 3 too, and one that cannot be read ends it with 1: `refused` or `failed` says why.
    """
    parser = argparse.ArgumentParser(prog="python -m vigil.evidence.reindex", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the evidence service's configuration")
    parser.add_argument("--check", action="store_true", help="hold the index against the log, change nothing")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, EvidenceConfig)
        database = open_database(config.database, metadata=METADATA, migrations="vigil.evidence.migrations")
    except VigilError as error:
        return _ended("failed", error)
    try:
        if options.check:
            checked = _shown("check", lambda told: check(database, told))
            sys.stdout.write(json.dumps(checked.to_value()) + "\n")
            return 0 if checked.holds else DIFFERS
        covered = _shown("reindex", lambda told: rebuild(database, told))
        sys.stdout.write(json.dumps({"covered": covered}) + "\n")
    except HoleError as error:
        return _ended("refused", error)
    except VigilError as error:
        return _ended("failed", error)
    finally:
        database.close()
    return 0


def _ended(how: str, error: VigilError) -> int:
    sys.stdout.write(json.dumps({how: str(error)}) + "\n")
    return DIFFERS if how == "refused" else 1


def _shown(name: str, work: Callable[[Told], Any]) -> Any:
    """Work with a bar; without a terminal, with none."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        return work(lambda done, everything: progress.update(task, completed=done, total=everything))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
