"""Witnesses and a log, each a process of its own: cosigned, forked, killed, down, slow, lying."""

import asyncio
import json
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from tests.faults.harness.shim import SOCKETS, Op, Shim
from tests.support.evidence import EvidenceProcess, HoldWriter
from tests.support.pki import ORGANIZATION, SITE, TestPki
from tests.support.stack import eventually
from tests.support.witness import WitnessProcess
from tests.unit.cli.support import conforms
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.cli.contexts import Context, change_contexts
from vigil.core.clock import SystemClock
from vigil.core.notes import cosign, cosigner_key, parse_checkpoint_text, parse_note, verifier_key
from vigil.core.witness_policy import WitnessPolicy, check_witnessed, parse_witness_policy
from vigil.errors import Reason, Refused
from vigil.evidence.domain import origin_of
from vigil.evidence.witnessing import request_body
from vigil.feed.evidence import EvidenceAppender
from vigil.rpc import status
from vigil.rpc.channel import Channels
from vigil.run.layout import DataFolder

pytestmark = pytest.mark.holds("insider-evidence")

OWNER = {"organization_id": ORGANIZATION, "site_id": SITE}
Injected = Callable[[int], None]


class Log:
    """The evidence service on one folder, with those who write to it and ask it."""

    def __init__(self, pki: TestPki, folder: Path, policy: Path) -> None:
        self.pki = pki
        self.process = EvidenceProcess(pki, folder, settings={"witness_policy": str(policy)})
        self._writer = HoldWriter(pki.person("p-safety", "safety"))
        self._closing: list[Callable[[], Awaitable[None]]] = []

    def _channel(self, name: str) -> Any:
        credential = (
            self.pki.service("policy") if name == "policy" else self.pki.person("p-reader", "auditor")
        )
        channels = Channels(tls=credential.tls_files, trust_domain=self.pki.trust_domain, clock=SystemClock())
        self._closing.append(channels.close)
        return channels.service(self.process.address, "evidence")

    async def start(self) -> "Log":
        await self.process.start()
        self._appender = EvidenceAppender(channel=self._channel("policy"), entropy=os.urandom, streams=1)
        self._closing.insert(0, self._appender.close)
        self.reader = evidence_pb2_grpc.EvidenceReadServiceStub(self._channel("reader"))
        return self

    async def append(self, *reasons: str) -> None:
        for reason in reasons:
            await self._appender.append(self._writer.hold(reason=reason).data, **OWNER)

    async def checkpoint(self, *, witnessed: bool = False) -> evidence_pb2.Checkpoint:
        request = evidence_pb2.GetCheckpointRequest(witnessed=witnessed)
        return await status.translated(self.reader.GetCheckpoint(request))

    async def covering(self, size: int, *, witnessed: bool = False) -> evidence_pb2.Checkpoint:
        """The newest checkpoint once it covers so much."""

        async def found() -> evidence_pb2.Checkpoint | None:
            checkpoint = await self.checkpoint(witnessed=witnessed)
            return checkpoint if checkpoint.size >= size else None

        what = f"a checkpoint of {size}{' that is witnessed' if witnessed else ''}"
        found_one = await eventually(found, what=what)
        assert found_one is not None
        return found_one

    def told(self, words: str) -> bool:
        return words in self.process.stderr.read_text()

    async def stop(self) -> None:
        for close in self._closing:
            await close()
        self._closing.clear()
        await self.process.stop()


