"""Checkpoints go forward, proofs verify, and people see what is theirs."""

import asyncio
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, delete, insert, select

from tests.support.databases import KINDS, Place
from tests.support.pki import ORGANIZATION, SITE
from tests.unit.evidence.conftest import DEVICE, Log, World, submission
from vigil.core import merkle
from vigil.core.certificates import EVERY
from vigil.core.keys import store_private_key
from vigil.core.merkle import EMPTY_ROOT, leaf_hash
from vigil.errors import Reason, Refused
from vigil.evidence import paging, service, store
from vigil.evidence.domain import Checkpoint, Scope, decode_leaf, open_note, parse_checkpoint_text, scope_of
from vigil.evidence.sequencer import LogDamagedError
from vigil.evidence.service import LogKey
from vigil.evidence.tables import ENTRY, METADATA, OWN_KEY
from vigil.storage import Database, open_database

SUBJECT = f"device/{DEVICE}"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def filled(world: World, log: Log, size: int) -> list[bytes]:
    """Append `size` holds, each a commit of its own; answers the leaf hashes."""
    log.start()
    writer = world.writer()
    for _ in range(size):
        await log.sequencer.append(submission(writer.hold()))
    return await hashes_of(log)


async def hashes_of(log: Log) -> list[bytes]:
    rows = await log.database.read(
        lambda connection: connection.execute(select(ENTRY.c.leaf).order_by(ENTRY.c.idx)).all()
    )
    return [leaf_hash(row.leaf) for row in rows]


async def reason_of(awaitable: Any) -> Reason:
    with pytest.raises(Refused) as caught:
        await awaitable
    return caught.value.reason


# --- checkpoints


async def test_the_empty_log_has_a_checkpoint(world: World, log: Log) -> None:
    checkpoint = await log.reader.checkpoint()
    text = open_note(checkpoint.note, world.key.verifier_key)
    assert parse_checkpoint_text(text) == ("vigil.test/evidence", 0, EMPTY_ROOT)


async def test_a_checkpoint_says_what_the_log_holds(world: World, log: Log) -> None:
    hashes = await filled(world, log, 7)
    checkpoint = await log.reader.checkpoint()
    text = open_note(checkpoint.note, world.key.verifier_key)
    assert parse_checkpoint_text(text) == ("vigil.test/evidence", 7, merkle.tree_root(hashes))
    assert await log.checkpointer.sign() is checkpoint
    await log.sequencer.append(submission(world.writer().hold()))
    # Asking does not make the log sign: one checkpoint a second is enough for everybody.
    assert await log.reader.checkpoint() is checkpoint


@pytest.mark.holds("insider-evidence")
async def test_checkpoints_are_durable_before_they_are_answered(world: World) -> None:
    log = world.open(busy_timeout=0.05)
    await log.sequencer.append(submission(world.writer().hold()))
    with world.place.locked("checkpoint"):
        assert await reason_of(log.reader.checkpoint()) is Reason.STORAGE_UNAVAILABLE
    checkpoint = await log.reader.checkpoint()
    assert await log.database.read(store.load_checkpoint) == checkpoint


@pytest.mark.holds("insider-evidence")
async def test_a_log_that_lost_entries_signs_nothing(world: World, log: Log) -> None:
    """Restored from an old copy while running: what is stored is shorter than what was signed."""
    await filled(world, log, 3)
    await log.checkpointer.sign()
    world.place.execute("DELETE FROM entry WHERE idx = 2; DELETE FROM group_commit WHERE first = 2")
    log.sequencer._state = None
    assert await reason_of(log.checkpointer.sign()) is Reason.STATE_CONFLICT


