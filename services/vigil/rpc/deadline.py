"""The deadline of the call being served bounds every call made for it."""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_DEADLINE: contextvars.ContextVar[float | None] = contextvars.ContextVar("vigil_rpc_deadline", default=None)


def begin(remaining: float | None) -> None:
    """Set the deadline of this task and its children, ``remaining`` seconds from now (None: none)."""
    _DEADLINE.set(None if remaining is None else asyncio.get_running_loop().time() + remaining)


def remaining() -> float | None:
    """Seconds left to the call being served, never negative; None without a deadline."""
    deadline = _DEADLINE.get()
    return None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())


def bounded(timeout: float | None) -> float | None:
    """Take the smaller of a wished timeout and what is left to the call being served."""
    left = remaining()
    if left is None:
        return timeout
    return left if timeout is None else min(timeout, left)


def detached(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run work that outlives the call being served: without its deadline and without its caller."""
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())


def raise_if_cancelled() -> None:
    """Raise CancelledError when this task is being cancelled.

    A call of gRPC takes a cancellation that meets it while it starts for its own, and may then end with another
    error: whoever would go on after such an error asks here first.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
