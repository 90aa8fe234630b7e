"""Many gateways as edge and registry see them: the real code that follows, over mutual TLS, in a few processes.

python -m tests.support.followers --folder DIR --edge PORT --identity PORT --from N --to M

Certificates lie in ``DIR/<gateway id>/``. For each line on stdin it prints one JSON object: how they stand.
"""

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from vigil.api.revocation.v1 import revocation_pb2_grpc
from vigil.core.clock import SystemClock
from vigil.core.revocations import ReadEntry
from vigil.feed import Replica
from vigil.gateway import store
from vigil.gateway.challenges import ChallengeTree
from vigil.gateway.own_key import OwnKey
from vigil.gateway.revocations import Enforced, RevocationFollower, RevocationView
from vigil.gateway.trust import Trust
from vigil.rpc.channel import Channels
from vigil.rpc.tls import TlsFiles
from vigil.storage import Database, open_database


async def _nothing(_enforced: Enforced) -> None:
    return


@dataclass
class _Stub:
    """An edge's stub that notes when it is dialled."""

    real: Any
    dialled: list[float] = field(default_factory=list)

    def Follow(self) -> Any:  # noqa: N802 - the contract's name
        self.dialled.append(time.monotonic())
        return self.real.Follow()


class FollowingGateway:
    """One gateway's view of revocation and of the registry. For one event loop."""

    def __init__(
        self,
        *,
        gateway_id: str,
        tls: TlsFiles,
        database: Database,
        edge: str,
        identity: str | None = None,
        on_restricted: Callable[[Sequence[ReadEntry]], None] = lambda _entries: None,
        on_enforced: Callable[[Enforced], Awaitable[None]] = _nothing,
    ) -> None:
        clock = SystemClock()
        trust = Trust(path=tls.trust, clock=clock)
        self.view = RevocationView(database=database, trust=trust, clock=clock)
        domain = trust.verifier.bundle.trust_domain
        self.channels = Channels(tls=tls, trust_domain=domain, clock=clock)
        self.stub = _Stub(revocation_pb2_grpc.EdgeServiceStub(self.channels.service(edge, "edge")))
        self.rows = 0
        self.follower = RevocationFollower(
            gateway_id=gateway_id,
            edges=[self.stub],
            view=self.view,
            challenges=ChallengeTree(),
            key=OwnKey(gateway_id=gateway_id, tls=tls, trust=trust, clock=clock, entropy=os.urandom),
            clock=clock,
            entropy=os.urandom,
            on_restricted=on_restricted,
            on_enforced=on_enforced,
        )
        self.replica: Replica | None = None
        if identity is not None:
            channel = self.channels.service(identity, "identity")
            self.replica = Replica(
                channel_factory=lambda: channel,
                name="identity",
                clock=clock,
                entropy=os.urandom,
                on_change=self._changed,
                on_reset=self._reset,
            )
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        runs: list[Callable[[], Awaitable[None]]] = [self.follower.run]
        if self.replica is not None:
            runs.append(self.replica.run)
        self._tasks = [asyncio.ensure_future(run()) for run in runs]

    @property
    def ended(self) -> int:
        """Tasks that ended, which none may."""
        return sum(task.done() for task in self._tasks)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.channels.close()

    def _changed(self, *_change: object) -> None:
        self.rows += 1

    def _reset(self, *_rows: object) -> None:
        self.rows += 1


def own_database(path: Path) -> Database:
    """A gateway's tables. Many gateways of one process may share them here: they keep the same chain."""
    return open_database(path, metadata=store.METADATA, migrations="vigil.gateway.migrations")


async def _run(arguments: argparse.Namespace) -> None:
    events: Counter[str] = Counter()

    def count(_logger: Any, _method: str, event: Any) -> Any:
        events[str(event["event"])] += 1
        raise structlog.DropEvent

    structlog.configure(processors=[count])
    database = own_database(arguments.folder / f"gateways-{arguments.first}.db")
    fleet = []
    for number in range(arguments.first, arguments.last):
        name = f"gw-{number:04}"
        home = arguments.folder / name
        fleet.append(
            FollowingGateway(
                gateway_id=name,
                tls=TlsFiles(home / "tls.pem", home / "tls.key", arguments.folder / "trust.json"),
                database=database,
                edge=f"127.0.0.1:{arguments.edge}",
                identity=f"127.0.0.1:{arguments.identity}",
            )
        )
    for one in fleet:
        one.start()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        state = {
            "leased": sum(one.view.lease_left_ms() > 0 for one in fleet),
            "epochs": sorted({one.view.state.epoch for one in fleet}),
            "registry": sum(one.replica is not None and one.replica.age() < 10 for one in fleet),
            "dialled": [at for one in fleet for at in one.stub.dialled],
            "ended": sum(one.ended for one in fleet),
            "events": dict(events),
        }
        sys.stdout.write(json.dumps(state) + "\n")
        sys.stdout.flush()
    await asyncio.gather(*(one.stop() for one in fleet))
    database.close()


def main() -> None:
    """Parse and run until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    for name in ("edge", "identity"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--from", dest="first", type=int, required=True)
    parser.add_argument("--to", dest="last", type=int, required=True)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
