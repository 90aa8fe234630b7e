"""The page of benchmarks: how growth is kept and shown."""

import json
from typing import Any

from tests.benchmarks import report
from tests.benchmarks.result import Growth, Result, Row

GROWN = Growth(what="callers, 64 to 640", small=500.0, large=450.0, unit="decisions/s", reading="it holds")


def _document(*growth: Growth) -> dict[str, Any]:
    result = Result(rows=(Row(work="w", figure=1.0, unit="s"),), growth=growth)
    about = {"title": "Decisions", "measured": "2026-01-01T00:00:00", "quick": False}
    return {"decisions": {**about, "machine": report.machine(), **result.to_json()}}


def test_growth_survives_json_with_its_ratio() -> None:
    kept = json.loads(json.dumps(_document(GROWN)["decisions"]))
    assert kept["growth"][0]["ratio"] == 0.9
    assert Result.from_json(kept).growth == (GROWN,)


def test_figures_of_before_growth_was_measured_are_still_read() -> None:
    kept = _document()["decisions"]
    del kept["growth"]
    assert Result.from_json(kept).growth == ()


def test_the_page_shows_one_table_of_growth() -> None:
    page = report.markdown(_document(GROWN))
    assert page.count("## Growth") == 1
    row = "| Decisions | callers, 64 to 640 | 500 decisions/s | 450 decisions/s | 0.90 | it holds |"
    assert row in page


def test_without_growth_there_is_no_such_table() -> None:
    assert "## Growth" not in report.markdown(_document())
