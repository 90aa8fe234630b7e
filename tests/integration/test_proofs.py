"""Proofs made by a running service, taken away, and checked by the command line when the service is gone."""

import asyncio
import base64
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.evidence import EvidenceProcess, HoldWriter
from tests.support.pki import ORGANIZATION, SITE, TestPki
from tests.support.reading import CommandLine
from tests.support.stack import eventually
from tests.unit.cli.support import conforms, run
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.core.certificates import Kind
from vigil.core.clock import SystemClock
from vigil.core.merkle import leaf_hash, root_of_path
from vigil.core.notes import parse_verifier_key, verifier_key
from vigil.feed.evidence import EvidenceAppender
from vigil.rpc import status
from vigil.rpc.channel import Channels

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWNER = {"organization_id": ORGANIZATION, "site_id": SITE}
MANY, ONE = "device/dev-aaaaaaaaaaaaaaaa", "device/dev-bbbbbbbbbbbbbbbb"
NONE = "device/dev-zzzzzzzzzzzzzzzz"
LONG = "device/dev-cccccccccccccccc"
LONGER_THAN_AN_ANSWER = 1_003


class World:
    """A service that counts its subjects every second, an auditor, and what was proved while it ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = TestPki(folder)
        self.process = EvidenceProcess(self.pki, folder, settings={"census_seconds": "1"}, tiles="http")
        self.writer = HoldWriter(self.pki.person("p-safety", "safety"))
        self.proofs: dict[str, Path] = {}
        self.records: list[tuple[int, str]] = []
        self.log_key = ""
        self.recounted: dict[str, Any] = {}

    async def build(self) -> None:
        await self.process.start()
        self.auditor = CommandLine(
            self.folder / "auditor",
            self.pki.person("p-auditor", "auditor"),
            trust_domain=self.pki.trust_domain,
            evidence=self.process.address,
        )
        self.channels = Channels(
            tls=self.pki.service("policy").tls_files,
            trust_domain=self.pki.trust_domain,
            clock=SystemClock(),
        )
        self.appender = EvidenceAppender(
            channel=self.channels.service(self.process.address, "evidence"), entropy=os.urandom, streams=1
        )
        self.reading = Channels(
            tls=self.pki.person("p-reader", "auditor").tls_files,
            trust_domain=self.pki.trust_domain,
            clock=SystemClock(),
        )
        self.reader = evidence_pb2_grpc.EvidenceReadServiceStub(
            self.reading.service(self.process.address, "evidence")
        )
        await self.append(MANY, 2)

        async def signed() -> Any:
            request = evidence_pb2.GetCheckpointRequest()
            return (await status.translated(self.reader.GetCheckpoint(request))).size >= 2

        await eventually(signed, what="a checkpoint over both")
        first = await self.auditor.run("evidence", "checkpoint")
        self.log_key = first["verifier_key"]
        self.keep("known", json.dumps(first))
        await self.append(MANY, 3)
        await self.append(ONE, 1)

    async def append(self, subject: str, count: int) -> None:
        for _ in range(count):
            hold = self.writer.hold(subject.partition("/")[2])
            place = await self.appender.append(hold.data, bodies=[b"input"], **OWNER)
            self.records.append((place.index, hold.digest.hex()))

    def keep(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        self.proofs[name] = path
        return path

    async def prove(self, name: str, *words: object, code: int = 0) -> Any:
        text = await self.auditor.said("evidence", "prove", *words, code=code)
        value = json.loads(text)
        conforms(value, "proof")
        self.keep(name, text)
        return value

    async def counted(self, subject: str, number: int) -> Any:
        """A proof of a subject, once a census counts so many records of it."""

        async def proved() -> Any:
            request = evidence_pb2.GetSubjectProofRequest(subject=subject)
            found = await status.translated(self.reader.GetSubjectProof(request))
            if not found.items or found.items[0].number != number:
                return None
            value = await self.prove(subject.replace("/", "-"), "--subject", subject)
            items = value["subjects"][0]["census"]["items"]
            return value if items and items[0]["number"] == number else None

        return await eventually(proved, what=f"{subject} is counted", pause=0.3)

    def check(self, name: str, *words: object, code: int = 0, trust: Path | None = None) -> Any:
        """Check with nothing but the trust bundle, and no service anywhere."""
        line = ("evidence", "check", self.proofs[name], "--trust", trust or self.auditor.trust, *words)
        done = run("--output", "json", *line, data=self.folder / "nothing")
        assert done.code == code, done.out + done.err
        if "error" not in done.json:
            conforms(done.json, "proof-checked")
            assert done.json["holds"] is (code == 0)
        return done.json


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Everything is proved on line; then the service is stopped."""
    world = World(tmp_path_factory.mktemp("proofs"))
    await world.build()
    await world.counted(MANY, 5)
    await world.counted(ONE, 1)
    holds = [world.writer.hold(LONG.partition("/")[2]).data for _ in range(LONGER_THAN_AN_ANSWER)]
    await asyncio.gather(*(world.appender.append(data, **OWNER) for data in holds))
    await world.counted(LONG, LONGER_THAN_AN_ANSWER)
    await world.prove("absent", "--subject", NONE)
    for name, when in (("moment", "now"), ("before", "300d")):
        world.proofs[name] = world.folder / name
        await world.auditor.run("evidence", "at", MANY.partition("/")[2], when, "--proof", world.proofs[name])
    digests = [digest for _, digest in world.records]
    await world.prove("both", "--subject", MANY, "--subject", NONE, digests[0], digests[4])
    await world.prove("tail", "--subject", MANY, "--from", 4)
    await world.prove("records", digests[1], world.records[3][0])
    await world.prove("extends", digests[5], "--known", world.proofs["known"])
    await world.prove("grown", "--known", world.proofs["known"], "--cose", world.folder / "grown.cose")
    await world.prove("receipt", digests[2], "--cose", world.folder / "receipt.cose")
    world.proofs |= {name: world.folder / name for name in ("grown.cose", "receipt.cose")}
    for name in ("both", LONG.replace("/", "-")):
        line = ("evidence", "check", world.proofs[name], "--trust", world.auditor.trust)
        world.recounted[name] = await world.auditor.run(*line, "--tiles", world.process.tiles)
    await world.appender.close()
    await world.channels.close()
    await world.reading.close()
    address = world.process.address
    await world.process.stop()
    host, _, port = address.partition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port))).close()
    yield world


