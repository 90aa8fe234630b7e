"""Attestations: challenge, evidence, appraisal, signed result, all of it durable; beside bare `cwt` verifies.

Attestation and evidence are processes of their own over mTLS, fed by real feeds; devices sign real EATs over logs that
grow by two leaves (a command and its receipt) each time. Both figures are for one core: per second of CPU time.
"""

import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cwt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.benchmarks import parts
from tests.benchmarks.processes import ServiceProcess
from tests.benchmarks.result import Progress, Result, Row, percentile, ratio_at_least
from tests.support.evidence import EvidenceProcess
from tests.support.pki import ORGANIZATION, SITE, Credential, TestPki
from tests.support.policy_room import MODEL, RUNNING, WARD, PolicyRoom
from tests.support.policy_world import Owner
from tests.support.statements import EXAMPLES
from vigil.api.attestation.v1 import attestation_pb2, attestation_pb2_grpc
from vigil.attestation import domain
from vigil.attestation.domain import EAT_PROFILE, NO_LIBRARY
from vigil.core import cbor, cose
from vigil.core.clock import SystemClock
from vigil.core.digest import sha256
from vigil.core.merkle import Frontier, leaf_hash
from vigil.core.statements.bodies import Evidence, LogHead, Measurements, Release, TrustTier
from vigil.core.statements.bodies import Result as TrustResult
from vigil.core.statements.envelope import Scribe, read
from vigil.errors import Refused
from vigil.feed.evidence import EvidenceAppender
from vigil.rpc.channel import Channels
from vigil.rpc.streams import Exchange

TITLE = "Attestations, appraised and durable"

DEVICES = CALLERS = 64
SENT = 1_024
"""Statements that the cost of sending one is taken from."""
STREAMS = 2
"""As a gateway has."""
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
START_S = 30.0

Attesting = Exchange[attestation_pb2.AttestItem, attestation_pb2.AttestOutcome]


class Device:
    """A device's side: its key, and its log as far as an attestation shows it."""

    def __init__(self, number: int, pki: TestPki) -> None:
        self.device_id = "dev-" + "".join(LETTERS[number >> 5 * place & 31] for place in range(16))
        self.attester: Credential = pki.attester(self.device_id)
        self._frontier = Frontier.empty()
        self._counter = 0
        self._scribe = Scribe(
            signer=self.attester.signer,
            issuer=self.attester.issuer_name,
            clock=SystemClock(),
            entropy=os.urandom,
            numbered=True,
        )

    def submission(self, nonce: bytes) -> attestation_pb2.Submission:
        """Evidence over a challenge, after one more command."""
        now = SystemClock().now()
        first = self._frontier.size
        leaves = [
            _leaf(kind, digest, now)
            for kind, digest in ([("boot", RUNNING), ("configuration", WARD)] if not first else [])
            + [("command", os.urandom(32)), ("receipt", os.urandom(32))]
        ]
        self._frontier = self._frontier.extend([leaf_hash(leaf) for leaf in leaves])
        self._counter += 1
        body = replace(
            EXAMPLES[Evidence],
            eat_nonce=nonce,
            eat_profile=EAT_PROFILE,
            measurements=Measurements(RUNNING, WARD, NO_LIBRARY, sha256(b"sbom")),
            log=LogHead(self._frontier.size, self._frontier.root(), self._counter),
            swversion=("v3",),
        )
        evidence = self._scribe.sign(body, subject=f"device/{self.device_id}")
        return attestation_pb2.Submission(evidence=evidence.data, first_leaf=first, leaves=leaves)


def _leaf(kind: str, digest: bytes, time_ms: int) -> bytes:
    return cbor.encode({"kind": kind, "time": time_ms, "boot": 2, "digest": digest})


