"""Protobuf from peers that may be captured: statuses, a device's stream, the bus, a stream of revocations."""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from prometheus_client import CollectorRegistry

from tests.fuzz.harness import Harness, Run, expect
from tests.fuzz.source import Source, pack
from tests.fuzz.world import folder
from tests.support.policy_room import PolicyRoom
from tests.support.pumps import PumpSite, TestPump
from tests.unit.device.test_checks import PRESSURE, SET, fingerprint
from vigil.api.attestation.v1 import attestation_pb2
from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.clock import ManualClock
from vigil.core.revocations import Entry, PathStep, RevocationState, answers, read_entry
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import read
from vigil.device.convert import from_proto
from vigil.errors import Reason, Refusal, Refused, refused
from vigil.revocation import edge_store
from vigil.revocation.edge_chain import EdgeChain
from vigil.revocation.edge_hub import Hub
from vigil.revocation.edge_upstream import Subscriber
from vigil.rpc.status import MAX_STATUS_BYTES, from_status, to_status
from vigil.storage import open_database

# --- google.rpc.Status


def _status(data: bytes) -> bool:
    try:
        message = status_pb2.Status.FromString(data)
    except DecodeError:
        return False
    refusal = from_status(message)
    once = to_status(refusal)
    expect(once.ByteSize() <= max(MAX_STATUS_BYTES, 16_384), "a refusal is told in too many words")
    told = from_status(once).refusals
    again = from_status(to_status(Refused(told))).refusals
    expect(again == told, "a refusal changes when it is told again")
    return True


def status_seeds() -> Iterator[bytes]:
    """One refusal, several, and a status of somebody else."""
    yield to_status(
        refused(Reason.QUOTA_EXCEEDED, "too much", lifted_by="waiting", who="you", field="x", n=3)
    ).SerializeToString()
    many = [
        Refusal(reason, "a sentence", "something", "somebody", {"field": "a.b"})
        for reason in list(Reason)[:6]
    ]
    yield to_status(Refused(many)).SerializeToString()
    yield status_pb2.Status(code=14, message="connection refused").SerializeToString()


# --- what a gateway sends a pump


@cache
def pump() -> TestPump:
    """A real agent on a real folder."""
    home = folder() / "pump"
    home.mkdir()
    made = PumpSite(home).pump()
    made.release()
    return made


def _device() -> Run:
    device = pump()

    def run(data: bytes) -> bool:
        try:
            response = gateway_pb2.ConnectResponse.FromString(data)
        except DecodeError:
            return False
        message = from_proto(response)
        if message is None:
            return False
        before = fingerprint(device)
        device.agent.handle(message)
        expect(fingerprint(device) == before, "a message that nobody signed changed the pump")
        return True

    return run


def device_seeds() -> Iterator[bytes]:
    """Every kind of message, with a bundle that lacks nothing but a nonce that is alive."""
    site = pump().site
    bundle = site.bundle(pump(), SET, PRESSURE, nonce=bytes(16))
    proofs = [
        evidence_pb2.RecordedItem(recorded=one.recorded, index=one.index, path=one.path)
        for one in bundle.statements_recorded
    ]
    given: dict[str, Any] = {
        "welcome": gateway_pb2.GatewayWelcome(
            gateway_id="gateway-1", time_ms=site.clock.now(), profile=site.profile.data, trust_json="{}"
        ),
        "nonce": gateway_pb2.NonceRequest(call_id=1, credential=bytes(32), safety=True),
        "bundle": gateway_pb2.Bundle(
            call_id=2,
            intent=bundle.intent,
            command=bundle.command,
            statements_recorded=proofs,
            permit=bundle.permit,
            permit_recorded=proofs[0] if proofs else None,
        ),
        "attest": attestation_pb2.AttestOutcome(
            call_id=3, challenge=attestation_pb2.Challenge(nonce=bytes(32), log_size=1)
        ),
        "artifact": gateway_pb2.ArtifactChunk(digest=bytes(32), offset=0, chunk=b"bytes"),
        "revocations": gateway_pb2.Revocations(
            entries=[revocation_pb2.RevocationEntry(epoch=1, statements=[b"statement"], chain=bytes(32))],
            head=revocation_pb2.AnsweredHead(head=b"head"),
            gateway_time_ms=site.clock.now(),
        ),
        "receipt_query": gateway_pb2.ReceiptQuery(call_id=4, request_id=bytes(16)),
        "status_interval": gateway_pb2.StatusInterval(interval_ms=1_000),
        "renewed": gateway_pb2.Renewed(
            certificates=identity_pb2.DeviceCertificates(tls_chain=[b"leaf"], attestation_chain=[b"leaf"])
        ),
    }
    for name, message in given.items():
        yield gateway_pb2.ConnectResponse(**{name: message}).SerializeToString()


