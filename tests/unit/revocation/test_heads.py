"""Who signs heads, when, and with which key."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.pki import Credential, TestPki
from vigil.core.certificates import load_pair
from vigil.core.clock import ManualClock
from vigil.core.signing_clock import SigningClock
from vigil.core.statements.bodies import Head
from vigil.core.statements.envelope import read
from vigil.errors import Reason, Refused
from vigil.revocation import store
from vigil.revocation.chain import Chain
from vigil.revocation.heads import HeadAnswerer, HeadKey, HeadLease, HeadSigner, LeaseLostError, head_key
from vigil.storage import Database


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def pki(tmp_path: Path, clock: ManualClock) -> TestPki:
    return TestPki(tmp_path, clock=clock)


def key_of(pki: TestPki, credential: Credential) -> HeadKey:
    files = credential.tls_files
    pair = load_pair(files.certificate, files.key)
    return head_key(pair, verifier=pki.verifier, clock=pki.clock, entropy=os.urandom)


class Desk:
    """A signer with its lease, as one process has them."""

    def __init__(self, pki: TestPki, database: Database, clock: ManualClock, *, holder: str = "one") -> None:
        self.lease = HeadLease(database=database, clock=clock, holder=holder)
        self.chain = Chain(database=database, clock=clock)
        self.chain.load()
        self.head_clock = SigningClock(
            durable=database.read_now(store.head_time), monotonic=clock.monotonic()
        )
        keys = [
            key_of(pki, pki.signer_credential("head")),
            key_of(pki, pki.signer_credential("head", spare=True)),
        ]
        self.signer = HeadSigner(
            chain=self.chain, keys=keys, lease=self.lease, head_clock=self.head_clock, clock=clock
        )


def refusal_of(signer: HeadSigner) -> Reason | None:
    try:
        signer.sign()
    except Refused as refusal:
        return refusal.reason
    return None


@pytest.mark.holds("stolen-signers", "clock-steps")
async def test_only_the_holder_of_the_lease_signs(
    pki: TestPki, database: Database, clock: ManualClock
) -> None:
    desk = Desk(pki, database, clock)
    assert refusal_of(desk.signer) is Reason.SERVICE_UNAVAILABLE
    await desk.lease.acquire()
    assert read(desk.signer.sign(), Head).body.epoch == 0
    clock.advance(3)
    assert refusal_of(desk.signer) is Reason.SERVICE_UNAVAILABLE
    await desk.lease.renew(desk.head_clock)
    assert refusal_of(desk.signer) is None
    other = Desk(pki, database, clock, holder="two")
    assert not await other.lease._take()
    # Whoever waits goes by its own monotonic clock: a wall clock that leaps takes no lease from anybody.
    clock.set_now(clock.now() + 3_600_000)
    clock.advance(3.9)
    assert not await other.lease._take()
    clock.set_now(clock.now() - 3_600_000)
    clock.advance(0.2)
    await other.lease.acquire()
    assert refusal_of(other.signer) is None
    with pytest.raises(LeaseLostError):
        await desk.lease.renew(desk.head_clock)
    assert refusal_of(desk.signer) is Reason.SERVICE_UNAVAILABLE


@pytest.mark.holds("wrong-decade")
async def test_a_clock_ten_years_ahead_poisons_nothing_durable(
    pki: TestPki, database: Database, clock: ManualClock
) -> None:
    desk = Desk(pki, database, clock)
    await desk.lease.acquire()
    await desk.lease.renew(desk.head_clock)
    right = clock.now()
    clock.set_now(right + 10 * 365 * 86_400_000)
    assert refusal_of(desk.signer) is Reason.STATE_CONFLICT
    await desk.lease.renew(desk.head_clock)
    again = Desk(pki, database, clock)
    await again.lease.acquire()
    assert refusal_of(again.signer) is Reason.STATE_CONFLICT
    clock.set_now(right + 1)
    assert read(again.signer.sign(), Head).body.issued == right + 1


async def test_the_spare_signs_when_the_first_certificate_has_ended(
    pki: TestPki, database: Database, clock: ManualClock
) -> None:
    soon = pki.issue(
        pki.signer_credential("head").identity.kind,
        "head-short",
        statements=("head",),
        operational_until=clock.now() + 60_000,
        not_after=clock.now() + 60_000,
    )
    desk = Desk(pki, database, clock)
    keys = [key_of(pki, soon), key_of(pki, pki.signer_credential("head"))]
    signer = HeadSigner(
        chain=desk.chain, keys=keys, lease=desk.lease, head_clock=desk.head_clock, clock=clock
    )
    await desk.lease.acquire()
    assert read(signer.sign(), Head).signer == soon.identity.thumbprint
    clock.advance(61)
    await desk.lease.renew(desk.head_clock)
    assert read(signer.sign(), Head).signer == keys[1].identity.thumbprint
    only = HeadSigner(
        chain=desk.chain, keys=keys[:1], lease=desk.lease, head_clock=desk.head_clock, clock=clock
    )
    assert refusal_of(only) is Reason.CERTIFICATE_EXPIRED


@pytest.mark.holds("stolen-signers")
def test_a_key_for_something_else_signs_no_heads(pki: TestPki) -> None:
    for credential in (pki.signer_credential("result"), pki.person("p-recall", "recall")):
        with pytest.raises(Refused) as caught:
            key_of(pki, credential)
        assert caught.value.reason is Reason.CERTIFICATE_INVALID


@pytest.mark.parametrize("size", [0, 15, 65, 4096])
async def test_challenges_have_a_size(
    pki: TestPki, database: Database, clock: ManualClock, size: int
) -> None:
    desk = Desk(pki, database, clock)
    answerer = HeadAnswerer(signer=desk.signer, chain=desk.chain, clock=clock)
    challenge: Any = bytes(size)
    with pytest.raises(Refused) as caught:
        await answerer.answer(challenge)
    assert caught.value.reason is Reason.FIELD_INVALID
