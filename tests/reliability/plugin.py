"""Which rows the tests of a run show, and how many faults they made: ``pytest --reliability`` writes it down."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest

from tests.reliability import report
from tests.reliability.rows import ATTACKERS, FAULTS, ROWS

INJECTED: Final = "injected"
MEASURED: Final = "measured"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that a run of `make faults` gives."""
    parser.addoption("--reliability", action="store_true", help="write docs/reliability.md at the end")
    parser.addoption(
        "--again", action="store_true", help="only what failed in the run on record; counted in its place"
    )


def rows_of(item: pytest.Item) -> list[str]:
    """The rows that a test names. Raises UsageError for one that does not exist."""
    named = [str(name) for mark in item.iter_markers("holds") for name in mark.args]
    unknown = sorted(set(named) - set(ROWS))
    if unknown:
        raise pytest.UsageError(f"{item.nodeid}: no row is called {', '.join(unknown)}")
    return named


@pytest.fixture
def injected(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """``injected(3)``: the test has seen three faults happen."""

    def count(faults: int = 1) -> None:
        request.node.user_properties.append((INJECTED, faults))

    return count


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``measured("came back after 3 s")``: a sentence for the page."""

    def note(sentence: str) -> None:
        request.node.user_properties.append((MEASURED, sentence))

    return note


class Tally:
    """Counts, over one run, the tests and faults of each row.

    ``before``: what a whole run counted; then its failing tests alone run again, and what comes of them is counted in
    their place.
    """

    def __init__(self, before: Mapping[str, Any] | None = None) -> None:
        self._again = before is not None
        kept = before or {}
        self.passed: Counter[str] = Counter(kept.get("passed", {}))
        self.failed: Counter[str] = Counter(kept.get("failed", {}))
        self.faults: Counter[str] = Counter(kept.get("faults", {}))
        self.notes: list[str] = list(kept.get("notes", ()))
        self.failing: set[str] = set(kept.get("failing", ()))
        self.mended: int = kept.get("mended", 0)
        self.missing: list[str] = []
        self._rows: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self._rows = {item.nodeid: rows_of(item) for item in items}
        if self._again:
            left = [item for item in items if item.nodeid not in self.failing]
            items[:] = [item for item in items if item.nodeid in self.failing]
            config.hook.pytest_deselected(items=left)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        rows = self._rows.get(report.nodeid, ())
        if report.nodeid in self.failing and report.passed and self._again:
            # What it failed before is counted no more.
            self.failing.discard(report.nodeid)
            self.failed.subtract(rows)
            self.mended += 1
        elif report.failed and report.nodeid in self.failing:
            return
        elif report.failed:
            self.failing.add(report.nodeid)
        self.notes += [str(sentence) for name, sentence in report.user_properties if name == MEASURED]
        for row in rows:
            self.passed[row] += report.passed
            self.failed[row] += report.failed
            self.faults[row] += sum(int(str(n)) for name, n in report.user_properties if name == INJECTED)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            return
        shown = [name for name in ROWS if self.passed[name] or self.failed[name]]
        self.missing = [name for name in ROWS if name not in shown]
        if self.missing and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if shown:
            self._record(shown)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.missing:
            terminalreporter.write_line(
                f"No test of this run shows {', '.join(self.missing)} (tests/reliability/rows.py): it fails.",
                red=True,
            )

    def _record(self, shown: list[str]) -> None:
        table = [
            {
                "": "fault" if name in FAULTS else "attacker",
                "row": ROWS[name],
                "tests": self.passed[name] + self.failed[name],
                "faults made": self.faults[name],
                "held": "yes" if not self.failed[name] else "**no**",
            }
            for name in shown
        ]
        words = (
            f"{sum(name in FAULTS for name in shown)} of {len(FAULTS)} kinds of fault and "
            f"{sum(name in ATTACKERS for name in shown)} of {len(ATTACKERS)} attackers were tried, in "
            f"{sum(self.passed.values()) + sum(self.failed.values()):,} tests with {self.faults.total():,} faults "
            "made and seen to happen (a kill, a full disk, a failed fsync, a forged message and so on); a test that "
            "shows two rows counts for both."
        )
        if self.mended:
            words += (
                f" {self.mended} of the tests failed at first and passed when they alone ran again (`make faults "
                "AGAIN=1`), after what they had found was mended."
            )
        kept = {
            **{name: dict(getattr(self, name)) for name in ("passed", "failed", "faults")},
            "notes": self.notes,
            "failing": sorted(self.failing),
            "mended": self.mended,
        }
        report.record(
            "faults",
            title="Faults and attackers",
            command="make faults",
            words=words,
            table=table,
            notes=self.notes,
            kept=kept,
        )


def pytest_configure(config: pytest.Config) -> None:
    """Count only where the counts are wanted."""
    if config.getoption("--again"):
        before = report.kept_of("faults")
        if not (before and before["failing"]):
            raise pytest.UsageError("no test failed in the run on record: there is nothing to run again")
        config.pluginmanager.register(Tally(before), "reliability-tally")
    elif config.getoption("--reliability"):
        config.pluginmanager.register(Tally(), "reliability-tally")