async def test_checkpoints_follow_the_news(world: World, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CHECKPOINT_SECONDS", 0)
    log.start()
    log.tasks.append(asyncio.create_task(log.checkpointer.run()))
    await log.sequencer.append(submission(world.writer().hold()))
    while (await log.checkpointer.newest()).size == 0:  # noqa: ASYNC110 - the task under test has its turn
        await asyncio.sleep(0)
    assert await log.database.read(lambda connection: store.load_checkpoint(connection, 1)) is not None


@pytest.mark.holds("insider-evidence")
async def test_what_stands_beside_a_hole_is_refused_and_the_hole_named(
    world: World, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    await filled(world, log, 4)
    checkpoint = await log.checkpointer.sign()
    world.place.execute("DELETE FROM entry WHERE idx = 1")
    auditor = world.reader("auditor")
    assert await reason_of(log.reader.inclusion(0, checkpoint.size)) is Reason.NOT_RECORDED
    assert "THE LOG IS DAMAGED" in caplog.text
    # What needs nothing of it is answered.
    assert (await log.reader.entry_at(auditor, 3)).index == 3


# --- the log's key and its database


def key_at(
    path: Path, database: Database, generate: Callable[[], Ed25519PrivateKey] = Ed25519PrivateKey.generate
) -> LogKey:
    return LogKey.at(path, database=database, origin="vigil.test/evidence", generate=generate)


def sign_empty(key: LogKey, database: Database) -> None:
    checkpoint = Checkpoint(key.origin, 0, EMPTY_ROOT, 1, key.sign(0, EMPTY_ROOT))
    database.write_now(lambda connection: store.put_checkpoint(connection, checkpoint))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "apart" / "log.key"


@pytest.fixture
def empty(place: Place) -> Iterator[Database]:
    database = open_database(place.at, metadata=METADATA, migrations="vigil.evidence.migrations")
    yield database
    database.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_key_is_made_once_and_stays(key_file: Path, empty: Database) -> None:
    made = key_at(key_file, empty)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    # Before anything is signed, and after.
    assert key_at(key_file, empty).verifier_key == made.verifier_key
    sign_empty(made, empty)
    assert key_at(key_file, empty).verifier_key == made.verifier_key
    key_file.unlink()
    with pytest.raises(LogDamagedError, match="is missing"):
        key_at(key_file, empty)
    store_private_key(key_file, generate_private_key(SECP256R1()))
    with pytest.raises(LogDamagedError, match="not an Ed25519"):
        key_at(key_file, empty)


@pytest.mark.holds("insider-evidence")
def test_a_key_whose_database_is_gone_signs_nothing(key_file: Path, empty: Database, tmp_path: Path) -> None:
    made = key_at(key_file, empty)
    other = open_database(tmp_path / "other.db", metadata=METADATA, migrations="vigil.evidence.migrations")
    with pytest.raises(LogDamagedError, match="restore the log's database, or move the key away"):
        key_at(key_file, other)
    # Moved away, it is followed by another one, and both logs go on.
    kept = key_file.rename(tmp_path / "kept.key")
    assert key_at(key_file, other).verifier_key != made.verifier_key
    with pytest.raises(LogDamagedError, match="restore"):
        key_at(key_file, empty)
    assert key_at(kept, empty).verifier_key == made.verifier_key
    other.close()


def test_a_first_start_that_ended_halfway_is_begun_again(
    key_file: Path, empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise OSError("the machine went down")

    with monkeypatch.context() as patch:
        patch.setattr(service, "store_private_key", crash)
        with pytest.raises(OSError, match="went down"):
            key_at(key_file, empty)
    assert not key_file.exists()
    made = key_at(key_file, empty)
    assert key_at(key_file, empty).verifier_key == made.verifier_key


def test_the_database_knows_the_key_before_there_is_one(
    key_file: Path, empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "store_private_key", lambda *_: None)
    private = Ed25519PrivateKey.generate()
    with pytest.raises(LogDamagedError):
        key_at(key_file, empty, lambda: private)
    own = LogKey(private, origin="vigil.test/evidence").verifier_key
    assert empty.read_now(lambda connection: store.is_own_key(connection, own))


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_that_start_at_once_have_one_key(key_file: Path, empty: Database) -> None:
    first: list[LogKey] = []

    def generate() -> Ed25519PrivateKey:
        """The other one is faster."""
        first.append(key_at(key_file, empty))
        return Ed25519PrivateKey.generate()

    own = key_at(key_file, empty, generate)
    assert own.verifier_key == first[0].verifier_key == key_at(key_file, empty).verifier_key


def test_a_log_from_before_goes_on_with_the_key_that_signed_it(
    key_file: Path, empty: Database, tmp_path: Path
) -> None:
    made = key_at(key_file, empty)
    sign_empty(made, empty)
    empty.write_now(lambda connection: connection.execute(delete(OWN_KEY)).close())
    stranger = tmp_path / "stranger.key"
    store_private_key(stranger, Ed25519PrivateKey.generate())
    with pytest.raises(LogDamagedError, match="not the one that signed"):
        key_at(stranger, empty)
    assert key_at(key_file, empty).verifier_key == made.verifier_key
    assert empty.read_now(lambda connection: store.is_own_key(connection, made.verifier_key))


# --- proofs


async def test_inclusion_under_the_newest_and_under_older_checkpoints(world: World, log: Log) -> None:
    await filled(world, log, 5)
    older = await log.checkpointer.sign()
    hashes = await filled(world, log, 8)
    for index in range(13):
        proof = await log.reader.inclusion(index, 0)
        assert proof.checkpoint.size == 13 or index < 5
        assert merkle.verify_inclusion(
            leaf=hashes[index],
            index=index,
            size=proof.checkpoint.size,
            path=proof.path,
            root=proof.checkpoint.root,
        )
    for index in range(5):
        proof = await log.reader.inclusion(index, 5)
        assert proof.checkpoint == older
        assert merkle.verify_inclusion(
            leaf=hashes[index], index=index, size=5, path=proof.path, root=older.root
        )


async def test_a_proof_of_something_newer_signs_a_checkpoint_at_once(world: World, log: Log) -> None:
    await filled(world, log, 2)
    await log.checkpointer.sign()
    await filled(world, log, 1)
    assert (await log.reader.inclusion(2, 0)).checkpoint.size == 3


@pytest.mark.parametrize(
    ("index", "size", "reason"),
    [
        (3, 0, Reason.RESOURCE_NOT_FOUND),
        (0, 4, Reason.RESOURCE_NOT_FOUND),
        (0, 1, Reason.RESOURCE_NOT_FOUND),
        (2**64 - 1, 0, Reason.RESOURCE_NOT_FOUND),
        (2, 2, Reason.FIELD_INVALID),
    ],
)
async def test_proofs_that_do_not_exist(
    world: World, log: Log, index: int, size: int, reason: Reason
) -> None:
    await filled(world, log, 2)
    await log.checkpointer.sign()
    await filled(world, log, 1)
    await log.checkpointer.sign()
    assert await reason_of(log.reader.inclusion(index, size)) is reason


@pytest.mark.holds("insider-evidence")
async def test_any_two_sizes_are_consistent(world: World, log: Log) -> None:
    hashes = await filled(world, log, 9)
    for old in range(10):
        for new in range(max(old, 1), 10):
            proof = await log.reader.consistency(old, new)
            assert merkle.verify_consistency(
                old_size=old,
                new_size=new,
                old_root=merkle.tree_root(hashes[:old]),
                new_root=merkle.tree_root(hashes[:new]),
                path=proof.path,
            )
    assert (await log.reader.consistency(4, 0)).new_size == 9
    assert await reason_of(log.reader.consistency(4, 10)) is Reason.RESOURCE_NOT_FOUND
    assert await reason_of(log.reader.consistency(5, 4)) is Reason.FIELD_INVALID


# --- reading


async def mixed(world: World, log: Log) -> None:
    """One device's records: two at the site, one at another site, one of another hospital, one of nobody."""
    log.start()
    writer = world.writer()
    for owner in (
        {},
        {"site": "site-2"},
        {},
        {"organization": "clinic", "site": "clinic-1"},
        {"organization": "", "site": ""},
        {"organization": ORGANIZATION, "site": ""},
    ):
        await log.sequencer.append(submission(writer.hold(), **owner))


@pytest.mark.parametrize(
    ("roles", "values", "numbers"),
    [
        (("technician",), {}, [1, 3]),
        (("technician",), {"sites": ("site-2",)}, [2]),
        (("technician",), {"sites": (EVERY,)}, [1, 2, 3]),
        (("auditor",), {"sites": (EVERY,)}, [1, 2, 3, 6]),
        (("auditor",), {"organization": "clinic", "sites": (EVERY,)}, [4]),
        (("auditor",), {"organization": "operator", "sites": (EVERY,)}, [1, 2, 3, 4, 5, 6]),
        (("recall",), {"organization": "operator", "sites": (EVERY,)}, [1, 2, 3, 4, 5, 6]),
        (("technician",), {"organization": "operator", "sites": (EVERY,)}, [1, 2, 3, 4]),
        (("technician",), {"organization": "operator", "sites": (SITE,)}, [1, 3]),
    ],
)
async def test_people_see_the_records_of_their_scope(
    world: World, log: Log, roles: tuple[str, ...], values: dict[str, Any], numbers: list[int]
) -> None:
    await mixed(world, log)
    reader = world.reader(*roles, **values)
    page = await log.reader.history(reader, SUBJECT, kinds=(), page_size=0, page_token="")
    assert [decode_leaf(entry.leaf).subjects[0].number for entry in page.entries] == numbers
    for index in range(6):
        if index + 1 in numbers:
            entry = await log.reader.entry_at(reader, index)
            assert await log.reader.entry_of(reader, entry.digest) == entry
        else:
            assert await reason_of(log.reader.entry_at(reader, index)) is Reason.NOT_IN_SCOPE


async def test_what_is_anothers_and_what_is_not_there_look_the_same(world: World, log: Log) -> None:
    await mixed(world, log)
    stranger = world.reader("auditor", organization="elsewhere", sites=(EVERY,))
    owner = world.reader("technician")
    answers = []
    for reader, subject in ((stranger, SUBJECT), (owner, "device/dev-zzzzzzzzzzzzzzzz")):
        with pytest.raises(Refused) as caught:
            await log.reader.history(reader, subject, kinds=(), page_size=0, page_token="")
        answers.append(caught.value.refusals)
    assert answers[0] == answers[1]
    answers = []
    for reader, index in ((stranger, 0), (owner, 99), (owner, 2**64 - 1)):
        with pytest.raises(Refused) as caught:
            await log.reader.entry_at(reader, index)
        answers.append(caught.value.refusals)
    assert answers[0] == answers[1] == answers[2]
    assert await reason_of(log.reader.entry_of(owner, bytes(32))) is Reason.NOT_IN_SCOPE
    assert await reason_of(log.reader.entry_of(owner, bytes(31))) is Reason.FIELD_INVALID


async def test_pages_are_complete_and_in_order(world: World, log: Log) -> None:
    await filled(world, log, 7)
    reader = world.reader("technician")
    token, numbers = "", []
    while True:
        page = await log.reader.history(reader, SUBJECT, kinds=("hold",), page_size=3, page_token=token)
        numbers.append([decode_leaf(entry.leaf).subjects[0].number for entry in page.entries])
        token = page.next_token
        if not token:
            break
    assert numbers == [[1, 2, 3], [4, 5, 6], [7]]
    nothing = await log.reader.history(reader, SUBJECT, kinds=("receipt",), page_size=3, page_token="")
    assert nothing.entries == ()
    others = paging.token_after((1,), 7, "device/other")
    for bad in ("x", "-1", "٣", "9" * 19, others):
        asked = log.reader.history(reader, SUBJECT, kinds=(), page_size=3, page_token=bad)
        assert await reason_of(asked) is Reason.FIELD_INVALID
    for subject in ("", "Device/x", "device/ x"):
        asked = log.reader.history(reader, subject, kinds=(), page_size=3, page_token="")
        assert await reason_of(asked) is Reason.FIELD_INVALID


async def test_a_history_that_grows_while_it_is_read_comes_to_its_end(world: World, log: Log) -> None:
    """As one's own does: each page that is asked for is a record more."""
    await filled(world, log, 3)
    reader = world.reader("technician")
    token, numbers = "", []
    while True:
        page = await log.reader.history(reader, SUBJECT, kinds=(), page_size=1, page_token=token)
        numbers.extend(decode_leaf(entry.leaf).subjects[0].number for entry in page.entries)
        token = page.next_token
        if not token:
            break
        await log.sequencer.append(submission(world.writer().hold()))
    assert numbers == [1, 2, 3]
    assert len((await log.reader.history(reader, SUBJECT, kinds=(), page_size=0, page_token="")).entries) == 5


async def test_a_history_of_a_time_of_the_log(world: World, log: Log) -> None:
    began = world.clock.now()
    log.start()
    for _ in range(4):
        await log.sequencer.append(submission(world.writer().hold()))
        world.clock.advance(60)
    reader = world.reader("technician")

    async def numbers(since: int, until: int) -> list[int]:
        page = await log.reader.history(
            reader, SUBJECT, kinds=(), page_size=9, page_token="", since=since, until=until
        )
        return [decode_leaf(entry.leaf).subjects[0].number for entry in page.entries]

    minute = 60_000
    assert await numbers(0, 0) == [1, 2, 3, 4]
    assert await numbers(began + minute, 0) == [2, 3, 4]
    assert await numbers(began + minute, began + 2 * minute) == [2, 3]
    assert await numbers(began + minute + 1, began + 2 * minute - 1) == []
    assert await numbers(0, began - 1) == []


@pytest.mark.parametrize(
    ("since", "until", "word"),
    [(-1, 0, "1970"), (0, -1, "1970"), (10**15, 0, "future"), (9, 8, "before it begins")],
)
async def test_a_window_that_cannot_be(world: World, log: Log, since: int, until: int, word: str) -> None:
    await filled(world, log, 1)
    with pytest.raises(Refused) as caught:
        await log.reader.history(
            world.reader("technician"),
            SUBJECT,
            kinds=(),
            page_size=1,
            page_token="",
            since=since,
            until=until,
        )
    assert caught.value.reason is Reason.FIELD_INVALID
    assert word in caught.value.refusals[0].sentence


async def test_a_page_of_large_records_stays_below_the_bound_of_a_message(world: World, log: Log) -> None:
    log.start()
    writer = world.writer()
    for place in range(10):
        bodies = [bytes([place, number]) * 32_768 for number in range(8)]
        await log.sequencer.append(submission(writer.hold(), bodies=bodies))
    reader = world.reader("technician")
    seen, token = 0, ""
    while True:
        page = await log.reader.history(reader, SUBJECT, kinds=(), page_size=0, page_token=token)
        assert sum(len(body) for entry in page.entries for body in entry.bodies) < 3 << 20
        seen += len(page.entries)
        token = page.next_token
        if not token:
            break
    assert seen == 10


async def test_an_erased_statement_leaves_the_log_whole(world: World, log: Log) -> None:
    await filled(world, log, 3)
    world.place.execute("DELETE FROM statement WHERE idx = 1")
    entry = await log.reader.entry_at(world.reader("technician"), 1)
    assert entry.statement == b""
    proof = await log.reader.inclusion(1, 0)
    assert merkle.verify_inclusion(
        leaf=leaf_hash(entry.leaf), index=1, size=3, path=proof.path, root=proof.checkpoint.root
    )
    world.open()


# --- the condition in SQL

OWNERS = [(organization, site) for organization in ("", "h", "g") for site in ("", "s", "t")]
SCOPES = st.builds(
    Scope,
    organization=st.sampled_from(["h", "g", EVERY]),
    sites=st.frozensets(st.sampled_from(["s", "t", EVERY]), max_size=2),
    siteless=st.booleans(),
    everything=st.booleans(),
)


@given(SCOPES)
@settings(max_examples=60)
def test_sql_and_scope_agree(scope: Scope) -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        ENTRY.create(connection)
        for place, (organization, site) in enumerate(OWNERS):
            row = {"idx": place, "leaf": b"", "digest": bytes([place]), "kind": "hold"}
            connection.execute(insert(ENTRY).values(organization=organization, site=site, **row))
        query = select(ENTRY.c.organization, ENTRY.c.site).where(store.visible(scope))
        found = {(row.organization, row.site) for row in connection.execute(query)}
    engine.dispose()
    assert found == {owner for owner in OWNERS if scope.covers(*owner)}


def test_a_service_that_may_read_reads_everything(world: World) -> None:
    assert scope_of(world.pki.service("revocation").identity).everything
