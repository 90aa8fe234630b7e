"""Bytes that are no text, numbers that are too large: a sentence and exit 2, never a traceback."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from tests.unit.cli.support import conforms, run
from vigil.api.evidence.v1 import evidence_pb2 as pb
from vigil.cli import session as sessions
from vigil.cli.options import Options, OutputMode
from vigil.cli.perform import plainly
from vigil.core.clock import ManualClock

NOT_UTF8 = "\udcff"
"""As Python hands on the byte 0xff of a command line."""


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session in which no service is ever called."""

    async def call(*_: object) -> None:
        pytest.fail("a service was called")

    async def close() -> None:
        return

    def opened(_options: Options, output: object) -> Any:
        anything = SimpleNamespace(GetDevice=None, GetEntry=None, GetStateAt=None)
        return SimpleNamespace(
            output=output, clock=ManualClock(), call=call, close=close, devices=anything, evidence=anything
        )

    monkeypatch.setattr(sessions, "open_session", opened)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    "line",
    [
        ("evidence", "history", f"device/{NOT_UTF8}"),
        ("evidence", "history", f"pump{NOT_UTF8}"),
        ("evidence", "history", "device/a", "--kind", NOT_UTF8),
        ("evidence", "find", f"kind={NOT_UTF8}"),
        ("evidence", "find", f"request={NOT_UTF8}"),
        ("evidence", "find", NOT_UTF8),
        ("evidence", "show", NOT_UTF8),
        ("evidence", "at", NOT_UTF8, "now"),
        ("evidence", "at", "dev-aaaaaaaaaaaaaaaa", NOT_UTF8),
    ],
)
def test_bytes_that_are_no_text(line: tuple[str, ...]) -> None:
    said = run(*line)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ")
    told = run(*line, "--output", "json")
    assert told.code == 2
    assert told.json["error"]["reason"] == "USAGE"
    conforms(told.json, "error")


def test_what_the_terminal_cannot_show_is_no_fault_of_what_was_typed() -> None:
    context: Any = SimpleNamespace(obj=Options(output=OutputMode.TABLE))
    with pytest.raises(UnicodeEncodeError):
        plainly(context, lambda _: "\u00fc".encode("ascii") and None)
    with pytest.raises(typer.Exit) as caught:
        plainly(context, lambda _: NOT_UTF8.encode() and None)
    assert caught.value.exit_code == 2


def test_the_largest_number_of_a_record_is_the_contracts() -> None:
    assert pb.GetSubjectProofRequest(first=2**63 - 1).first == 2**63 - 1
    said = run("evidence", "prove", "--subject", "device/a", "--from", 2**63)
    assert said.code == 2
    assert "--from" in said.err


@pytest.mark.parametrize("mode", list(OutputMode))
def test_a_logs_key_in_a_file_that_is_no_text(mode: OutputMode, tmp_path: Path) -> None:
    for name in ("key", f"key{NOT_UTF8}"):
        file = tmp_path / name
        file.write_bytes(b"\xff\xfe")
        said = run(
            "evidence",
            "monitor",
            tmp_path / "m",
            "--url",
            "http://127.0.0.1:1",
            "--log",
            file,
            "--output",
            mode,
        )
        assert said.code == 2
        assert "is not a text in UTF-8" in said.out + said.err
    assert not (tmp_path / "m").exists()
