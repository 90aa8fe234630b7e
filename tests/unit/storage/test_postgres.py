"""What only PostgreSQL can do to us: settings that lose commits, connections that end, commits that are none."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import DataError, IntegrityError

from tests.support.databases import PostgresPlace
from tests.support.postgres import SUPERUSER, PostgresServer
from tests.unit.storage.schema import METADATA, PUMPS, SITES
from vigil.errors import Reason, Refused
from vigil.storage import Database, insert_rows, open_database

MIGRATIONS = Path(__file__).parent / "migrations"
SPOKEN = "correct horse battery".replace(" ", "-")


@pytest.fixture
def place(postgres: PostgresServer) -> PostgresPlace:
    return PostgresPlace(postgres)


@pytest.fixture
async def database(place: PostgresPlace) -> AsyncIterator[Database]:
    database = opened(str(place.at))
    yield database
    database.close()


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that the test may harm."""
    with PostgresServer.running() as server:
        yield server


def opened(url: str) -> Database:
    return open_database(url, metadata=METADATA, migrations=MIGRATIONS)


def add(site: str) -> "object":
    return lambda connection: connection.execute(insert(SITES).values(site_id=site)).close()


def sites(connection: Connection) -> list[str]:
    return list(connection.execute(select(SITES.c.site_id).order_by(SITES.c.site_id)).scalars())


def refusal_of(url: str) -> Refused:
    with pytest.raises(Refused) as caught:
        opened(url).close()
    assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    return caught.value


def cause_of(refusal: Refused) -> str:
    return refusal.refusals[0].values["cause"]


# --- durable, or not at all


@pytest.mark.holds("storage-failures")
def test_a_server_that_would_lose_commits_is_refused(own_server: PostgresServer) -> None:
    url = own_server.create()
    opened(url).close()
    own_server.stop()
    own_server.start(fsync="off")
    refusal = refusal_of(url)
    assert cause_of(refusal) == "fsync"
    assert "crash could lose" in refusal.refusals[0].sentence


def test_the_session_asks_for_durable_commits_whatever_the_defaults_are(
    postgres: PostgresServer, place: PostgresPlace
) -> None:
    postgres.query(f"ALTER DATABASE {place.name} SET synchronous_commit = off")
    database = opened(f"{place.at}&options=-csynchronous_commit%3Doff")
    assert database.write_now(lambda c: c.execute(text("SHOW synchronous_commit")).scalar()) == "on"
    database.close()


def test_another_encoding_is_refused(postgres: PostgresServer) -> None:
    postgres.query("CREATE DATABASE latin ENCODING 'SQL_ASCII' TEMPLATE template0")
    assert cause_of(refusal_of(postgres.url("latin"))) == "encoding"


def test_reads_see_one_moment_and_change_nothing(database: Database) -> None:
    shown = database.read_now(
        lambda c: [
            c.execute(text(f"SHOW transaction_{name}")).scalar() for name in ("isolation", "read_only")
        ]
    )
    assert shown == ["repeatable read", "on"]


# --- no commit that is none


async def test_a_function_that_goes_on_after_a_failed_statement_is_not_told_of_success(
    database: Database,
) -> None:
    """PostgreSQL would answer COMMIT of a failed transaction with a ROLLBACK that succeeds."""

    def swallows(connection: Connection) -> str:
        connection.execute(insert(SITES).values(site_id="lost"))
        try:
            connection.execute(insert(SITES).values(site_id="lost"))
        except IntegrityError:
            return "done"
        return "never"

    with pytest.raises(Refused) as caught:
        await database.write(swallows)
    assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    assert await database.read(sites) == []
    await database.write(add("a"))
    assert await database.read(sites) == ["a"]


async def test_a_nul_byte_is_the_callers_fault(database: Database) -> None:
    with pytest.raises(DataError):
        await database.write(add("a\x00b"))
    with pytest.raises(DataError):
        await database.write(lambda c: insert_rows(c, SITES, [("a\x00b", "")]))
    await database.write(add("a"))


