"""A monitor on a real memory, and logs that are honest, or rewritten, cut back, forked, reordered, stale."""

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vigil.cli import monitoring
from vigil.core.clock import ManualClock
from vigil.core.digest import sha256
from vigil.core.merkle import Frontier, leaf_hash, tree_root
from vigil.core.notes import checkpoint_text, cosign, cosigner_key, sign_note, verifier_key
from vigil.core.statements.envelope import Number
from vigil.core.tiles import Tile, encode_bundle, parse_tile
from vigil.core.witness_policy import WitnessPolicy, parse_witness_policy
from vigil.errors import Reason, Refused
from vigil.evidence.domain import Leaf, SubjectLink
from vigil.monitor import service
from vigil.monitor.domain import Wrong, bundles, read_checkpoint, split_bundle
from vigil.monitor.reader import UnreadableError
from vigil.monitor.service import BUNDLES_A_STEP, Monitor
from vigil.monitor.store import METADATA
from vigil.storage import Database, assert_migrations_match, open_database

ORIGIN = "vigil.test/evidence"
SIGNER = sha256(b"a signer's certificate")
SERIES = bytes(16)


def public_of(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


@dataclass
class SmallLog:
    """Leaves under a key, about two pumps in turn; it serves its tiles as a log does."""

    clock: ManualClock
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    leaves: list[Leaf] = field(default_factory=list)
    origin: str = ORIGIN
    cosignatures: str = ""
    reads: list[str] = field(default_factory=list)
    fails_after: int = 1_000_000

    @property
    def verifier_key(self) -> str:
        return verifier_key(self.origin, public_of(self.key))

    @property
    def entries(self) -> list[bytes]:
        return [leaf.encode() for leaf in self.leaves]

    @property
    def text(self) -> str:
        return checkpoint_text(
            self.origin, len(self.leaves), tree_root([leaf_hash(one) for one in self.entries])
        )

    @property
    def note(self) -> str:
        own = sign_note(self.text, name=self.origin, public_key=public_of(self.key), sign=self.key.sign)
        return own + self.cosignatures

    def grow(self, count: int, *, says: str = "x") -> None:
        heads: dict[str, tuple[int, bytes]] = {}
        for leaf in self.leaves:
            for link in leaf.subjects:
                heads[link.subject] = link.number, leaf_hash(leaf.encode())
        signed = [leaf for leaf in self.leaves if leaf.number is not None]
        for _ in range(count):
            place = len(self.leaves)
            subject = f"device/dev-{'ab'[place % 2] * 16}"
            number, previous = heads.get(subject, (0, b""))
            leaf = Leaf(
                kind="receipt",
                log_time=self.clock.now(),
                digest=sha256(f"{says} {place}".encode()),
                signer=SIGNER,
                number=Number(SERIES, len(signed), signed[-1].digest if signed else b""),
                subjects=(SubjectLink(subject, number + 1, previous),),
                bodies=(),
            )
            self.leaves.append(leaf)
            signed.append(leaf)
            heads[subject] = number + 1, leaf_hash(leaf.encode())

    def altered(self, place: int, leaf: Leaf) -> "SmallLog":
        """The log as somebody on the way shows it: its note, and one leaf that is another."""
        shown = replace(self, leaves=[*self.leaves[:place], leaf, *self.leaves[place + 1 :]], reads=[])
        shown.checkpoint = self.checkpoint  # type: ignore[method-assign]
        return shown

    def fork(self, at: int) -> "SmallLog":
        return replace(self, leaves=self.leaves[:at], reads=[], cosignatures="")

    async def checkpoint(self) -> str:
        return self.note

    async def read(self, path: str) -> bytes:
        self.reads.append(path)
        if len(self.reads) > self.fails_after:
            raise UnreadableError("the line is cut")
        tile = parse_tile(path)
        assert tile.width_in(len(self.leaves)) >= tile.width
        return encode_bundle(self.entries[tile.start : tile.start + tile.width])


@dataclass
class Watch:
    folder: Path
    clock: ManualClock
    log: SmallLog
    opened: list[Database] = field(default_factory=list)

    def monitor(
        self, log: SmallLog | None = None, *, policy: WitnessPolicy | None = None, max_age: int | None = None
    ) -> Monitor:
        for database in self.opened:
            database.close()
        self.opened = [
            open_database(
                self.folder / "monitor.db", metadata=METADATA, migrations="vigil.monitor.migrations"
            )
        ]
        return Monitor(
            database=self.opened[0],
            source=log or self.log,
            key=self.log.verifier_key,
            policy=policy,
            max_age=max_age,
            clock=self.clock,
        )

    async def wrong(self, log: SmallLog, **values: object) -> Wrong:
        """What is found, twice: what was found once is found again."""
        kept = await self.monitor(log).kept()
        with pytest.raises(Wrong) as first:
            await self.monitor(log, **values).look()  # type: ignore[arg-type]
        with pytest.raises(Wrong) as second:
            await self.monitor(log, **values).look()  # type: ignore[arg-type]
        assert (first.value.what, str(first.value)) == (second.value.what, str(second.value))
        after = await self.monitor(log).kept()
        assert (after and (after.size, after.root)) == (kept and (kept.size, kept.root))
        return first.value


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    clock = ManualClock()
    watch = Watch(tmp_path, clock, SmallLog(clock))
    yield watch
    for database in watch.opened:
        database.close()


async def test_an_honest_log_is_followed_and_only_what_is_new_is_read(watch: Watch) -> None:
    log = watch.log
    look = await watch.monitor().look()
    assert (look.signed.size, look.before) == (0, 0)
    log.grow(300)
    look = await watch.monitor().look()
    assert (look.signed.size, look.subjects, look.missing) == (300, 2, 0)
    assert log.reads == ["/tile/entries/000", "/tile/entries/001.p/44"]
    log.reads.clear()
    log.grow(10)
    look = await watch.monitor().look()
    assert (look.signed.size, look.before, log.reads) == (310, 300, ["/tile/entries/001.p/54"])
    log.reads.clear()
    assert (await watch.monitor().look()).before == 310
    assert log.reads == []


async def test_a_long_first_reading_goes_on_where_it_was_cut_off(watch: Watch) -> None:
    log = watch.log
    log.leaves = [
        Leaf("hold", 1, sha256(bytes([n % 256, n // 256])), SIGNER, None, (), ()) for n in range(20_000)
    ]
    log.fails_after = BUNDLES_A_STEP + 3
    with pytest.raises(UnreadableError):
        await watch.monitor().look()
    assert await watch.monitor().kept() is None
    log.fails_after, log.reads = 1_000_000, []
    log.leaves.append(Leaf("hold", 1, bytes(32), SIGNER, None, (), ()))
    look = await watch.monitor().look()
    assert look.signed.size == 20_001
    assert len(log.reads) < 20
    # The first target was signed before the newest entry, and was never seen to be wrong: both are kept.
    assert look.signed.root == tree_root([leaf_hash(one) for one in log.entries])


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BUNDLES_A_STEP", 1)


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("kept", [0, 100])
@pytest.mark.parametrize(
    ("change", "what"),
    [({"digest": bytes(32)}, "signer"), ({"kind": "hold"}, "subject"), ({"bodies": (bytes(32),)}, "subject")],
)
async def test_what_was_altered_on_the_way_is_not_held_against_the_log(
    watch: Watch, kept: int, change: dict[str, object], what: str
) -> None:
    """At the end of a step the altered leaf is a head already when the next step finds that it does not fit."""
    log = watch.log
    if kept:
        log.grow(kept)
        await watch.monitor().look()
    log.grow(700 - kept)
    altered = log.altered(511, replace(log.leaves[511], **change))  # type: ignore[arg-type]
    assert (await watch.wrong(altered)).what == what
    look = await watch.monitor().look()
    assert (look.signed.size, look.subjects, look.missing) == (700, 2, 0)
    log.grow(300)
    assert (await watch.monitor().look()).signed.size == 1000


@pytest.mark.usefixtures("short_steps")
async def test_what_was_altered_before_a_reading_was_cut_off_is_read_once_more(watch: Watch) -> None:
    log = watch.log
    log.grow(100)
    await watch.monitor().look()
    log.grow(600)
    altered = log.altered(511, replace(log.leaves[511], kind="hold"))
    altered.fails_after = 2
    with pytest.raises(UnreadableError):
        await watch.monitor(altered).look()
    log.grow(1)
    log.reads.clear()
    assert (await watch.monitor().look()).signed.size == 701
    # The rest, then all since what was proved, up to the note that it was on its way to; then up to the new one.
    last = "/tile/entries/002.p/189"
    assert log.reads == [last, "/tile/entries/000", "/tile/entries/001", last, last]


@pytest.mark.usefixtures("short_steps")
@pytest.mark.holds("insider-evidence")
async def test_what_is_wrong_in_a_long_reading_is_said_again(watch: Watch) -> None:
    log = watch.log
    log.grow(100)
    await watch.monitor().look()
    log.grow(600)
    other = log.fork(600)
    log.leaves[600] = replace(log.leaves[600], log_time=1)
    assert (await watch.wrong(log)).what == "time"
    # The note was signed: what does not follow from it is wrong too, though it follows from what was verified.
    other.grow(99)
    monitor = watch.monitor(other)
    with pytest.raises(Wrong) as wrong:
        await monitor.look()
    assert (wrong.value.what, monitor.held, monitor.shown) == ("shrunk", log.note, other.note)
    assert (await watch.wrong(other)).what == "shrunk"
    other.grow(2)
    assert (await watch.wrong(other)).what == "rewritten"


@pytest.mark.usefixtures("short_steps")
@pytest.mark.holds("insider-evidence")
async def test_a_size_beyond_all_measure_is_no_reason_to_fail(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = watch.log
    log.grow(300)
    claimed = checkpoint_text(ORIGIN, 10**19 - 1, bytes(32))
    note = sign_note(claimed, name=ORIGIN, public_key=public_of(log.key), sign=log.key.sign)
    liar = replace(log, reads=[])
    asked = 0

    def counted(first: int, size: int, *, within: int = 0) -> Iterator[Tile]:
        nonlocal asked
        for tile in bundles(first, size, within=within):
            asked += 1
            assert asked <= 10, "bundles are listed that nobody read"
            yield tile

    async def checkpoint() -> str:
        return note

    monkeypatch.setattr(service, "bundles", counted)
    liar.checkpoint = checkpoint  # type: ignore[method-assign]
    for served, read in ((1, ["/tile/entries/000", "/tile/entries/001"]), (0, ["/tile/entries/001"])):
        liar.reads.clear()
        liar.fails_after = served
        with pytest.raises(UnreadableError):
            await watch.monitor(liar).look()
        assert liar.reads == read
    monitor = watch.monitor()
    with pytest.raises(Wrong, match="shows 300 records and had signed 9999999999999999999"):
        await monitor.look()
    assert (monitor.held, monitor.shown) == (note, log.note)


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("kept", [0, 100])
async def test_a_memory_that_an_older_version_left_unproved_is_read_anew(watch: Watch, kept: int) -> None:
    log = watch.log
    if kept:
        log.grow(kept)
    await watch.monitor().look()
    log.grow(600 - kept)
    watch.opened.pop().close()
    with sqlite3.connect(watch.folder / "monitor.db") as memory:
        for table in ("", "_subject", "_series"):
            memory.execute(f"DROP TABLE unproved{table}")
        memory.execute("ALTER TABLE state ADD COLUMN target TEXT NOT NULL DEFAULT 'a note'")
        memory.execute("UPDATE subject SET number = 7")
        memory.execute("UPDATE state SET time = 7")
        memory.execute("UPDATE alembic_version SET version_num = '0001'")
    memory.close()
    other = log.fork(0)
    other.grow(600, says="another")
    if kept:
        assert (await watch.wrong(other)).what == "rewritten"
    look = await watch.monitor().look()
    assert (look.signed.size, look.before, look.subjects) == (600, kept, 2)


@pytest.mark.holds("insider-evidence")
async def test_a_log_that_was_cut_back_is_noticed(watch: Watch) -> None:
    watch.log.grow(20)
    await watch.monitor().look()
    wrong = await watch.wrong(watch.log.fork(15))
    assert wrong.what == "shrunk"


@pytest.mark.holds("insider-evidence")
async def test_two_trees_of_one_size_are_noticed(watch: Watch) -> None:
    watch.log.grow(20)
    await watch.monitor().look()
    fork = watch.log.fork(15)
    fork.grow(5, says="another")
    assert (await watch.wrong(fork)).what == "forked"


@pytest.mark.holds("insider-evidence")
async def test_a_history_that_goes_on_from_another_is_noticed(watch: Watch) -> None:
    watch.log.grow(20)
    await watch.monitor().look()
    fork = watch.log.fork(15)
    fork.grow(15, says="another")
    wrong = await watch.wrong(fork)
    # The first new entry of the fork already names another record before it.
    assert wrong.what in ("subject", "signer")
    quiet = watch.log.fork(20)
    quiet.leaves[3] = replace(quiet.leaves[3], kind="hold")
    quiet.leaves.append(Leaf("hold", watch.clock.now(), bytes(32), SIGNER, None, (), ()))
    wrong = await watch.wrong(quiet)
    assert wrong.what == "rewritten"
    assert "does not follow" in str(wrong)


@pytest.mark.holds("insider-evidence")
async def test_entries_that_are_not_what_was_signed_are_noticed(watch: Watch) -> None:
    watch.log.grow(20)
    honest = watch.log.note
    watch.log.leaves[7] = replace(watch.log.leaves[7], kind="hold", subjects=(), number=None)

    async def checkpoint() -> str:
        return honest

    watch.log.leaves[7:] = [replace(leaf, subjects=(), number=None) for leaf in watch.log.leaves[7:]]
    watch.log.checkpoint = checkpoint  # type: ignore[method-assign]
    wrong = await watch.wrong(watch.log)
    assert wrong.what == "rewritten"


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda a, b: (replace(a, subjects=b.subjects), replace(b, subjects=a.subjects)), "subject"),
        (lambda a, b: (a, replace(b, number=a.number)), "signer"),
        (lambda a, b: (a, replace(b, subjects=(replace(b.subjects[0], previous=bytes(32)),))), "subject"),
        (lambda a, b: (a, replace(b, subjects=(replace(b.subjects[0], number=9),))), "subject"),
        (lambda a, b: (a, replace(b, number=replace(b.number, previous=bytes(32)))), "signer"),
        (lambda a, b: (a, replace(b, log_time=a.log_time - 1)), "time"),
    ],
)
async def test_a_reordered_chain_is_noticed_though_it_was_signed(
    watch: Watch, change: object, what: str
) -> None:
    """The operator signs a tree over entries whose chains are not whole: number for number it is found."""
    watch.log.grow(4)
    await watch.monitor().look()
    watch.log.grow(4)
    leaves = watch.log.leaves
    leaves[5], leaves[7] = change(leaves[5], leaves[7])  # type: ignore[operator]
    wrong = await watch.wrong(watch.log)
    assert wrong.what == what
    assert wrong.index in (5, 6, 7)
    assert wrong.entry == watch.log.entries[wrong.index]


async def test_a_signers_number_that_never_came_is_counted_and_may_come_late(watch: Watch) -> None:
    watch.log.grow(6)
    late = watch.log.leaves.pop(2)
    watch.log.leaves = [replace(leaf, subjects=()) for leaf in watch.log.leaves]
    assert (await watch.monitor().look()).missing == 1
    watch.log.leaves.append(replace(late, subjects=()))
    assert (await watch.monitor().look()).missing == 0
    watch.log.leaves.append(replace(late, subjects=(), digest=bytes(32)))
    assert (await watch.wrong(watch.log)).what == "signer"


async def test_numbers_beyond_the_databases_integers_are_no_reason_to_fail(watch: Watch) -> None:
    log = watch.log
    log.leaves = [
        Leaf("hold", 1, bytes([n] * 32), SIGNER, Number(bytes([n] * 16), 2**63 - 1, b""), (), ())
        for n in range(3)
    ]
    assert (await watch.monitor().look()).missing == 3 * (2**63 - 1)
    log.leaves.append(Leaf("hold", 1, bytes(32), SIGNER, Number(bytes([9] * 16), 2**63, b""), (), ()))
    assert (await watch.wrong(log)).what == "malformed"
    log.leaves[3] = Leaf("hold", 2**63, bytes(32), SIGNER, None, (), ())
    assert (await watch.wrong(log)).what == "malformed"


async def test_a_stale_log_is_noticed_by_its_newest_record(watch: Watch) -> None:
    watch.log.grow(3)
    minute = 60_000
    assert (await watch.monitor(max_age=minute).look()).signed.size == 3
    watch.clock.advance(61)
    wrong = await watch.wrong(watch.log, max_age=minute)
    assert wrong.what == "stale"
    watch.log.grow(1)
    assert (await watch.monitor(max_age=minute).look()).signed.size == 4
    watch.clock.set_now(watch.clock.now() - 3_600_000)
    assert (await watch.wrong(watch.log, max_age=minute)).what == "stale"


async def test_witnesses_say_how_old_it_is_and_strangers_count_for_nothing(watch: Watch) -> None:
    witness, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    policy = parse_witness_policy(
        f"log {watch.log.verifier_key}\nwitness w {cosigner_key('w', public_of(witness))}\nquorum w\n"
    )
    log = watch.log
    log.grow(3)

    def cosigned(key: Ed25519PrivateKey, name: str = "w") -> str:
        time = watch.clock.now() // 1000
        return cosign(log.text, time=time, name=name, public_key=public_of(key), sign=key.sign)

    assert (await watch.wrong(log, policy=policy)).what == "not-witnessed"
    log.cosignatures = cosigned(stranger) + cosigned(stranger, "other")
    assert (await watch.wrong(log, policy=policy)).what == "not-witnessed"
    log.cosignatures += cosigned(witness)
    look = await watch.monitor(policy=policy, max_age=60_000).look()
    assert list(look.witnesses) == ["w"]
    watch.clock.advance(61)
    wrong = await watch.wrong(log, policy=policy, max_age=60_000)
    assert wrong.what == "stale"
    assert "0 are as new" in str(wrong)
    log.cosignatures = cosigned(witness)
    watch.clock.set_now(watch.clock.now() - 3_600_000)  # a witness an hour ahead says nothing of now
    assert (await watch.wrong(log, policy=policy, max_age=60_000)).what == "stale"


async def test_another_logs_checkpoint_and_another_key_are_refused(watch: Watch) -> None:
    watch.log.grow(3)
    await watch.monitor().look()
    stranger = replace(watch.log, key=Ed25519PrivateKey.generate())
    assert (await watch.wrong(stranger)).what == "signature"
    with pytest.raises(Refused) as caught:
        Monitor(
            database=watch.opened[0],
            source=stranger,
            key=stranger.verifier_key,
            policy=None,
            max_age=None,
            clock=watch.clock,
        )
    assert caught.value.reason is Reason.STATE_CONFLICT
    other = checkpoint_text("elsewhere/evidence", 0, Frontier.empty().root())
    note = sign_note(other, name=ORIGIN, public_key=public_of(watch.log.key), sign=watch.log.key.sign)
    with pytest.raises(Wrong) as wrong:
        read_checkpoint(note, watch.log.verifier_key)
    assert wrong.value.what == "another-log"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x00\x05abc",
        encode_bundle([b"a", b"b"]),
        encode_bundle([b"a"] * 4),
        b"\x00\x01a" * 3 + b"\x00",
    ],
)
def test_a_bundle_of_another_form_is_refused(data: bytes) -> None:
    tile = parse_tile("/tile/entries/000.p/3")
    assert split_bundle(encode_bundle([b"a", b"", b"c"]), tile) == [b"a", b"", b"c"]
    with pytest.raises(Wrong) as wrong:
        split_bundle(data, tile)
    assert wrong.value.what == "malformed"


async def test_an_entry_that_is_no_leaf_is_refused(watch: Watch) -> None:
    watch.log.grow(2)

    async def read(_path: str) -> bytes:
        return encode_bundle([os.urandom(40), b"x"])

    watch.log.read = read  # type: ignore[method-assign]
    assert (await watch.wrong(watch.log)).what == "malformed"


def test_migrations_make_the_tables() -> None:
    assert_migrations_match(METADATA, "vigil.monitor.migrations")


@pytest.mark.parametrize(
    ("there", "made"),
    [((), 1), (("contradiction-2.json",), 3), (("contradiction-10.json", "contradiction-9.json"), 11)],
)
def test_no_contradiction_takes_the_place_of_another(
    there: tuple[str, ...], made: int, tmp_path: Path
) -> None:
    for name in (*there, "contradiction-x.json"):
        (tmp_path / name).write_text(name)
    wrong = Wrong("tree", "it was rewritten")
    kept = monitoring._keep(tmp_path, wrong, log="key", notes=("old", "new"), at=1)
    assert kept.name == f"contradiction-{made}.json"
    assert all((tmp_path / name).read_text() == name for name in there)
