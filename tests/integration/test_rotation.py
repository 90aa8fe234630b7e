"""Certificates are replaced while everybody works: no call is dropped, and the new ones are what is shown."""

import asyncio
import os
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from cryptography import x509

from tests.faults.acts import short_lived
from tests.faults.flow import Flow
from tests.support.stack import PRESSURE, SITES, Stack, eventually
from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.identity.v1 import identity_pb2, identity_pb2_grpc
from vigil.api.policy.v1 import policy_pb2
from vigil.core.certificates import Kind, decode_grant, load_pair, store_pair
from vigil.core.certificates.grant import GRANT_OID
from vigil.core.clock import SystemClock
from vigil.core.keys import new_private_key
from vigil.errors import Reason, Refused
from vigil.identity import pki
from vigil.identity.ca import CertificateAuthority
from vigil.rpc.status import translated
from vigil.rpc.tls import RECHECK_SECONDS, TlsFiles
from vigil.run.layout import SERVICES

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.holds("certificate-rotation")]

ROUNDS = 2
SLOW = {Reason.LEASE_EXPIRED, Reason.REPLICA_STALE, Reason.DEADLINE_EXCEEDED, Reason.NONCE_EXPIRED}
"""What a machine too busy to keep its clocks' promises answers; a dropped call is told otherwise."""


def files_of(stack: Stack, name: str) -> TlsFiles:
    """Where a process keeps its certificate."""
    home = stack.folder.path / "pki" / "services" / name if name in SERVICES else stack.folder.gateway(name)
    return TlsFiles(home / "tls.pem", home / "tls.key", stack.folder.trust)


def rotate(stack: Stack, name: str) -> bytes:
    """A new key and certificate with the same grant, as a renewal lays them down; answers the certificate (DER)."""
    files = files_of(stack, name)
    authority = CertificateAuthority.load(stack.folder.path / "pki", clock=SystemClock(), entropy=os.urandom)
    former = load_pair(files.certificate, files.key)
    extension = x509.load_der_x509_certificate(former.chain_der[0]).extensions.get_extension_for_oid(
        GRANT_OID
    )
    assert isinstance(extension.value, x509.UnrecognizedExtension)
    grant = replace(decode_grant(extension.value.value), operational_until=0)
    key = new_private_key()
    issued = authority.issue(
        key.public_key(), grant, pki.GATEWAY if grant.kind is Kind.GATEWAY else pki.SERVICE
    )
    store_pair(files.certificate, files.key, chain_pem=issued.chain_pem, private_key=key)
    return issued.chain_der[0]


