"""The policy service as a process of its own, between owners whose feeds it follows and a real evidence process.

The owners are real feeds and a real signer of heads over mTLS; what they would decide by themselves is put there.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, MetaData

from tests.support.evidence import EvidenceProcess
from tests.support.pki import DEVICE, Credential
from tests.support.policy_room import ICU, MODEL, NEWER, OLDER, RUNNING, PolicyRoom
from vigil.api.feed.v1 import feed_pb2_grpc
from vigil.api.policy.v1 import policy_pb2, policy_pb2_grpc
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core import merkle
from vigil.core.clock import SystemClock
from vigil.feed import FeedServicer, Outbox, tables
from vigil.policy.case import Item
from vigil.rpc import status
from vigil.rpc.channel import Channels
from vigil.rpc.server import GrpcServer
from vigil.rpc.streams import Exchange
from vigil.storage import open_database

METADATA = MetaData()
tables(METADATA)
MIGRATIONS = Path(__file__).parents[1] / "unit" / "feed" / "migrations"
START_SECONDS = 60.0
FEED_OF = {
    "device": "identity",
    "result": "attestation",
    "model": "release",
    "release": "release",
    "baseline": "release",
}

Exchanged = Exchange[policy_pb2.DecideItem, policy_pb2.DecideOutcome]


class Owner:
    """One owner's feed."""

    def __init__(self, room: PolicyRoom, role: str) -> None:
        self._database = open_database(
            room.pki.tmp_path / f"{role}.db", metadata=METADATA, migrations=MIGRATIONS
        )
        self._outbox = Outbox(self._database)
        self._server = GrpcServer(
            role=role,
            tls=room.pki.service(role).tls_files,
            clock=SystemClock(),
            listen="127.0.0.1:0",
            servicers=[
                (
                    feed_pb2_grpc.add_FeedServiceServicer_to_server,
                    FeedServicer(self._outbox, SystemClock()),
                    "vigil.api.feed.v1.FeedService",
                )
            ],
        )

    async def start(self) -> str:
        return f"127.0.0.1:{await self._server.start()}"

    async def put(self, rows: Iterable[tuple[str, str, bytes]]) -> None:
        def run(connection: Connection) -> None:
            for kind, key, value in rows:
                self._outbox.put(connection, kind, key, value)

        await self._database.write(run)

    async def stop(self) -> None:
        await self._server.stop(0.1)
        self._database.close()


class Heads(revocation_pb2_grpc.HeadServiceServicer):
    """Signs a head over each challenge alone, and hands entries out."""

    def __init__(self, room: PolicyRoom) -> None:
        self._room = room
        self.silent = False
        self.forged = False
        self.page = 1_000
        self.calls = 0

    async def AnswerChallenges(  # noqa: N802 - the contract's name
        self, request: revocation_pb2.AnswerChallengesRequest, _context: Any
    ) -> revocation_pb2.AnswerChallengesResponse:
        self.calls += 1
        if self.silent:
            await asyncio.sleep(3600)
        challenge = bytes(16) if self.forged else request.challenge
        entries = self._room.entries[request.after_epoch :][: min(request.max_entries, self.page)]
        return revocation_pb2.AnswerChallengesResponse(
            head=revocation_pb2.AnsweredHead(
                head=self._room.head(merkle.leaf_hash(challenge)).data,
                paths=[revocation_pb2.ChallengePath(index=0, size=1)],
            ),
            entries=[
                revocation_pb2.RevocationEntry(
                    epoch=entry.epoch, statements=entry.statements, chain=entry.chain
                )
                for entry in entries
            ],
        )


