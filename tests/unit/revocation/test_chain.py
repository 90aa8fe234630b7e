"""The chain in memory follows the chain on the disk, whatever its writer heard of a commit."""

from pathlib import Path

import pytest
from sqlalchemy import Connection

from tests.support.pki import TestPki
from tests.unit.revocation.support import revocation
from vigil.api.revocation.v1.revocation_pb2 import RevocationEntry
from vigil.core.clock import ManualClock
from vigil.core.revocations import EMPTY_CHAIN, chain_hash
from vigil.revocation import store
from vigil.revocation.chain import Chain
from vigil.storage import Database


def entries(pki: TestPki, count: int) -> list[store.NewEntry]:
    """Steps of a chain, signed by a person."""
    made, chain = [], EMPTY_CHAIN
    rita = pki.person("p-rita", "recall")
    for epoch in range(1, count + 1):
        statement = revocation(rita, f"d-{epoch}", clock=pki.clock)
        chain = chain_hash(chain, epoch, [statement.digest])
        value = RevocationEntry(epoch=epoch, statements=[statement.data], chain=chain, create_time_ms=epoch)
        made.append(
            store.NewEntry(
                epoch=epoch,
                chain=chain,
                value=value.SerializeToString(),
                digests=(statement.digest,),
                revoker="rita",
                revoker_organization="org",
                organization="org",
                ids=1,
                alone=True,
                create_time=epoch,
            )
        )
    return made


@pytest.mark.holds("storage-failures")
async def test_what_is_durable_is_taken_though_nobody_heard_of_its_commit(
    tmp_path: Path, database: Database
) -> None:
    clock = ManualClock()
    first, second, third = entries(TestPki(tmp_path, clock=clock), 3)
    chain = Chain(database=database, clock=clock)
    chain.load()
    heard: list[int] = []
    chain.listen(lambda epoch, _: heard.append(epoch))

    def write(connection: Connection) -> None:
        # No callback: the commit succeeded and its writer was told that it failed.
        store.put_entry(connection, first)
        store.put_entry(connection, second)

    await database.write(write)
    # The next one's writer is heard: it waits for those before it.
    await database.write(lambda connection: store.put_entry(connection, third))
    chain.taken(third.value)
    assert (chain.state.epoch, heard) == (0, [])
    await chain.catch_up()
    assert (chain.state.epoch, chain.state.chain, heard) == (3, third.chain, [1, 2, 3])
    # Whatever is told again changes nothing.
    chain.taken(second.value)
    await chain.catch_up()
    assert (chain.state.epoch, heard) == (3, [1, 2, 3])
