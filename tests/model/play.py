"""Plays schedules, each in a forked process: all begin from the very same memory and leave nothing behind."""

import ctypes
import gc
import json
import logging
import os
import selectors
import shutil
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import structlog

from tests.model.golden import Golden
from tests.model.mutants import MUTANTS
from tests.model.schedule import Schedule

PIECE: Final = 1 << 16
PR_SET_PDEATHSIG: Final = 1
LONGEST_S: Final = 240
"""Of CPU, for one schedule; it takes about one second."""


def quiet() -> None:
    """The services' own logs say nothing here: the ledger does."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)


def play(
    golden: Golden, seeds: Iterable[int], folder: Path, *, jobs: int, mutant: str = ""
) -> Iterator[dict[str, Any]]:
    """Play seeds, so many at once; gives what each came to (`schedule.Outcome`) as it ends."""
    selector = selectors.DefaultSelector()
    left, running = iter(seeds), 0
    try:
        while True:
            while running < jobs and (seed := next(left, None)) is not None:
                child, reading = _begin(golden, seed, folder, mutant)
                selector.register(reading, selectors.EVENT_READ, (seed, child, bytearray()))
                running += 1
            if not running:
                return
            for key, _ in selector.select():
                seed, child, text = key.data
                piece = os.read(key.fd, PIECE)
                text += piece
                if piece:
                    continue
                selector.unregister(key.fd)
                os.close(key.fd)
                running -= 1
                yield _end(seed, child, bytes(text), folder)
    finally:
        for key in list(selector.get_map().values()):
            os.close(key.fd)
            os.waitpid(key.data[1], 0)
        selector.close()


def _begin(golden: Golden, seed: int, folder: Path, mutant: str) -> tuple[int, int]:
    """Start one schedule; its pid, and where its outcome is read."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    parent = os.getpid()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        die_with(parent)
        os.close(reading)
        # CPU time: a process that others keep from running, or that was stopped, has not run away.
        signal.signal(signal.SIGPROF, _ran_away)
        signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
        if mutant:
            MUTANTS[mutant][0]()
        # It ends before it could grow large.
        gc.disable()
        outcome = Schedule(golden, seed, folder / f"seed-{seed}").play()
        with os.fdopen(writing, "w") as pipe:
            json.dump(vars(outcome), pipe)
    finally:
        # Nothing of the world is unwound: what was begun in it never ends.
        os._exit(0)


def die_with(parent: int) -> None:
    """End when the process that asked for this schedule ends (prctl(2)): it would play to its end for nobody."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _ran_away(*_: object) -> None:
    """End here and now: an exception would be somebody's in the middle of a callback."""
    sys.stderr.write(f"more than {LONGEST_S} s of CPU:\n{''.join(traceback.format_stack(limit=12))}")
    os._exit(1)


def _end(seed: int, child: int, text: bytes, folder: Path) -> dict[str, Any]:
    _, status = os.waitpid(child, 0)
    shutil.rmtree(folder / f"seed-{seed}", ignore_errors=True)
    if text:
        return dict(json.loads(text))
    words = f"sound: the schedule's process ended with {status}"
    return {"seed": seed, "seconds": 0.0, "counts": {}, "findings": [words], "trace": [], "digest": ""}