def sentences(value: Any, of: str) -> list[str]:
    return [one["sentence"] for one in value["findings"] if one["property"] == of]


# --- what holds


@pytest.mark.parametrize(
    "name", ["device-dev-aaaaaaaaaaaaaaaa", "device-dev-bbbbbbbbbbbbbbbb", "absent", "both", "tail"]
)
async def test_a_subject_is_checked_with_the_trust_bundle_alone(world: World, name: str) -> None:
    """The census in it names the log's key, and hangs under the root."""
    value = world.check(name)
    assert value["not_proved"]
    assert world.proofs[name].stat().st_size < 16_000


@pytest.mark.parametrize("name", ["moment", "before"])
async def test_a_moment_is_checked_with_the_trust_bundle_alone(world: World, name: str) -> None:
    """It takes along what the census counts of the device, to its newest record, and with it the log's key."""
    (sentence,) = sentences(world.check(name), "completeness")
    assert sentence.startswith(f"Records 1 to 5 of {MANY} are here")
    assert "counts 5 in the log's first" in sentence
    assert world.check(name, "--log", world.log_key)["holds"]


async def test_a_long_history_is_proved_in_one_piece(world: World) -> None:
    """It takes more than one answer; each record adds its leaf."""
    name = LONG.replace("/", "-")
    (sentence,) = sentences(world.check(name), "completeness")
    assert f"Records 1 to {LONGER_THAN_AN_ANSWER} of {LONG}" in sentence
    value = json.loads(world.proofs[name].read_text())
    assert len(value["subjects"][0]["leaves"]) == LONGER_THAN_AN_ANSWER
    assert world.proofs[name].stat().st_size < 500 * LONGER_THAN_AN_ANSWER


async def test_a_census_was_counted_again_from_the_tiles(world: World) -> None:
    for value in world.recounted.values():
        conforms(value, "proof-checked")
        assert "counted from the tiles, and the census at" in sentences(value, "completeness")[-1]
    value = world.check("records", "--log", world.log_key, "--tiles", world.process.tiles, code=2)
    assert "no census" in value["error"]["sentence"]
    value = world.check("both", "--tiles", "ftp://x", code=2)
    assert "--tiles begins" in value["error"]["sentence"]
    line = ("evidence", "check", world.proofs["both"], "--trust", world.auditor.trust)
    value = await world.auditor.run(*line, "--tiles", world.process.tiles, code=1)
    assert value["error"]["reason"] == "ERROR", "the service is gone"


