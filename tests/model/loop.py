"""A seeded event loop in virtual time: one queue a node, and a choice among nodes wherever the order is free.

asyncio promises order within a process and nothing between processes; so here: callbacks of one node run in the order
of their scheduling, and which node runs next is drawn. Time passes only when nobody has anything left to do now. A
node that is killed runs nothing any more, not even a `finally`: what it had begun stays as it is.
"""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from contextvars import Context
from random import Random
from typing import Any

START_S = 1_000.0
RESOLUTION_S = 1e-6
MAX_STEPS = 2_000_000
"""A schedule that takes more than this has run away."""


class StuckError(Exception):
    """Nothing is left to happen, or things happen without end."""


class Node:
    """One process, from its start to its end; a restart is another one of the same name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.ready: deque[asyncio.Handle] = deque()
        self.paused_until = 0.0
        self.on_death: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<{self.name}{' dead' if self.dead else ''}>"


class SimTask(asyncio.Task[Any]):
    """A task that knows its node, and is hashed by its number instead of its address."""

    numbers = itertools.count()

    def __init__(self, coro: Any, *, loop: "SimLoop", context: Context | None = None) -> None:
        self.node = loop.node
        self.number = next(self.numbers)
        if context is None:
            super().__init__(coro, loop=loop)
        else:
            super().__init__(coro, loop=loop, context=context)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimLoop(asyncio.BaseEventLoop):
    """Runs nodes in virtual time. ``world`` is the node of whatever is no process: network, disks, people."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random
        self.world = Node("world")
        self.node = self.world
        self.steps = 0
        self.errors: list[dict[str, Any]] = []
        self.ends_at = float("inf")
        """When whatever is to happen must have happened."""
        self._now = START_S
        self._timers: list[tuple[float, int, Node, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self._busy: dict[Node, None] = {}
        self._graves: list[Any] = []

    # --- what asyncio asks

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        node = self.node
        if not node.dead:
            node.ready.append(handle)
            self._busy[node] = None
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        # Some time always passes, as it does on any machine: no rounding error makes time stand still.
        when = max(when, self._now + RESOLUTION_S)
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), self.node, handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> Any:
        task = SimTask(coro, loop=self, context=context)
        if name is not None:
            task.set_name(name)
        return task

    def run_in_executor(self, _executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """A thread of the node: it does its work a moment later, at once."""
        future = self.create_future()

        def work() -> None:
            if future.done():
                return
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - handed on, as an executor does
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(self.random.random() * 0.001, work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append({"node": self.node.name, **context})

    def _timer_handle_cancelled(self, _handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are passed over when their time comes."""

    # --- nodes

    def on(self, node: Node, callback: Callable[..., Any], *args: Any) -> None:
        """Have a node do something next, in a context of its own, as its process's loop would."""
        if not node.dead:
            node.ready.append(asyncio.Handle(callback, args, self, Context()))
            self._busy[node] = None

    def on_later(self, node: Node, delay: float, callback: Callable[..., Any], *args: Any) -> None:
        """The same, some time from now."""
        when = self._now + delay
        handle = asyncio.TimerHandle(when, callback, args, self, Context())
        heapq.heappush(self._timers, (when, next(self._numbers), node, handle))

    def kill(self, node: Node) -> None:
        """The node ends here: nothing of it runs any more."""
        if node.dead:
            return
        node.dead = True
        # Kept, so that no destructor runs in the middle of a schedule.
        self._graves += [node.ready, [task for task in asyncio.all_tasks(self) if task.node is node]]
        node.ready = deque()
        self._busy.pop(node, None)
        for callback in node.on_death:
            callback()

    def pause(self, node: Node, seconds: float) -> None:
        """The node is stopped, as by SIGSTOP or a busy machine, and then goes on."""
        node.paused_until = max(node.paused_until, self._now + seconds)
        self.on_later(self.world, node.paused_until - self._now, lambda: None)

    # --- running

    def _run_once(self) -> None:
        runnable = [node for node in self._busy if node.paused_until <= self._now]
        if not runnable:
            self._pass_time()
            return
        node = runnable[0] if len(runnable) == 1 else runnable[self.random.randrange(len(runnable))]
        self.node = node
        ready = node.ready
        for _ in range(len(ready)):
            if node.dead:
                break
            handle = ready.popleft()
            if not handle._cancelled:
                self.steps += 1
                handle._run()
        self.node = self.world
        if not node.ready:
            self._busy.pop(node, None)
        if self.steps > MAX_STEPS:
            raise StuckError(f"{self.steps} steps by {self._now - START_S:.1f} s")

    def _pass_time(self) -> None:
        timers = self._timers
        while timers and (timers[0][3]._cancelled or timers[0][2].dead):
            heapq.heappop(timers)
        if not timers:
            raise StuckError("nothing is left to happen")
        self._now = max(self._now, timers[0][0])
        if self._now > self.ends_at:
            raise StuckError(f"it did not end within {self.ends_at - START_S:.1f} s")
        while timers and timers[0][0] <= self._now:
            _, _, node, handle = heapq.heappop(timers)
            if not (handle._cancelled or node.dead):
                node.ready.append(handle)
                self._busy[node] = None


class NodeClock:
    """A node's two clocks over the loop's time: the wall clock may be wrong and be set, the other only runs."""

    def __init__(self, loop: SimLoop, *, epoch_ms: int, offset_ms: int = 0) -> None:
        self._loop = loop
        self._epoch_ms = epoch_ms
        self.offset_ms = offset_ms

    def now(self) -> int:
        return self._epoch_ms + int((self._loop.time() - START_S) * 1000) + self.offset_ms

    def monotonic(self) -> float:
        return self._loop.time()
