"""Where a security rule of ruff (S, after bandit) is not applied, the reason stands beside it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOQA = re.compile(r"\bnoqa:\s*(?P<rules>[A-Z0-9, ]+?)(?P<reason> - \S.*)?$")


def test_every_exclusion_in_the_code_has_its_reason() -> None:
    found = 0
    for folder in ("services", "deploy", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.is_relative_to(ROOT / "services/vigil/api"):
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                match = NOQA.search(line)
                if match and re.search(r"\bS\d", match["rules"]):
                    found += 1
                    assert match["reason"], f"{path.relative_to(ROOT)}:{number}: say why"
    assert found > 3


def test_no_security_rule_is_off_outside_the_tests() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert lint["select"] == ["ALL"]
    assert not [rule for rule in lint["ignore"] if re.fullmatch(r"S\d*", rule)]
    for place, rules in lint["per-file-ignores"].items():
        assert place == "tests/**" or not [rule for rule in rules if re.fullmatch(r"S\d*", rule)], place
