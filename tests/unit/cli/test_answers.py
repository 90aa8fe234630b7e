"""What the log answers is held against what it was asked."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from vigil.api.evidence.v1 import evidence_pb2 as pb
from vigil.cli.logbook import find_entry
from vigil.cli.moment import counted_of, show_state
from vigil.cli.session import Session
from vigil.core.clock import SystemClock
from vigil.errors import Reason, Refused
from vigil.evidence.domain import Leaf
from vigil.verify.moment import StateAnswer

DEVICE = "dev-aaaaaaaaaaaaaaaa"
LEAF = Leaf("hold", 7, b"\x07" * 32, bytes(32), None, (), ()).encode()


def session(answer: Any) -> Session:
    """One whose evidence service answers this, whatever it is asked."""

    async def call(*_: Any) -> Any:
        return answer

    return cast(
        Session,
        SimpleNamespace(
            call=call,
            evidence=SimpleNamespace(GetEntry=0, GetStateAt=0, GetSubjectProof=0),
            clock=SystemClock(),
        ),
    )


@pytest.mark.parametrize("name", ["3", "06" * 32])
async def test_another_record_than_was_asked_for_is_refused(name: str) -> None:
    with pytest.raises(Refused) as caught:
        await find_entry(session(pb.Entry(index=4, leaf=LEAF)), name)
    assert caught.value.reason is Reason.NOT_RECORDED


@pytest.mark.parametrize("name", ["4", "07" * 32])
async def test_the_record_that_was_asked_for_is_taken(name: str) -> None:
    assert (await find_entry(session(pb.Entry(index=4, leaf=LEAF)), name)).index == 4


@pytest.mark.parametrize(
    "state",
    [
        pb.StateAt(device_id="dev-bbbbbbbbbbbbbbbb", time_ms=1_000),
        pb.StateAt(device_id=DEVICE, time_ms=1_001),
    ],
)
async def test_an_answer_about_another_device_or_moment_is_refused(state: pb.StateAt) -> None:
    with pytest.raises(Refused) as caught:
        await show_state(
            session(state), DEVICE, "1970-01-01T00:00:01+00:00", as_of="", policy=None, proof=None
        )
    assert caught.value.reason is Reason.NOT_RECORDED


async def test_a_census_from_before_the_device_says_nothing_of_it() -> None:
    answer = StateAnswer(
        device=DEVICE, time=1, considered=1, records=(), chain=(LEAF,), first_number=1, newest_number=1
    )
    absent = pb.SubjectProof(census=pb.Entry(index=0, leaf=LEAF))
    assert await counted_of(session(absent), answer, size=1) is None
