"""What is revoked reaches this gateway, is enforced, persisted, acknowledged and handed on, whatever the edge does."""

from typing import Any

import pytest

from tests.support.pki import DEVICE
from tests.unit.gateway.world import Edge, World, eventually, reason_of
from vigil.api.gateway.v1 import gateway_pb2 as pb
from vigil.core.classes import LEASE_S
from vigil.core.revocations import PathStep, answers
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import read
from vigil.errors import Reason, refused
from vigil.gateway import store
from vigil.rpc import status


def thumb(credential: Any) -> str:
    return str(credential.identity.thumbprint.hex())


@pytest.mark.holds("stolen-technician")
async def test_a_revocation_is_enforced_acknowledged_and_survives_an_offline_restart(world: World) -> None:
    world.seed()
    edge = Edge(world)
    async with world.serving("edge", edge.servicer()) as address:
        world.edges = (address,)
        async with world.running() as gateway, world.pump() as pump, world.caller(world.technician) as me:
            await edge.enforced(0)
            assert gateway.revocations.lease_age() < LEASE_S
            assert (await me.prepare("quarantine")).nonce
            edge.revoke(b.Scope.CREDENTIAL, thumb(world.technician))
            await edge.enforced(1)
            kept, _, head = gateway.database.read_now(store.load_revocations)
            assert len(kept) == 1
            assert head == gateway.revocations.head
            assert await reason_of(me.prepare("quarantine")) is Reason.CREDENTIAL_REVOKED
            told = (await pump.entries(1))[-1]
            assert [entry.epoch for entry in told.entries] == [1]
            assert read(told.head.head, b.Head).body.epoch == 1
    async with world.running(), world.pump() as pump, world.caller(world.technician) as me:
        assert await reason_of(me.prepare("quarantine")) is Reason.CREDENTIAL_REVOKED
        # The pump said hello with epoch 0: it gets what it missed with no control plane in sight.
        assert [one.epoch for one in (await pump.entries(1))[0].entries] == [1]


@pytest.mark.holds("stolen-technician")
async def test_open_streams_of_a_revoked_credential_are_cut(world: World) -> None:
    world.seed()
    edge = Edge(world)
    async with world.serving("edge", edge.servicer()) as address:
        world.edges = (address,)
        async with world.running(), world.pump() as pump, world.caller(world.technician) as me:
            await edge.enforced(0)
            stream = me.devices.FollowDevice(pb.FollowDeviceRequest(device_id=DEVICE), timeout=30)
            await pump.got("status_interval")
            await pump.say(status=pb.DeviceStatus(boot_count=1))
            await stream.read()
            edge.revoke(b.Scope.CREDENTIAL, "principal/p-technician")

            async def cut() -> object:
                return await stream.read()

            assert await reason_of(status.translated(cut())) is Reason.CREDENTIAL_REVOKED


@pytest.mark.holds("captured-bus")
async def test_the_lease_runs_from_the_sending_of_an_answered_challenge(world: World) -> None:
    world.seed()
    edge = Edge(world)
    async with world.serving("edge", edge.servicer()) as address:
        world.edges = (address,)
        async with world.running() as gateway:
            await edge.enforced(0)
            edge.answering = False
            world.clock.ahead_s = LEASE_S + 0.1
            assert gateway.revocations.lease_age() > LEASE_S
            assert gateway.revocations.lease_left_ms() == 0


@pytest.mark.holds("captured-bus")
async def test_a_silent_edge_is_left_for_another(world: World) -> None:
    world.seed()
    edge, other = Edge(world), Edge(world)
    edge.answering = False
    async with (
        world.serving("edge", edge.servicer()) as first,
        world.serving("edge", other.servicer()) as second,
    ):
        world.edges = (first, second)
        async with world.running():
            # One of the two is dialled first; the silent one is given up after its silence.
            await eventually(lambda: edge.starts or other.acknowledged)
            world.clock.ahead_s = 7.0
            await other.enforced(0)