async def run(progress: Progress, *, quick: bool = False) -> Result:
    """Measure the verifies, then attestations from 64 devices at once, then one at a time."""
    seconds = 2.0 if quick else 8.0
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        room = PolicyRoom(folder, clock=SystemClock())
        devices = [Device(number, room.pki) for number in range(DEVICES)]
        floor = _verifies(devices[0], seconds / 4)
        measured = await asyncio.to_thread(_measured_alone, Device(DEVICES + 1, room.pki))
        progress(0.2)
        evidence = EvidenceProcess(room.pki, folder)
        await evidence.start()
        stack.push_async_callback(evidence.stop)
        peers = await _owners(room, devices, stack)
        peers["evidence"] = evidence.address
        service = ServiceProcess("attestation", pki=room.pki, folder=folder, peers=peers, signer="result")
        await service.start()
        stack.push_async_callback(service.stop)
        progress(0.4)
        exchange = await _exchange(room, service.address, stack)
        await _known(exchange, devices)
        await _attest(exchange, devices, CALLERS, seconds / 4)
        asked_us = await _challenges(exchange, devices, service, seconds / 8)
        sent_us = await _sent_us(room, evidence, Device(DEVICES + 2, room.pki))
        cpu, recorder = service.cpu_seconds(), evidence.cpu_seconds()
        took, many = await _attest(exchange, devices, CALLERS, seconds)
        cpu, recorder = service.cpu_seconds() - cpu, evidence.cpu_seconds() - recorder
        progress(0.8)
        _, alone = await _attest(exchange, devices, 1, seconds / 2)
    progress(1.0)
    each = cpu * 1000 / len(many)
    return Result(
        rows=(
            Row(
                work="a second of one core",
                figure=len(many) / cpu,
                unit="attestations/s",
                floor=floor,
                floor_is="`cwt` verifies/s of one core",
                target=ratio_at_least(0.5),
                note=f"{each:.2f} ms of CPU: two messages, one verify, one signature, four durable rows and"
                " two appends, where the floor is one verify",
            ),
            Row(work="64 devices at once, both cores", figure=len(many) / took, unit="attestations/s"),
            Row(work="1 device, p50", figure=percentile(alone, 0.5) * 1000, unit="ms"),
            Row(work="1 device, p99", figure=percentile(alone, 0.99) * 1000, unit="ms"),
        ),
        parts=(
            f"CPU ms an attestation: attestation {each:.2f}, evidence {recorder * 1000 / len(many):.2f}",
            f"The floor is one verify of {1e3 / floor:.2f} ms; 0.5 x of it leaves {2e3 / floor:.2f} ms for everything",
            *parts.shown("an attestation", _parts(measured, asked_us, sent_us), total_ms=each),
        ),
    )


def _parts(measured: tuple[parts.Part, ...], asked_us: float, sent_us: float) -> tuple[parts.Part, ...]:
    """Of the attestation process alone; what the log does with two statements is in the evidence process."""
    each = {"attestation": 1}
    return (
        parts.Part(name="a challenge asked for and answered (the service itself)", each=asked_us, times=each),
        parts.Part(name="a statement sent to the log", each=sent_us, times={"attestation": 2}),
        *parts.counted(
            measured,
            {
                "a statement read": each,
                "a signature verified": each,
                "an appraisal": each,
                "a statement signed": each,
                "four rows, in a commit that 16 attestations share": each,
            },
        ),
    )


