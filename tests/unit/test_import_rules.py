"""Which room may import which (docs/architecture.md): a service never imports another service's code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "services" / "vigil"
ROOMS = frozenset(
    {
        "identity",
        "release",
        "attestation",
        "policy",
        "revocation",
        "recall",
        "evidence",
        "gateway",
        "console",
        "witness",
    }
)
SHARED = frozenset({"errors", "core", "rpc", "feed", "storage", "api"})
MAY_IMPORT = {
    "errors": frozenset(),
    "core": frozenset({"errors"}),
    "api": frozenset({"api"}),
    "rpc": frozenset({"errors", "core", "api"}),
    "storage": frozenset({"errors", "core"}),
    "feed": frozenset({"errors", "core", "api", "rpc", "storage"}),
    "device": frozenset({"errors", "core", "api", "rpc"}),
    "cli": frozenset(
        {
            "errors",
            "core",
            "api",
            "rpc",
            "verify",
            "run",
            "demo",
            "device",
            "witness.founding",
            "monitor",
            "storage",
        }
    ),
    "run": frozenset({"errors", "core", "api", "rpc", "storage", "identity.ceremony", "cli"}),
    # The captured gateway of the demonstration is the real one with a tap on its wire.
    "demo": frozenset({"errors", "core", "api", "rpc", "cli", "run", "device", "verify", "gateway"}),
    "verify": frozenset({"errors", "core", *(f"{room}.domain" for room in ROOMS)}),
    # From outside: the log's arithmetic, and nothing else of it.
    "monitor": frozenset({"errors", "core", "storage", "evidence.domain"}),
    **dict.fromkeys(ROOMS, SHARED),
}


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import hides which room it reaches"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) not in ("__init__", "api")]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(path)
    allowed = MAY_IMPORT[room]
    for name in imports_of(path):
        if not name.startswith("vigil.") or name == "vigil.__version__":
            continue
        rest = name.removeprefix("vigil.")
        inside = rest.split(".")[0] == room or any(
            rest == item or rest.startswith(f"{item}.") for item in allowed
        )
        assert inside, f"{room} must not import {name}"


def test_domain_modules_are_pure() -> None:
    forbidden = (
        "asyncio",
        "grpc",
        "sqlalchemy",
        "sqlite3",
        "socket",
        "time",
        "os",
        "random",
        "secrets",
        "redis",
    )
    for path in PACKAGE.rglob("domain.py"):
        for name in imports_of(path):
            assert name.split(".")[0] not in forbidden, f"{path} imports {name}"


def test_the_rule_finds_a_forbidden_import(tmp_path: Path) -> None:
    path = tmp_path / "service.py"
    path.write_text("from vigil.policy.service import Policy\n")
    assert list(imports_of(path)) == ["vigil.policy.service.Policy"]
    assert "policy" not in {item.split(".")[0] for item in MAY_IMPORT["gateway"]}