async def shown(stack: Stack, name: str) -> bytes:
    """The certificate (DER) that a server shows to whoever dials it now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = stack.address(name).rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return bytes(found)


async def shows(stack: Stack, name: str, certificate: bytes) -> None:
    """Wait until a server shows this certificate."""

    async def is_shown() -> bool:
        return await shown(stack, name) == certificate

    await eventually(is_shown, what=f"{name} shows its new certificate")


@dataclass
class Asking:
    """People who ask without a pause; every call must be answered."""

    stack: Stack
    answered: Counter[str] = field(default_factory=Counter)
    _enough: bool = False

    @asynccontextmanager
    async def going(self) -> AsyncIterator["Asking"]:
        """Questions are asked inside."""
        people = self.stack.world.people
        admin, otto = people["admin"], people["otto"]
        questions: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            (
                "identity",
                lambda: admin.call(
                    "identity", admin.devices.CountDevices, identity_pb2.CountDevicesRequest(), timeout=60
                ),
            ),
            (
                "evidence",
                lambda: otto.call(
                    "evidence", otto.evidence.GetCheckpoint, evidence_pb2.GetCheckpointRequest(), timeout=60
                ),
            ),
            (
                "policy",
                lambda: otto.call(
                    "policy", otto.policy.GetPolicyStatus, policy_pb2.GetPolicyStatusRequest(), timeout=60
                ),
            ),
            *((site, lambda site=site: self._gateway(site)) for site in SITES),
        ]
        async with asyncio.TaskGroup() as tasks:
            for name, ask in questions:
                tasks.create_task(self._ask(name, ask))
            yield self
            self._enough = True

    async def _gateway(self, site: str) -> object:
        return await self.stack.gateway_status(
            site, who="ada" if site == self.stack.first else "ben", timeout=60.0
        )

    async def _ask(self, name: str, ask: Callable[[], Awaitable[object]]) -> None:
        while not self._enough:
            await ask()
            self.answered[name] += 1
            await asyncio.sleep(0.02)


async def test_rotation_under_load_drops_no_call(stack: Stack, injected: Callable[[int], None]) -> None:
    await stack.calm()
    names = [*SERVICES, *stack.world.gateways.values()]
    pids = stack.pids()
    flow, asking = Flow(stack, 5), Asking(stack)
    async with asking.going(), flow.flowing():
        for _ in range(ROUNDS):
            await flow.reached(flow.acknowledged + 8)
            before = {name: await shown(stack, name) for name in names}
            made = {name: rotate(stack, name) for name in names}
            assert not set(made.values()) & set(before.values())
            for name, certificate in made.items():
                await shows(stack, name, certificate)
            injected(len(made))
            # Clients, too, look at their files once a second; then work goes on over what they dial anew.
            looked = time.monotonic() + 2 * RECHECK_SECONDS
            while time.monotonic() < looked:
                await flow.reached(flow.acknowledged + 1)
            await flow.reached(flow.acknowledged + 8)
    assert stack.pids() == pids  # nobody was started again for it
    assert set(flow.refused) <= SLOW, flow.refused
    assert set(asking.answered) == {"identity", "evidence", "policy", *SITES}
    assert min(asking.answered.values()) > 20
    await flow.check()


async def test_gateway_renews_by_itself(breakable: Stack, injected: Callable[[int], None]) -> None:
    """Two days before its operational end a gateway asks identity, and goes on with what it gets."""
    stack = breakable
    await stack.calm()
    name = stack.world.gateways[stack.first]
    files, pump = files_of(stack, name), stack.pumps(stack.first)[0]
    ending = stack.issue(
        Kind.GATEWAY,
        name,
        organization=stack.world.people["ada"].person.organization,
        sites=(stack.first,),
        operational_until=SystemClock().now() + 2 * pki.DAY,
        not_after=SystemClock().now() + 20 * pki.DAY,
    )
    pair = load_pair(ending.tls_files.certificate, ending.tls_files.key)
    store_pair(files.certificate, files.key, chain_pem=pair.certificate_pem, private_key=pair.private_key)
    await stack.restarted(name, former=await stack.kill(name))

    async def renewed() -> bool:
        return await shown(stack, name) not in (pair.chain_der[0], b"")

    await eventually(renewed, what=f"{name} has renewed its certificate")
    injected(1)
    status = await stack.gateway_status(stack.first, who="ada")
    assert status.certificate_operational_until_ms > SystemClock().now() + 6 * pki.DAY
    await stack.calm()
    hand = stack.hand("ada", stack.first)

    async def sent() -> bool:
        done = await hand.send(pump, PRESSURE, {"occlusion_pressure": 281})
        return str(done.outcome) == "applied"

    await eventually(sent, what="commands go on")


async def test_certificate_that_has_ended_is_refused_and_a_new_one_is_let_in(
    stack: Stack, injected: Callable[[int], None]
) -> None:
    """A person's connection outlives the certificate that it was made with; the calls on it do not."""
    await stack.calm()
    ada = stack.world.people["ada"]
    short, until = short_lived(stack, life_ms=4_000)
    method = identity_pb2.CountDevicesRequest()
    stub = identity_pb2_grpc.DeviceServiceStub(stack.channel(short.tls_files, "identity"))
    await translated(stub.CountDevices(method, timeout=20))

    reasons: list[Reason] = []

    async def refused() -> bool:
        try:
            await translated(stub.CountDevices(method, timeout=20))
        except Refused as error:
            reasons.append(error.reason)
        return bool(reasons)

    await eventually(refused, what="the ended certificate is refused")
    assert reasons == [Reason.CERTIFICATE_EXPIRED]
    assert SystemClock().now() >= until
    injected(1)
    made = load_pair(ada.context.certificate, ada.context.key)
    store_pair(
        short.tls_files.certificate,
        short.tls_files.key,
        chain_pem=made.certificate_pem,
        private_key=made.private_key,
    )

    async def let_in() -> bool:
        await translated(stub.CountDevices(method, timeout=20))
        return True

    await eventually(let_in, what="the new certificate is presented")
