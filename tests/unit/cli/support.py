"""The command line as a person runs it, but in this process."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from vigil.cli.app import app, hoisted

SCHEMAS = Path(__file__).parents[3] / "docs" / "cli-schemas"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(*arguments: object, data: Path | None = None) -> Ran:
    """One command line; ``data`` is its data folder."""
    line = [str(one) for one in arguments]
    if data is not None:
        line += ["--data", str(data)]
    result = CliRunner().invoke(app, hoisted(line), env={"VIGIL_DATA": None, "VIGIL_CONTEXT": None})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def conforms(value: Any, name: str) -> None:
    """Hold JSON against the documented schema."""
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(value), key=str)
    if errors:
        pytest.fail(f"{name}: {errors[0].json_path}: {errors[0].message}")