class World:
    """A log whose key is known, and witnesses of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = TestPki(folder)
        self.policy_file = folder / "witness-policy"
        self.logs: list[Log] = []
        self.witnesses: list[WitnessProcess] = []
        self.log_key = ""

    async def found_log(self) -> None:
        """Let the log make its key: it starts once without witnesses, which must know its key first."""
        first = EvidenceProcess(self.pki, self.folder)
        await first.start()
        await first.stop()
        key = load_pem_private_key((first.data / "log.key").read_bytes(), None)
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.log_key = verifier_key(origin_of(self.pki.trust_domain), public)

    async def witness(self, name: str = "w", environment: dict[str, str] | None = None) -> WitnessProcess:
        witness = WitnessProcess(self.folder / name, name=f"witness.test/{name}", logs=[self.log_key])
        self.witnesses.append(witness)
        await witness.init()
        await witness.start(environment)
        return witness

    def policy(self, named: dict[str, tuple[str, str]], quorum: str) -> WitnessPolicy:
        """Write the policy, by name the key and the URL of each witness; answers what a reader has of it."""
        lines = [
            f"log {self.log_key}",
            *(f"witness {name} {key} {url}" for name, (key, url) in named.items()),
        ]
        text = "\n".join([*lines, quorum, "quorum g", ""])
        self.policy_file.write_text(text)
        return parse_witness_policy(text)

    async def log(self, folder: Path | None = None) -> Log:
        log = Log(self.pki, folder or self.folder, self.policy_file)
        self.logs.append(log)
        return await log.start()

    async def close(self) -> None:
        for log in self.logs:
            await log.stop()
        for witness in self.witnesses:
            await witness.stop()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    try:
        await world.found_log()
        yield world
    finally:
        await world.close()


def check(world: World, checkpoint: evidence_pb2.Checkpoint, policy: WitnessPolicy) -> set[str]:
    """What a reader does who believes nobody."""
    return set(check_witnessed(checkpoint.note, policy, log_key=world.log_key))


def remembered(witness: WitnessProcess) -> tuple[int, bytes] | None:
    """Size and root in the memory of a witness, read by nobody's code but SQLite's."""
    with sqlite3.connect(f"file:{witness.folder / 'witness.db'}?mode=ro", uri=True) as connection:
        row = connection.execute("SELECT size, root FROM head").fetchone()
    connection.close()
    return row


async def test_checkpoints_are_cosigned_kept_and_served(world: World) -> None:
    witness = await world.witness()
    policy = world.policy({"w": (witness.verifier_key, witness.url)}, "group g all w")
    log = await world.log()
    await log.append("one", "two")
    held = await log.covering(2, witnessed=True)
    assert (held.witnesses, held.witnessed) == (1, True)
    assert check(world, held, policy) == {"w"}
    assert remembered(witness) == (held.size, held.root)
    proof = await log.reader.GetInclusionProof(evidence_pb2.GetInclusionProofRequest(index=0, size=held.size))
    assert check(world, proof.checkpoint, policy) == {"w"}
    await log.stop()
    log = await world.log()
    assert (await log.checkpoint(witnessed=True)).note == held.note, "kept over a restart"
    await log.append("three")
    assert check(world, await log.covering(3, witnessed=True), policy) == {"w"}


async def test_a_log_that_shows_two_histories_is_caught(world: World, injected: Injected) -> None:
    """One state is copied, both go on with the log's own key. The witness has seen one, and cosigns no other."""
    witness = await world.witness()
    policy = world.policy({"w": (witness.verifier_key, witness.url)}, "group g all w")
    log = await world.log()
    await log.append("one", "two")
    await log.covering(2, witnessed=True)
    await log.stop()
    other_folder = world.folder / "other"
    other_folder.mkdir()
    shutil.copytree(log.process.data, other_folder / "evidence")

    shown, forked = await world.log(), await world.log(other_folder)
    # Both were asked what they hold while that was the same: later the copy's own guard would not let it sign.
    await eventually(lambda: forked.told("every witness was asked"), what="the copy asks its witness")
    await shown.append("the pump was held")
    told = await shown.covering(3, witnessed=True)
    assert check(world, told, policy) == {"w"}
    await forked.append("nothing happened")
    lie = await forked.covering(3)
    text = parse_note(lie.note).text
    assert parse_checkpoint_text(text)[1] == told.size == lie.size
    assert lie.root != told.root, "the log has two histories of one size"
    injected(1)

    await eventually(
        lambda: forked.told("another root of this log at the size of 3"), what="it is refused at 3"
    )
    await forked.append("and it goes on")
    await eventually(lambda: forked.told("w hold another history"), what="it signs nothing more")
    grown = await forked.checkpoint()
    assert (grown.size, entries(forked.process.data)) == (3, 4)
    injected(1)
    for checkpoint in (lie, grown):
        assert (checkpoint.witnesses, checkpoint.witnessed) == (0, False)
        with pytest.raises(Refused) as refused:
            check(world, checkpoint, policy)
        assert refused.value.reason is Reason.NOT_WITNESSED
    stale = await forked.checkpoint(witnessed=True)
    assert stale.size == 2, "the newest that it can show is from before the fork"
    assert remembered(witness) == (3, told.root)
    with sqlite3.connect(f"file:{witness.folder / 'witness.db'}?mode=ro", uri=True) as connection:
        proofs = connection.execute("SELECT request, known FROM contradiction").fetchall()
    connection.close()
    assert any(lie.note.rpartition("\n\n")[0] in request for request, _ in proofs), "what proves it is kept"
    assert all(parse_note(known).text == parse_note(told.note).text for _, known in proofs)

    await shown.append("as ever")
    assert check(world, await shown.covering(4, witnessed=True), policy) == {"w"}