async def test_an_error_repeats_no_parameters(database: Database) -> None:
    await database.write(add("a-secret-site"))
    for write in (add("a-secret-site"), lambda c: insert_rows(c, SITES, [("a-secret-site", "")])):
        with pytest.raises(IntegrityError) as caught:
            await database.write(write)
        assert "[parameters" not in str(caught.value)


# --- connections that end


@pytest.mark.holds("database-server", "storage-failures")
async def test_a_killed_backend_is_unavailable_and_then_over(
    postgres: PostgresServer, place: PostgresPlace, database: Database
) -> None:
    await database.write(add("a"))
    assert await database.read(sites) == ["a"]
    killed = postgres.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", place.name
    )
    assert len(killed) >= 2
    with pytest.raises(Refused) as caught:
        await database.write(add("b"))
    assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    # The next one has a connection of its own; readers look before they use theirs.
    await database.write(add("b"))
    assert await database.read(sites) == ["a", "b"]


@pytest.mark.holds("database-server", "storage-failures")
async def test_a_server_that_restarts_is_unavailable_and_then_over(own_server: PostgresServer) -> None:
    url = own_server.create()
    database = opened(url)
    await database.write(add("a"))
    own_server.stop()
    for ask in (database.write(add("b")), database.read(sites)):
        with pytest.raises(Refused) as caught:
            await ask
        assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    own_server.start()
    await database.write(add("b"))
    assert await database.read(sites) == ["a", "b"]
    database.close()


async def test_a_view_whose_connection_ended_is_unavailable(
    postgres: PostgresServer, place: PostgresPlace, database: Database
) -> None:
    async with database.reader.view() as view:
        assert await view.read(sites) == []
        postgres.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", place.name
        )
        with pytest.raises(Refused) as caught:
            await view.read(sites)
        assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    async with database.reader.view() as view:
        assert await view.read(sites) == []


async def test_two_processes_that_start_at_once_make_the_tables_once(place: PostgresPlace) -> None:
    databases = await asyncio.gather(*(asyncio.to_thread(opened, str(place.at)) for _ in range(4)))
    assert place.rows("SELECT version_num FROM alembic_version") == [("0002",)]
    for database in databases:
        database.close()


# --- who may


def test_a_password_is_nowhere_to_be_read(
    own_server: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong in the URL, right in a passfile, right through a service file; never in an error or a log."""
    url = own_server.create()
    opened(url).close()
    own_server.query(f"CREATE ROLE clerk LOGIN SUPERUSER PASSWORD '{SPOKEN}'")
    own_server.require_passwords()
    caplog.set_level(logging.DEBUG)
    name = url.partition("@/")[2]
    refusal = refusal_of(f"postgresql://clerk:{SPOKEN}x@/{name}")
    said = f"{refusal!r}{refusal}{refusal.refusals}{refusal.__cause__!r}{caplog.text}"
    assert SPOKEN not in said

    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:clerk:{SPOKEN}\n")
    passfile.chmod(0o600)
    opened(f"postgresql://clerk@/{name}&passfile={passfile}").close()
    service = tmp_path / "service.conf"
    database, _, place = name.partition("?")
    lines = ["[vigil]", *place.split("&"), f"dbname={database}", "user=clerk", f"password={SPOKEN}"]
    service.write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGSERVICEFILE", str(service))
        opened("postgresql://?service=vigil").close()


def test_over_a_network_the_server_must_prove_its_name(own_server: PostgresServer) -> None:
    url = own_server.create()
    opened(url).close()
    name = url.partition("@/")[2].partition("?")[0]
    own_server.stop()
    port, address = own_server.listen_on_a_network()
    refusal = refusal_of(f"postgresql://{SUPERUSER}@{address}:{port}/{name}?sslmode=disable")
    assert cause_of(refusal) == "sslmode"
    database = opened(f"postgresql://{SUPERUSER}@127.0.0.1:{port}/{name}")
    assert database.read_now(lambda c: c.execute(select(PUMPS)).all()) == []
    database.close()
