"""Certificates change under load, and nobody notices."""

import asyncio
from typing import Any

import pytest

from tests.support.pki import TestPki
from tests.unit.rpc.conftest import Serve, World, tls_files
from tests.unit.rpc.probe import Probe
from tests.unit.rpc.test_admission import OWN, exchange
from vigil.core.certificates import Kind, store_pair
from vigil.core.clock import ManualClock
from vigil.identity.pki import chain_pem
from vigil.rpc import tls
from vigil.rpc.status import translated


def replace(files: Any, credential: Any) -> None:
    """Put another credential where the files of the first are."""
    from cryptography import x509

    chain = [x509.load_der_x509_certificate(der) for der in credential.chain]
    store_pair(files.certificate, files.key, chain_pem=chain_pem(*chain), private_key=credential.private_key)


async def test_no_call_is_dropped_while_a_client_rotates(world: World) -> None:
    caller = world.gateway()
    long = caller.stub.Echo(timeout=60)
    await exchange(long, OWN)
    channel = caller.channels.service(world.address, "policy")
    before = channel.generation
    answers = 0
    stop = asyncio.Event()

    async def load() -> None:
        nonlocal answers
        while not stop.is_set():
            await translated(caller.stub.Own(OWN, timeout=10))
            answers += 1

    workers = [asyncio.ensure_future(load()) for _ in range(8)]
    for _ in range(3):
        count = answers
        replace(caller.files, world.pki.issue(Kind.GATEWAY, "gateway-1"))
        caller.channels.refresh()
        while answers < count + 50:
            await asyncio.sleep(0.01)
            assert not any(worker.done() for worker in workers)
    stop.set()
    await asyncio.gather(*workers)
    assert channel.generation is not before
    # The stream opened with the first certificate goes on until it ends; then its channel is closed.
    await exchange(long, Probe(text="still"))
    assert len(channel._retired) == 1
    await long.done_writing()
    await long.read()
    await translated(caller.stub.Own(OWN, timeout=10))
    for _ in range(500):
        if not channel._retired and not channel._closing:
            break
        await asyncio.sleep(0.01)
    assert not channel._retired
    assert not channel._closing


async def test_a_client_presents_its_new_certificate(world: World) -> None:
    caller = world.gateway()
    assert (await translated(caller.stub.Ping(Probe(text="who"), timeout=10))).text.endswith("/gateway-1")
    replace(caller.files, world.pki.issue(Kind.GATEWAY, "gateway-2"))
    caller.channels.refresh()
    assert (await translated(caller.stub.Ping(Probe(text="who"), timeout=10))).text.endswith("/gateway-2")


async def test_a_server_serves_its_new_certificate_and_keeps_its_connections(
    serve: Serve, pki: TestPki
) -> None:
    credential = pki.service("policy")
    world = await serve(tls=tls_files(credential))
    caller = world.gateway()
    stream = caller.stub.Echo(timeout=60)
    await exchange(stream, OWN)
    replace(credential.tls_files, pki.service("evidence"))
    world.server._watcher.current(now=True)
    # A new connection meets the new name; the old one goes on.
    renamed = world.caller(pki.service("identity"), role="evidence")
    await translated(renamed.stub.Ping(Probe(), timeout=10))
    await exchange(stream, Probe(text="still"))
    await translated(caller.stub.Own(OWN, timeout=10))


def test_half_replaced_files_leave_the_former_in_use(pki: TestPki, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    one, two = pki.service("policy"), pki.service("policy")
    watcher = tls.TlsWatcher(files=tls_files(one), clock=clock)
    first = watcher.current()
    one.tls_files.key.write_bytes(two.tls_files.key.read_bytes())
    assert watcher.current() is first
    clock.advance(tls.RECHECK_SECONDS)
    assert watcher.current() is first
    clock.advance(tls.RECHECK_SECONDS)
    assert watcher.current() is first
    assert len(caplog.records) == 1
    one.tls_files.certificate.write_bytes(two.tls_files.certificate.read_bytes())
    clock.advance(tls.RECHECK_SECONDS)
    assert watcher.current().certificate_pem == two.tls_files.certificate.read_bytes()


def test_files_that_cannot_be_used_stop_the_start(pki: TestPki) -> None:
    one, two = pki.service("policy"), pki.service("policy")
    files = tls_files(one)
    for broken in (
        tls.TlsFiles(files.certificate, two.tls_files.key, files.trust),
        tls.TlsFiles(files.certificate, files.key, files.key),
        tls.TlsFiles(files.certificate.with_name("absent.pem"), files.key, files.trust),
    ):
        with pytest.raises(tls.TlsFilesError):
            tls.load(broken)
