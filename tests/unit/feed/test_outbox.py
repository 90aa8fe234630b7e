import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from tests.unit.feed.support import METADATA, MIGRATIONS, open_feed
from vigil.feed import MAX_VALUE, Outbox
from vigil.feed.change import Position, Scope
from vigil.feed.reading import continues, read_head, read_state, read_tail
from vigil.feed.tables import TABLES
from vigil.storage import Database, assert_migrations_match

EVERYTHING = Scope(sites=None, kinds=frozenset())


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = open_feed(tmp_path / "a.db")
    yield database
    database.close()


def _tail(database: Database) -> list[tuple[Any, ...]]:
    columns = TABLES.outbox.c
    query = select(
        columns.sequence,
        columns.key,
        columns.scope_site,
        columns.previous_site,
        columns.value,
        columns.deleted,
    ).order_by(columns.sequence)
    return [tuple(row) for row in database.read_now(lambda connection: connection.execute(query).all())]


def test_the_migration_makes_the_tables() -> None:
    assert_migrations_match(METADATA, MIGRATIONS)


async def test_changes_are_numbered_without_a_gap_and_failures_leave_none(database: Database) -> None:
    outbox = Outbox(database)

    def fails(connection: Connection) -> None:
        outbox.put(connection, "device", "never", b"")
        raise LookupError("no")

    await database.write(lambda c: outbox.put(c, "device", "a", b"1", site="st-mary"))
    with pytest.raises(LookupError):
        await database.write(fails)
    await database.write(lambda c: [outbox.put(c, "device", key, b"2") for key in ("b", "a")])
    await database.write(lambda c: outbox.delete(c, "device", "nobody-heard-of-it"))
    await database.write(lambda c: outbox.delete(c, "device", "a"))
    assert _tail(database) == [
        (1, "a", "st-mary", None, b"1", False),
        (2, "b", "", None, b"2", False),
        (3, "a", "", "st-mary", b"2", False),
        (4, "a", "", None, b"", True),
    ]
    page = database.read_now(lambda c: read_state(c, scope=EVERYTHING, after=None))
    assert [(change.key, change.sequence) for change in page.changes] == [("b", 2)]


async def test_a_deletion_belongs_to_the_site_where_it_was(database: Database) -> None:
    outbox = Outbox(database)
    await database.write(lambda c: outbox.put(c, "device", "a", b"1", site="st-mary"))
    await database.write(lambda c: outbox.delete(c, "device", "a"))
    assert _tail(database)[1] == (2, "a", "st-mary", None, b"", True)


async def test_marks_tell_histories_apart(tmp_path: Path) -> None:
    heads = []
    for name, values in (("a.db", b"123"), ("b.db", b"123"), ("c.db", b"193")):
        database = open_feed(tmp_path / name)
        outbox = Outbox(database)
        for value in values:
            await database.write(lambda c, o=outbox, value=value: o.put(c, "device", "a", bytes([value])))
        heads.append(database.read_now(read_head))
        database.close()
    assert heads[0] == heads[1]
    assert heads[0].sequence == heads[2].sequence
    assert heads[0].mark != heads[2].mark


async def test_an_old_tail_is_trimmed_and_its_readers_notice(database: Database) -> None:
    outbox = Outbox(database, retained=50)
    positions = [database.read_now(read_head)]
    for number in range(150):
        await database.write(lambda c, n=number: outbox.put(c, "device", f"{n % 7}", b""))
        positions.append(database.read_now(read_head))
    assert len(_tail(database)) <= 51
    kept = [database.read_now(lambda c, p=position: continues(c, p)) for position in positions]
    first = kept.index(True)
    assert 95 <= first <= 102
    assert kept == [number >= first for number in range(151)]
    wrong = Position(150, b"another history!")
    ahead = Position(151, positions[150].mark)
    assert not database.read_now(lambda c: continues(c, wrong) or continues(c, ahead))


async def test_what_cannot_travel_is_refused_where_it_is_put(database: Database) -> None:
    outbox = Outbox(database)
    with pytest.raises(ValueError, match="bytes"):
        await database.write(lambda c: outbox.put(c, "device", "a", bytes(MAX_VALUE + 1)))
    with pytest.raises(ValueError, match="names"):
        await database.write(lambda c: outbox.put(c, "", "a", b""))
    with pytest.raises(RuntimeError, match=r"Database\.write"):
        await database.read(lambda c: outbox.put(c, "device", "a", b""))


async def test_many_at_once(database: Database) -> None:
    outbox = Outbox(database)

    def run(connection: Connection) -> None:
        for number in range(2_000):
            outbox.put(connection, "device", f"{number:05}", b"x", site=f"site-{number % 3}")

    await database.write(run)
    await database.write(run)
    assert [row[0] for row in _tail(database)] == list(range(1, 4_001))
    assert {row[3] for row in _tail(database)} == {None}


SITES = ("", "a", "b", "c")
STEPS = st.lists(
    st.tuples(st.sampled_from(("site", "device")), st.integers(0, 4), st.sampled_from((*SITES, "delete"))),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(before=STEPS, after=STEPS, sites=st.sets(st.sampled_from(SITES[1:])), kinds=st.sets(st.just("site")))
def test_a_snapshot_and_its_tail_make_what_the_reader_may_see(
    before: list[tuple[str, int, str]], after: list[tuple[str, int, str]], sites: set[str], kinds: set[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = open_feed(Path(folder) / "a.db")
        outbox = Outbox(database)
        number = 0

        def run(connection: Connection, steps: list[tuple[str, int, str]]) -> None:
            nonlocal number
            for kind, key, site in steps:
                number += 1
                if site == "delete":
                    outbox.delete(connection, kind, f"{key}")
                else:
                    outbox.put(connection, kind, f"{key}", b"%d" % number, site=site)

        for scope in (Scope(frozenset(sites), frozenset(kinds)), Scope(None, frozenset(kinds))):
            database.write_now(lambda c: run(c, before))
            held = _state(database, scope)
            position = database.read_now(read_head)
            database.write_now(lambda c: run(c, after))
            head = database.read_now(read_head)
            rows, _ = database.read_now(
                lambda c, p=position, h=head, s=scope: read_tail(c, p, up_to=h.sequence, scope=s)
            )
            for row in rows:
                change = scope.visible(row)
                assert change is not None
                held.pop((change.kind, change.key), None)
                if not change.deleted:
                    held[change.kind, change.key] = (change.value, change.site_id)
            assert held == _state(database, scope)
            assert scope.sites is None or {site for _, site in held.values()} <= {"", *sites}
        database.close()


def _state(database: Database, scope: Scope) -> dict[tuple[str, str], tuple[bytes, str]]:
    page = database.read_now(lambda c: read_state(c, scope=scope, after=None))
    return {(change.kind, change.key): (change.value, change.site_id) for change in page.changes}
