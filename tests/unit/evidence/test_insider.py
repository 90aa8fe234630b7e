"""Somebody who holds the log's machine, its key and its files, and an auditor who kept a checkpoint of before."""

import sqlite3
from collections.abc import Callable

import pytest

from tests.unit.evidence.conftest import Log, World, submission
from vigil.core import merkle
from vigil.core.merkle import leaf_hash
from vigil.errors import Reason, Refused
from vigil.evidence.domain import open_note, parse_checkpoint_text
from vigil.verify.checks import SignedTree, check_consistency

pytestmark = pytest.mark.holds("insider-evidence")

Injected = Callable[[int], None]


async def written(world: World, log: Log, *reasons: str) -> None:
    for reason in reasons:
        await log.sequencer.append(submission(world.writer().hold(reason=reason)))


async def kept(world: World, log: Log) -> SignedTree:
    """What an auditor takes away: the signed size and root."""
    checkpoint = await log.checkpointer.sign()
    _, size, root = parse_checkpoint_text(open_note(checkpoint.note, world.key.verifier_key))
    return SignedTree(size, root)


async def extends(log: Log, old: SignedTree, new: SignedTree) -> None:
    proof = await log.reader.consistency(old.size, new.size)
    check_consistency(old, new, proof.path)


async def copied(world: World, log: Log) -> bytes:
    """The database as it is now, byte for byte."""
    await log.close()
    with sqlite3.connect(world.folder / "evidence.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return (world.folder / "evidence.db").read_bytes()


def put_back(world: World, data: bytes) -> None:
    for path in world.folder.glob("evidence.db*"):
        path.unlink()
    (world.folder / "evidence.db").write_bytes(data)


async def test_two_histories_are_two_checkpoints_that_do_not_follow(world: World, injected: Injected) -> None:
    """One database is shown to one person and another to another; both are signed with the log's own key."""
    log = world.open()
    await written(world, log, "one", "two")
    common = await kept(world, log)
    copy = await copied(world, log)
    told = world.open()
    await written(world, told, "the pump was held", "four")
    first = await kept(world, told)
    await extends(told, common, first)
    await told.close()
    put_back(world, copy)
    other = world.open()
    await written(world, other, "nothing happened", "four", "five")
    second = await kept(world, other)
    injected(1)
    await extends(other, common, second)  # each of them alone is a good log
    with pytest.raises(Refused) as refused:
        await extends(other, first, second)
    assert refused.value.reason is Reason.NOT_RECORDED


async def test_a_shorter_log_is_no_extension(world: World, injected: Injected) -> None:
    """The newest records are dropped with their checkpoint, and as many others written."""
    log = world.open()
    await written(world, log, "one")
    copy = await copied(world, log)
    log = world.open()
    await written(world, log, "the record that is to go")
    before = await kept(world, log)
    await log.close()
    put_back(world, copy)
    log = world.open()
    assert (await log.sequencer.state()).size == before.size - 1
    injected(1)
    with pytest.raises(Refused):
        await extends(log, before, await kept(world, log))
    await written(world, log, "another")
    after = await kept(world, log)
    assert after.size == before.size
    with pytest.raises(Refused) as refused:
        await extends(log, before, after)
    assert refused.value.reason is Reason.NOT_RECORDED


async def test_a_rewritten_leaf_changes_every_root(world: World, injected: Injected) -> None:
    """Rewritten in the files of a stopped log: it does not start again, or what it signs then does not follow."""
    log = world.open()
    await written(world, log, "one", "two", "three")
    before = await kept(world, log)
    await copied(world, log)
    with sqlite3.connect(world.folder / "evidence.db") as connection:
        leaves = [row[0] for row in connection.execute("SELECT leaf FROM entry ORDER BY idx")]
        assert merkle.tree_root([leaf_hash(leaf) for leaf in leaves]) == before.root
        connection.execute("UPDATE entry SET leaf = ? WHERE idx = 1", (leaves[2],))
        rewritten = [row[0] for row in connection.execute("SELECT leaf FROM entry ORDER BY idx")]
    connection.close()
    assert rewritten != leaves
    injected(1)
    root = merkle.tree_root([leaf_hash(leaf) for leaf in rewritten])
    with pytest.raises(Refused) as refused:
        check_consistency(before, SignedTree(3, root), [])
    assert refused.value.reason is Reason.NOT_RECORDED
