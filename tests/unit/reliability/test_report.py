"""The page of what long runs found."""

import json
from pathlib import Path

import pytest

from tests.reliability.report import record


def test_each_run_replaces_its_own_section(tmp_path: Path) -> None:
    for made in (3, 4):
        for section in ("fuzz", "faults"):
            record(
                section,
                title=section.title(),
                command=f"make {section}",
                words="Words.",
                table=[{"row": "a | b", "made": 1000 * made}],
                notes=["a note"],
                docs=tmp_path,
            )
    page = (tmp_path / "reliability.md").read_text()
    assert page.index("## Faults") < page.index("## Fuzz")
    assert page.count("| a \\| b | 4,000 |") == 2
    assert "3,000" not in page
    assert list(json.loads((tmp_path / "reliability.json").read_text())) == ["faults", "fuzz"]


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no section is called faulst"):
        record("faulst", title="", command="", words="", table=[], docs=tmp_path)
    assert not list(tmp_path.iterdir())
