"""A whole installation for tests: every service, two hospitals with their gateways, people, and four pumps.

stack = await Stack.start()
hand = stack.hand("ada", stack.first)            # prepare, sign, submit
done = await hand.send(pump, *PRESSURE)
async with stack.stopped("evidence"): …          # SIGSTOP, SIGCONT
await stack.kill("policy")                       # SIGKILL; `vigil up` starts it again
credential = stack.issue(Kind.PERSON, "p-nobody")  # by the installation's own intermediates

Everything runs as it would anywhere: `python -m vigil.run` with its children, a fleet process for the pumps.
"""

import asyncio
import contextlib
import inspect
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import clocks, small_world
from tests.support.small_world import SITES
from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.policy.v1 import policy_pb2
from vigil.core.certificates import EVERY, Grant, Kind, milliseconds, store_pair
from vigil.core.clock import SystemClock
from vigil.core.keys import new_private_key
from vigil.demo.installation import RunningInstallation
from vigil.demo.technician import Hand
from vigil.demo.world import PumpAt, World
from vigil.errors import STATUS_OF, Reason, Refused, Status
from vigil.identity import pki
from vigil.identity.ca import load_issuer
from vigil.rpc.channel import Channels
from vigil.rpc.tls import TlsFiles
from vigil.run.layout import SERVICES, DataFolder

T = TypeVar("T")

TRUST_DOMAIN: Final = "vigil.internal"
PUMPS: Final = 4
PRESSURE: Final = "set-occlusion-pressure"
_NOT_NOW: Final = (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED)
FOR_NOW: Final = frozenset(
    {
        *(reason for reason, status in STATUS_OF.items() if status in _NOT_NOW),
        *(Reason.NONCE_EXPIRED, Reason.NONCE_UNKNOWN, Reason.EPOCH_ROLLED_BACK),
        *(Reason.ATTESTATION_MISSING, Reason.ATTESTATION_STALE),
    }
)
"""With what a technician may be turned away while something is down: a wait lifts each of them."""
PATIENCE_S: Final = 60.0
"""How long a condition may take that holds after a second or two on an idle machine."""
POLL_S: Final = 0.1


async def eventually(
    condition: Callable[[], Awaitable[T] | T],
    *,
    what: str,
    seconds: float = PATIENCE_S,
    pause: float = POLL_S,
) -> T:
    """Ask again until the answer is true; a refusal or a call that fails counts as "not yet"."""
    deadline = time.monotonic() + seconds
    last: object = None
    while True:
        try:
            answer = condition()
            if inspect.isawaitable(answer):
                answer = await answer
        except (Refused, grpc.aio.AioRpcError) as error:
            last = error
        else:
            if answer:
                return answer
            last = answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:.0f} s; the last answer was {last!r}")
        await asyncio.sleep(pause)


@contextlib.contextmanager
def besides(environment: Mapping[str, str]) -> Iterator[None]:
    """What is started inside gets these variables too."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def state_of(pid: int) -> str:
    """The kernel's letter: R, S, D, T (stopped) …; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def supervisor_of(data: Path) -> int:
    """The `vigil up` that runs on a data folder; 0 when none does."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"vigil.run" in arguments and bytes(data) in arguments and alive(int(entry.name)):
                return int(entry.name)
    return 0


def children_of(parent: int) -> dict[str, int]:
    """The running children of a `vigil up`, by name: the one without a configuration is Redis."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) != parent or fields[0] in ("Z", "X"):
                continue
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        name = "redis"
        if b"--config" in arguments:
            config = Path(arguments[arguments.index(b"--config") + 1].decode())
            name = config.parent.name if config.name == "gateway.toml" else config.stem
        found[name] = int(entry.name)
    return found


@dataclass(frozen=True)
class Issued:
    """A credential on disk, made by the installation's own intermediates."""

    kind: Kind
    id: str
    tls_files: TlsFiles


