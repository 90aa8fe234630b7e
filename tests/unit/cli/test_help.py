import ast
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from tests.unit.cli.support import run
from vigil.cli.app import app, help_text, hoisted
from vigil.cli.schemas import OUTPUT_OF, SHAPES

ROOT = Path(__file__).parents[3]
HEAVY = (
    "grpc",
    "google",
    "pydantic",
    "cryptography",
    "rich",
    "sqlalchemy",
    "asyncio",
    "json",
    "vigil.core",
    "vigil.rpc",
    "vigil.api",
)


def all_commands() -> list[str]:
    found = []

    def walk(group: object, path: tuple[str, ...]) -> None:
        for name, one in group.commands.items():  # type: ignore[attr-defined]
            if hasattr(one, "commands"):
                walk(one, (*path, name))
            else:
                found.append(" ".join((*path, name)))

    walk(typer.main.get_command(app), ())
    return found


@pytest.mark.parametrize("words", ["", "device", "command send", "--output json site list"])
def test_help_imports_nothing_heavy(words: str) -> None:
    # What takes time is what is imported: this decides, on any machine, whether help is quick.
    code = (
        "import sys\n"
        "from vigil.cli.__main__ import main\n"
        f"sys.argv = ['vigil', *{words!r}.split(), '--help']\n"
        "main()\n"
        "print('\\n' + repr(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: vigil")
    loaded = set(ast.literal_eval(done.stdout.rsplit("\n", 2)[-2]))
    assert "vigil.cli.command" in loaded
    heavy = {name for name in loaded if name in HEAVY or name.startswith(tuple(f"{one}." for one in HEAVY))}
    assert not heavy


def test_quick_help_is_the_same_help() -> None:
    # A group's help shortens its lines to the terminal's width, which the runner has another of.
    for words in ("site list", "status", "command send"):
        quick, usual = (
            (help_text([*words.split(), "--help"]) or "").split(),
            run(*words.split(), "--help").out,
        )
        assert quick[2:] == usual.split()[2:]
        assert len(quick) > 10
    assert (help_text(["device", "--help"]) or "").startswith("Usage: vigil device [OPTIONS] COMMAND")
    assert help_text(["command", "send", "SN-1", "--help"]) == help_text(["command", "send", "--help"])
    assert help_text(["nonsense", "--help"]) is None
    assert help_text(["site", "list"]) is None
    assert help_text(["command", "send", "--", "--help"]) is None


@pytest.mark.parametrize("words", all_commands())
def test_every_command_explains_itself(words: str) -> None:
    done = run(*words.split(), "--help")
    assert done.code == 0
    assert "Usage: " in done.out
    assert len(done.out.split("\n\n")[1].strip()) > 10


def test_every_command_has_a_documented_answer() -> None:
    assert sorted(OUTPUT_OF) == sorted(all_commands())
    named = {name for names in OUTPUT_OF.values() for name in names}
    assert named | {"error"} == set(SHAPES)


def test_the_reference_is_the_one_that_the_commands_make() -> None:
    code = (
        "import runpy, sys; made = runpy.run_path('docs/make_cli_reference.py')['files']()\n"
        "from pathlib import Path\n"
        "old = [n for n, text in made.items()\n"
        "       if not (Path('docs') / n).exists() or (Path('docs') / n).read_text() != text]\n"
        "extra = {p.name for p in Path('docs/cli-schemas').iterdir()} - {n.split('/')[1] for n in made if '/' in n}\n"
        "sys.exit(f'make them anew: {old} {extra}' if old or extra else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_global_options_may_stand_anywhere() -> None:
    assert hoisted(["site", "list", "--output", "json", "--data=x"]) == [
        "--output",
        "json",
        "--data=x",
        "site",
        "list",
    ]
    assert hoisted(["command", "send", "--", "--output"]) == ["command", "send", "--", "--output"]
    assert hoisted(["site", "list", "--output"]) == ["--output", "site", "list"]


@pytest.mark.parametrize(
    "line",
    [
        ("command", "send"),
        ("command", "send", "SN-1"),
        ("site", "list", "--output", "xml"),
        ("release", "publish"),
        ("revoke", "build"),
        ("nonsense",),
    ],
)
def test_what_cannot_be_meant_exits_with_2(line: tuple[str, ...], tmp_path: Path) -> None:
    assert run(*line, data=tmp_path).code == 2
