"""All gateways of a fleet connect again at once: to a real edge and a real registry, with the code that they run."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.pki import TestPki
from tests.support.stack import eventually
from tests.unit.revocation.support import PUMP, World, a_world, revocation
from vigil.core.certificates import Grant, Kind, milliseconds, store_pair
from vigil.core.clock import SystemClock
from vigil.core.keys import new_private_key
from vigil.identity import pki
from vigil.identity.ca import load_issuer

pytestmark = pytest.mark.holds("fleet-returns")

A_PROCESS: Final = 300
PATIENCE_S: Final = 240.0
SPREAD_S: Final = 0.3
"""Between the first tenth and the last of those who dial again: a tenth of what jitter makes of it alone."""


def make_certificates(pki_of_test: TestPki, folder: Path, count: int) -> None:
    """A certificate for each gateway, by the intermediate for gateways."""
    intermediates = pki_of_test.trust.parent / "intermediates"
    authority = load_issuer(intermediates / "gateway.pem", intermediates / "gateway.key")
    key, now = new_private_key(), SystemClock().now()
    shutil.copy(pki_of_test.trust, folder / "trust.json")
    for number in range(count):
        name = f"gw-{number:04}"
        grant = Grant(
            kind=Kind.GATEWAY,
            subject_id=name,
            organization="hospital",
            sites=("site-1",),
            operational_until=now + 7 * pki.DAY,
        )
        leaf = pki.issue(
            issuer=authority,
            trust_domain=pki_of_test.bundle.trust_domain,
            grant=grant,
            public_key=key.public_key(),
            not_before=milliseconds(authority.certificate.not_valid_before_utc),
            not_after=now + 30 * pki.DAY,
            entropy=os.urandom,
        )
        home = folder / name
        home.mkdir(mode=0o700)
        chain = pki.chain_pem(leaf, authority.certificate)
        store_pair(home / "tls.pem", home / "tls.key", chain_pem=chain, private_key=key)


@dataclass
class Gateways:
    """Processes of gateways that follow, and what they say of themselves."""

    count: int
    processes: list[asyncio.subprocess.Process]

    async def state(self) -> dict[str, Any]:
        """All of them together."""
        told = [await self._ask(process) for process in self.processes]
        return {
            **{name: sum(one[name] for one in told) for name in ("leased", "registry", "ended")},
            "epochs": {epoch for one in told for epoch in one["epochs"]},
            "dialled": sorted(at for one in told for at in one["dialled"]),
            "failed": sum(one["events"].get("edge_failed", 0) for one in told),
        }

    async def all_there(self, *, epoch: int, after: int = 0) -> dict[str, Any]:
        """Wait until everybody has a lease, the epoch and a fresh registry; ``after`` so many dialled again."""
        last: dict[str, Any] = {}

        async def there() -> bool:
            last.update(await self.state())
            return (
                last["leased"] == last["registry"] == self.count
                and last["epochs"] == {epoch}
                and len(last["dialled"]) >= after
            )

        await eventually(there, what="every gateway is there", seconds=PATIENCE_S, pause=0.3)
        return last

    @staticmethod
    async def _ask(process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        answer: dict[str, Any] = json.loads(await process.stdout.readline())
        return answer


@asynccontextmanager
async def gateways(world: World, folder: Path, count: int) -> AsyncIterator[Gateways]:
    make_certificates(world.pki, folder, count)
    processes = []
    for first in range(0, count, A_PROCESS):
        arguments = {
            "folder": folder,
            "edge": world.ports["edge"],
            "identity": world.ports["identity"],
            "from": first,
            "to": min(count, first + A_PROCESS),
        }
        processes.append(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.support.followers",
                *(text for name, value in arguments.items() for text in (f"--{name}", str(value))),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "GRPC_VERBOSITY": "NONE"},
                limit=1 << 24,
            )
        )
    try:
        yield Gateways(count, processes)
    finally:
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        await asyncio.gather(*(process.wait() for process in processes))


@pytest.mark.parametrize("count", [40, pytest.param(1_200, marks=pytest.mark.thorough)])
async def test_all_come_back(tmp_path: Path, count: int, injected: Callable[[int], None]) -> None:
    folder = tmp_path / "gateways"
    folder.mkdir()
    async with a_world(tmp_path) as world:
        await world.start()
        await world.start_edge()
        await world.revoke(world.operator, revocation(world.operator, PUMP))
        async with gateways(world, folder, count) as fleet:
            before = await fleet.all_there(epoch=1)
            dialled = len(before["dialled"])
            # The edge and the registry end, and every stream with them; they come back at the same places.
            port = world.ports["identity"]
            await asyncio.gather(world.stop_one("edge"), world.identity.server.stop(0))

            async def nobody() -> bool:
                return bool((await fleet.state())["leased"] == 0)

            await eventually(nobody, what="every lease has run out")
            injected(count)
            world.identity.restart(port)
            assert await world.identity.server.start() == port
            began = SystemClock().monotonic()
            await world.start_edge()
            after = await fleet.all_there(epoch=1, after=dialled + count)
            again = [at for at in after["dialled"][dialled:] if at >= began - 1.0]
            assert again[len(again) * 9 // 10] - again[len(again) // 10] > SPREAD_S
            # Nobody's task ended or failed, and the edge cut nobody off for being slow.
            assert (after["ended"], after["failed"]) == (0, 0)
            metrics = world.running["edge"].process.metrics
            assert metrics.get_sample_value("vigil_edge_readers_cut_total") == 0
            assert metrics.get_sample_value("vigil_edge_readers") == count
            # And what is revoked now reaches them all.
            later = await world.revoke(world.operator, revocation(world.operator, "dev-bbbbbbbbbbbbbbbb"))
            await fleet.all_there(epoch=later.epoch)
