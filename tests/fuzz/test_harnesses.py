"""Every kept input and a few new ones through every harness; and that a harness notices what it is there for."""

import hashlib
import random
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.fuzz import campaign
from tests.fuzz.campaign import fuzz, keep, write_inputs
from tests.fuzz.harness import CORPUS, FOUND, Finding, Harness, Run, attempt, inputs_of, named
from tests.fuzz.mutate import mutated
from tests.fuzz.registry import HARNESSES
from tests.fuzz.source import Source, pack, text
from tests.fuzz.target import available
from vigil.errors import Reason, refused

NEW = 40
"""Made inputs of each harness in `make test`; `make fuzz` tries millions."""

pytestmark = pytest.mark.holds("hostile-input")


@cache
def prepared(name: str) -> Run:
    return HARNESSES[name].prepare()


@pytest.mark.parametrize("name", HARNESSES)
def test_kept_inputs_and_a_few_new_ones(name: str, injected: Callable[[int], None]) -> None:
    harness, run = HARNESSES[name], prepared(name)
    inputs = list(inputs_of(harness))
    accepted = sum(attempt(run, data) for data in inputs)
    assert accepted > 0, "no kept input comes through: whatever lies behind the first check is not reached"
    chance = random.Random(hashlib.sha256(name.encode()).digest())
    for _ in range(NEW):
        attempt(run, mutated(chance, inputs, harness.max_bytes))
    injected(len(inputs) + NEW)


def test_what_was_found_and_the_corpora_belong_to_harnesses() -> None:
    for folder in (FOUND, CORPUS):
        assert {path.name for path in folder.iterdir() if path.is_dir()} <= set(HARNESSES)


def _harness(run: Run) -> Harness:
    return Harness(name="made-up", reads="nothing", prepare=lambda: run, seeds=lambda: [b"abc"])


def _fails(_data: bytes) -> bool:
    raise KeyError("what no decoder documents")


def _fails_inside(_data: bytes) -> bool:
    raise refused(Reason.INTERNAL, "something failed")


def _burns(_data: bytes) -> bool:
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    return True


def test_an_error_that_nobody_documents_is_a_finding() -> None:
    with pytest.raises(KeyError):
        attempt(_fails, b"")


def test_an_internal_error_is_a_finding() -> None:
    with pytest.raises(Finding, match="inside"):
        attempt(_fails_inside, b"")


def test_too_much_time_is_a_finding() -> None:
    with pytest.raises(Finding, match="CPU time"):
        attempt(_burns, b"", cpu_seconds=0.1)


def test_too_much_memory_is_a_finding() -> None:
    with pytest.raises(Finding, match="memory"):
        attempt(lambda _: bool(bytearray(b"x" * (64 << 20))), b"", memory=16 << 20, exact=True)


def test_a_refusal_is_no_finding() -> None:
    def run(_data: bytes) -> bool:
        raise refused(Reason.FIELD_INVALID, "no")

    assert attempt(run, b"") is False


def test_what_is_found_is_kept_to_be_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "FOUND", tmp_path)
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    monkeypatch.setattr(campaign, "available", lambda: False)
    outcome = fuzz(_harness(_fails), 5)
    [path] = outcome.findings
    assert (tmp_path / path).parent.name == "made-up"
    assert "KeyError" in outcome.words
    assert keep(_harness(_fails), (tmp_path / path).read_bytes()) == path


def test_the_fallback_gives_every_input_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "available", lambda: False)
    seen: list[bytes] = []
    outcome = fuzz(_harness(lambda data: bool(seen.append(data))), 1)
    assert outcome.findings == ()
    assert outcome.inputs == len(seen) > 1


@pytest.mark.thorough
@pytest.mark.skipif(not available(), reason="atheris has no wheel for this platform or Python")
def test_atheris_runs_a_harness_and_counts() -> None:
    outcome = fuzz(HARNESSES["udi"], 5)
    assert outcome.findings == ()
    assert outcome.inputs > len(list(inputs_of(HARNESSES["udi"])))
    assert outcome.edges > 0


def test_two_harnesses_have_two_names() -> None:
    with pytest.raises(ValueError, match="two harnesses"):
        named([_harness(_fails), _harness(_burns)])


def test_a_source_reads_what_was_packed(tmp_path: Path) -> None:
    source = Source(pack(7, b"abc", [b"d", b""], rest=b"rest"))
    assert (source.number(), source.chunk(), source.chunks(), source.rest()) == (
        7,
        b"abc",
        [b"d", b""],
        b"rest",
    )
    empty = Source(b"")
    assert (empty.number(), empty.chunk(), empty.chunks(), empty.rest()) == (0, b"", [], b"")
    assert text(b"\xff\xed\xa0\x80a").endswith("a")
    write_inputs(tmp_path, [b"a", b"b", b"a"])
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"a", b"b"]