class PolicyWorld:
    """Everything around one policy process; ``async with`` starts it and ends it."""

    def __init__(self, folder: Path, **config: str | int) -> None:
        self.room = PolicyRoom(folder, clock=SystemClock())
        self.folder = folder
        self.evidence = EvidenceProcess(self.room.pki, folder)
        self.owners = {role: Owner(self.room, role) for role in ("identity", "release", "attestation")}
        self.heads = Heads(self.room)
        self.port = 0
        self._config = config
        self._peers: dict[str, str] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._credential = self.room.pki.service("policy")
        self._channels: list[Channels] = []
        self._status: Any = None
        self._exchanges: list[Exchanged] = []
        self._head_server = GrpcServer(
            role="revocation",
            tls=self.room.pki.service("revocation").tls_files,
            clock=SystemClock(),
            listen="127.0.0.1:0",
            servicers=[
                (
                    revocation_pb2_grpc.add_HeadServiceServicer_to_server,
                    self.heads,
                    "vigil.api.revocation.v1.HeadService",
                )
            ],
        )

    async def __aenter__(self) -> Self:
        await self.evidence.start()
        self._peers = {role: await owner.start() for role, owner in self.owners.items()}
        self._peers["revocation"] = f"127.0.0.1:{await self._head_server.start()}"
        self._peers["evidence"] = self.evidence.address
        await self._publish()
        await self.start()
        await self.fresh()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        for exchange in self._exchanges:
            await exchange.close()
        for channels in self._channels:
            await channels.close()
        await self.kill()
        await self.evidence.stop()
        await self._head_server.stop(0.1)
        for owner in self.owners.values():
            await owner.stop()

    # --- facts

    async def _publish(self) -> None:
        room = self.room
        rows: list[tuple[str, str, Any]] = [("model", MODEL, room.model_row(room.profile_statement))]
        rows += [
            ("release", digest.hex(), room.release_row(digest, version))
            for digest, version in ((RUNNING, 3), (NEWER, 4), (OLDER, 2))
        ]
        rows.append(("baseline", ICU.hex(), room.baseline_row(ICU)))
        rows.append(("device", DEVICE, room.device_row()))
        rows.append(("result", DEVICE, room.result_row(therapy_stale_at=room.clock.now() + 600_000)))
        await self.put(*rows)

    async def put(self, *rows: tuple[str, str, Any]) -> None:
        """Have owners tell these rows."""
        for role, owner in self.owners.items():
            await owner.put(
                (kind, key, row.SerializeToString()) for kind, key, row in rows if FEED_OF[kind] == role
            )

    # --- the process

    async def start(self) -> None:
        reading, writing = os.pipe()
        with (self.folder / "policy.log").open("ab") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "vigil.policy",
                "--config",
                str(self._write_config()),
                "--ready-fd",
                str(writing),
                pass_fds=(writing,),
                stderr=stderr,
            )
        os.close(writing)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb")
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await reader.readline()
        finally:
            transport.close()
        if not line:
            await self._process.wait()
            raise RuntimeError(f"policy did not start: {(self.folder / 'policy.log').read_text()}")
        self.port = json.loads(line)["port"]

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    def cpu_seconds(self) -> float:
        """CPU time of the policy process, user and system (proc(5))."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Memory that the policy process holds (proc(5))."""
        assert self._process is not None
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )

    def _write_config(self) -> Path:
        files = self._credential.tls_files
        signers = self.room.pki.directory / "pki" / "signers"
        data = self.folder / "policy"
        data.mkdir(exist_ok=True)
        values = {
            "data_dir": str(data),
            "listen": f"127.0.0.1:{self.port}",
            "trust_domain": self.room.pki.trust_domain,
            "certificate": str(files.certificate),
            "key": str(files.key),
            "trust": str(files.trust),
            "signer_certificate": str(signers / "decision.pem"),
            "signer_key": str(signers / "decision.key"),
            **self._config,
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        lines += ["[peers]", *(f"{name} = {json.dumps(value)}" for name, value in self._peers.items())]
        path = self.folder / "policy.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    # --- asking it

    def channel(self, credential: Credential) -> Any:
        channels = Channels(
            tls=credential.tls_files, trust_domain=self.room.pki.trust_domain, clock=SystemClock()
        )
        self._channels.append(channels)
        return channels.service(f"127.0.0.1:{self.port}", "policy")

    def exchange(self, credential: Credential | None = None, *, streams: int = 2) -> Exchanged:
        """A gateway's streams to policy."""
        gateway = credential or self.room.gateway
        stub = policy_pb2_grpc.DecisionServiceStub(self.channel(gateway))
        exchange = Exchanged(
            name="policy",
            open_stream=stub.Decide,
            pack=lambda items: policy_pb2.DecideRequest(gateway_id=gateway.identity.id, items=items),
            unpack=lambda response: response.items,
            entropy=os.urandom,
            streams=streams,
        )
        self._exchanges.append(exchange)
        return exchange

    def stub(self, credential: Credential | None = None) -> Any:
        return policy_pb2_grpc.DecisionServiceStub(self.channel(credential or self.room.gateway))

    async def status(self) -> policy_pb2.PolicyStatus:
        if self._status is None:
            self._status = policy_pb2_grpc.PolicyStatusServiceStub(self.channel(self.room.gateway))
        call = self._status.GetPolicyStatus(policy_pb2.GetPolicyStatusRequest(), wait_for_ready=True)
        return await status.translated(call)  # type: ignore[no-any-return]

    async def until(self, **least: int) -> None:
        """Wait until the status shows at least these figures."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                told = await self.status()
                if all(getattr(told, name) >= value for name, value in least.items()):
                    return
                await asyncio.sleep(0.05)

    async def fresh(self) -> None:
        """Wait until every replica answered."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                if min((await self.status()).replica_age_ms.values()) >= 0:
                    return
                await asyncio.sleep(0.05)

    async def aged(self, replica: str, least_ms: int) -> None:
        """Wait until a replica is at least this old."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                if (await self.status()).replica_age_ms[replica] >= least_ms:
                    return
                await asyncio.sleep(0.1)


def decide_item(item: Item) -> policy_pb2.DecideItem:
    """An item in the contract's form, without proofs."""
    assert item.command is not None
    return policy_pb2.DecideItem(
        device_id=item.device_id,
        intent=item.intent.data,
        approvals=[approval.data for approval in item.approvals],
        command=item.command.data,
    )
