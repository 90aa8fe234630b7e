"""What the samples of a process were spent on: each counts for the innermost call that belongs to a kind of work."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from tests.benchmarks.flame_svg import Stacks

KINDS: Final = (
    "signatures",
    "statements",
    "storage",
    "policy engine",
    "transport",
    "event loop",
    "the rooms' own",
    "other",
)
WORDS: Final = {
    "signatures": "ECDSA and the hashes around it",
    "statements": "CBOR, COSE, schemas, certificate chains, Merkle paths",
    "storage": "SQLite, SQLAlchemy, the queue to the writer",
    "policy engine": "Rego in WebAssembly, its JSON",
    "transport": "gRPC, TLS, protobuf, admission of every message",
    "event loop": "asyncio and uvloop: tasks, timers, futures",
    "the rooms' own": "what gateway, policy, log, pump and client do themselves",
    "other": "",
}
_KIND_OF: Final = (
    ("vigil/core/keys.py", "signatures"),
    ("vigil/core/digest.py", "signatures"),
    ("vigil/core/clock.py", "event loop"),
    ("vigil/core/", "statements"),
    ("vigil/policy/engine/", "policy engine"),
    ("wasmtime/", "policy engine"),
    ("json/", "policy engine"),
    ("vigil/storage/", "storage"),
    ("vigil/device/store.py", "storage"),
    ("sqlalchemy/", "storage"),
    ("vigil/rpc/", "transport"),
    ("vigil/api/", "transport"),
    ("grpc/", "transport"),
    ("google/", "transport"),
    ("vigil/", "the rooms' own"),
    ("tests/", "the rooms' own"),
    ("asyncio/", "event loop"),
    ("uvloop/", "event loop"),
)


def parts_of(stacks: Stacks) -> dict[str, float]:
    """The share of each kind of work in all samples; empty without samples."""
    counted: Counter[str] = Counter()
    for stack, samples in stacks.items():
        counted[_kind(stack)] += samples
    total = counted.total()
    return {kind: counted[kind] / total for kind in KINDS if counted[kind]}


def _kind(stack: Sequence[str]) -> str:
    for name in reversed(stack):
        file = name.partition(" ")[2]
        for start, kind in _KIND_OF:
            if file.startswith(start):
                return kind
    return "other"


def markdown(processes: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A table of CPU milliseconds a command: ``processes`` gives each process's, by kind of work."""
    lines = [
        f"| ms of CPU a command | {' | '.join(processes)} | in all | what it is |",
        f"|---|{'---|' * len(processes)}---|---|",
    ]
    for kind in KINDS:
        figures = [of_process.get(kind, 0.0) for of_process in processes.values()]
        if any(figures):
            cells = [f"{figure:.2f}" for figure in (*figures, sum(figures))]
            lines.append(f"| {kind} | {' | '.join(cells)} | {WORDS[kind]} |")
    totals = [sum(of_process.values()) for of_process in processes.values()]
    lines.append(f"| in all | {' | '.join(f'{total:.2f}' for total in (*totals, sum(totals)))} | |")
    return lines
