"""What a policy must pass before it is built: OPA's own checks, its tests, and no negation that can fail open.

OPA fails open under `not`: a built-in function that fails, or a reference to what is not there, is undefined, and
`not` of undefined is true. So `not` may stand only before the plain name of a rule that has a `default`, which
is always defined. (`opa check` and the server accept the rest; only `opa eval --strict-builtin-errors` stops.)
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from vigil.policy.engine.opa import Opa, OpaFailed

TEST_SUFFIX: Final = "_test.rego"
SCHEMAS: Final = "schemas"

RulePath = tuple[str, ...]


def check(source: Path, opa: Opa) -> list[str]:
    """Everything that is wrong with the policies in this folder, as sentences; empty when all is well."""
    modules = sorted(path for path in source.rglob("*.rego") if not path.name.endswith(TEST_SUFFIX))
    if not modules:
        return [f"{source} holds no policy."]
    compiled = _compile(source, opa)
    if compiled:
        return compiled
    return [*_format(source, opa), *negations(source, modules, opa), *_test(source, opa)]


def _compile(source: Path, opa: Opa) -> list[str]:
    schema = ["--schema", SCHEMAS] if (source / SCHEMAS).is_dir() else []
    finished = opa.run(["check", "--strict", *schema, "--bundle", "."], folder=source)
    return [] if finished.returncode == 0 else [f"opa check: {finished.stderr.strip()}"]


def _format(source: Path, opa: Opa) -> list[str]:
    finished = opa.run(["fmt", "--list", "."], folder=source)
    if finished.returncode != 0:
        return [f"opa fmt: {finished.stderr.strip()}"]
    return [f"{name} is not formatted: run 'opa fmt --write'." for name in finished.stdout.split()]


def _test(source: Path, opa: Opa) -> list[str]:
    finished = opa.run(["test", "--bundle", ".", "--format", "json"], folder=source)
    try:
        results = json.loads(finished.stdout or "[]") or []
    except ValueError:
        results = []
    failed = [result for result in results if result.get("fail") or result.get("error") or result.get("skip")]
    if failed:
        return [f"opa test: {result['package']}.{result['name']} failed or was skipped." for result in failed]
    if finished.returncode != 0:
        return [f"opa test: {finished.stderr.strip()}"]
    if not results:
        return ["opa test: there is no test."]
    return _coverage(source, opa)


def _coverage(source: Path, opa: Opa) -> list[str]:
    """Every rule of every module is evaluated by some test."""
    report = json.loads(
        opa.output(["test", "--bundle", ".", "--coverage", "--format", "json"], folder=source)
    )
    gaps = {
        (name, row)
        for name, file in report.get("files", {}).items()
        if not name.endswith(TEST_SUFFIX)
        for gap in file.get("not_covered", [])
        for row in range(gap["start"]["row"], gap["end"]["row"] + 1)
    }
    return [f"{name}:{row} is not covered by a test." for name, row in sorted(gaps)]


def negations(source: Path, modules: Sequence[Path], opa: Opa) -> list[str]:
    """Each `not` that stands before anything but the plain name of a rule with a default."""
    trees = {module: _parse(source, module, opa) for module in modules}
    defaults = {path for tree in trees.values() for path in _default_rules(tree)}
    problems = []
    for module, tree in trees.items():
        package = _package(tree)
        local = set(_local_names(tree))
        for expression in _negated(tree):
            rule = _named_rule(expression, package, local)
            if rule is None or rule not in defaults:
                row = expression.get("location", {}).get("row", "?")
                problems.append(
                    f"{module.relative_to(source)}:{row}: 'not' may stand only before the plain name of a rule "
                    "with a default; anything else is true when it fails."
                )
    return problems


def _parse(source: Path, module: Path, opa: Opa) -> Any:
    name = str(module.relative_to(source))
    tree = json.loads(
        opa.output(["parse", "--format", "json", "--json-include", "locations", name], folder=source)
    )
    if not isinstance(tree, dict) or "package" not in tree:
        raise OpaFailed(f"{name} could not be parsed.")
    return tree


def _package(tree: Any) -> RulePath:
    return tuple(term["value"] for term in tree["package"]["path"][1:])


def _default_rules(tree: Any) -> Iterator[RulePath]:
    for rule in tree.get("rules", []):
        if rule.get("default") and not rule["head"].get("args"):
            yield (*_package(tree), *(term["value"] for term in rule["head"]["ref"]))


def _negated(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if node.get("negated"):
            yield node
        for child in node.values():
            yield from _negated(child)
    elif isinstance(node, list):
        for child in node:
            yield from _negated(child)


def _named_rule(expression: dict[str, Any], package: RulePath, local: set[str]) -> RulePath | None:
    """The full path of the rule whose plain name is negated; None for a call, a local name or anything else."""
    terms = expression["terms"]
    if not isinstance(terms, dict) or "with" in expression:
        return None
    if terms.get("type") == "var" and terms["value"] not in local:
        return (*package, terms["value"])
    if terms.get("type") == "ref":
        head, *rest = terms["value"]
        if head == {**head, "type": "var", "value": "data"} and all(
            term["type"] == "string" for term in rest
        ):
            return tuple(term["value"] for term in rest)
    return None


def _local_names(node: Any) -> Iterator[str]:
    """Names that mean something else than a rule somewhere in this module: arguments, `some`, `every` and `:=`."""
    if isinstance(node, list):
        if len(node) == 3 and _is_assignment(node[0]):
            yield from _variables(node[1])
        for child in node:
            yield from _local_names(child)
    elif isinstance(node, dict):
        for member in ("args", "symbols"):
            yield from _variables(node.get(member))
        if "domain" in node:
            yield from _variables([node.get("key"), node.get("value")])
        for child in node.values():
            yield from _local_names(child)


def _is_assignment(term: Any) -> bool:
    return bool(
        isinstance(term, dict)
        and term.get("type") == "ref"
        and [part.get("value") for part in term["value"]] == ["assign"]
    )


def _variables(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if node.get("type") == "var":
            yield node["value"]
        for child in node.values():
            yield from _variables(child)
    elif isinstance(node, list):
        for child in node:
            yield from _variables(child)
