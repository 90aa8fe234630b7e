"""Write the generated parts of docs/policy.md: the fields of a question, and the tables of effects by class.

`python deploy/tools/policy_doc.py` rewrites the page, `--check` only says whether it is current. The tables are made by
asking the bundle that comes with Vigil; nothing in them is written by hand.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from vigil.policy.engine.bundle import DEFAULT_BUNDLE, read_bundle
from vigil.policy.engine.wasm import WasmEngine

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "policy.md"
SCHEMA = ROOT / "policies" / "schemas" / "command.json"

DEADLINE_MS = 60_000
CURE = {"effect": "none", "curative": True}
APPROVERS = [{"id": f"p-{n}", "organization": "o", "roles": ["approver"]} for n in (1, 2)]

BASE: dict[str, Any] = {
    "action": {
        "name": "a",
        "class": "C",
        "approvals": 0,
        "corrective_when_warning": False,
        "therapy_enabled": True,
        "states": ["idle", "delivering"],
    },
    "mode": "now",
    "requester": {"id": "p-0", "organization": "o", "sites": ["s"], "roles": ["technician"]},
    "approvers": APPROVERS,
    "release_signature": False,
    "device": {"id": "d", "organization": "o", "site": "s", "model": "m", "state": "active", "holds": 0},
    "attestation": {"status": "affirming", "age_ms": 0, "stale": False, "vector": {}, "basis": "attested"},
    "therapy": {"state": "idle", "patient": "disconnected"},
    "build": {"effect": "none"},
    "target": None,
    "work_order": True,
    "bedside_confirmed": True,
    "window_open": False,
}

COLUMNS: Mapping[str, Mapping[str, Any]] = {
    "R": {"action.class": "R"},
    "C": {"action.class": "C"},
    "C to a cure": {"action.class": "C", "target": CURE},
    "U to a cure": {"action.class": "U", "target": CURE},
    "T": {"action.class": "T"},
    "D": {"action.class": "D"},
}

TABLES: Mapping[str, tuple[str, Mapping[str, Mapping[str, Any]]]] = {
    "build-effects": (
        "effect on the running build",
        {
            effect: {"build.effect": effect}
            for effect in ("none", "flag", "no_new", "corrective_only", "deny")
        },
    ),
    "device-states": (
        "state of the device",
        {
            state: {"device.state": state}
            for state in ("active", "quarantined", "banned", "pending", "stored", "retired")
        },
    ),
    "target-effects": (
        "effect on the target",
        {
            **{
                effect: {"target": {"effect": effect, "curative": True}}
                for effect in ("none", "flag", "no_new", "corrective_only", "deny")
            },
            "none, but not curative": {"target": {"effect": "none", "curative": False}},
        },
    ),
    "attestations": (
        "attestation",
        {
            "affirming": {},
            "affirming, stale": {"attestation.stale": True},
            "affirming, self-reported": {"attestation.basis": "self-reported"},
            "warning": {"attestation.status": "warning"},
            "warning, corrective action": {
                "attestation.status": "warning",
                "action.corrective_when_warning": True,
            },
            "contraindicated": {"attestation.status": "contraindicated"},
            "none": {"attestation.status": "none"},
        },
    ),
    "circumstances": (
        "circumstance",
        {
            "patient disconnected, now": {},
            "patient connected or unknown, now": {
                "therapy.patient": "unknown",
                "therapy.state": "delivering",
            },
            "patient connected or unknown, when idle": {
                "therapy.patient": "unknown",
                "therapy.state": "delivering",
                "mode": "idle",
            },
            "in the window": {"mode": "window"},
            "a hold": {"device.holds": 1},
            "no work order": {"work_order": False},
            "one approver": {"approvers": APPROVERS[:1]},
            "one approver twice": {"approvers": APPROVERS[:1] * 2},
        },
    ),
}

TARGET_COLUMNS = ("C to a cure", "U to a cure")


def _changed(document: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = deepcopy(document)
    for path, value in changes.items():
        holder, _, last = path.rpartition(".")
        (result[holder] if holder else result)[last] = value
    return result


def _cell(engine: WasmEngine, document: dict[str, Any]) -> str:
    verdict = engine.decide_now(document)
    if not verdict.allow:
        return "<br>".join(reason.reason for reason in verdict.reasons)
    staged = [str(owed.values["until"]) for owed in verdict.obligations if owed.kind == "stage"]
    return f"staged until {staged[0]}" if staged else "allowed"


def _table(engine: WasmEngine, heading: str, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    columns = {
        name: changes
        for name, changes in COLUMNS.items()
        if name in TARGET_COLUMNS or "target" not in heading
    }
    titles = [name.replace(" to a cure", "") for name in columns] if "target" in heading else list(columns)
    yield f"| {heading} | {' | '.join(titles)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for row, changes in rows.items():
        cells = [_cell(engine, _changed(BASE, {**column, **changes})) for column in columns.values()]
        yield f"| {row} | {' | '.join(cells)} |"


def _fields(schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, field in schema["properties"].items():
        path = f"{prefix}{name}"
        choice = next((option for option in field.get("anyOf", []) if "properties" in option), None)
        items = field.get("items", {})
        if "description" in field:
            yield f"| `{path}` | {_type(field)} | {field['description']} |"
        if "properties" in field:
            yield from _fields(field, f"{path}.")
        elif choice:
            yield from _fields(choice, f"{path}.")
        elif "properties" in items:
            yield from _fields(items, f"{path}[].")


def _type(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return "object or null"
    if field["type"] == "array":
        return f"list of {field['items']['type']}s"
    return str(field["type"])


def render(page: str) -> str:
    """The page with its generated parts made anew, between `<!-- name -->` and `<!-- /name -->`."""
    engine = WasmEngine(read_bundle(DEFAULT_BUNDLE.read_bytes()), deadline_ms=DEADLINE_MS)
    schema = json.loads(SCHEMA.read_text())
    parts = {"fields": ["| field | type | meaning |", "|---|---|---|", *_fields(schema)]}
    for name, (heading, rows) in TABLES.items():
        parts[name] = list(_table(engine, heading, rows))
    for name, lines in parts.items():
        pattern = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        generated = "".join(f"{line}\n" for line in lines).replace("\\", "\\\\")
        page, count = pattern.subn(generated, page)
        if count != 1:
            raise SystemExit(f"{PAGE} has no place for {name}")
    return page


def main(arguments: list[str]) -> int:
    page = PAGE.read_text()
    current = render(page)
    if "--check" in arguments:
        if page != current:
            sys.stderr.write(f"{PAGE} is not current: run deploy/tools/policy_doc.py\n")
        return int(page != current)
    PAGE.write_text(current)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