class Person:
    """Somebody with the command line, in a folder of their own."""

    def __init__(self, world: World, log: Log) -> None:
        self.folder = world.folder / "auditor"
        files = world.pki.person("p-auditor", "auditor").tls_files
        context = Context(
            name="auditor",
            principal="p-auditor",
            certificate=files.certificate,
            key=files.key,
            trust=files.trust,
            trust_domain=world.pki.trust_domain,
            endpoints={"evidence": log.process.address},
        )
        change_contexts(DataFolder(self.folder), lambda book: book.with_context(context))

    async def run(self, *words: object, code: int = 0) -> Any:
        """One command; its JSON."""
        line = [sys.executable, "-m", "vigil.cli", "--data", self.folder, "--output", "json", *words]
        process = await asyncio.create_subprocess_exec(*map(str, line), stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert process.returncode == code, out
        return json.loads(out)


async def test_a_whole_subject_is_proved_under_what_is_witnessed(world: World) -> None:
    """The census may be newer than what the witnesses hold: the proof takes the newest one that they hold."""
    witness = await world.witness()
    world.policy({"w": (witness.verifier_key, witness.url)}, "group g all w")
    log = Log(world.pki, world.folder, world.policy_file)
    log.process.settings["census_seconds"] = "1"
    world.logs.append(log)
    await log.start()
    await log.append("one", "two")
    subject = "device/dev-aaaaaaaaaaaaaaaa"

    async def counted(number: int, size: int) -> bool:
        request = evidence_pb2.GetSubjectProofRequest(subject=subject, size=size)
        proof = await status.translated(log.reader.GetSubjectProof(request))
        return bool(proof.leaves) and proof.items[0].number == number

    async def held() -> bool:
        return await counted(2, (await log.checkpoint(witnessed=True)).size)

    await eventually(held, what="witnesses hold a census of both")
    await witness.stop()
    await log.append("three")
    await eventually(lambda: counted(3, 0), what="a census that no witness has seen")
    person = Person(world, log)
    proof = await person.run("evidence", "prove", "--subject", subject, "--policy", world.policy_file)
    conforms(proof, "proof")
    assert len(proof["subjects"][0]["leaves"]) == 2
    path = world.folder / "proof.json"
    path.write_text(json.dumps(proof))
    line = ("evidence", "check", path, "--trust", world.pki.trust, "--policy", world.policy_file)
    checked = await person.run(*line)
    assert "Held by 1 of 1 witnesses: w." in [one["sentence"] for one in checked["findings"]]
    newest = await person.run("evidence", "prove", "--subject", subject)
    path.write_text(json.dumps(newest))
    assert len(newest["subjects"][0]["leaves"]) == 3
    refused = await person.run(*line, code=3)
    assert [one["property"] for one in refused["findings"] if one["holds"] is False] == ["witnesses"]


async def test_a_person_believes_only_what_is_witnessed(world: World) -> None:
    witness = await world.witness()
    world.policy({"w": (witness.verifier_key, witness.url)}, "group g all w")
    log = await world.log()
    await log.append("one", "two")
    await log.covering(2, witnessed=True)
    person = Person(world, log)
    believes = ("--policy", world.policy_file)
    seen = await person.run("evidence", "checkpoint", *believes)
    conforms(seen, "checkpoint")
    assert [one["name"] for one in seen["witnesses"]] == ["w"]
    assert (seen["size"], seen["cosignatures"], seen["consistent"]) == (2, 1, None)
    proof = await person.run("evidence", "prove", 1, *believes)
    assert proof["checkpoint"].splitlines()[1] == "2"

    await witness.stop()
    await log.append("three")
    await log.covering(4)  # that somebody read the record to prove is the third
    newer = await person.run("evidence", "checkpoint")
    assert (newer["size"], newer["cosignatures"], newer["witnesses"]) == (4, 0, [])
    older = await person.run("evidence", "checkpoint", *believes)
    assert (older["size"] in (2, 3), older["consistent"]) == (True, True), (
        "older, and the newer one extends it"
    )
    refusal = await person.run("evidence", "prove", 3, *believes, code=3)
    assert refusal["error"]["reason"] == "NOT_RECORDED"

    stranger = cosigner_key("witness.test/x", bytes(32))
    both = world.folder / "both"
    text = world.policy_file.read_text().replace("group g all w", f"witness x {stranger}\ngroup g all w x")
    both.write_text(text)
    refusal = await person.run("evidence", "checkpoint", "--policy", both, code=3)
    assert refusal["error"]["reason"] == "NOT_WITNESSED"
    both.write_text("quorum")
    assert (await person.run("evidence", "checkpoint", "--policy", both, code=3))["error"][
        "reason"
    ] == "FIELD_INVALID"


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    if Shim.missing():
        pytest.skip(Shim.missing())
    return Shim.build(tmp_path / "shim")


async def test_killed_between_memory_and_answer_it_never_goes_back(
    world: World, shim: Shim, injected: Injected
) -> None:
    witness = await world.witness(environment=shim.environment)
    policy = world.policy({"w": (witness.verifier_key, witness.url)}, "group g all w")
    log = await world.log()
    await log.append("one")
    first = await log.covering(1, witnessed=True)
    with shim.kill(Op.SEND, path=SOCKETS, pid=witness.pid) as fault:
        await log.append("two")
        await fault.met()
        await witness.ended()
        assert fault.fired == 1
    told = await log.covering(2)
    assert remembered(witness) == (told.size, told.root), "it died after it had remembered"
    assert (await log.checkpoint(witnessed=True)).size == 1, "and before it had answered"
    injected(1)
    await witness.start()
    stale = request_body(0, (), log_only(first.note))
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{witness.url}/add-checkpoint", data=stale) as response,
    ):
        assert (response.status, await response.text()) == (409, "2\n")
    assert check(world, await log.covering(2, witnessed=True), policy) == {"w"}
    await log.append("three")
    assert check(world, await log.covering(3, witnessed=True), policy) == {"w"}


