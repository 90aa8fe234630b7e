"""A device's queue ends instead of growing, and with it everything that waits for the device."""

import asyncio

import pytest

from tests.support.pki import DEVICE, TestPki
from vigil.api.gateway.v1 import gateway_pb2 as pb
from vigil.api.identity.v1 import identity_pb2
from vigil.core.certificates import Identity, Kind
from vigil.errors import Reason, Refused
from vigil.gateway.device_sessions import MAX_QUEUED, MAX_TASKS, DeviceSessions, Session

pytestmark = pytest.mark.holds("floods")


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    pki = TestPki(tmp_path_factory.mktemp("sessions-pki"))
    return pki.issue(Kind.DEVICE, DEVICE).identity


def session_of(caller: Identity, sessions: DeviceSessions) -> Session:
    session = Session(
        device=identity_pb2.Device(device_id=DEVICE),
        hello=pb.DeviceHello(),
        caller=caller,
        attester=None,
        connect_time=0,
        next_call_id=sessions.next_call_id,
    )
    sessions.add(session)
    return session


async def test_a_device_that_takes_nothing_is_cut_off(caller: Identity) -> None:
    sessions = DeviceSessions(entropy=bytes)
    session = session_of(caller, sessions)
    waiting = asyncio.create_task(session.ask(lambda _: pb.ConnectResponse(), seconds=60))
    await asyncio.sleep(0)
    for _ in range(MAX_QUEUED - 1):
        session.send(pb.ConnectResponse())
    # What it would get after it came back is dropped; what it must get ends it.
    session.try_send(pb.ConnectResponse())
    with pytest.raises(Refused) as caught:
        session.send(pb.ConnectResponse())
    assert caught.value.reason is Reason.DEVICE_OFFLINE
    with pytest.raises(Refused) as caught:
        await waiting
    assert caught.value.reason is Reason.DEVICE_OFFLINE
    outgoing = session.outgoing()
    for _ in range(MAX_QUEUED):
        await anext(outgoing)
    with pytest.raises(Refused) as caught:
        await anext(outgoing)
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    sessions.remove(session)
    assert len(sessions) == 0


async def test_a_device_has_so_much_under_way_and_no_more(caller: Identity) -> None:
    session = session_of(caller, DeviceSessions(entropy=bytes))
    done = asyncio.Event()

    async def work() -> None:
        await done.wait()

    assert [session.spawn(work()) for _ in range(MAX_TASKS + 1)] == [True] * MAX_TASKS + [False]
    done.set()
    await asyncio.sleep(0.01)
    assert session.spawn(work())
    await asyncio.sleep(0)
    session.end()
