"""Which rows the tests of a run show, and how many faults they made: ``pytest --reliability`` writes it down."""

from collections import Counter
from collections.abc import Callable
from typing import Final

import pytest

from tests.reliability import report
from tests.reliability.rows import ATTACKERS, FAULTS, ROWS

INJECTED: Final = "injected"
MEASURED: Final = "measured"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that a run of `make faults` gives."""
    parser.addoption("--reliability", action="store_true", help="write docs/reliability.md at the end")


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
    """Counts, over one run, the tests and faults of each row."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.notes: list[str] = []
        self.missing: list[str] = []
        self._rows: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._rows = {item.nodeid: rows_of(item) for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        self.notes += [str(sentence) for name, sentence in report.user_properties if name == MEASURED]
        for row in self._rows.get(report.nodeid, ()):
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
        report.record(
            "faults",
            title="Faults and attackers",
            command="make faults",
            words=(
                f"{sum(name in FAULTS for name in shown)} of {len(FAULTS)} kinds of fault and "
                f"{sum(name in ATTACKERS for name in shown)} of {len(ATTACKERS)} attackers were tried, in "
                f"{sum(self.passed.values()) + sum(self.failed.values()):,} tests with {self.faults.total():,} faults "
                "made and seen to happen (a kill, a full disk, a failed fsync, a forged message and so on)."
            ),
            table=table,
            notes=self.notes,
        )


def pytest_configure(config: pytest.Config) -> None:
    """Count only where the counts are wanted."""
    if config.getoption("--reliability"):
        config.pluginmanager.register(Tally(), "reliability-tally")