def log_only(note: str) -> str:
    """A note without the lines of witnesses."""
    head, _, lines = note.rpartition("\n\n")
    return f"{head}\n\n{lines.splitlines()[0]}\n"


@pytest.mark.thorough
async def test_down_slow_and_lying_witnesses_hold_nobody_up(world: World, injected: Injected) -> None:
    """Two of five are honest and the policy wants two; a third is down, a fourth never answers, a fifth lies."""
    honest = [await world.witness("a"), await world.witness("b")]
    liar = Ed25519PrivateKey.generate()
    public = liar.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    asked = {"slow": 0, "liar": 0}
    silent = asyncio.Event()

    async def swallow(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked["slow"] += 1
        await silent.wait()
        writer.close()

    async def lie(_request: web.Request) -> web.Response:
        asked["liar"] += 1
        another = "vigil.test/evidence\n1000000\n" + "A" * 43 + "=\n"
        line = cosign(another, time=1, name="witness.test/liar", public_key=public, sign=liar.sign)
        return web.Response(text=line)

    slow = await asyncio.start_server(swallow, "127.0.0.1", 0)
    app = web.Application()
    app.add_routes([web.post("/add-checkpoint", lie)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = unused.getsockname()[1]
    stranger = [Ed25519PrivateKey.generate().public_key() for _ in range(2)]
    raw = [key.public_bytes(Encoding.Raw, PublicFormat.Raw) for key in stranger]
    try:
        policy = world.policy(
            {
                "a": (honest[0].verifier_key, honest[0].url),
                "b": (honest[1].verifier_key, honest[1].url),
                "down": (cosigner_key("witness.test/down", raw[0]), f"http://127.0.0.1:{nobody}"),
                "slow": (
                    cosigner_key("witness.test/slow", raw[1]),
                    f"http://127.0.0.1:{slow.sockets[0].getsockname()[1]}",
                ),
                "liar": (
                    cosigner_key("witness.test/liar", public),
                    f"http://127.0.0.1:{runner.addresses[0][1]}",
                ),
            },
            "group g 2 a b down slow liar",
        )
        log = await world.log()
        for number in range(1, 6):
            await log.append(f"number {number}")
            held = await log.covering(number, witnessed=True)
            assert check(world, held, policy) == {"a", "b"}
        await eventually(lambda: asked["slow"] and asked["liar"], what="slow and liar are asked")
        await eventually(lambda: log.told("witness down: unreachable"), what="the one that is down is told")
        await eventually(lambda: log.told("witness liar: false"), what="the lie is told")
        await eventually(lambda: log.told("witness slow: unreachable"), what="the slow one is given up")
        injected(3)
        newest = await log.checkpoint()
        assert "witness.test/liar" not in newest.note
        await honest[1].kill()
        await log.append("one witness fewer")
        covered = await log.covering(newest.size + 1)
        await eventually(lambda: log.told("witness b: unreachable"), what="the loss of b is told")
        injected(1)
        assert (await log.checkpoint(witnessed=True)).size < covered.size
        with pytest.raises(Refused):
            check(world, await log.checkpoint(), policy)
        await honest[1].start()
        assert check(world, await log.covering(covered.size, witnessed=True), policy) == {"a", "b"}
    finally:
        silent.set()
        slow.close()
        await runner.cleanup()


async def test_an_older_copy_of_the_log_is_told_so(world: World, injected: Injected) -> None:
    """The log is put back to an older state of itself: its witness holds more than there is."""
    witness = await world.witness()
    world.policy({"w": (witness.verifier_key, witness.url)}, "group g all w")
    log = await world.log()
    await log.append("one")
    await log.covering(1, witnessed=True)
    await log.stop()
    shutil.copytree(log.process.data, world.folder / "older")
    log = await world.log()
    await log.append("two", "three")
    await log.covering(3, witnessed=True)
    await log.stop()
    shutil.rmtree(log.process.data)
    shutil.copytree(world.folder / "older", log.process.data)
    assert entries(log.process.data) == 1
    injected(1)
    log = await world.log()
    await log.append("another two")
    await eventually(lambda: log.told("witness w: ahead"), what="the witness knows more")
    assert (await log.checkpoint(witnessed=True)).size == 1
    assert remembered(witness)[0] == 3  # type: ignore[index]


def entries(data: Path) -> int:
    """How many entries a stopped log has."""
    with sqlite3.connect(data / "evidence.db") as connection:
        count = connection.execute("SELECT count(*) FROM entry").fetchone()[0]
    connection.close()
    return int(count)
