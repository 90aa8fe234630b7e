"""The log's side of witnesses: what it makes of every answer, over a real log; an honest witness is a real one."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from prometheus_client import CollectorRegistry
from sqlalchemy import delete, update

from tests.support.stack import eventually
from tests.unit.evidence.conftest import Log, World, submission
from tests.unit.witness.conftest import RunningWitness
from vigil.core.notes import cosign, cosigner_key, parse_note
from vigil.core.witness_policy import KnownWitness, WitnessPolicy, parse_witness_policy
from vigil.errors import Reason, Refused
from vigil.evidence.domain import Checkpoint
from vigil.evidence.guard import HistoryGuard
from vigil.evidence.metrics import LogMetrics
from vigil.evidence.tables import ENTRY, NODE
from vigil.evidence.witness_book import WitnessBook
from vigil.evidence.witness_client import Answer, WitnessClient, WitnessUnreachableError
from vigil.evidence.witnessing import Follower, Post, Witnessing, WitnessTrouble

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
NAME = "witness.test/w"
VKEY = cosigner_key(NAME, PUBLIC)
SIZE_TYPE = "text/x.tlog.size"


def line(text: str, key: Ed25519PrivateKey = KEY) -> str:
    return cosign(text, time=1_790_000_000, name=NAME, public_key=PUBLIC, sign=key.sign)


async def grown(world: World, log: Log, count: int) -> Checkpoint:
    for number in range(count):
        await log.sequencer.append(submission(world.writer().hold(reason=f"number {number}")))
    return await log.checkpointer.sign()


def follower(log: Log, post: Post, *, known: int = 0) -> Follower:
    async def prove(old: int, new: int) -> tuple[bytes, ...]:
        return (await log.reader.consistency(old, new)).path

    witness = KnownWitness(VKEY, "http://witness.test/")
    metrics = LogMetrics(CollectorRegistry())
    return Follower("w", witness, known=known, post=post, prove=prove, metrics=metrics)


def answering(*answers: Answer) -> tuple[Post, list[bytes]]:
    """A wire on which these answers come, and what went over it."""
    left, asked = list(answers), []

    async def post(url: str, body: bytes) -> Answer:
        assert url == "http://witness.test/add-checkpoint"
        asked.append(body)
        return left.pop(0)

    return post, asked


def conflict(size: int) -> Answer:
    return Answer(409, SIZE_TYPE, f"{size}\n")


async def test_it_continues_from_the_size_that_the_witness_knows(world: World) -> None:
    log = world.open()
    checkpoint = await grown(world, log, 3)
    text = parse_note(checkpoint.note).text
    post, asked = answering(conflict(2), Answer(200, "text/plain", line(text)))
    found = await follower(log, post).ask(checkpoint, log_size=3)
    assert (found.name, found.time) == (NAME, 1_790_000_000)
    assert [body.split(b"\n")[0] for body in asked] == [b"old 0", b"old 2"]
    assert len(asked[1].split(b"\n\n")[0].split(b"\n")) - 1 == len((await log.reader.consistency(2, 3)).path)


@pytest.mark.parametrize(
    ("known", "answer", "what"),
    [
        (3, conflict(3), "contradiction"),
        (3, Answer(409, "text/plain", "another root\n"), "contradiction"),
        (2, Answer(409, "text/plain", "3\n"), "refused"),
        (2, Answer(422, "text/plain", "no\n"), "contradiction"),
        (0, conflict(9), "ahead"),
        (0, Answer(409, SIZE_TYPE, "02\n"), "refused"),
        (0, Answer(409, SIZE_TYPE, "2"), "refused"),
        (0, Answer(404, "text/plain", "?\n"), "refused"),
        (0, Answer(302, "text/plain", ""), "refused"),
        (0, Answer(200, "text/plain", ""), "false"),
        (0, Answer(200, "text/plain", "thanks\n"), "false"),
    ],
)
async def test_what_an_answer_means(world: World, known: int, answer: Answer, what: str) -> None:
    log = world.open()
    checkpoint = await grown(world, log, 3)
    post, _ = answering(answer)
    with pytest.raises(WitnessTrouble) as trouble:
        await follower(log, post, known=known).ask(checkpoint, log_size=3)
    assert trouble.value.what == what


async def test_a_cosignature_is_believed_for_its_signature_alone(world: World) -> None:
    log = world.open()
    checkpoint = await grown(world, log, 2)
    text = parse_note(checkpoint.note).text
    for said in (line(text, Ed25519PrivateKey.generate()), line(text.replace("\n2\n", "\n3\n"))):
        post, _ = answering(Answer(200, "text/plain", said))
        with pytest.raises(WitnessTrouble) as trouble:
            await follower(log, post).ask(checkpoint, log_size=2)
        assert trouble.value.what == "false"


async def test_a_witness_that_names_another_size_each_time_is_given_up(world: World) -> None:
    log = world.open()
    checkpoint = await grown(world, log, 3)
    post, asked = answering(conflict(1), conflict(2), conflict(1))
    with pytest.raises(WitnessTrouble) as trouble:
        await follower(log, post).ask(checkpoint, log_size=3)
    assert (trouble.value.what, len(asked)) == ("refused", 3)


async def test_a_witness_that_fails_is_left_alone_for_longer_and_longer(world: World) -> None:
    log = world.open()
    checkpoint = await grown(world, log, 1)

    async def post(_url: str, _body: bytes) -> Answer:
        raise WitnessUnreachableError("nobody")

    one = follower(log, post)
    waits = []
    at = 0.0
    for _ in range(12):
        one.failed(WitnessTrouble("unreachable", "nobody"), at=at)
        low, high = at, at + 10_000.0
        while high - low > 0.01:
            middle = (low + high) / 2
            low, high = (low, middle) if one.free(checkpoint, at=middle) else (middle, high)
        waits.append(round(high - at))
        at = high
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == 300
    one.took(0)
    one.failed(WitnessTrouble("unreachable", "nobody"), at=at)
    assert one.free(checkpoint, at=at + 1.01), "an answer earns a fresh start"


def book_of(log: Log, policy: WitnessPolicy) -> WitnessBook:
    return WitnessBook(database=log.database, policy=policy, metrics=LogMetrics(CollectorRegistry()))


async def test_the_newest_that_enough_hold_is_found_again_after_a_restart(world: World) -> None:
    others = [Ed25519PrivateKey.generate().public_key() for _ in range(2)]
    keys = [
        VKEY,
        *(
            cosigner_key(f"witness.test/{number}", key.public_bytes(Encoding.Raw, PublicFormat.Raw))
            for number, key in enumerate(others)
        ),
    ]
    lines = [f"witness w{number} {key}" for number, key in enumerate(keys)]
    two = parse_witness_policy("\n".join([*lines, "group g 2 w0 w1 w2", "quorum g"]))
    log = world.open()
    book = book_of(log, two)
    with pytest.raises(Refused) as refused:
        await book.newest()
    assert refused.value.reason is Reason.NOT_WITNESSED
    said = []
    for held_by in ((0, 1), (0,), (1, 2), (2,)):
        checkpoint = await grown(world, log, 1)
        for number in held_by:
            found = await follower(
                log, answering(Answer(200, "", line(parse_note(checkpoint.note).text)))[0]
            ).ask(checkpoint, log_size=checkpoint.size)
            await book.keep(checkpoint, keys[number], found)
            await book.keep(checkpoint, keys[number], found)
        said.append(await book.held(checkpoint))
    assert [(one.witnesses, one.witnessed) for one in said] == [(2, True), (1, False), (2, True), (1, False)]
    for again in (book, book_of(log, two)):
        assert (await again.newest()).checkpoint.size == 3
        assert again.newest_of(keys[0]) == 2
    three = parse_witness_policy("\n".join([*lines, "group g all w0 w1 w2", "quorum g"]))
    with pytest.raises(Refused):
        await book_of(log, three).newest()


async def test_without_a_policy_nothing_is_witnessed(world: World) -> None:
    log = world.open()
    checkpoint = await grown(world, log, 1)
    book = book_of(log, WitnessPolicy())
    held = await book.held(checkpoint)
    assert (held.note, held.witnesses, held.witnessed) == (checkpoint.note, 0, False)
    with pytest.raises(Refused):
        await book.newest()


async def test_a_real_log_and_a_real_witness(world: World, tmp_path: Path) -> None:
    log = world.open()
    witness = RunningWitness(tmp_path / "witness", [world.key.verifier_key])
    await witness.start()
    assert witness.key is not None
    url = f"http://127.0.0.1:{witness.port}"
    text = f"witness w {witness.key.verifier_key} {url}\nquorum w\n"
    book = book_of(log, parse_witness_policy(text))

    async def prove(old: int, new: int) -> tuple[bytes, ...]:
        return (await log.reader.consistency(old, new)).path

    async def covered(size: int) -> bool:
        return (await book.newest()).checkpoint.size == size

    def waits_for(size: int) -> Callable[[], Awaitable[bool]]:
        return lambda: covered(size)

    async with WitnessClient() as client:
        witnessing = Witnessing(
            book=book,
            newest=log.checkpointer.newest,
            prove=prove,
            post=client.post,
            clock=world.clock,
            metrics=LogMetrics(CollectorRegistry()),
            guard=log.checkpointer.guard,
        )
        task = asyncio.create_task(witnessing.run())
        try:
            for size in (1, 2, 3):
                await grown(world, log, 1)
                await eventually(waits_for(size), what=f"{size} is witnessed")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await witness.stop()


def policy_of(*names: str) -> tuple[WitnessPolicy, dict[str, Ed25519PrivateKey]]:
    """Any two of these, each at a URL of its own."""
    keys = {name: Ed25519PrivateKey.generate() for name in names}
    lines = [
        f"witness {name} "
        f"{cosigner_key(name, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))} http://{name}"
        for name, key in keys.items()
    ]
    return parse_witness_policy("\n".join([*lines, f"group g 2 {' '.join(names)}", "quorum g"])), keys


class Asked:
    """A log's rounds with witnesses that answer as they are told to; ``cosigns``: those that are honest."""

    def __init__(self, world: World, log: Log, cosigns: str, otherwise: Answer) -> None:
        self.policy, self._keys = policy_of("w0", "w1", "w2")
        self.bodies: dict[str, list[bytes]] = {name: [] for name in self._keys}
        self.guard = log.checkpointer.guard = HistoryGuard(self.policy, begun=False)
        self.cosigns, self.otherwise = cosigns, otherwise
        self._rounds = Witnessing(
            book=book_of(log, self.policy),
            newest=log.checkpointer.newest,
            prove=log.reader.growth,
            post=self._post,
            clock=world.clock,
            metrics=LogMetrics(CollectorRegistry()),
            guard=self.guard,
        )
        self._clock = world.clock

    async def _post(self, url: str, body: bytes) -> Answer:
        name = url.split("/")[2]
        self.bodies[name].append(body)
        if name not in self.cosigns.split():
            return self.otherwise
        text = body.decode().partition("\n\n")[2].rpartition("\n\n")[0] + "\n"
        key = self._keys[name]
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return Answer(200, "", cosign(text, time=1, name=name, public_key=public, sign=key.sign))

    async def round(self) -> None:
        await self._rounds._round()
        await asyncio.sleep(0)
        await asyncio.gather(*self._rounds._asking.values())
        self._rounds._reap()
        self._clock.advance(1000)

    def knows(self, name: str, size: int) -> None:
        next(one for one in self._rounds._followers if one.name == name).known = size


