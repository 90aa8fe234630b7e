"""Every method of a running installation, with the certificate of somebody whom its contract admits.

Messages come out of the contracts' descriptors (`generator`), plausible at one place and impossible at another, and
half of them are broken on the wire. Whatever they say, the answer is one of the method's own or a refusal with a
canonical status and a reason of ours; nothing fails inside; no process ends; and where nothing that writes was
accepted, no table has changed.
"""

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tests.contract.callers import LOST, METHODS, Callers, Contents, Method, moved, settled
from tests.contract.strangers import CSR
from tests.fuzz.generator import Generator
from tests.fuzz.statements import VECTORS
from tests.support.stack import Stack
from vigil.api.access.v1 import access_pb2
from vigil.demo.places import HOSPITALS, MODEL
from vigil.errors import Reason
from vigil.rpc.access import CallerRule
from vigil.rpc.status import DOMAIN, TRAILER

DEADLINE_S: Final = 90.0
LISTEN_S: Final = 0.3
"""How long a stream that goes on is listened to; decides nothing."""
ANSWERS: Final = 3
READS: Final = ("Get", "List", "Count", "Fetch", "Preview", "Watch", "Follow", "Answer")
"""How the names of methods begin that write nothing; a head is signed all the time."""
FAILED: Final = frozenset({code_pb2.UNKNOWN, code_pb2.INTERNAL, code_pb2.DATA_LOSS})
NOBODY: Final = "p-nobody-here"
SPOOLED: Final = ("spool", "refusal", "quota", "outbox")
"""Parts of names of tables in which a gateway keeps what it refused, to be recorded: that is meant to change."""

REPLICAS: Final = ("directory_row",)
"""Tables in which others keep copies of what was accepted at its owner."""


@dataclass
class RpcOutcome:
    """What was called and what came of it."""

    calls: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def row(self) -> dict[str, str | int]:
        """For the table of the report."""
        return {
            "harness": "rpc",
            "reads": f"every method of a whole installation ({len(self.calls)}), with a valid certificate",
            "inputs": self.calls.total(),
            "kept": len(self.reasons),
            "edges": 0,
            "found": len(self.findings),
        }

    def wrote(self) -> set[str]:
        """Processes at which something that may write was accepted."""
        return {
            name.partition(":")[0] for name in self.answered if not name.partition("/")[2].startswith(READS)
        }


class Fuzzer:
    """Calls methods of one installation."""

    def __init__(self, stack: Stack, callers: Callers) -> None:
        self._stack, self._callers = stack, callers
        self.outcome = RpcOutcome()
        pump = stack.pumps(stack.first)[0]
        self._texts = (
            *(HOSPITALS, stack.first, stack.second, stack.world.gateways[stack.first], MODEL, pump.device_id),
            *(NOBODY, "0" * 64, f"device/{pump.device_id}", "set-occlusion-pressure", CSR, "*"),
        )
        vectors = json.loads((VECTORS / "statements.json").read_text())["statements"]
        self._data = (
            *(base64.b64decode(one["statement"]) for one in vectors),
            bytes(16),
            bytes(32),
            CSR.encode(),
        )

    async def call(self, method: Method, seed: int) -> None:
        """One call from a seed, every third of them tame; what must not happen is added to the findings."""
        name = f"{method.process}:{method.name}"
        generator = Generator(seed, texts=self._texts, data=self._data, tame=seed % 3 == 0)
        rule = method.rules[seed % len(method.rules)]
        inputs = [self._input(method, rule, generator) for _ in range(1 + seed % 3)]
        self.outcome.calls[name] += 1
        for _ in range(10):
            try:
                answers = await self._send(method, rule, inputs)
            except grpc.aio.AioRpcError as error:
                if error.details() == LOST:
                    continue  # what grpc.aio's client makes of a status that comes while it is writing
                self._refused(name, seed, error)
            else:
                self.outcome.answered[name] += 1
                for told in (one for answer in answers for one in _statuses(answer)):
                    self._told(f"{name} seed {seed}", told)
            return

    def _input(self, method: Method, rule: CallerRule, generator: Generator) -> bytes:
        message = generator.message(method.descriptor.input_type)
        if rule.path is not None and generator.chance.random() < 0.9:
            own = (
                HOSPITALS if rule.rule == access_pb2.SCOPE_RULE_ORGANIZATION else self._callers.right(rule).id
            )
            _name(message, [field.name for field in rule.path.fields], own)
        data = generator.wire(message)
        return data if len(data) < (1 << 20) or generator.chance.random() < 0.02 else data[: 1 << 20]

    async def _send(self, method: Method, rule: CallerRule, inputs: Sequence[bytes]) -> list[Message]:
        descriptor = method.descriptor
        asked, answered = descriptor.client_streaming, descriptor.server_streaming
        channel = self._callers.channel(method, self._callers.right(rule))
        make = getattr(channel, f"{'stream' if asked else 'unary'}_{'stream' if answered else 'unary'}")
        read = GetMessageClass(descriptor.output_type).FromString
        multicallable = make(method.path, response_deserializer=read)
        call = multicallable(_sent(inputs) if asked else inputs[0], timeout=DEADLINE_S)
        if not answered:
            return [await call]
        found: list[Message] = []
        try:
            # A stream that says nothing more has accepted what came; one that refuses says so at once.
            async with asyncio.timeout(LISTEN_S if asked or "Follow" in method.name else DEADLINE_S):
                async for answer in call:
                    found.append(answer)
                    if len(found) == ANSWERS:
                        break
        except TimeoutError:
            pass
        finally:
            call.cancel()
        return found

    def _refused(self, name: str, seed: int, error: grpc.aio.AioRpcError) -> None:
        self.outcome.refused[name] += 1
        where = f"{name} seed {seed}"
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in str(error.details()):
            self.outcome.reasons["larger than the method takes"] += 1
            return
        packed = dict(error.trailing_metadata() or ()).get(TRAILER)
        if not isinstance(packed, bytes):
            self.outcome.findings.append(f"{where}: {error.code()} without a reason: {error.details()}")
            return
        self._told(where, status_pb2.Status.FromString(packed))

    def _told(self, where: str, status: status_pb2.Status) -> None:
        info = error_details_pb2.ErrorInfo()
        ours = any(one.Is(info.DESCRIPTOR) and one.Unpack(info) for one in status.details)
        if status.code in FAILED or not ours or info.domain != DOMAIN or info.reason not in set(Reason):
            self.outcome.findings.append(f"{where}: {status}")
        self.outcome.reasons[info.reason] += 1

    async def held(self, before: Contents, pids: dict[str, int]) -> None:
        """After the calls: the same processes, all serving; tables as they were where nothing was accepted."""
        await self._stack.calm()
        if self._stack.pids() != pids:
            self.outcome.findings.append(f"a process ended: {pids} became {self._stack.pids()}")
        wrote = self.outcome.wrote()
        moving = (*SPOOLED, *(REPLICAS if wrote else ()))
        for line in moved(before, await settled(self._stack)):
            place = line.partition("/")[0]
            process = "gateway" if place == "gateways" else place
            if process not in wrote and not any(part in line for part in moving):
                self.outcome.findings.append(f"refused input wrote: {line}")


