"""Records in words, moments as people type them, and pauses that are told."""

import datetime as dt
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.pki import TestPki
from tests.support.statements import EXAMPLES
from vigil.api.evidence.v1 import evidence_pb2 as pb
from vigil.cli import timeline
from vigil.cli.logbook import body_value
from vigil.cli.moment import apart, local, read_moment
from vigil.cli.options import OutputMode, UsageError
from vigil.cli.output import Output
from vigil.core.clock import ManualClock
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import KIND_OF
from vigil.errors import Reason, Refused
from vigil.evidence.domain import Leaf

NOW = 1_790_000_000_000
HOUR = 3_600_000
FAR = 300_000_000_000_000
"""After the year 9999."""


def row(kind: str, says: Any, **values: object) -> dict[str, Any]:
    return {"kind": kind, "says": says, "erased": None, **values}


@pytest.mark.parametrize("body", sorted(EXAMPLES, key=str))
def test_every_kind_has_words(body: type) -> None:
    kind = str(KIND_OF[body])
    told = timeline.words(row(kind, body_value(EXAMPLES[body])))
    assert told
    assert "{" not in told


def test_the_words_say_what_matters() -> None:
    def told(body: type) -> str:
        return timeline.words(row(str(KIND_OF[body]), body_value(EXAMPLES[body])))

    assert told(b.Evidence) == "measured: pump-firmware 1.6.3, start 2, its log 7"
    assert told(b.Result) == "appraised affirming, attested"
    assert told(b.Receipt) == "set-occlusion-pressure applied, for p-ada"
    assert told(b.Decision) == "allowed (class C) under policy r1"
    assert told(b.Hold) == "held: incident 7"
    assert told(b.Intent) == "wanted: set-occlusion-pressure (occlusion_pressure = 300)"


def test_what_was_erased_says_so() -> None:
    erased = {"time": "2026-11-01T00:00:00Z", "reason": "asked by the person"}
    assert "erased" in timeline.words({**row("intent", None), "erased": erased})
    assert "missing" in timeline.words(row("intent", None))


def taken(time: int, statement: bytes = b"") -> pb.Entry:
    """A record of which the leaf alone says when the log took it."""
    leaf = Leaf("hold", time, bytes(32), bytes(32), None, (), ())
    return pb.Entry(leaf=leaf.encode(), statement=statement)


def told(*entries: tuple[int, str, Any]) -> list[dict[str, Any]]:
    rows = [row(kind, says) for _, kind, says in entries]
    timeline._tell(rows, [taken(time) for time, _, _ in entries])
    return rows


def test_a_long_pause_is_told() -> None:
    rows = told((NOW, "hold", None), (NOW + HOUR - 1, "hold", None), (NOW + 2 * HOUR, "hold", None))
    assert [one["gap_s"] for one in rows] == [None, None, 3_600]


def test_a_pause_in_which_trust_went_stale_is_told() -> None:
    says = {**body_value(EXAMPLES[b.Result]), "stale_at": NOW + 600_000}
    rows = told((NOW, "result", says), (NOW + 900_000, "evidence", None))
    assert [one["gap_s"] for one in rows] == [None, 900]


def test_what_happened_before_the_log_took_it_has_its_own_time(tmp_path: Path) -> None:
    scribe = TestPki(tmp_path).attester().scribe(ManualClock(NOW), numbered=True)

    def when(device_time: int) -> int:
        body = replace(EXAMPLES[b.Receipt], device_time=device_time)
        statement = scribe.sign(body, subject="device/dev-aaaaaaaaaaaaaaaa")
        return timeline.happened(taken(NOW, statement.data))

    assert when(NOW - HOUR) == NOW - HOUR
    # A clock that runs ahead does not make it happen after the log took it.
    assert when(NOW + HOUR) == NOW
    assert timeline.happened(taken(NOW)) == NOW
    assert timeline.happened(taken(NOW, b"x")) == NOW


@pytest.mark.parametrize(
    ("device_time", "log_time", "shown"),
    [(0, NOW, "(the log took it"), (NOW, FAR, f"{FAR} ms after 1970"), (FAR, FAR, f"{FAR} ms after 1970")],
)
def test_a_time_that_no_calendar_has_is_shown(
    device_time: int, log_time: int, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scribe = TestPki(tmp_path).attester().scribe(ManualClock(NOW), numbered=True)
    statement = scribe.sign(
        replace(EXAMPLES[b.Receipt], device_time=device_time), subject="device/dev-aaaaaaaaaaaaaaaa"
    )
    entry = taken(log_time, statement.data)
    rows = [row("receipt", body_value(statement.body), signed_by="", index=0, verified=True)]
    timeline._tell(rows, [entry])
    session: Any = SimpleNamespace(output=Output(OutputMode.TABLE))
    timeline._draw(session, rows, [entry])
    out = capsys.readouterr().out
    assert shown in out
    assert local(device_time) in out


def test_what_is_looked_for() -> None:
    assert timeline.wanted("kind=hold").kind == "hold"
    assert timeline.wanted("epoch=7").epoch == 7
    assert timeline.wanted(f"decision={'07' * 32}").decision == b"\x07" * 32
    assert timeline.wanted("request=00000000-0000-0000-0000-000000000001").request_id == bytes(15) + b"\x01"


@pytest.mark.parametrize("text", ["", "kind=", "epoch=x", "epoch=-1", "decision=zz", "pump=1"])
def test_what_cannot_be_looked_for(text: str) -> None:
    with pytest.raises(UsageError):
        timeline.wanted(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("90m", NOW - 90 * 60_000),
        ("2026-09-21T14:13:20Z", NOW),
        ("2026-09-21T16:13:20+02:00", NOW),
        ("2026-09-21 14:13:20.250+00:00", NOW + 250),
    ],
)
def test_moments(text: str, expected: int) -> None:
    assert read_moment(text, now=NOW) == expected


def test_a_moment_without_an_offset_is_the_readers_own() -> None:
    here = dt.datetime(2026, 9, 14, 3, 12).astimezone()
    assert read_moment("2026-09-14T03:12", now=NOW) == int(here.timestamp() * 1000)
    assert local(int(here.timestamp() * 1000)) == here.isoformat(" ", "seconds")


def test_a_moment_past_every_calendar_is_a_number() -> None:
    assert local(FAR) == f"{FAR} ms after 1970"
    assert local(2**64) == f"{2**64} ms after 1970"
    assert local(0).startswith(("1970-01-01 ", "1969-12-31 "))
    assert local(None) == ""


@pytest.mark.parametrize("text", ["", "yesterday", "-5m", "2026-13-01", "2026-02-30T00:00", "99999999999"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(UsageError):
        read_moment(text, now=NOW)


@pytest.mark.parametrize(
    ("ms", "expected"),
    [(0, "under 1 s"), (59_999, "59 s"), (3_660_000, "1 h 1 min"), (90_061_000, "1 d 1 h")],
)
def test_spans(ms: int, expected: str) -> None:
    assert apart(ms) == expected


@pytest.mark.parametrize("places", [[(2, 1), (1, 2)], [(1, 2), (2, 1)], [(1, 1), (1, 1)], [(0, 1)]])
def test_records_of_another_subject_or_out_of_their_order_are_refused(places: list[tuple[int, int]]) -> None:
    rows = [{"number": number, "index": index} for number, index in places]
    with pytest.raises(Refused) as caught:
        timeline._check_order(rows, "device/dev-a")
    assert caught.value.reason is Reason.NOT_RECORDED
    timeline._check_order([{"number": 1, "index": 4}, {"number": 3, "index": 9}], "device/dev-a")
