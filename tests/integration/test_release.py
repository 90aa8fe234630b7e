"""The release service as it runs: over mTLS, beside a real log, killed in the middle of an upload."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.evidence import EvidenceProcess
from tests.support.pki import ORGANIZATION, SITE, Credential, TestPki
from tests.unit.feed.support import until
from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.api.release.v1 import release_pb2 as pb
from vigil.api.release.v1 import release_pb2_grpc
from vigil.core import cbor, dsse
from vigil.core.baselines import baseline_from_json
from vigil.core.clock import SystemClock
from vigil.core.digest import sha256
from vigil.core.profiles import profile_from_json
from vigil.core.statements.bodies import Baseline, BaselineKind, Release
from vigil.core.statements.envelope import Scribe
from vigil.errors import Reason, Refused
from vigil.feed import Change, Replica
from vigil.rpc.channel import Channels
from vigil.rpc.status import translated

DATA = Path(__file__).parents[2] / "services" / "vigil" / "demo" / "data"
FIRMWARE = os.urandom(5_000_000)
DIGEST = sha256(FIRMWARE)
CHUNK = 256 << 10


class ReleaseProcess:
    """``python -m vigil.release`` on a folder; started, killed and started again."""

    def __init__(self, pki: TestPki, folder: Path, *, peers: Mapping[str, str]) -> None:
        self.data, self.port = folder / "release", 0
        self._config, self._log = folder / "release.toml", folder / "release.log"
        files = pki.service("release").tls_files
        values = {
            "data_dir": str(self.data),
            "listen": "127.0.0.1:0",
            "trust_domain": pki.trust_domain,
            "certificate": str(files.certificate),
            "key": str(files.key),
            "trust": str(files.trust),
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        lines += ["[peers]", *(f"{name} = {json.dumps(value)}" for name, value in peers.items())]
        self._config.write_text("\n".join(lines) + "\n")
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        reading, writing = os.pipe()
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "vigil.release", "--config", str(self._config)),
                *("--ready-fd", str(writing)),
                pass_fds=(writing,),
                stderr=log,
            )
        os.close(writing)
        with os.fdopen(reading) as pipe:
            line = await asyncio.to_thread(pipe.readline)
        assert line, self._log.read_text()
        self.port = json.loads(line)["port"]

    async def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        return await self._process.wait()


class World:
    """Both processes, a manufacturer, and people with their own certificates."""

    def __init__(self, folder: Path) -> None:
        self.pki = TestPki(folder)
        self.maker = self.pki.manufacturer()
        self.evidence = EvidenceProcess(self.pki, folder)
        self.folder = folder
        self.publisher = self.pki.person("p-publisher", "publisher", organization="maker", sites=("*",))
        self.signer = self.pki.person("p-signer", "baseline-signer")
        self._closing: list[Callable[[], Awaitable[None]]] = []

    async def start(self) -> "World":
        await self.evidence.start()
        self.release = ReleaseProcess(self.pki, self.folder, peers={"evidence": self.evidence.address})
        await self.release.start()
        return self

    async def close(self) -> None:
        for close in self._closing:
            await close()
        await self.release.end(signal.SIGTERM)
        await self.evidence.stop()

    def channel(self, who: Credential, role: str = "release") -> grpc.aio.Channel:
        channels = Channels(tls=who.tls_files, trust_domain=self.pki.trust_domain, clock=SystemClock())
        self._closing.append(channels.close)
        port = self.release.port if role == "release" else self.evidence.port
        return channels.service(f"127.0.0.1:{port}", role)

    def stub(self, who: Credential) -> Any:
        return release_pb2_grpc.ReleaseServiceStub(self.channel(who))

    def artifacts(self, who: Credential) -> Any:
        return release_pb2_grpc.ArtifactServiceStub(self.channel(who))

    def sign(self, who: Credential, body: Any, subject: str) -> bytes:
        scribe = Scribe(
            signer=who.signer,
            issuer=who.issuer_name,
            clock=SystemClock(),
            entropy=os.urandom,
            numbered=False,
        )
        return scribe.sign(body, subject=subject).data

    async def publish_model(self) -> pb.Model:
        profile = profile_from_json((DATA / "pump-profile.json").read_text())
        data = self.sign(self.maker.credential("profile"), profile, "model/aria-3000")
        return await translated(self.stub(self.publisher).PublishModel(pb.PublishModelRequest(profile=data)))

    async def publish_build(self) -> pb.Release:
        document = (DATA / "proton-bridge-v1.8.0.cdx.json").read_bytes()
        body = Release(
            model="aria-3000",
            version="1.8.0",
            firmware=DIGEST,
            size=len(FIRMWARE),
            security_version=4,
            sbom=sha256(document),
            udi_di="09504000059118",
        )
        statement = dsse.in_toto_statement(name="f", sha256=DIGEST, predicate=json.loads(document))
        request = pb.PublishReleaseRequest(
            release=self.sign(self.maker.credential("release"), body, f"build/{DIGEST.hex()}"),
            sbom_attestation=dsse.make_dsse(statement, signer=self.maker.signer("release")),
            sbom=document,
        )
        return await translated(self.stub(self.publisher).PublishRelease(request))

    async def publish_baseline(self, name: str = "baseline-configuration") -> pb.Baseline:
        source = baseline_from_json((DATA / f"{name}.json").read_text())
        now = SystemClock().now()
        body = Baseline(
            baseline_kind=source.kind,
            name=source.name,
            site=SITE,
            organization=ORGANIZATION,
            content=sha256(source.content),
            size=len(source.content),
            models=source.models,
            valid_from=now,
            valid_to=now + 86_400_000,
        )
        request = pb.PublishBaselineRequest(
            baseline=self.sign(self.signer, body, f"site/{SITE}"), content=source.content
        )
        return await translated(self.stub(self.signer).PublishBaseline(request))

    async def upload(self, data: bytes = FIRMWARE, *, offset: int = 0) -> pb.UploadArtifactResponse:
        return await translated(self.artifacts(self.publisher).UploadArtifact(requests(data, offset)))


async def requests(data: bytes, offset: int) -> AsyncIterator[pb.UploadArtifactRequest]:
    start = pb.UploadStart(digest=sha256(data), size=len(data), offset=offset)
    yield pb.UploadArtifactRequest(start=start)
    for at in range(offset, len(data), CHUNK):
        yield pb.UploadArtifactRequest(chunk=data[at : at + CHUNK])


async def fetch(world: World, who: Credential, digest: bytes, offset: int = 0) -> bytes:
    got = bytearray()
    call = world.artifacts(who).FetchArtifact(pb.FetchArtifactRequest(digest=digest, offset=offset))
    async for piece in call:
        assert piece.offset == offset + len(got)
        got += piece.chunk
    return bytes(got)


async def reason_of(awaitable: Awaitable[Any]) -> Reason:
    with pytest.raises(Refused) as caught:
        await translated(awaitable)
    return caught.value.reason


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = await World(tmp_path).start()
    yield world
    await world.close()


async def test_from_publication_to_gateway_and_record(world: World) -> None:
    rows: dict[tuple[str, str], bytes] = {}

    def apply(change: Change) -> None:
        rows[change.kind, change.key] = change.value

    gateway = world.pki.gateway()
    channel = world.channel(gateway)
    replica = Replica(
        channel_factory=lambda: channel,
        name="release",
        clock=SystemClock(),
        entropy=os.urandom,
        on_change=apply,
        on_reset=rows.clear,
    )
    task = asyncio.create_task(replica.run())
    model = await world.publish_model()
    assert (await world.upload()).complete
    build = await world.publish_build()
    baseline = await world.publish_baseline()
    library = await world.publish_baseline("drug-library")
    assert build.component_count == 201
    assert library.kind == BaselineKind.DRUG_LIBRARY
    await until(lambda: len(rows) == 4)
    assert rows["model", "aria-3000"] == model.SerializeToString(deterministic=True)
    assert pb.Release.FromString(rows["release", DIGEST.hex()]) == build
    assert await fetch(world, gateway, DIGEST, 1_000_001) == FIRMWARE[1_000_001:]
    assert cbor.decode(await fetch(world, gateway, baseline.content))["occlusion_pressure"] == 300

    reader = world.pki.person("p-auditor", "auditor", organization="maker", sites=("*",))
    log = evidence_pb2_grpc.EvidenceReadServiceStub(world.channel(reader, "evidence"))
    async with asyncio.timeout(30):
        while True:
            request = evidence_pb2.ListHistoryRequest(subject="model/aria-3000", page_size=10)
            entries = (await translated(log.ListHistory(request))).entries
            if len(entries) == 2:
                break
            await asyncio.sleep(0.05)
    assert [entry.kind for entry in entries] == ["profile", "release"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_killed_in_the_middle_of_an_upload_it_goes_on_from_there(world: World) -> None:
    half = len(FIRMWARE) // 2 // CHUNK * CHUNK
    arrived = asyncio.Event()

    async def slow() -> AsyncIterator[pb.UploadArtifactRequest]:
        async for request in requests(FIRMWARE[:half] + FIRMWARE[half:], 0):
            if request.WhichOneof("message") == "chunk":
                sent.append(len(request.chunk))
            if sum(sent) > half:
                arrived.set()
                await asyncio.Event().wait()
            yield request

    sent: list[int] = []
    stub = world.artifacts(world.publisher)
    call = stub.UploadArtifact(slow())
    await arrived.wait()
    partial = world.release.data / "artifacts" / "partial" / DIGEST.hex()
    await until(lambda: partial.exists() and partial.stat().st_size == half)
    assert await world.release.end(signal.SIGKILL) == -signal.SIGKILL
    assert await reason_of(call) is Reason.SERVICE_UNAVAILABLE
    await world.release.start()
    stub = world.artifacts(world.publisher)
    progress = await translated(stub.GetUpload(pb.GetUploadRequest(digest=DIGEST)))
    assert (progress.received, progress.complete) == (half, False)
    assert await reason_of(stub.UploadArtifact(requests(FIRMWARE, 0))) is Reason.STATE_CONFLICT
    assert (await world.upload(offset=half)).complete
    await world.publish_model()
    await world.publish_build()
    assert await fetch(world, world.pki.gateway(), DIGEST) == FIRMWARE
    assert not partial.exists()


async def test_killed_it_forgets_nothing_published(world: World) -> None:
    model = await world.publish_model()
    baseline = await world.publish_baseline()
    await world.release.end(signal.SIGKILL)
    await world.release.start()
    stub = world.stub(world.signer)
    assert await translated(stub.GetModel(pb.GetModelRequest(model="aria-3000"))) == model
    listed = await translated(stub.ListBaselines(pb.ListBaselinesRequest()))
    assert list(listed.baselines) == [baseline]


async def test_who_may_do_what(world: World) -> None:
    technician = world.pki.person("p-technician", "technician")
    stub, artifacts = world.stub(technician), world.artifacts(technician)
    for call in (
        stub.PublishModel(pb.PublishModelRequest()),
        stub.PublishRelease(pb.PublishReleaseRequest()),
        stub.PublishBaseline(pb.PublishBaselineRequest()),
        artifacts.UploadArtifact(requests(b"x", 0)),
        artifacts.GetUpload(pb.GetUploadRequest(digest=DIGEST)),
    ):
        assert await reason_of(call) is Reason.ROLE_NOT_PERMITTED
    await world.publish_model()
    assert len((await translated(stub.ListModels(pb.ListModelsRequest()))).models) == 1
    assert await reason_of(stub.GetRelease(pb.GetReleaseRequest(release="a@1"))) is Reason.RESOURCE_NOT_FOUND
    gateway = world.artifacts(world.pki.gateway())
    missing = gateway.FetchArtifact(pb.FetchArtifactRequest(digest=DIGEST))
    assert await reason_of(missing.read()) is Reason.RESOURCE_NOT_FOUND
    await world.upload()
    unpublished = gateway.FetchArtifact(pb.FetchArtifactRequest(digest=DIGEST))
    assert await reason_of(unpublished.read()) is Reason.RESOURCE_NOT_FOUND
    assert await reason_of(gateway.GetUpload(pb.GetUploadRequest(digest=DIGEST))) is Reason.ROLE_NOT_PERMITTED


async def test_a_refused_upload_says_why_to_whoever_goes_on_sending_or_waits(world: World) -> None:
    stub = world.artifacts(world.publisher)
    for _ in range(30):
        assert await reason_of(stub.UploadArtifact(requests(FIRMWARE, CHUNK))) is Reason.STATE_CONFLICT
    call = stub.UploadArtifact()
    start = pb.UploadStart(digest=DIGEST, size=len(FIRMWARE), offset=1)
    await call.write(pb.UploadArtifactRequest(start=start))
    assert await reason_of(call) is Reason.STATE_CONFLICT
    await world.upload()
    for _ in range(5):
        assert (await world.upload()).complete


async def test_an_upload_begins_with_its_start(world: World) -> None:
    async def headless() -> AsyncIterator[pb.UploadArtifactRequest]:
        yield pb.UploadArtifactRequest(chunk=b"x")

    async def twice() -> AsyncIterator[pb.UploadArtifactRequest]:
        for _ in range(2):
            yield pb.UploadArtifactRequest(start=pb.UploadStart(digest=DIGEST, size=9))

    stub = world.artifacts(world.publisher)
    for stream in (headless(), twice()):
        assert await reason_of(stub.UploadArtifact(stream)) is Reason.FIELD_INVALID
    wrong = FIRMWARE[:1000]
    start = pb.UploadStart(digest=DIGEST, size=len(wrong))

    async def corrupt() -> AsyncIterator[pb.UploadArtifactRequest]:
        yield pb.UploadArtifactRequest(start=start)
        yield pb.UploadArtifactRequest(chunk=wrong)

    assert await reason_of(stub.UploadArtifact(corrupt())) is Reason.ARTIFACT_CORRUPT
    progress = await translated(stub.GetUpload(pb.GetUploadRequest(digest=DIGEST)))
    assert (progress.received, progress.complete) == (0, False)
