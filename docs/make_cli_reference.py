"""Writes docs/cli.md and docs/cli-schemas/*.json from the commands themselves; a test runs it and compares.

.venv/bin/python docs/make_cli_reference.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from vigil.cli.app import GLOBAL, app
from vigil.cli.schemas import OUTPUT_OF, SHAPES, document

DOCS = Path(__file__).parent
SCHEMAS = "cli-schemas"

HEAD = """# The `vigil` command

Written by `docs/make_cli_reference.py`; do not edit.

Data goes to stdout, words and progress to stderr. `--output json` writes one JSON document (a stream writes one object
a line); its shapes stand in [cli-schemas](cli-schemas), JSON Schema 2020-12. Identifiers are bare, digests lowercase
hex, instants RFC 3339 in UTC. Whatever fails writes [error](cli-schemas/error.json) instead. The client believes
signatures only: a receipt, a decision, an approval, a record is shown as *verified* when it was checked here, against
`trust.json`.

| exit code | what it means |
|---|---|
| 0 | done |
| 1 | something else did not work: a service that does not answer, a command that failed, was abandoned or interrupted |
| 2 | what was typed cannot be meant |
| 3 | refused, by whom and why stands in the answer; or something that was shown does not verify |
| 4 | the outcome is unknown; the answer's `lifted_by` is the very command that asks again, and repeats nothing |

## Global options

They may stand anywhere on the line. `NO_COLOR` is honoured.

| option | |
|---|---|
"""

ERROR = """
## Errors

```json
{"error": {"status": "FAILED_PRECONDITION", "reason": "PATIENT_CONNECTED", "sentence": "…", "lifted_by": "…",
           "who": "…", "values": {}, "all": [{"…": "every refusal, the most fundamental first"}]}}
```

`status` is a canonical gRPC code and `reason` one of the stable reasons of [protocol.md](protocol.md); `USAGE` and
`ERROR` stand in both where nobody refused anything.
"""


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command with its words, in order."""
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, (*path, name))
        else:
            yield " ".join((*path, name)), one


def cell(text: str) -> str:
    """Text in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def option_rows(command: Any) -> list[str]:
    """One row for each argument and option."""
    rows = []
    for one in command.params:
        if one.name == "help" or getattr(one, "hidden", False) or "completion" in one.name:
            continue
        is_argument = one.param_type_name == "argument"
        names = (
            f"`{one.metavar or one.name.upper()}`"
            if is_argument
            else ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
        )
        required = " Required." if one.required and not is_argument else ""
        default = one.default
        shown = ""
        if (
            isinstance(default, (str, int, float))
            and not isinstance(default, bool)
            and default not in ("", 0)
        ):
            shown = f" Default: `{default}`."
        rows.append(f"| {names} | {cell(one.help or '')}{required}{shown} |")
    return rows


def reference() -> str:
    """All of docs/cli.md."""
    root = typer.main.get_command(app)
    lines = [HEAD.rstrip("\n")]
    lines += [row for row in option_rows(root) if any(name in row for name in GLOBAL)]
    lines.append(ERROR)
    lines.append("## Commands\n")
    for words, command in sorted(commands(root)):
        lines.append(f"### vigil {words}\n")
        lines.append((command.help or "").strip() + "\n")
        rows = option_rows(command)
        if rows:
            lines += ["| | |", "|---|---|", *rows, ""]
        shapes = [f"[{name}]({SCHEMAS}/{name}.json)" for name in OUTPUT_OF[words]]
        if shapes:
            lines.append(f"JSON: {' or '.join(shapes)}.\n")
    return "\n".join(lines).rstrip("\n") + "\n"


def files() -> dict[str, str]:
    """Every generated file by its path under docs/."""
    made = {"cli.md": reference()}
    for name in SHAPES:
        made[f"{SCHEMAS}/{name}.json"] = json.dumps(document(name), indent=1, sort_keys=True) + "\n"
    return made


def main() -> None:
    (DOCS / SCHEMAS).mkdir(exist_ok=True)
    for name, text in files().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