async def test_what_was_proved_is_said_in_words(world: World) -> None:
    complete = world.check("device-dev-aaaaaaaaaaaaaaaa")
    (sentence,) = sentences(complete, "completeness")
    assert sentence.startswith(
        f"Records 1 to 5 of {MANY} are here, each naming the one before it; the census at "
    )
    (sentence,) = sentences(world.check("absent"), "absence")
    assert NONE in sentence
    assert "leaves no room" in sentence
    (sentence,) = sentences(world.check("tail"), "completeness")
    assert "the 3 before are not shown" in sentence
    words = await world.auditor.said(
        "evidence", "check", world.proofs["tail"], "--trust", world.auditor.trust, json_output=False
    )
    assert "All of it holds." in words
    assert "What was recorded after the census." in words


async def test_records_without_a_census_need_the_logs_key(world: World) -> None:
    value = world.check("records", code=3)
    assert sentences(value, "checkpoint") == [
        "Nothing in it names the log's key, and none was given: give it with --log."
    ]
    assert (world.check("records", "--log", world.log_key))["holds"]
    world.keep("log.pub", world.log_key + "\n")
    value = world.check("records", "--log", world.proofs["log.pub"])
    assert {one["index"] for one in value["findings"]} == {None, world.records[1][0], world.records[3][0]}
    policy = world.keep("policy", f"log {world.log_key}\nquorum none\n")
    value = world.check("records", "--policy", policy)
    assert "asks for no witness" in sentences(value, "witnesses")[0]


async def test_a_known_checkpoint_is_led_on_from(world: World) -> None:
    believes = ("--log", world.log_key, "--known", world.proofs["known"])
    assert len(sentences(world.check("extends", *believes), "consistency")) == 2
    assert (world.check("grown", *believes))["holds"]
    assert (world.check("grown.cose", *believes))["holds"]
    value = world.check("records", *believes, code=3)
    assert "does not show that it extends" in sentences(value, "consistency")[0]


async def test_a_proof_older_than_the_known_checkpoint_says_so(world: World) -> None:
    older = json.loads(world.proofs["known"].read_text())["note"]
    newer = json.loads(world.proofs["receipt"].read_text())["checkpoint"]
    world.keep("newer", newer)
    value = json.loads(world.proofs["records"].read_text())
    world.keep("old", json.dumps({**value, "checkpoint": older, "records": []}))
    value = world.check("old", "--log", world.log_key, "--known", world.proofs["newer"], code=3)
    assert "is older than the known one" in sentences(value, "consistency")[0]


# --- COSE Receipts, by another CBOR library and nothing of ours but the hashing of trees


async def test_a_receipt_is_checked_with_other_peoples_tools(world: World) -> None:
    data = world.proofs["receipt.cose"].read_bytes()
    receipt = cbor2.loads(data)
    assert receipt.tag == 18
    protected, unprotected, payload, signature = receipt.value
    headers = cbor2.loads(protected)
    assert (headers[1], headers[395], payload) == (-8, 1, None)
    assert headers[15] == {1: "vigil.test/evidence"}
    (proof,) = unprotected[396][-1]
    size, index, path = cbor2.loads(proof)
    leaf = unprotected["vigil.leaf"]
    assert (index, cbor2.loads(leaf)[1]) == (world.records[2][0], "hold")
    root = root_of_path(leaf=leaf_hash(leaf), index=index, size=size, path=path)
    signed = cbor2.dumps(["Signature1", protected, b"", root])
    _, public = parse_verifier_key(world.log_key)
    Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)
    record = json.loads(world.proofs["receipt"].read_text())["records"][0]
    assert base64.b64decode(record["leaf"]) == leaf
    assert (world.check("receipt.cose", "--log", world.log_key))["holds"]


