"""What a run with ``--reliability`` takes for shown, and how it ends where a row is not."""

from functools import partial
from pathlib import Path

import pytest

from tests.reliability import plugin, report

INI = "[pytest]\nmarkers = holds: a row\nasyncio_default_fixture_loop_scope = function"
ROWS = {"redis-outages": "Redis killed", "floods": "A flood of requests"}
BOTH = """
import pytest

@pytest.mark.holds("redis-outages")
def test_one(injected):
    injected(2)

@pytest.mark.holds("floods")
def test_other():
    {}
"""


@pytest.fixture
def here(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder of tests with two rows to show, and a page of its own."""
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(plugin, "ROWS", ROWS)
    monkeypatch.setattr(report, "record", partial(report.record, docs=tmp_path / "docs"))
    monkeypatch.setattr(report, "kept_of", partial(report.kept_of, docs=tmp_path / "docs"))
    pytester.makeini(INI)
    return pytester


def run(here: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return here.runpytest_inprocess("-p", "tests.reliability.plugin", *arguments)


def test_a_run_that_shows_every_row_passes(here: pytest.Pytester, tmp_path: Path) -> None:
    here.makepyfile(BOTH.format("pass"))
    result = run(here, "--reliability")
    assert result.ret == pytest.ExitCode.OK
    assert "No test of this run shows" not in result.stdout.str()
    assert "in 2 tests with 2 faults" in (tmp_path / "docs" / "reliability.md").read_text()


@pytest.mark.parametrize("arguments", [("-k", "one"), ()], ids=["left out", "skipped"])
def test_a_row_that_no_test_shows_fails_the_run_by_name(
    here: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    here.makepyfile(BOTH.format('pytest.skip("it takes root")'))
    result = run(here, "--reliability", *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, skipped=0 if arguments else 1, deselected=1 if arguments else 0)
    result.stdout.fnmatch_lines(["No test of this run shows floods (*rows.py): it fails."])


def test_a_run_without_tests_names_every_row(here: pytest.Pytester) -> None:
    result = run(here, "--reliability")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["No test of this run shows redis-outages, floods (*"])


@pytest.mark.parametrize("arguments", [(), ("--reliability", "--collect-only")], ids=["any", "collects"])
def test_other_runs_owe_no_row(here: pytest.Pytester, arguments: tuple[str, ...]) -> None:
    here.makepyfile("def test_nothing(): pass")
    assert run(here, *arguments).ret == pytest.ExitCode.OK


def test_what_failed_runs_again_alone_and_is_counted_in_its_place(
    here: pytest.Pytester, tmp_path: Path
) -> None:
    page = tmp_path / "docs" / "reliability.md"
    here.makepyfile(BOTH.format("assert not 'mended'"))
    assert run(here, "--reliability").ret == pytest.ExitCode.TESTS_FAILED
    assert "| A flood of requests | 1 | 0 | **no** |" in page.read_text()
    # It fails again: nothing is counted twice.
    result = run(here, "--reliability", "--again")
    result.assert_outcomes(failed=1, deselected=1)
    assert "| A flood of requests | 1 | 0 | **no** |" in page.read_text()
    here.makepyfile(BOTH.format("assert 'mended'"))
    result = run(here, "--reliability", "--again")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1, deselected=1)
    text = page.read_text()
    assert "| A flood of requests | 1 | 0 | yes |" in text
    assert "| Redis killed | 1 | 2 | yes |" in text
    assert "in 2 tests with 2 faults" in text
    assert "1 of the tests failed at first" in text


def test_there_must_be_something_to_run_again(here: pytest.Pytester) -> None:
    here.makepyfile(BOTH.format("pass"))
    assert run(here, "--reliability", "--again").ret == pytest.ExitCode.USAGE_ERROR
    assert run(here, "--reliability").ret == pytest.ExitCode.OK
    assert run(here, "--reliability", "--again").ret == pytest.ExitCode.USAGE_ERROR