# --- revocations: entries, heads, the bus


@cache
def room() -> PolicyRoom:
    """Two revocations and a reinstatement, signed, with the heads that lead there."""
    home = folder() / "room"
    home.mkdir()
    made = PolicyRoom(home, clock=ManualClock())
    first = made.revoke(b.Scope.DEVICE, "dev-aaaaaaaaaaaaaaaa")
    made.revoke(b.Scope.CREDENTIAL, "0" * 64, effect=b.RevocationEffect.NO_NEW)
    made.reinstate(first)
    return made


def _entries() -> Run:
    """Entries and a head, as a follower takes them: all or nothing."""
    made = room()
    now = made.clock.now()

    def run(data: bytes) -> bool:
        source = Source(data)
        challenge = source.chunk()
        steps = [
            PathStep(source.number(), source.number(), tuple(source.chunks(8)))
            for _ in range(source.number(1) % 3)
        ]
        entries = [
            Entry(source.number(), tuple(source.chunks(4)), source.chunk())
            for _ in range(source.number(1) % 8)
        ]
        state = RevocationState()
        before = state.position, dict(state.effects())
        for entry in entries:
            try:
                read_entry(entry, epoch=entry.epoch - 1, chain=bytes(32))
            except Refused:
                continue
        head = read(source.rest(), b.Head)
        answers(head, challenge, steps)
        try:
            state.advance(entries, head, verifier=made.verifier, at=now)
        except Refused:
            expect((state.position, dict(state.effects())) == before, "a refused step changed the state")
            raise
        expect(state.epoch == head.body.epoch, "a head was taken and not reached")
        expect(state.chain in {bytes(32), *(one.chain for one in made.entries)}, "a chain that nobody signed")
        return True

    return run


def entry_seeds() -> Iterator[bytes]:
    """From nothing to each epoch, and with a step missing."""
    made = room()
    for entries in (made.entries, made.entries[1:], made.entries[:1], []):
        parts = b"".join(pack(one.epoch, list(one.statements), one.chain) for one in entries)
        body = pack(bytes(16)) + b"\x01" + pack(0, 1, [bytes(32)]) + bytes((len(entries),)) + parts
        yield body + made.head(bytes(32)).data


def _bus() -> Run:
    made = room()
    database = open_database(
        folder() / "edge.db", metadata=edge_store.METADATA, migrations="vigil.revocation.edge_migrations"
    )

    def run(data: bytes) -> bool:
        chain = EdgeChain(database=database, verifier=lambda: made.verifier, clock=made.clock)
        hub = Hub(chain=chain, clock=made.clock, metrics=CollectorRegistry())
        hints: list[None] = []
        subscriber = Subscriber(
            client=_no_client,
            chain=chain,
            hub=hub,
            hint=lambda: hints.append(None),
            metrics=CollectorRegistry(),
        )
        subscriber.hear(data)
        taken = chain.head is not None
        expect(
            taken or chain.state.position == RevocationState().position, "a message nobody signed is believed"
        )
        expect(not (taken and hints), "what was taken is asked for again")
        return taken

    return run


def _no_client() -> Any:
    raise AssertionError("a message that was heard needs no connection")


def bus_seeds() -> Iterator[bytes]:
    """As the service publishes them."""
    made = room()
    entries = [
        revocation_pb2.RevocationEntry(epoch=one.epoch, statements=one.statements, chain=one.chain)
        for one in made.entries
    ]
    for given in (entries, entries[1:], []):
        yield revocation_pb2.BusMessage(entries=given, head=made.head().data).SerializeToString()


HARNESSES: Final = (
    Harness(
        name="status",
        reads="google.rpc.Status of a refused call",
        prepare=lambda: _status,
        seeds=status_seeds,
    ),
    Harness(name="device-link", reads="what a gateway sends a pump", prepare=_device, seeds=device_seeds),
    Harness(name="revocations", reads="steps of the revocation chain", prepare=_entries, seeds=entry_seeds),
    Harness(name="bus", reads="messages of the bus", prepare=_bus, seeds=bus_seeds),
)