async def test_every_byte_of_a_receipt_counts(world: World) -> None:
    from vigil.core.receipts import check_inclusion_receipt, read_receipt
    from vigil.errors import Refused

    data = world.proofs["receipt.cose"].read_bytes()
    receipt = read_receipt(data)
    check_inclusion_receipt(receipt, world.log_key, receipt.leaf)
    accepted = []
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            one = read_receipt(changed)
            check_inclusion_receipt(one, world.log_key, receipt.leaf)
        except Refused:
            continue
        accepted.append((at, one.proof))
    # The size beside the path is not under the signature; another one is taken where the path is the same for both.
    assert all(
        proof == receipt.proof or (proof.second, proof.path) == (receipt.proof.second, receipt.proof.path)
        for _, proof in accepted
    )
    assert len(accepted) <= 2, "the bytes of the size, and no other"


# --- what is not a proof


def other_key() -> str:
    public = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return verifier_key("vigil.test/evidence", public)


@pytest.mark.holds("hostile-input")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "STATEMENT_MALFORMED"),
        (b"{}", "STATEMENT_MALFORMED"),
        (b"[1]", "STATEMENT_MALFORMED"),
        (b"\xff\xfe\x00", "STATEMENT_MALFORMED"),
        (b"\xd2\x84", "STATEMENT_MALFORMED"),
        (b'{"vigil_evidence": 2}', "STATEMENT_MALFORMED"),
        (b"[" * 5_000, "STATEMENT_MALFORMED"),
    ],
)
async def test_a_wrong_file_is_refused(world: World, content: bytes, reason: str) -> None:
    path = world.folder / "wrong"
    path.write_bytes(content)
    world.proofs["wrong"] = path
    value = world.check("wrong", "--log", world.log_key, code=3)
    assert value["error"]["reason"] == reason
    assert value["error"]["lifted_by"]


