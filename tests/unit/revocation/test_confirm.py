"""Two people's word about a clock."""

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.pki import Credential, TestPki
from tests.unit.revocation.support import scribe_of
from vigil.core.clock import ManualClock
from vigil.core.clock_confirmation import confirmed_time, read_folder
from vigil.core.statements.bodies import Era
from vigil.revocation.confirm import main

DAY = 86_400_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def pki(tmp_path: Path, clock: ManualClock) -> TestPki:
    return TestPki(tmp_path, clock=clock)


def said(pki: TestPki, who: Credential, body: Era) -> bytes:
    return scribe_of(who, pki.clock).sign(body, subject="revocation/clock").data


def test_two_people_of_the_operator_confirm_a_clock(pki: TestPki, clock: ManualClock) -> None:
    now = clock.now()
    one, two = pki.admin(1), pki.admin(2)
    stranger = pki.person("p-recall", "recall")
    body = Era(era=0, floor=now - 1_000, epoch=0, reason="switched off for the winter")

    def judge(*statements: bytes, **values: Any) -> int | None:
        named = {"era": 0, "durable": now - 40 * DAY, "now": clock.now(), **values}
        return confirmed_time(statements, pki.verifier, **named)

    both = (said(pki, one, body), said(pki, two, body))
    assert judge(*both) == now - 1_000
    assert judge(*both, b"\xff") == now - 1_000
    assert judge(both[0], both[0], said(pki, one, body)) is None
    assert judge(both[0], said(pki, stranger, body)) is None
    assert judge(both[0], said(pki, two, replace(body, reason="something else"))) is None
    assert judge(*both, era=1) is None
    assert judge(*both, durable=now) is None
    assert judge(*both, now=now - 2_000) is None
    clock.advance(DAY / 1000 + 1)
    assert judge(*both) is None


def test_the_command_writes_what_the_start_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pki = TestPki(tmp_path / "pki")
    folder = tmp_path / "clock-confirmations"
    assert read_folder(folder) == []
    folder.mkdir()
    now = pki.clock.now()
    for number in (1, 2):
        files = pki.admin(number).tls_files
        out = io.TextIOWrapper(io.BytesIO())
        monkeypatch.setattr(sys, "stdout", out)
        named = {"certificate": files.certificate, "key": files.key, "trust": files.trust}
        main(
            [
                *(f"--{name}={path}" for name, path in named.items()),
                f"--time={now}",
                "--reason=winter",
            ]
        )
        out.flush()
        (folder / f"{number}.cose").write_bytes(out.buffer.getvalue())  # type: ignore[attr-defined]
    monkeypatch.undo()
    found = read_folder(folder)
    assert confirmed_time(found, pki.verifier, era=0, durable=now - DAY, now=pki.clock.now()) == now
