"""A log counted again from its tiles: a census that is right, one that lies, and tiles of another log."""

from dataclasses import replace

import pytest

from tests.support.pki import TestPki
from tests.support.proofs import ProofLog
from vigil.cli.recounting import Counted, Read, recount
from vigil.core.clock import ManualClock
from vigil.core.merkle import tree_root
from vigil.core.tiles import encode_bundle, parse_tile
from vigil.errors import Reason, Refused
from vigil.verify import SignedTree, census_of

A, B, C = "device/a", "device/b", "site/c"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> TestPki:
    return TestPki(tmp_path_factory.mktemp("recounting-pki"), clock=ManualClock())


def tiles_of(log: ProofLog) -> Read:
    async def read(path: str) -> bytes:
        tile = parse_tile(path)
        assert tile.entries
        return encode_bundle([one.leaf for one in log.records[tile.start : tile.start + tile.width]])

    return read


def tree_of(log: ProofLog) -> SignedTree:
    return SignedTree(len(log.records), tree_root(log.hashes))


async def counted(log: ProofLog, *indexes: int) -> list[Counted]:
    censuses = [(index, census_of(log.records[index], log.verifier)) for index in indexes]
    return await recount(tree_of(log), censuses, tiles_of(log))


async def test_right_censuses_come_out_again(pki: TestPki) -> None:
    log = ProofLog(pki, ManualClock())
    first = log.count().index
    for place in range(300):
        log.append((A, B, C)[place % 3], f"device/{place}")
    second = log.count().index
    log.append(A)
    found = await counted(log, second, first)
    assert [(one.index, one.subjects, one.holds) for one in found] == [(first, 0, True), (second, 304, True)]
    assert "commits to the same" in found[1].sentence


@pytest.mark.holds("insider-evidence")
async def test_a_census_that_leaves_a_record_out_is_found(pki: TestPki) -> None:
    log = ProofLog(pki, ManualClock())
    for subject in (A, B, A):
        log.append(subject)
    lie = log.count(leave_out=A).index
    stale = log.count(size=1).index
    body = census_of(log.records[stale], log.verifier)
    old = replace(body, size=3)
    found = await recount(
        tree_of(log), [(lie, census_of(log.records[lie], log.verifier)), (stale, old)], tiles_of(log)
    )
    assert [one.holds for one in found] == [False, False]
    assert "commits to something else" in found[0].sentence


@pytest.mark.holds("insider-evidence")
async def test_tiles_of_another_log_are_refused(pki: TestPki) -> None:
    log, other = ProofLog(pki, ManualClock()), ProofLog(pki, ManualClock())
    for one in (log, other):
        one.append(A)
        one.count()
    census = [(1, census_of(log.records[1], log.verifier))]

    async def nothing(_path: str) -> bytes:
        return b""

    for read in (tiles_of(other), nothing):
        with pytest.raises(Refused) as caught:
            await recount(tree_of(log), census, read)
        assert caught.value.reason is Reason.NOT_RECORDED