async def test_a_file_cut_short_is_refused(world: World) -> None:
    for name in ("both", "receipt.cose"):
        data = world.proofs[name].read_bytes()
        path = world.folder / f"cut-{name}"
        path.write_bytes(data[: len(data) // 2])
        world.proofs[path.name] = path
        value = world.check(path.name, "--log", world.log_key, code=3)
        assert value["error"]["reason"] == "STATEMENT_MALFORMED"


async def test_files_that_are_not_there_or_no_trust_are_told(world: World) -> None:
    world.proofs["missing"] = world.folder / "missing"
    assert (world.check("missing", code=1))["error"]["reason"] == "ERROR"
    value = world.check("both", trust=world.proofs["both"], code=3)
    assert value["error"]["reason"] == "CERTIFICATE_INVALID"
    value = world.check("receipt.cose", code=2)
    assert "--log" in value["error"]["sentence"]
    value = world.check("grown.cose", "--log", world.log_key, code=2)
    assert "--known" in value["error"]["sentence"]
    value = world.check("records", "--log", "vigil.test/evidence+00000000+AAAA", code=3)
    assert sentences(value, "checkpoint") == [
        "This is not an Ed25519 verifier key as C2SP signed-note writes them."
    ]


@pytest.mark.holds("insider-evidence")
async def test_another_logs_checkpoint_key_and_root_are_refused(world: World, tmp_path: Path) -> None:
    assert not (world.check("both", "--log", other_key(), code=3))["holds"]
    assert not (world.check("receipt.cose", "--log", other_key(), code=3))["holds"]
    other = TestPki(tmp_path / "twin")
    assert not world.check("both", trust=other.trust, code=3)["holds"], "the same name, another root"
    elsewhere = world.pki.other_domain()
    value = world.check("both", trust=elsewhere.trust, code=3)
    assert "another trust domain" in sentences(value, "checkpoint")[0]


@pytest.mark.holds("insider-evidence")
async def test_strangers_cosignatures_satisfy_nobodys_policy(world: World) -> None:
    from vigil.core.notes import cosign, cosigner_key

    value = json.loads(world.proofs["both"].read_text())
    text = value["checkpoint"].rpartition("\n\n")[0] + "\n"

    def line(key: Ed25519PrivateKey) -> tuple[str, str]:
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        signed = cosign(text, time=1_790_000_000, name="witness.test/w", public_key=public, sign=key.sign)
        return cosigner_key("witness.test/w", public), signed

    wanted, own = line(Ed25519PrivateKey.generate())
    _, strange = line(Ed25519PrivateKey.generate())
    policy = world.keep("quorum", f"witness w {wanted}\nquorum w\n")
    world.keep("strange", json.dumps({**value, "checkpoint": value["checkpoint"] + strange}))
    refused = world.check("strange", "--policy", policy, code=3)
    assert "cosigned by 0 of 1" in sentences(refused, "witnesses")[0]
    world.keep("held", json.dumps({**value, "checkpoint": value["checkpoint"] + strange + own}))
    held = world.check("held", "--policy", policy)
    assert sentences(held, "witnesses") == ["Held by 1 of 1 witnesses: w."]


async def test_prove_says_what_it_cannot(world: World) -> None:
    value = await world.auditor.run("evidence", "prove", code=2)
    assert value["error"]["reason"] == "USAGE"
    world.keep("no-checkpoint", "{}")
    value = await world.auditor.run("evidence", "prove", 1, "--known", world.proofs["no-checkpoint"], code=2)
    assert "holds no checkpoint" in value["error"]["sentence"]


# --- every member of a proof


def members(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every leaf, list and object of a JSON value is."""
    found = [path] if path else []
    if isinstance(value, dict):
        for name, item in value.items():
            found += members(item, (*path, name))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            found += members(item, (*path, place))
    return found


def changes(value: Any) -> list[Any]:
    """What one member could be instead."""
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int):
        return [value + 1, value - 1, str(value), float(value) + 0.5, True]
    if isinstance(value, str):
        flipped = [
            value[:at] + ("A" if value[at] != "A" else "B") + value[at + 1 :] for at in {0, len(value) // 2}
        ]
        return ["", value + "A", value[:-1], *(flipped if value else [])]
    if isinstance(value, list):
        return [[], [*value, *value[-1:]], value[::-1], value[1:], {}] if value else [[""], {}]
    return [
        None,
        {},
        {**value, "more": 1},
        *({k: v for k, v in value.items() if k != name} for name in value),
    ]


def with_member(value: Any, path: tuple[Any, ...], member: Any) -> Any:
    first, *rest = path
    item = member if not rest else with_member(value[first], tuple(rest), member)
    if isinstance(value, dict):
        return {**value, first: item}
    return [*value[:first], item, *value[first + 1 :]]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


@pytest.mark.holds("insider-evidence")
@pytest.mark.parametrize("name", ["both", "extends"])
async def test_no_member_of_a_proof_can_be_another(world: World, name: str) -> None:
    """Every value, list and object changed in several ways: refused, or it claims less and says so."""
    from vigil.core.certificates import ChainVerifier, TrustBundle
    from vigil.errors import Refused
    from vigil.verify import document_from_value, verify_document

    verifier = ChainVerifier(TrustBundle.from_json(world.auditor.trust.read_text()))
    note = json.loads(world.proofs["known"].read_text())["note"] if name == "extends" else ""

    def accepted(value: Any) -> bool:
        try:
            document = document_from_value(value)
        except Refused:
            return False
        fresh = ChainVerifier(verifier.bundle)
        return verify_document(document, verifier=fresh, verifier_key=world.log_key, known=note).holds

    whole = json.loads(world.proofs[name].read_text())
    assert accepted(whole)
    survived = [
        (path, change)
        for path in members(whole)
        for change in changes(at(whole, path))
        if change != at(whole, path) and accepted(with_member(whole, path, change))
    ]
    less = [(path, change) for path, change in survived if not claims_less(path, change)]
    assert less == [], "\n".join(f"{path}: {change!r:.80}" for path, change in less)
    assert len(survived) < 60


def claims_less(path: tuple[Any, ...], change: Any) -> bool:
    """What may be left out, since the proof then says less: a whole claim, record, consistency, a body, a statement."""
    match path:
        case ["subjects" | "records" | "consistency"]:
            return isinstance(change, list)
        case ["records", _, "bodies" | "statement"]:
            return change in ([], "")
        case ["subjects", 1, "subject"]:
            return str(change).startswith("device/")  # another subject that is not there either
        case ["subjects", _, "census"]:
            return change is None  # a stretch, where its last record is there
    return False


async def test_a_signer_made_before_there_were_censuses_is_told(tmp_path: Path) -> None:
    """A data folder of an earlier version: the service says what is missing and does not start."""
    pki = TestPki(tmp_path)
    old = pki.issue(Kind.SIGNER, "recorded-old", statements=("recorded",))
    settings = {"signer_certificate": str(old.tls_files.certificate), "signer_key": str(old.tls_files.key)}
    process = EvidenceProcess(pki, tmp_path, settings=settings)
    with pytest.raises(RuntimeError, match="was not made for `census`"):
        await process.start()
