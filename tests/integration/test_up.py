"""`vigil up` on one machine: first start, one at a time, orderly and disorderly ends, and what a restart keeps."""

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.acts import works_again
from tests.support.stack import TRUST_DOMAIN, Stack, alive, children_of, eventually, free_base, state_of
from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.core import merkle
from vigil.run.layout import SERVICES, TILES, DataFolder

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROCESSES = {*SERVICES, "redis"}


@dataclass
class Machine:
    """A data folder and the `vigil up` on it, as a person starts it; words and output are kept."""

    folder: DataFolder
    base_port: int = field(default_factory=free_base)
    process: asyncio.subprocess.Process | None = None
    ready: dict[str, object] = field(default_factory=dict)

    async def up(self, *more: str) -> asyncio.subprocess.Process:
        """Start one more, whatever runs already."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "vigil.run", "--data", str(self.folder.path), "--trust-domain", TRUST_DOMAIN),
            *("--base-port", str(self.base_port), "--output", "json", *more),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    async def running(self) -> None:
        """Have it running and ready."""
        if self.process is not None and self.process.returncode is None:
            return
        self.process = await self.up()
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        assert line, await self.words()
        self.ready = json.loads(line)

    async def words(self) -> str:
        assert self.process is not None
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()

    @property
    def supervisor(self) -> int:
        assert self.process is not None
        return self.process.pid

    def pids(self) -> dict[str, int]:
        return children_of(self.supervisor)

    async def end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.communicate()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def machine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Machine]:
    made = Machine(DataFolder(tmp_path_factory.mktemp("up") / "data"))
    await made.running()
    yield made
    pids = made.pids()
    await made.end()
    await eventually(lambda: not any(map(alive, pids.values())), what="everything is gone")


async def test_first_start_ends_ready(machine: Machine) -> None:
    await machine.running()
    assert machine.ready["ready"] is True
    assert machine.ready["data"] == str(machine.folder.path)
    services = machine.ready["services"]
    assert isinstance(services, list)
    [gateway] = machine.folder.gateways()
    assert {one["name"] for one in services} == {*PROCESSES, gateway}
    assert {one["name"]: one["pid"] for one in services}.items() <= machine.pids().items()
    assert machine.ready["tiles"] == f"http://{machine.folder.read_endpoints()[TILES]}"
    contexts = json.loads(machine.folder.contexts_file.read_text())["contexts"]
    assert len(contexts) >= 2  # two administrators: a privileged role takes both


async def test_keys_are_their_owners_alone(machine: Machine) -> None:
    await machine.running()
    keys = [*machine.folder.path.rglob("*.key"), *machine.folder.path.rglob("passphrase")]
    # Root, four intermediates, eight signers, every service, two administrators, the log, the gateway.
    assert len(keys) >= 1 + 4 + 8 + len(SERVICES) + 2 + 1 + 1
    assert {str(key): oct(stat.S_IMODE(key.stat().st_mode)) for key in keys} == {
        str(key): "0o600" for key in keys
    }
    for secret in (machine.folder.path, machine.folder.path / "pki", machine.folder.path / "people"):
        assert stat.S_IMODE(secret.stat().st_mode) & 0o077 == 0, secret
    for database in machine.folder.path.rglob("*.db"):
        assert stat.S_IMODE(database.stat().st_mode) & 0o077 == 0, database
    for config in machine.folder.path.rglob("*.toml"):
        assert stat.S_IMODE(config.stat().st_mode) & 0o077 == 0, config


async def test_no_key_in_a_command_line_or_a_log(machine: Machine) -> None:
    await machine.running()
    passphrase = (machine.folder.path / "pki" / "root" / "passphrase").read_text().strip()
    assert passphrase
    views = [
        Path(f"/proc/{pid}/{view}")
        for pid in (machine.supervisor, *machine.pids().values())
        for view in ("cmdline", "environ")
    ]
    assert all(passphrase.encode() not in view.read_bytes() for view in views)
    logs = [path.read_text() for path in (machine.folder.path / "logs").iterdir()]
    assert logs
    for text in logs:
        assert passphrase not in text
        assert "PRIVATE KEY" not in text


async def test_second_one_on_the_same_folder_is_refused(machine: Machine) -> None:
    await machine.running()
    before = machine.pids()
    second = await machine.up()
    output, words = await second.communicate()
    assert second.returncode == 1
    assert output == b""
    assert b"another `vigil up` is already running" in words
    assert b"Traceback" not in words
    assert machine.pids() == before


@pytest.mark.parametrize("name", ["identity", "edge", "redis", "gateway"])
async def test_crashed_process_is_started_again(machine: Machine, name: str) -> None:
    await machine.running()
    name = machine.folder.gateways()[0] if name == "gateway" else name
    others = machine.pids()
    former = others.pop(name)
    os.kill(former, signal.SIGKILL)
    await eventually(lambda: not alive(former), what=f"{name} is dead")
    await eventually(lambda: machine.pids().get(name, former) != former, what=f"{name} is back")
    now = machine.pids()
    assert now.pop(name) != former
    assert now == others


async def test_sigkill_of_the_supervisor_leaves_no_orphan(machine: Machine) -> None:
    await machine.running()
    assert machine.process is not None
    pids = machine.pids()
    assert set(pids) >= PROCESSES
    machine.process.kill()
    await machine.process.communicate()
    assert machine.process.returncode == -signal.SIGKILL
    await eventually(
        lambda: not any(alive(pid) for pid in pids.values()), what=f"no orphan of {pids}", seconds=20
    )
    # The folder is free again, and nothing of the end is in the way of the next start.
    await machine.running()
    assert set(machine.pids()) >= PROCESSES
    assert not set(machine.pids().values()) & set(pids.values())


async def test_sigterm_ends_everything_and_waits_for_nobody_for_ever(machine: Machine) -> None:
    """In order where a child can, and a child that hangs is killed."""
    await machine.running()
    assert machine.process is not None
    pids = machine.pids()
    assert set(pids) >= PROCESSES
    os.kill(pids["release"], signal.SIGSTOP)
    await eventually(lambda: state_of(pids["release"]) == "T", what="release stands")
    machine.process.terminate()
    _, words = await machine.process.communicate()
    assert machine.process.returncode == 0
    assert b"release did not stop" in words
    assert [name for name, pid in pids.items() if alive(pid)] == []
    assert not machine.folder.running()


@pytest.mark.holds("killed-between-steps")
async def test_restart_keeps_everything(breakable: Stack) -> None:
    stack = breakable
    await stack.calm()
    admin, otto = stack.world.people["admin"], stack.world.people["otto"]

    async def devices() -> dict[str, tuple[object, ...]]:
        listed = await admin.every(
            "identity", admin.devices.ListDevices, identity_pb2.ListDevicesRequest(), "devices"
        )
        return {
            one.device_id: (one.udi, one.model, one.site_id, one.state, one.holds, one.identity_key)
            for one in listed
        }

    devices_before, applied_before = await devices(), [await stack.applied(pump) for pump in stack.pumps()]
    checkpoint = await stack.checkpoint()
    pids = stack.pids()
    assert len(devices_before) == len(stack.pumps())
    assert checkpoint.size > 0

    await stack.installation.stop()
    assert [name for name, pid in pids.items() if alive(pid)] == []
    await stack.installation.start()
    await stack.calm()

    assert await devices() == devices_before
    assert [await stack.applied(pump) for pump in stack.pumps()] == applied_before
    now = await stack.checkpoint()
    assert now.size >= checkpoint.size
    proof = await otto.call(
        "evidence",
        otto.evidence.GetConsistencyProof,
        evidence_pb2.GetConsistencyProofRequest(old_size=checkpoint.size, new_size=now.size),
    )
    assert merkle.verify_consistency(
        old_size=checkpoint.size,
        new_size=now.size,
        old_root=checkpoint.root,
        new_root=now.root,
        path=list(proof.path),
    )
    await works_again(stack, stack.pumps()[0], 261)