@dataclass
class Stack:
    """One running installation with its small world. For one event loop."""

    home: Path
    world: World
    at_end: list[Callable[[], None]] = field(default_factory=list)
    """Called when every process has ended and before the folder is forgotten."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What each process gets besides our own environment, the pumps' too."""
    below: Any = None
    """What lies below its processes, for faults (`tests.faults.harness.under`)."""
    _issued: int = 0
    _channels: dict[Path, Channels] = field(default_factory=dict)

    # --- life

    @classmethod
    async def start(
        cls, home: Path | None = None, *, environment: Mapping[str, str] | None = None
    ) -> "Stack":
        """From nothing to four attested pumps, in a folder of its own or one given (it is removed at the end).

        Every process, the pumps' too, gets the environment besides our own.
        """
        home = home or Path(tempfile.mkdtemp(prefix="stack-"))
        data = home / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        world = World(running(data), home, list(SITES))
        stack = cls(home, world)
        stack.environment = {**(environment or {}), **clocks.environment(stack.clocks)}
        try:
            with stack.besides_ours():
                await world.installation.start()
                await small_world.build(world, pumps=PUMPS)
            await stack.calm()
        except BaseException:
            await stack.stop()
            raise
        return stack

    async def stop(self) -> None:
        """End every process and forget the folder."""
        for channels in self._channels.values():
            await channels.close()
        await self.world.close()
        for pid in self.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        await self.installation.stop()
        for end in self.at_end:
            end()
        shutil.rmtree(self.home, ignore_errors=True)

    async def calm(self) -> None:
        """Wait until every service answers, every pump is connected, and both gateways let class C through."""
        for name in (*SERVICES, *self.world.gateways.values()):
            await self.serving(name)
        for site in SITES:
            await eventually(lambda site=site: self._site_is_calm(site), what=f"{site} is calm")

    async def _site_is_calm(self, site: str) -> bool:
        who = "ada" if site == self.first else "ben"
        state = await self.gateway_status(site, who=who)
        ages = dict(state.replica_age_ms)
        if state.connected_devices < len(self.pumps(site)) or not state.lease_left_ms or state.spool_length:
            return False
        if any(age < 0 or age > 5_000 for age in ages.values()):
            return False
        otto = self.world.people["otto"]
        policy = await otto.call(
            "policy", otto.policy.GetPolicyStatus, policy_pb2.GetPolicyStatusRequest(), timeout=5.0
        )
        return all(0 <= age < 3_000 for age in policy.replica_age_ms.values())

    # --- who is there

    @property
    def installation(self) -> RunningInstallation:
        return self.world.installation

    @property
    def folder(self) -> DataFolder:
        return self.world.folder

    def besides_ours(self) -> contextlib.AbstractContextManager[None]:
        """What is started inside is one of its processes."""
        return besides(self.environment)

    @property
    def clocks(self) -> Path:
        """Where the clocks of its processes are moved (see `tests.support.clocks`)."""
        return self.home / "clocks"

    @property
    def first(self) -> str:
        return self.world.sites[0]

    @property
    def second(self) -> str:
        return self.world.sites[1]

    def pumps(self, site: str | None = None) -> list[PumpAt]:
        """The pumps of one site, or all."""
        if site is not None:
            return self.world.pumps[site]
        return [pump for site in self.world.sites for pump in self.world.pumps[site]]

    def hand(self, who: str, site: str) -> Hand:
        return Hand(self.world, who, site)

    async def applied(self, pump: PumpAt) -> int:
        """The pump's own counter of applied actions, read at the pump."""
        status = await pump.fleet.do("status", pump.device_id)
        return int(status["applied_actions"])

    async def status(self, pump: PumpAt) -> Mapping[str, Any]:
        """What the pump itself says, read at the pump."""
        return await pump.fleet.do("status", pump.device_id)

    async def gateway_status(
        self,
        site: str,
        *,
        who: str,
        timeout: float = 5.0,  # noqa: ASYNC109 - the call's deadline
    ) -> gateway_pb2.GatewayStatus:
        end = self.world.gateway_end(who, site)
        return await self.world.people[who].call(
            end.whom, end.devices.GetGatewayStatus, gateway_pb2.GetGatewayStatusRequest(), timeout=timeout
        )

    async def history(self, pump: PumpAt, *kinds: str) -> list[evidence_pb2.Entry]:
        """A pump's records of these kinds, oldest first, as the auditor sees them."""
        otto = self.world.people["otto"]
        request = evidence_pb2.ListHistoryRequest(subject=f"device/{pump.device_id}", kinds=kinds)
        return await otto.every("evidence", otto.evidence.ListHistory, request, "entries")

    async def log_size(self) -> int:
        return (await self.checkpoint()).size

    async def checkpoint(self) -> evidence_pb2.Checkpoint:
        otto = self.world.people["otto"]
        return await otto.call("evidence", otto.evidence.GetCheckpoint, evidence_pb2.GetCheckpointRequest())

    # --- processes and faults

    def pids(self) -> dict[str, int]:
        """The processes that `vigil up` runs at this moment."""
        supervisor = supervisor_of(self.folder.path)
        return children_of(supervisor) if supervisor else {}

    async def kill(self, name: str) -> int:
        """SIGKILL; comes back when the process is gone and answers the pid that it had."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not alive(pid), what=f"{name} is dead", pause=0.01)
        return pid

    async def restarted(self, name: str, *, former: int, serving: bool = True) -> int:
        """Wait until another process has taken the place of the former, and serves."""

        def another() -> int:
            pid = self.pids().get(name, former)
            return 0 if pid == former else pid

        pid = await eventually(another, what=f"{name} is started again")
        if serving and name != "redis":
            await self.serving(name)
        return pid

    @contextlib.asynccontextmanager
    async def stopped(self, *names: str) -> AsyncIterator[None]:
        """SIGSTOP, shown to have happened; SIGCONT at the end."""
        pids = self.pids()
        for name in names:
            os.kill(pids[name], signal.SIGSTOP)
        try:
            for name in names:
                await eventually(lambda pid=pids[name]: state_of(pid) == "T", what=f"{name} stands")
            yield
            assert {name: state_of(pids[name]) for name in names} == dict.fromkeys(names, "T")
        finally:
            for name in names:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids[name], signal.SIGCONT)

    async def serving(self, name: str) -> None:
        """Wait until a service or gateway answers SERVING."""

        async def asked() -> bool:
            stub = health_pb2_grpc.HealthStub(self.channel(self._prober(), name))
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        await eventually(asked, what=f"{name} serves")

    def _prober(self) -> TlsFiles:
        home = self.folder.path / "pki" / "services" / "supervisor"
        return TlsFiles(home / "tls.pem", home / "tls.key", self.folder.trust)

    # --- credentials and channels

    def issue(
        self,
        kind: Kind,
        subject_id: str,
        *,
        organization: str,
        sites: Sequence[str] = (EVERY,),
        roles: Sequence[str] = (),
        operational_until: int = 0,
        not_after: int | None = None,
        issuer: Kind | None = None,
    ) -> Issued:
        """Issue by the installation's own intermediate of that kind, or wrongly by another's; instants in ms."""
        folder = self.folder.path / "pki" / "intermediates"
        authority = load_issuer(folder / f"{issuer or kind}.pem", folder / f"{issuer or kind}.key")
        key = new_private_key()
        grant = Grant(
            kind=kind,
            subject_id=subject_id,
            organization=organization,
            sites=tuple(sites),
            roles=tuple(roles),
            operational_until=operational_until,
        )
        leaf = pki.issue(
            issuer=authority,
            trust_domain=TRUST_DOMAIN,
            grant=grant,
            public_key=key.public_key(),
            not_before=milliseconds(authority.certificate.not_valid_before_utc),
            not_after=SystemClock().now() + pki.DAY if not_after is None else not_after,
            entropy=os.urandom,
        )
        self._issued += 1
        home = self.home / "issued" / f"{self._issued}-{subject_id}"
        home.mkdir(mode=0o700, parents=True)
        files = TlsFiles(home / "tls.pem", home / "tls.key", self.folder.trust)
        store_pair(
            files.certificate,
            files.key,
            chain_pem=pki.chain_pem(leaf, authority.certificate),
            private_key=key,
        )
        return Issued(kind, subject_id, files)

    def address(self, name: str) -> str:
        return self.folder.read_endpoints()[name]

    def channel(self, files: TlsFiles, name: str) -> grpc.aio.Channel:
        """A channel to a service or gateway of the installation with any certificate; kept for the next call."""
        channels = self._channels.get(files.certificate)
        if channels is None:
            channels = Channels(tls=files, trust_domain=TRUST_DOMAIN, clock=SystemClock())
            self._channels[files.certificate] = channels
        make = channels.service if name in SERVICES else channels.gateway
        return make(self.address(name), name)


def free_base() -> int:
    """Where to look for free ports: somewhere below those that the kernel gives out."""
    return random.randrange(12_000, 31_000, 50)


def running(data: Path) -> RunningInstallation:
    """An installation on a data folder, not started yet."""
    return RunningInstallation(DataFolder(data), TRUST_DOMAIN, base_port=free_base())
