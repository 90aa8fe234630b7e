"""What a gateway refuses by itself is on its way to the log before the caller hears of it."""

import os
from collections.abc import Callable

import pytest
from google.rpc import status_pb2  # type: ignore[import-untyped]
from sqlalchemy import MetaData, select

from tests.unit.gateway.world import DEVICE, World, reason_of
from vigil.api.evidence.v1.evidence_pb2 import AppendItem
from vigil.core import cbor
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import check, read
from vigil.errors import Reason
from vigil.feed.evidence import spool_table
from vigil.gateway.__main__ import Gateway
from vigil.rpc import status

SPOOL = spool_table(MetaData())


async def spooled(gateway: Gateway) -> list[AppendItem]:
    rows = await gateway.database.read(lambda connection: connection.execute(select(SPOOL.c.item)).all())
    return [AppendItem.FromString(row[0]) for row in rows]


async def test_the_gateways_own_refusals_are_spooled(world: World) -> None:
    world.seed()
    async with world.running() as gateway, world.pump(), world.caller(world.technician) as me:
        intent = world.intent("set-language")
        command = world.command(intent, os.urandom(16))
        assert await reason_of(me.submit(intent, command)) is Reason.LEASE_EXPIRED
        (item,) = await spooled(gateway)
        assert item.statement == command.data
        assert f"device/{DEVICE}" in item.subjects
        told = status.from_status(status_pb2.Status.FromString(item.bodies[0]))
        assert told.reason is Reason.LEASE_EXPIRED


async def test_what_the_caller_did_not_sign_is_nobodys_word(world: World) -> None:
    """The log would hold the spool up for it, and behind it the record of safety actions."""
    world.seed()
    async with world.running() as gateway, world.pump(), world.caller(world.technician) as me:
        intent = world.intent("set-language")
        command = world.command(intent, os.urandom(16))
        protected, unprotected, payload, signature = cbor.decode(command.data)
        other = bytes([*signature[:31], signature[31] ^ 1, *signature[32:]])
        forged = cbor.encode([protected, unprotected, payload, other])
        assert await reason_of(me.submit(intent, read(forged, b.Command))) is Reason.SIGNATURE_INVALID
        assert await spooled(gateway) == []


@pytest.mark.holds("floods-by-credential")
async def test_a_flood_becomes_one_signed_count_and_takes_nothing_from_others(
    world: World, injected: Callable[[int], None]
) -> None:
    world.seed()
    world.quotas = {"commands": 3}
    async with world.running() as gateway, world.pump(), world.caller(world.technician) as me:
        refused = [await reason_of(me.prepare("set-language")) for _ in range(40)]
        assert refused.count(Reason.QUOTA_EXCEEDED) >= 36
        injected(refused.count(Reason.QUOTA_EXCEEDED))
        assert (await me.prepare("quarantine")).nonce  # class S1 has its own share
        async with world.caller(world.pki.person("p-other", "technician")) as other:
            assert await reason_of(other.prepare("set-language")) is Reason.LEASE_EXPIRED
        assert await spooled(gateway) == []
        await gateway.refusals.tell()
        (item,) = await spooled(gateway)
        counted = read(item.statement, b.Refusals)
        check(counted, gateway.key.identity)
        thumbprint = world.technician.identity.thumbprint
        assert (counted.body.credential, counted.body.count) == (
            thumbprint,
            refused.count(Reason.QUOTA_EXCEEDED),
        )
        assert list(item.subjects) == [f"credential/{thumbprint.hex()}"]
        await gateway.refusals.tell()
        assert len(await spooled(gateway)) == 1
