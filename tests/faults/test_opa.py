"""An OPA server beside policy that is away, slow, or holds an old bundle and says that it is healthy: refuse."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.faults.acts import alert, is_refused, works_again
from tests.support.opa import POLICIES, OpaServer, free_port, opa
from tests.support.stack import Stack
from vigil.errors import Reason
from vigil.policy.engine.build import build
from vigil.policy.engine.bundle import DEFAULT_BUNDLE

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.holds("opa-failures")]

NO_ANSWER = (Reason.POLICY_UNAVAILABLE,)


@contextlib.asynccontextmanager
async def decided_by_opa(stack: Stack, port: int) -> AsyncIterator[None]:
    """Policy asks an OPA server on this port instead of the engine in its own process."""
    config = stack.folder.config("policy")
    original = config.read_text()
    config.write_text(f'engine = "opa"\nopa_url = "http://127.0.0.1:{port}"\n{original}')
    try:
        await stack.restarted("policy", former=await stack.kill("policy"))
        await stack.calm()
        yield
    finally:
        config.write_text(original)
        await stack.restarted("policy", former=await stack.kill("policy"))
        await stack.calm()


async def healthy(port: int) -> bool:
    def asked() -> int:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return int(answer.status)

    return await asyncio.to_thread(asked) == 200


async def test_opa_is_slow_away_or_of_last_week(
    breakable: Stack, tmp_path: Path, injected: Callable[[int], None]
) -> None:
    stack = breakable
    await stack.calm()
    pump, port = stack.pumps(stack.first)[0], free_port()
    async with decided_by_opa(stack, port):
        # Down: it never was there.
        await is_refused(stack, pump, NO_ANSWER)
        await alert(stack, pump)
        with OpaServer(DEFAULT_BUNDLE, port=port) as server:
            await server.ready()
            assert await healthy(port)
            await works_again(stack, pump, 291)
            # Slow: connections stay open, and nothing comes.
            server.pause()
            await is_refused(stack, pump, NO_ANSWER)
            await alert(stack, pump)
            server.resume()
            await works_again(stack, pump, 292)
        await is_refused(stack, pump, NO_ANSWER)
        # An old bundle: the server is content with itself.
        with OpaServer(last_week(tmp_path), port=port) as server:
            await server.ready()
            assert await healthy(port)
            await is_refused(stack, pump, NO_ANSWER)
        with OpaServer(DEFAULT_BUNDLE, port=port) as server:
            await server.ready()
            await works_again(stack, pump, 293)
    injected(4)
    await works_again(stack, pump, 294)


def last_week(folder: Path) -> Path:
    """A bundle of policies that differ by a word, and so by their revision."""
    policies = folder / "policies"
    shutil.copytree(POLICIES, policies)
    [some, *_] = sorted(one for one in policies.rglob("*.rego") if not one.name.endswith("_test.rego"))
    some.write_text(some.read_text() + "\n# as it was last week\n")
    bundle = folder / "old.tar.gz"
    bundle.write_bytes(build(policies, opa()))
    return bundle
