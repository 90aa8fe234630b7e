"""Questions to policy: one allowed for each class, and generated ones, well-formed and mutilated."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

Document = dict[str, Any]

CHANGE: Document = {
    "action": {
        "name": "set-alarm-limit",
        "class": "C",
        "approvals": 0,
        "corrective_when_warning": False,
        "therapy_enabled": False,
        "states": ["idle"],
    },
    "mode": "now",
    "requester": {
        "id": "p-requester",
        "organization": "st-anna",
        "sites": ["st-anna-north"],
        "roles": ["technician"],
    },
    "approvers": [],
    "release_signature": False,
    "device": {
        "id": "dev-aaaaaaaaaaaaaaaa",
        "organization": "st-anna",
        "site": "st-anna-north",
        "model": "infusion-pump-3",
        "state": "active",
        "holds": 0,
    },
    "attestation": {
        "status": "affirming",
        "age_ms": 1000,
        "stale": False,
        "vector": {"instance-identity": 2, "executables": 2},
        "basis": "attested",
    },
    "therapy": {"state": "idle", "patient": "disconnected"},
    "build": {"effect": "none"},
    "target": None,
    "work_order": True,
    "bedside_confirmed": False,
    "window_open": False,
}

APPROVERS = [
    {"id": "p-first", "organization": "st-anna", "roles": ["approver"]},
    {"id": "p-second", "organization": "st-anna", "roles": ["approver"]},
]


def changed(document: Document, changes: Mapping[str, Any]) -> Document:
    """A copy with these changes; a name with dots reaches inside."""
    result = deepcopy(document)
    for path, value in changes.items():
        *parents, last = path.split(".")
        holder = result
        for parent in parents:
            holder = holder[parent]
        holder[last] = deepcopy(value)
    return result


ALLOWED: dict[str, Document] = {
    "R": changed(CHANGE, {"action.class": "R", "work_order": False}),
    "C": CHANGE,
    "U": changed(
        CHANGE,
        {
            "action.class": "U",
            "action.approvals": 2,
            "approvers": APPROVERS,
            "target": {"effect": "none", "curative": True},
            "mode": "idle",
        },
    ),
    "T": changed(
        CHANGE,
        {
            "action.class": "T",
            "action.therapy_enabled": True,
            "action.states": ["delivering"],
            "therapy": {"state": "delivering", "patient": "connected"},
            "bedside_confirmed": True,
        },
    ),
    "D": changed(CHANGE, {"action.class": "D", "action.approvals": 2, "approvers": APPROVERS}),
}

_organizations = st.sampled_from(["st-anna", "st-anna", "elsewhere", "*"])
_sites = st.lists(st.sampled_from(["st-anna-north", "st-anna-south", "*"]), max_size=3)
_roles = st.lists(
    st.sampled_from(["technician", "approver", "safety", "auditor", "recall", "visitor"]), max_size=3
)
_effects = st.sampled_from(["none", "flag", "no_new", "corrective_only", "deny"])
_states = st.sampled_from(["idle", "delivering", "alarm", "unknown"])
_people = st.sampled_from(["p-requester", "p-first", "p-second", "p-third"])

_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "action.class": st.sampled_from(["S1", "R", "C", "U", "T", "D"]),
    "action.approvals": st.integers(0, 3),
    "action.corrective_when_warning": st.booleans(),
    "action.therapy_enabled": st.booleans(),
    "action.states": st.lists(_states, max_size=3),
    "mode": st.sampled_from(["now", "idle", "window"]),
    "requester.organization": _organizations,
    "requester.sites": _sites,
    "requester.roles": _roles,
    "approvers": st.lists(
        st.fixed_dictionaries({"id": _people, "organization": _organizations, "roles": _roles}), max_size=4
    ),
    "release_signature": st.booleans(),
    "device.state": st.sampled_from(["pending", "active", "quarantined", "banned", "stored", "retired"]),
    "device.holds": st.integers(0, 2),
    "attestation.status": st.sampled_from(["affirming", "warning", "contraindicated", "none"]),
    "attestation.stale": st.booleans(),
    "attestation.age_ms": st.integers(0, 10**9),
    "attestation.basis": st.sampled_from(["attested", "self-reported", "manual"]),
    "therapy.state": _states,
    "therapy.patient": st.sampled_from(["connected", "disconnected", "unknown"]),
    "build.effect": _effects,
    "target": st.none() | st.fixed_dictionaries({"effect": _effects, "curative": st.booleans()}),
    "work_order": st.booleans(),
    "bedside_confirmed": st.booleans(),
    "window_open": st.booleans(),
    "break_glass": st.booleans(),
}


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Well-formed questions: an allowed one of some class with up to four fields drawn anew."""
    base = draw(st.sampled_from(list(ALLOWED.values())))
    names = draw(st.lists(st.sampled_from(sorted(_FIELDS)), max_size=4, unique=True))
    return changed(base, {name: draw(_FIELDS[name]) for name in names})


_any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths(document: Any, prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every member and element of a document."""
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in pairs:
        yield (*prefix, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*prefix, key))


def holder_of(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path[:-1]:
        document = document[step]
    return document


def without(document: Document, path: tuple[str | int, ...]) -> Document:
    """A copy that lacks the member or element at `path`."""
    result = deepcopy(document)
    del holder_of(result, path)[path[-1]]
    return result


@st.composite
def mutilated_documents(draw: st.DrawFn) -> Document:
    """Questions in which something is missing or has become something else."""
    document = deepcopy(draw(documents()))
    for _ in range(draw(st.integers(1, 3))):
        places = list(paths(document))
        if not places:
            break
        place = draw(st.sampled_from(places))
        if draw(st.booleans()):
            document = without(document, place)
        else:
            holder_of(document, place)[place[-1]] = draw(_any_json)
    return document