async def _sent_us(room: PolicyRoom, evidence: EvidenceProcess, device: Device) -> float:
    """Microseconds of CPU that the sender of one statement to the log spends, with as many at once as callers."""
    channels = Channels(
        tls=room.pki.service("attestation").tls_files,
        trust_domain=room.pki.trust_domain,
        clock=SystemClock(),
    )
    channel = channels.service(evidence.address, "evidence")
    statements = [device.submission(os.urandom(16)).evidence for _ in range(SENT + CALLERS)]
    left = iter(statements)

    async def send(appender: EvidenceAppender, count: int) -> None:
        for data in itertools.islice(left, count):
            await appender.append(
                data,
                subjects=[f"device/{device.device_id}"],
                organization_id=ORGANIZATION,
                site_id=SITE,
            )

    async with EvidenceAppender(channel=channel, entropy=os.urandom) as appender:
        await asyncio.gather(*(send(appender, 1) for _ in range(CALLERS)))
        used = time.process_time()
        await asyncio.gather(*(send(appender, SENT // CALLERS) for _ in range(CALLERS)))
        used = time.process_time() - used
    await channels.close()
    return used * 1e6 / SENT


def _measured_alone(device: Device) -> tuple[parts.Part, ...]:
    """What the service does with one submission, part by part, warm, in this process."""
    given = device.submission(os.urandom(16))
    evidence = read(given.evidence, Evidence)
    leaves = tuple(given.leaves)
    release = replace(
        EXAMPLES[Release],
        firmware=RUNNING,
        sbom=sha256(b"sbom"),
        version="v3",
        security_version=evidence.body.security_version,
    )
    references = domain.References(
        model_known=True,
        releases={RUNNING: release},
        configurations=frozenset({WARD}),
        libraries=frozenset({NO_LIBRARY}),
    )

    def appraise() -> domain.Appraisal:
        domain.check_submission(domain.Known(), evidence.body, first_leaf=0, leaves=leaves)
        return domain.appraise(
            evidence.body, leaves=leaves, permits={}, known=domain.Known(), references=references
        )

    appraisal = appraise()
    if appraisal.status is not TrustTier.AFFIRMING:
        raise AssertionError(f"an honest device is {appraisal.status}: {appraisal.reasons}")
    return (
        *parts.measure(),
        parts.Part(name="an appraisal", each=parts.least(appraise, 100), times={}),
        parts.Part(
            name="four rows, in a commit that 16 attestations share", each=parts.shared_rows_us(), times={}
        ),
    )


async def _challenges(
    exchange: Attesting, devices: list[Device], service: ServiceProcess, seconds: float
) -> float:
    """Microseconds of CPU of the service for one challenge, asked for by all devices at once."""
    done, used, began = 0, service.cpu_seconds(), time.perf_counter()

    async def caller(device: Device) -> None:
        nonlocal done
        while time.perf_counter() - began < seconds:
            asked = attestation_pb2.AttestItem(
                device_id=device.device_id, challenge=attestation_pb2.ChallengeRequest()
            )
            await exchange.call(asked)
            done += 1

    await asyncio.gather(*(caller(device) for device in devices))
    return (service.cpu_seconds() - used) * 1e6 / done


async def _owners(room: PolicyRoom, devices: list[Device], stack: AsyncExitStack) -> dict[str, str]:
    """Feeds of identity, release and revocation with what attestation looks at."""
    rows: Mapping[str, list[tuple[str, str, bytes]]] = {
        "identity": [
            (
                "device",
                device.device_id,
                room.device_row(
                    device.device_id, attestation_chain=device.attester.chain
                ).SerializeToString(),
            )
            for device in devices
        ],
        "release": [
            ("model", MODEL, room.model_row(room.profile_statement).SerializeToString()),
            ("release", RUNNING.hex(), room.release_row(RUNNING, 3).SerializeToString()),
            ("baseline", WARD.hex(), room.baseline_row(WARD).SerializeToString()),
        ],
        "revocation": [],
    }
    peers = {}
    for role, told in rows.items():
        owner = Owner(room, role)
        peers[role] = await owner.start()
        stack.push_async_callback(owner.stop)
        await owner.put(told)
    return peers


async def _exchange(room: PolicyRoom, address: str, stack: AsyncExitStack) -> Attesting:
    gateway = room.gateway
    assert gateway.identity.covers_site(ORGANIZATION, SITE)
    channels = Channels(tls=gateway.tls_files, trust_domain=room.pki.trust_domain, clock=SystemClock())
    stack.push_async_callback(channels.close)
    stub: Any = attestation_pb2_grpc.AttestationServiceStub(channels.service(address, "attestation"))
    return await stack.enter_async_context(
        Attesting(
            name="attestation",
            open_stream=stub.Attest,
            pack=lambda items: attestation_pb2.AttestRequest(gateway_id=gateway.identity.id, items=items),
            unpack=lambda response: response.items,
            entropy=os.urandom,
            streams=STREAMS,
        )
    )


async def _known(exchange: Attesting, devices: list[Device]) -> None:
    """Wait until the feeds have arrived: the first attestation of each device is affirming."""
    async with asyncio.timeout(START_S):
        for device in devices:
            while True:
                try:
                    status = await _one(exchange, device)
                except Refused:
                    await asyncio.sleep(0.1)
                    continue
                if status is not TrustTier.AFFIRMING:
                    raise AssertionError(f"an honest device is {status}")
                break


async def _one(exchange: Attesting, device: Device) -> TrustTier:
    asked = attestation_pb2.AttestItem(
        device_id=device.device_id, challenge=attestation_pb2.ChallengeRequest()
    )
    nonce = (await exchange.call(asked)).challenge.nonce
    given = attestation_pb2.AttestItem(device_id=device.device_id, submission=device.submission(nonce))
    return read((await exchange.call(given)).result, TrustResult).body.status


async def _attest(
    exchange: Attesting, devices: list[Device], callers: int, seconds: float
) -> tuple[float, list[float]]:
    latencies: list[float] = []
    began = time.perf_counter()

    async def caller(device: Device) -> None:
        while (started := time.perf_counter()) - began < seconds:
            assert await _one(exchange, device) is TrustTier.AFFIRMING
            latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(caller(device) for device in devices[:callers]))
    return time.perf_counter() - began, latencies


def _verifies(device: Device, seconds: float) -> float:
    """Verifications a second of CPU, of the same evidence, by the `cwt` library."""
    public = device.attester.identity.public_key
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    key = cwt.COSEKey.from_pem(pem, kid="1", alg="ES256")
    context = cwt.COSE.new(alg_auto_inclusion=False, kid_auto_inclusion=False, verify_kid=False)
    # The evidence of another device: this one's log is not touched.
    scribe = Scribe(
        signer=device.attester.signer,
        issuer=device.attester.issuer_name,
        clock=SystemClock(),
        entropy=os.urandom,
        numbered=True,
    )
    data = scribe.sign(EXAMPLES[Evidence], subject=f"device/{device.device_id}").data
    bare = b"\xd2" + cose.without_chain(data)
    context.decode(bare, key)
    done, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        for _ in range(50):
            context.decode(bare, key)
        done += 50
    return done / (time.process_time() - began)
