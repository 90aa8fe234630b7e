"""Runs child processes: starts them together, restarts what crashes with backoff, stops them cleanly.

No child outlives the supervisor, whatever kills it: each holds the reading end of a pipe whose writing end only the
supervisor has, and asks the kernel for a signal at its parent's death.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vigil.core.clock import Clock

FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 10.0
STEADY_S = 30.0
"""A child that lived this long has earned a fresh backoff."""
STOP_S = 8.0
"""What a child has for ending by itself after SIGTERM."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to start one process."""

    name: str
    argv: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Child:
    """One process as it stands."""

    spec: ChildSpec
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    started_at: float = 0.0
    last_exit: int | None = None
    stopping: bool = False

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None


class Supervisor:
    """Owns the children. ``on_event(name, words)`` is told of starts, crashes and stops."""

    def __init__(self, *, clock: Clock, on_event: Callable[[str, str], None], parent_variable: str) -> None:
        self._clock = clock
        self._on_event = on_event
        self._parent_variable = parent_variable
        self._children: dict[str, Child] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pipe_read, self._pipe_write = os.pipe2(os.O_CLOEXEC)

    @property
    def children(self) -> Mapping[str, Child]:
        """Every child by its name."""
        return self._children

    def start(self, spec: ChildSpec) -> None:
        """Start a child and keep it running until it is stopped."""
        if spec.name in self._tasks:
            raise ValueError(f"{spec.name} is already supervised")
        child = Child(spec)
        self._children[spec.name] = child
        self._tasks[spec.name] = asyncio.create_task(self._keep(child), name=f"keep-{spec.name}")

    async def stop(self, name: str) -> None:
        """Stop one child: SIGTERM, then SIGKILL when it does not end in time."""
        child = self._children[name]
        child.stopping = True
        task = self._tasks.pop(name)
        if child.process is not None and child.alive:
            child.process.terminate()
            try:
                await asyncio.wait_for(child.process.wait(), STOP_S)
            except TimeoutError:
                self._on_event(name, f"did not stop within {STOP_S:.0f} s and was killed")
                with contextlib.suppress(ProcessLookupError):
                    child.process.kill()
                await child.process.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        del self._children[name]

    async def stop_all(self, last: Sequence[str] = ()) -> None:
        """Stop everything at once, but ``last`` only after the others have ended."""
        await asyncio.gather(*(self.stop(name) for name in list(self._children) if name not in last))
        for name in last:
            if name in self._children:
                await self.stop(name)
        os.close(self._pipe_write)
        os.close(self._pipe_read)

    async def _keep(self, child: Child) -> None:
        backoff = FIRST_BACKOFF_S
        while not child.stopping:
            child.process = await self._spawn(child.spec)
            child.started_at = self._clock.monotonic()
            code = await child.process.wait()
            child.last_exit = code
            if child.stopping:
                return
            if self._clock.monotonic() - child.started_at > STEADY_S:
                backoff = FIRST_BACKOFF_S
            child.restarts += 1
            self._on_event(child.spec.name, f"{_words(code)}; starting it again in {backoff:.1f} s")
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF_S)

    async def _spawn(self, spec: ChildSpec) -> asyncio.subprocess.Process:
        spec.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with spec.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *spec.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **spec.environment, self._parent_variable: str(self._pipe_read)},
                pass_fds=(self._pipe_read,),
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which then stops them in order
            )


def _words(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