def _name(message: Any, path: Sequence[str], value: str) -> None:
    """Set the field that the contract holds against the caller, wherever the path leads."""
    name, *rest = path
    if not rest:
        setattr(message, name, value)
        return
    inner = getattr(message, name)
    for one in (inner or [inner.add()]) if hasattr(inner, "add") else [inner]:
        _name(one, rest, value)


async def _sent(inputs: Sequence[bytes]) -> AsyncIterator[bytes]:
    for one in inputs:
        yield one


def _statuses(message: Message) -> Iterator[status_pb2.Status]:
    """The refusals inside an answer, wherever they stand."""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            continue
        for one in value if descriptor.is_repeated else (value,):
            if descriptor.message_type.full_name == "google.rpc.Status":
                yield status_pb2.Status.FromString(one.SerializeToString())
            else:
                yield from _statuses(one)


async def fuzz(
    stack: Stack, callers: Callers, seeds: Iterator[int], methods: Sequence[Method] = METHODS
) -> RpcOutcome:
    """Each method once for each seed."""
    fuzzer = Fuzzer(stack, callers)
    before: Any = await settled(stack)
    pids = stack.pids()
    for seed in seeds:
        for method in methods:
            await fuzzer.call(method, seed)
    await fuzzer.held(before, pids)
    return fuzzer.outcome


def fuzz_installation(seconds: int, *, seed: int | None = None) -> RpcOutcome:
    """Start an installation, fuzz it for so long (or from one seed), and say what came of it. Prints findings."""
    seeds = _seeds(seconds) if seed is None else iter((seed,))

    async def run() -> RpcOutcome:
        stack = await Stack.start()
        with TemporaryDirectory() as folder:
            callers = Callers(stack, Path(folder))
            try:
                return await fuzz(stack, callers, seeds)
            finally:
                await callers.close()
                await stack.stop()

    outcome = asyncio.run(run())
    for finding in outcome.findings:
        print(f"rpc FOUND {finding}", flush=True)
    if outcome.findings and seed is None:
        print("replay: python -m tests.fuzz rpc --seed N, with the seed of a finding", flush=True)
    print(
        f"rpc: {outcome.calls.total():,} calls of {len(outcome.calls)} methods, {outcome.refused.total():,} refused "
        f"with {len(outcome.reasons)} different reasons",
        flush=True,
    )
    return outcome


def _seeds(seconds: float) -> Iterator[int]:
    seed = time.time_ns() % 2**32
    yield seed
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        seed += 1
        yield seed
