"""What a fuzz target is, and what must hold for every input that anybody can send.

A harness reads bytes as one decoder does. It answers whether they were accepted, and holds what is accepted to its one
encoding. Nothing but `Refused` (or the error that the decoder documents, which the harness itself expects) may come out
of it, a refusal must be tellable, and one input costs bounded CPU time and memory: both are counted by this process
alone, so that a busy machine decides nothing.
"""

import contextlib
import resource
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vigil.errors import Reason, Refused
from vigil.rpc.status import to_status

HERE: Final = Path(__file__).parent
CORPUS: Final = HERE / "corpus"
FOUND: Final = HERE / "found"
CPU_SECONDS: Final = 20.0
"""Of one input of a few kilobytes: the slowest takes a tenth of a second."""
MEMORY_BYTES: Final = 512 << 20
"""By which one input may raise the peak of the process."""

Run = Callable[[bytes], bool]


class Finding(AssertionError):  # noqa: N818 - what a fuzzer finds
    """An input did what none may do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """One target. ``prepare`` makes what it needs once and answers the function that takes inputs."""

    name: str
    reads: str
    prepare: Callable[[], Run]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...] = ()
    max_bytes: int = 16_384
    accepts: bool = True
    """Whether some of the seeds are accepted, which shows that the harness reaches behind the first check."""


def attempt(
    run: Run,
    data: bytes,
    *,
    cpu_seconds: float = CPU_SECONDS,
    memory: int = MEMORY_BYTES,
    exact: bool = False,
) -> bool:
    """Give one input to a harness. Answers whether it was accepted; raises `Finding` or whatever escaped.

    ``exact``: count the memory from the beginning of this input, which takes a millisecond.
    """
    cpu, peak = time.process_time(), _begin(exact=exact)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about certificates that nobody should make
            accepted = run(data)
    except Refused as refusal:
        accepted = False
        if refusal.reason is Reason.INTERNAL:
            raise Finding(f"an input made something fail inside: {refusal}") from refusal
        to_status(refusal)  # it can be told to whoever sent it
    spent, grown = time.process_time() - cpu, _peak(exact=exact) - peak
    if spent > cpu_seconds:
        raise Finding(f"one input of {len(data)} bytes took {spent:.1f} s of CPU time")
    if grown > memory:
        raise Finding(f"one input of {len(data)} bytes took {grown >> 20} MiB of memory")
    return accepted


def expect(holds: bool, sentence: str) -> None:
    """A property of the decoder; raises `Finding`."""
    if not holds:
        raise Finding(sentence)


def inputs_of(harness: Harness) -> Iterator[bytes]:
    """Every kept input: what is made from vectors and real data, the corpus, and what was found once."""
    yield from harness.seeds()
    for folder in (CORPUS / harness.name, FOUND / harness.name):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            yield path.read_bytes()


def named(harnesses: Iterable[Harness]) -> Mapping[str, Harness]:
    """By name. Raises ValueError when two share one."""
    found: dict[str, Harness] = {}
    for harness in harnesses:
        if found.setdefault(harness.name, harness) is not harness:
            raise ValueError(f"two harnesses are called {harness.name}")
    return found


_CLEAR: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")


def _peak(*, exact: bool) -> int:
    """The most memory that this process held at once, in bytes; not ``exact``, perhaps what forked it held."""
    if exact and _STATUS.exists():
        [line] = [one for one in _STATUS.read_text().splitlines() if one.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _begin(*, exact: bool) -> int:
    """Have the peak counted from now on, where the kernel can (proc(5), clear_refs)."""
    if exact:
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")
    return _peak(exact=exact)
