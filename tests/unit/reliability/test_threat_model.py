"""The table of captured parts in docs/threat-model.md: each cell names tests, and each of them exists and is marked."""

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.reliability.rows import ROWS

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "threat-model.md"
LINK = re.compile(r"\[([^\]]+)\]\((\.\./tests/[\w/]+\.py)#(\w+)\)")
HEADING = "## What each captured part can do alone"
PARTS = (
    *("technician", "approver", "safety", "recall", "administrator", "enroller"),
    *("gateway", "policy", "evidence", "attestation", "revocation", "Redis", "edge", "identity", "release"),
    *("manufacturer", "pump", "no key"),
)
"""Each role of a person, each service, each signer's holder has its row."""


def rows() -> list[list[str]]:
    section = PAGE.read_text(encoding="utf-8").split(HEADING)[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:]]


@functools.cache
def marked_in(path: Path) -> dict[str, set[str]]:
    """The tests of a module with the rows that each is said to show."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            marks = [one for one in node.decorator_list if ast.unparse(one).startswith("pytest.mark.holds")]
            named = [arg.value for one in marks if isinstance(one, ast.Call) for arg in one.args]  # type: ignore[attr-defined]
            found[node.name] = {str(name) for name in named}
    module = re.search(r"^pytestmark = .*holds\(([^)]*)\)", path.read_text(encoding="utf-8"), re.MULTILINE)
    for name in re.findall(r'"([^"]+)"', module[1]) if module else ():
        for named_rows in found.values():
            named_rows.add(name)
    return found


def test_every_part_has_its_row() -> None:
    captured = [row[0] for row in rows()]
    assert [part for part in PARTS if not any(part in one for one in captured)] == []
    assert len(captured) == len(set(captured)) >= 15


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_each_cell_is_shown_by_tests_that_exist(row: list[str]) -> None:
    _, can, shown_can, cannot, shown_cannot = row
    assert can
    assert cannot
    for shown in (shown_can, shown_cannot):
        links = LINK.findall(shown)
        assert links, f"no test shows: {shown!r}"
        assert LINK.sub("", shown).replace("·", "").strip() == "", "nothing but tests stands there"
        for words, file, name in links:
            tests = marked_in((DOCS / file).resolve())
            assert name in tests, f"{file} has no {name}"
            assert name == "test_" + words.replace(" ", "_")
            assert tests[name], f"{name} is not marked with the row that it shows"
            assert tests[name] <= set(ROWS)
