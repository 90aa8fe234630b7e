"""Censuses of a real log in a real database: what each says, what they cost others, and what they notice."""

import asyncio
import os
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import delete, update

from tests.support.databases import KINDS
from tests.support.pki import ORGANIZATION, SITE
from tests.support.stack import eventually
from tests.unit.evidence.conftest import Log, World, submission
from vigil.core.census import PAGE_ITEMS, Item, is_absent, is_placed, subject_key
from vigil.core.merkle import leaf_hash, tree_root, verify_inclusion
from vigil.core.statements.bodies import Census
from vigil.core.statements.envelope import Scribe, read
from vigil.errors import Reason, Refused
from vigil.evidence import census, census_store, store
from vigil.evidence.census import CensusTaker, DamagedTreeError
from vigil.evidence.census_store import Tree
from vigil.evidence.domain import decode_leaf, origin_of
from vigil.evidence.metrics import CensusMetrics
from vigil.evidence.subject_proofs import SubjectProver
from vigil.evidence.tables import CENSUS, CENSUS_PAGE, ENTRY, SUBJECT_RECORD


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Counted:
    """A log with a taker of censuses and a prover."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.log: Log = world.open()
        self.registry = CollectorRegistry()
        self.taker = self.new_taker(self.registry)
        self.prover = SubjectProver(
            database=self.log.database, sequencer=self.log.sequencer, checkpointer=self.log.checkpointer
        )
        self.auditor = world.reader("auditor", organization="operator", sites=("*",))

    def new_taker(self, registry: CollectorRegistry) -> CensusTaker:
        signer = self.world.pki.signer_credential("recorded")
        return CensusTaker(
            database=self.log.database,
            sequencer=self.log.sequencer,
            scribes=lambda: Scribe(
                signer=signer.signer,
                issuer=signer.issuer_name,
                clock=self.world.clock,
                entropy=os.urandom,
                numbered=True,
            ),
            origin=origin_of(self.world.pki.trust_domain),
            log_key=self.world.key.verifier_key,
            interval=0.01,
            clock=self.world.clock,
            metrics=CensusMetrics(registry),
        )

    async def append(self, *devices: int, **values: object) -> None:
        writer = self.world.writer()
        statements = [writer.hold(name(device)) for device in devices]
        await asyncio.gather(*(self.log.sequencer.append(submission(one, **values)) for one in statements))

    async def leaves(self) -> list[bytes]:
        size = (await self.log.sequencer.state()).size
        return await self.log.database.read(lambda connection: store.load_leaves(connection, 0, size))

    async def census_at(self, index: int) -> Census:
        entry = await self.log.reader.entry_at(self.auditor, index)
        return read(entry.statement, Census).body

    async def pages(self, tree: Tree) -> list[bytes]:
        count = len(tree.names)
        return await self.log.database.read(
            lambda connection: census_store.load_pages(connection, tree.size, 0, count)
        )

    def counter(self, name: str) -> float:
        return self.registry.get_sample_value(f"vigil_evidence_census_{name}") or 0.0


def name(device: int) -> str:
    return f"dev-{device:016}"


def counted(leaves: list[bytes]) -> list[Item]:
    """What a census of these leaves must hold, by the plainest way."""
    newest: dict[str, Item] = {}
    for data in leaves:
        for link in decode_leaf(data).subjects:
            newest[link.subject] = Item(subject_key(link.subject), link.number, leaf_hash(data))
    return sorted(newest.values(), key=lambda item: item.key)


@pytest.fixture
async def counting(world: World) -> Counted:
    return Counted(world)


async def taken(counting: Counted) -> Tree:
    tree = await counting.taker.take()
    assert tree is not None
    assert tree.index is not None
    return tree


async def test_a_census_counts_every_subject_of_the_log(counting: Counted) -> None:
    await counting.append(*range(40), *range(20), *range(5))
    tree = await taken(counting)
    items = counted((await counting.leaves())[: tree.size])
    assert len(items) == 40
    assert b"".join(await counting.pages(tree)) == b"".join(item.encode() for item in items)
    body = await counting.census_at(tree.index or 0)
    assert body == Census(
        root=tree_root([leaf_hash(item.encode()) for item in items]),
        subjects=40,
        size=65,
        time=body.time,
        log=counting.world.key.verifier_key,
    )
    assert tree.index == 65


async def test_each_census_follows_from_the_last(counting: Counted) -> None:
    await counting.append(*range(600))
    for round_ in range(4):
        await counting.append(*range(round_ * 7, 900, 11 + round_))
        tree = await taken(counting)
        items = counted((await counting.leaves())[: tree.size])
        assert b"".join(await counting.pages(tree)) == b"".join(item.encode() for item in items)
        assert (await counting.census_at(tree.index or 0)).root == tree_root(
            [leaf_hash(item.encode()) for item in items]
        )
    assert counting.counter("breaks_total") == 0


async def test_without_news_there_is_no_census_and_its_own_record_is_none(counting: Counted) -> None:
    assert await counting.taker.take() is None, "an empty log"
    await counting.append(1)
    tree = await taken(counting)
    assert await counting.taker.take() is None
    await counting.append(1)
    after = await taken(counting)
    assert (tree.size, after.size) == (1, 3)
    items = counted((await counting.leaves())[:3])
    assert Item(subject_key("log/vigil.test/evidence"), 1, leaf_hash((await counting.leaves())[1])) in items


async def test_a_log_far_ahead_is_caught_up_in_bounded_steps(
    counting: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "STRETCH", 100)
    await counting.append(*range(300), *range(50))
    tree = await taken(counting)
    assert (tree.size, tree.subjects, tree.index) == (350, 300, 350)
    items = counted((await counting.leaves())[:350])
    assert b"".join(await counting.pages(tree)) == b"".join(item.encode() for item in items)
    trees = await counting.log.database.read(census_store.load_trees)
    assert sorted(one.size for one in trees if one.index is None) == [100, 200, 300]
    await counting.append(1)
    await taken(counting)
    left = await counting.log.database.read(census_store.load_trees)
    assert all(one.index is not None for one in left), "the steps are forgotten"


async def test_old_trees_are_thinned_and_their_statements_stay(counting: Counted) -> None:
    indexes = []
    for round_ in range(census.KEPT + 4):
        await counting.append(round_)
        indexes.append((await taken(counting)).index)
    trees = await counting.log.database.read(census_store.load_trees)
    assert len(trees) == census.KEPT + 1
    assert await counting.log.database.read(census_store.leftovers) == {}
    for index in indexes:
        assert (await counting.census_at(index or 0)).size <= (index or 0)


async def test_what_an_interrupted_census_left_is_forgotten(counting: Counted) -> None:
    await counting.append(1, 2, 3)
    await counting.log.database.write(
        lambda connection: census_store.put_pages(connection, 2, 0, [bytes(72)] * 40)
    )
    tree = await taken(counting)
    assert await counting.log.database.read(census_store.leftovers) == {}
    assert tree.size == 3


@pytest.mark.parametrize("turns", [0, 3, 10, 30])
async def test_whoever_takes_over_counts_on_from_what_is_half_written(counting: Counted, turns: int) -> None:
    """Two processes on one database: the one is stopped somewhere in its census, and writes no more (`Fence`)."""
    await counting.append(*range(300))
    stopped = asyncio.create_task(counting.taker.take())
    for _ in range(turns):
        await asyncio.sleep(0.001)
    stopped.cancel()
    await asyncio.gather(stopped, return_exceptions=True)
    await counting.new_taker(CollectorRegistry()).take()
    await counting.append(1)
    tree = await taken(counting)
    items = counted((await counting.leaves())[: tree.size])
    assert b"".join(await counting.pages(tree)) == b"".join(item.encode() for item in items)


async def test_a_census_signed_but_not_recorded_is_signed_again(counting: Counted) -> None:
    await counting.append(1, 2, 3)
    tree = await taken(counting)
    stale = replace(tree, digest=os.urandom(32))
    await counting.log.database.write(lambda connection: census_store.put_tree(connection, stale))
    again = await taken(counting)
    assert (again.index, again.size) == (4, 4)


async def test_a_page_that_was_changed_is_noticed_and_made_again_from_the_log(counting: Counted) -> None:
    await counting.append(*range(300))
    tree = await taken(counting)
    page = (await counting.pages(tree))[1]
    spoilt = page[:40] + bytes([page[40] ^ 1]) + page[41:]
    where = (CENSUS_PAGE.c.size == tree.size) & (CENSUS_PAGE.c.number == 1)
    await counting.log.database.write(
        lambda connection: connection.execute(update(CENSUS_PAGE).where(where).values(data=spoilt)).rowcount
    )
    await counting.append(1)
    with pytest.raises(DamagedTreeError):
        await counting.taker.take()
    running = asyncio.create_task(counting.taker.run())
    try:
        await eventually(lambda: counting.counter("size") > tree.size, what="another census")
    finally:
        running.cancel()
    trees = await counting.log.database.read(census_store.load_trees)
    assert counting.counter("damages_total") == 1
    items = counted((await counting.leaves())[: trees[0].size])
    assert b"".join(await counting.pages(trees[0])) == b"".join(item.encode() for item in items)


@pytest.mark.parametrize("what", ["missing", "names"])
async def test_a_tree_whose_parts_are_gone_is_noticed(counting: Counted, what: str) -> None:
    await counting.append(*range(300))
    tree = await taken(counting)
    statement = (
        delete(CENSUS_PAGE).where(CENSUS_PAGE.c.number == 1)
        if what == "missing"
        else update(CENSUS).values(pages=tree.pages[:-64])
    )
    assert await counting.log.database.write(lambda connection: connection.execute(statement).rowcount) == 1
    await counting.append(1)
    with pytest.raises(DamagedTreeError):
        await counting.taker.take()


# --- proofs


async def test_every_subject_is_proved_complete(counting: Counted) -> None:
    await counting.append(*range(PAGE_ITEMS + 44), *range(30), *range(3))
    tree = await taken(counting)
    body = await counting.census_at(tree.index or 0)
    for device in (0, 7, 29, 30, 299):
        subject = f"device/{name(device)}"
        proof = await counting.prover.prove(counting.auditor, subject, size=0, first=0)
        (one,) = proof.items
        assert is_placed(one, subjects=body.subjects, root=body.root)
        assert (proof.first, len(proof.leaves)) == (1, one.item.number)
        assert leaf_hash(proof.leaves[-1]) == one.item.leaf
        assert proof.census.index == tree.index
        assert verify_inclusion(
            leaf=leaf_hash(proof.census.leaf),
            index=proof.census.index,
            size=proof.checkpoint.size,
            path=proof.path,
            root=proof.checkpoint.root,
        )


async def test_a_subject_without_records_is_proved_absent(counting: Counted) -> None:
    await counting.append(*range(PAGE_ITEMS + 44))
    body = await counting.census_at((await taken(counting)).index or 0)
    ends = set()
    for number in range(400):
        subject = f"device/absent-{number}"
        proof = await counting.prover.prove(counting.auditor, subject, size=0, first=0)
        assert is_absent(subject_key(subject), proof.items, subjects=body.subjects, root=body.root)
        assert (proof.first, proof.leaves) == (0, ())
        ends.add(len(proof.items))
    assert 2 in ends


async def test_a_record_newer_than_the_census_is_not_yet_in_it(counting: Counted) -> None:
    await counting.append(1)
    await taken(counting)
    await counting.append(1, 2)
    known = await counting.prover.prove(counting.auditor, f"device/{name(1)}", size=0, first=0)
    assert known.items[0].item.number == 1
    new = await counting.prover.prove(counting.auditor, f"device/{name(2)}", size=0, first=0)
    assert new.leaves == ()


async def test_a_long_history_comes_in_parts(counting: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vigil.evidence.subject_proofs.LEAVES", 4)
    await counting.append(*[1] * 10)
    await taken(counting)
    leaves: list[bytes] = []
    while len(leaves) < 10:
        proof = await counting.prover.prove(
            counting.auditor, f"device/{name(1)}", size=0, first=len(leaves) + 1
        )
        assert proof.first == len(leaves) + 1
        assert 0 < len(proof.leaves) <= 4
        leaves += proof.leaves
    assert leaves == (await counting.leaves())[:10]
    monkeypatch.setattr("vigil.evidence.subject_proofs.LEAF_BYTES", 1)
    proof = await counting.prover.prove(counting.auditor, f"device/{name(1)}", size=0, first=3)
    assert len(proof.leaves) == 1, "one at least"


async def test_an_earlier_checkpoint_gets_the_census_it_covers(counting: Counted) -> None:
    await counting.append(1)
    first = await taken(counting)
    signed = await counting.log.checkpointer.sign()
    await counting.append(1)
    await taken(counting)
    proof = await counting.prover.prove(counting.auditor, f"device/{name(1)}", size=signed.size, first=0)
    assert (proof.checkpoint.size, proof.census.index) == (signed.size, first.index)
    newest = await counting.prover.prove(counting.auditor, f"device/{name(1)}", size=0, first=0)
    assert newest.census.index == 3


async def refusal_of(
    counting: Counted, subject: str, *, size: int = 0, first: int = 0, reader: object = None
) -> Reason:
    with pytest.raises(Refused) as caught:
        await counting.prover.prove(reader or counting.auditor, subject, size=size, first=first)  # type: ignore[arg-type]
    return caught.value.reason


async def test_what_cannot_be_proved_is_refused(counting: Counted) -> None:
    await counting.append(1)
    subject = f"device/{name(1)}"
    assert await refusal_of(counting, subject) is Reason.RESOURCE_NOT_FOUND, "no census yet"
    await taken(counting)
    await counting.prover.prove(counting.auditor, subject, size=0, first=1)
    assert await refusal_of(counting, "No Subject") is Reason.FIELD_INVALID
    assert await refusal_of(counting, subject, first=2) is Reason.FIELD_INVALID
    assert await refusal_of(counting, "device/absent", first=2) is Reason.FIELD_INVALID
    assert await refusal_of(counting, subject, size=1) is Reason.RESOURCE_NOT_FOUND
    assert await refusal_of(counting, subject, size=2**63) is Reason.RESOURCE_NOT_FOUND


async def test_others_subjects_and_none_are_the_same_to_those_at_one_site(counting: Counted) -> None:
    await counting.append(1, site="site-2")
    await counting.append(2)
    await taken(counting)
    technician = counting.world.reader("technician", sites=(SITE,))
    own = await counting.prover.prove(technician, f"device/{name(2)}", size=0, first=0)
    assert own.leaves
    for subject in (f"device/{name(1)}", "device/absent"):
        assert await refusal_of(counting, subject, reader=technician) is Reason.NOT_IN_SCOPE
    auditor = counting.world.reader("auditor", organization="elsewhere")
    assert await refusal_of(counting, f"device/{name(2)}", reader=auditor) is Reason.NOT_IN_SCOPE
    absent = await counting.prover.prove(auditor, "device/absent", size=0, first=0)
    assert absent.leaves == ()
    assert ORGANIZATION != "elsewhere"


# --- an insider at the tables


@pytest.mark.holds("insider-evidence")
async def test_a_subjects_newest_row_deleted_does_not_take_it_out_of_the_census(counting: Counted) -> None:
    """The census is made from the leaves; the index over them is not asked."""
    await counting.append(1, 1, 2)
    where = (SUBJECT_RECORD.c.subject == f"device/{name(1)}") & (SUBJECT_RECORD.c.number == 2)
    assert (
        await counting.log.database.write(
            lambda connection: connection.execute(delete(SUBJECT_RECORD).where(where)).rowcount
        )
        == 1
    )
    tree = await taken(counting)
    assert counted((await counting.leaves())[: tree.size])[0] in [
        Item.decode(page[at : at + 72])
        for page in await counting.pages(tree)
        for at in range(0, len(page), 72)
    ]
    assert await refusal_of(counting, f"device/{name(1)}") is Reason.NOT_RECORDED


@pytest.mark.holds("insider-evidence")
async def test_a_hole_in_the_log_stops_the_census_and_nothing_else(
    counting: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    await counting.append(1, 2, 3)
    where = ENTRY.c.idx == 1
    assert (
        await counting.log.database.write(
            lambda connection: connection.execute(delete(ENTRY).where(where)).rowcount
        )
        == 1
    )
    running = asyncio.create_task(counting.taker.run())
    await eventually(lambda: "the log lacks 1 of 3 neighbours" in caplog.text, what="it is told", pause=0.02)
    assert not running.done()
    running.cancel()
    await counting.append(1)


@pytest.mark.holds("insider-evidence")
async def test_a_number_given_twice_is_noticed_at_the_next_census(world: World) -> None:
    """The newest row of a subject's index is deleted, the service started again: it numbers from what it finds."""
    counting = Counted(world)
    await counting.append(1, 1)
    await taken(counting)
    where = (SUBJECT_RECORD.c.subject == f"device/{name(1)}") & (SUBJECT_RECORD.c.number == 2)
    assert (
        await counting.log.database.write(
            lambda connection: connection.execute(delete(SUBJECT_RECORD).where(where)).rowcount
        )
        == 1
    )
    await counting.log.close()
    again = Counted(world)
    await again.append(1)
    assert [link.number for leaf in await again.leaves() for link in decode_leaf(leaf).subjects][-1] == 2
    tree = await taken(again)
    assert again.counter("breaks_total") == 1
    assert tree.subjects == 2