@pytest.mark.holds("captured-bus")
async def test_a_gap_is_closed_from_what_was_persisted(world: World) -> None:
    world.seed()
    edge = Edge(world)
    edge.revoke(b.Scope.CREDENTIAL, "aa" * 32)
    async with world.serving("edge", edge.servicer()) as address:
        world.edges = (address,)
        async with world.running() as gateway:
            await edge.enforced(1)
            edge.revoke(b.Scope.CREDENTIAL, "bb" * 32)
            edge.revoke(b.Scope.CREDENTIAL, "cc" * 32)
            # The next batch loses its first entry on the way: the head that follows confirms nothing.
            lost = edge.entries[1]
            edge.entries[1] = edge.entries[2]
            await eventually(lambda: len(edge.starts) >= 2)
            assert gateway.revocations.state.epoch == 1
            edge.entries[1] = lost
            await edge.enforced(3)
            assert edge.starts[-1].epoch == 1
            assert gateway.revocations.state.effect(b.Scope.CREDENTIAL, "bb" * 32, at=0) is not None


@pytest.mark.holds("captured-bus")
async def test_a_head_that_was_forged_or_is_behind_moves_nothing(world: World) -> None:
    world.seed()
    edge = Edge(world)
    edge.revoke(b.Scope.CREDENTIAL, "aa" * 32)
    async with world.serving("edge", edge.servicer()) as address:
        world.edges = (address,)
        async with world.running() as gateway:
            await edge.enforced(1)
            before = gateway.revocations.head
            edge.entries.clear()
            await eventually(lambda: len(edge.starts) >= 2)
            assert gateway.revocations.state.epoch == 1
            assert gateway.revocations.head == before


@pytest.mark.holds("storage-failures")
async def test_enforced_though_the_disk_refuses_but_not_acknowledged(world: World) -> None:
    world.seed()
    edge = Edge(world)
    async with world.serving("edge", edge.servicer()) as address:
        world.edges = (address,)
        async with world.running() as gateway:
            await edge.enforced(0)
            full = refused(Reason.STORAGE_UNAVAILABLE, "the disk is full")
            keep, broken = store.keep_revocations, True

            def fails(*arguments: Any, **named: Any) -> None:
                if broken:
                    raise full
                keep(*arguments, **named)

            store.keep_revocations = fails
            try:
                edge.revoke(b.Scope.CREDENTIAL, "aa" * 32)
                await eventually(lambda: gateway.revocations.state.epoch == 1)
                assert all(one.epoch == 0 for one in edge.acknowledged)
                broken = False
                await edge.enforced(1)
                assert len(gateway.database.read_now(store.load_revocations)[0]) == 1
            finally:
                store.keep_revocations = keep


async def test_a_pumps_own_challenge_travels_up_and_its_answer_down(world: World) -> None:
    world.seed()
    edge = Edge(world)
    async with world.serving("edge", edge.servicer()) as address:
        world.edges = (address,)
        async with world.running(), world.pump() as pump:
            challenge = b"a pump's own challenge"
            await pump.say(head_challenge=challenge)
            found = await eventually(lambda: [one for one in pump.seen if one.revocations.head.paths])
            told = found[0].revocations
            steps = [PathStep(one.index, one.size, tuple(one.path)) for one in told.head.paths]
            assert len(steps) == 2
            assert answers(read(told.head.head, b.Head), challenge, steps)


@pytest.mark.holds("speaks-as-another")
async def test_a_pumps_acknowledgement_is_passed_on_when_it_is_its_own(world: World) -> None:
    world.seed()
    edge = Edge(world)
    body = b.Acknowledgement(epoch=0, chain=bytes(32), era=0, enforced_at=world.clock.now())
    async with world.serving("edge", edge.servicer()) as address:
        world.edges = (address,)
        async with world.running() as gateway, world.pump() as pump:
            await edge.enforced(0)
            count = len(edge.acknowledged)
            forged = world.sign(world.pki.attester("dev-bbbbbbbbbbbbbbbb"), body).data
            await pump.say(acknowledgement=forged)
            await pump.say(acknowledgement=world.sign(world.attesters[DEVICE], body).data)
            await eventually(lambda: len(edge.acknowledged) > count)
            assert edge.acknowledged[-1] == body
            assert len(gateway.follower._newest) == 2


async def test_many_entries_travel_to_a_pump_in_pieces_and_the_head_last(world: World) -> None:
    world.seed()
    edge = Edge(world)
    for number in range(40):
        edge.revoke(b.Scope.CREDENTIAL, *(f"{number:04x}{place:060x}" for place in range(400)))
    async with world.serving("edge", edge.servicer()) as address:
        world.edges = (address,)
        async with world.running():
            await edge.enforced(40)
            async with world.pump() as pump:
                told = await pump.entries(40)
                assert len(told) > 1
                assert [one.HasField("head") for one in told] == [False] * (len(told) - 1) + [True]
                assert [entry.epoch for one in told for entry in one.entries] == list(range(1, 41))