async def test_enough_witnesses_of_another_history_stop_the_signer_and_one_does_not(world: World) -> None:
    log = world.open()
    first = await grown(world, log, 3)
    asked = Asked(world, log, "w0 w1", Answer(422, "text/plain", "no\n"))
    await asked.round()
    assert not asked.guard.older, "one liar stops nothing"
    asked.cosigns = "w0"
    second = await grown(world, log, 1)
    await asked.round()
    assert asked.guard.older
    assert asked.guard.witnesses["w1"][1].startswith("contradiction: ")
    await log.sequencer.append(submission(world.writer().hold()))
    with pytest.raises(Refused) as refused:
        await log.checkpointer.sign()
    assert refused.value.reason is Reason.EVIDENCE_UNAVAILABLE
    assert "w1, w2 hold another history" in str(refused.value)
    assert (first.size, second.size, (await log.checkpointer.newest()).size) == (3, 4, 4)
    asked.cosigns = "w0 w1"
    await asked.round()
    assert (await log.checkpointer.sign()).size == 5


@pytest.mark.parametrize("damage", ["entry", "node"])
async def test_a_damaged_log_is_no_other_history_and_goes_on(
    world: World, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """A witness whose proof leads over the place gets none; the others are served, and nothing stops."""
    log = world.open()
    await grown(world, log, 6)
    gone = (
        delete(ENTRY).where(ENTRY.c.idx == 2)
        if damage == "entry"
        else update(NODE).where(NODE.c.level == 1, NODE.c.position == 0).values(hash=bytes(32))
    )
    log.database.write_now(lambda connection: connection.execute(gone) and None)
    asked = Asked(world, log, "", Answer(422, "text/plain", "no\n"))
    asked.cosigns = "w2"
    asked.knows("w0", 3)
    asked.knows("w1", 3)
    for _ in range(3):
        await asked.round()
    assert not asked.guard.older
    for name in ("w0", "w1"):
        assert asked.guard.witnesses[name][1].startswith("damaged: it cannot be given a proof from 3")
        assert asked.bodies[name] == []
    assert asked.guard.witnesses["w2"] == (6, "")
    assert caplog.text.count("witness w0: damaged") == 1
    assert (await grown(world, log, 1)).size == 7
