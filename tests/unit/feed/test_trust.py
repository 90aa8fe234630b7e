"""Services that only turn callers away believe no captured revocation service that lets somebody in again."""

import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.support.pki import Credential
from tests.support.pumps import PumpSite
from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.revocations import EMPTY_CHAIN, Entry, chain_hash
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import read
from vigil.errors import Reason, Refused
from vigil.feed import Change
from vigil.feed.trust import CurrentVerifier, RevokedCallers
from vigil.rpc.tls import TlsWatcher

pytestmark = pytest.mark.holds("stolen-signers", "rogue-revoker")


def no_channel() -> grpc.aio.Channel:
    raise AssertionError("nothing is asked for here: the feed is fed by hand")


class Reader:
    """The follower of one service, with its feed in the hands of whoever captured revocation."""

    def __init__(self, site: PumpSite) -> None:
        self.site = site
        self.callers = RevokedCallers(
            channel_factory=no_channel,
            verifier=lambda: site.pki.verifier,
            clock=site.clock,
            entropy=os.urandom,
        )

    def snapshot(self, *entries: Entry) -> None:
        """Everything anew, as after SNAPSHOT_REQUIRED; raises as the replica would hear it."""
        self.callers.reset()
        self.tail(*entries)

    def tail(self, *entries: Entry) -> None:
        for entry in entries:
            value = revocation_pb2.RevocationEntry(
                epoch=entry.epoch, statements=entry.statements, chain=entry.chain
            )
            self.callers.changed(
                Change(entry.epoch, "entry", str(entry.epoch), value.SerializeToString(), False, "")
            )
        self.callers.arrived()

    def refuses(self, person: Credential) -> bool:
        return self.callers.refusal(person.identity) is Reason.CREDENTIAL_REVOKED


@pytest.fixture
def site(tmp_path: Path) -> PumpSite:
    return PumpSite(tmp_path)


def free(site: PumpSite, revoked: Entry, *people: Credential) -> Entry:
    """The step that would let the person of a revocation in again."""
    body = read(revoked.statements[0], b.Revocation)
    words = b.Reinstatement(revocation=body.digest, scope=body.body.scope, ids=body.body.ids, reason="free")
    statements = [site.sign(person, words, subject="revocation/any") for person in people]
    last = site.entries[-1]
    chain = chain_hash(last.chain, last.epoch + 1, [one.digest for one in statements])
    return Entry(last.epoch + 1, tuple(one.data for one in statements), chain)


def revoke(site: PumpSite, person: Credential) -> Entry:
    return site.revoke(b.Scope.CREDENTIAL, person.identity.thumbprint.hex())


def test_a_chain_that_is_shorter_or_another_lets_nobody_in(
    site: PumpSite, injected: Callable[[int], None]
) -> None:
    reader = Reader(site)
    first, second = revoke(site, site.colleague), revoke(site, site.technician)
    reader.snapshot(first, second)
    assert reader.refuses(site.technician)
    body = read(first.statements[0], b.Revocation)
    fork = Entry(2, second.statements, bytes(32))
    other = Entry(1, (body.data,), chain_hash(EMPTY_CHAIN, 1, [body.digest]))
    for entries in ((), (first,), (other,)):
        reader.snapshot(*entries)
        assert reader.refuses(site.technician), entries
        assert reader.refuses(site.colleague)
    with pytest.raises(Refused):
        reader.snapshot(first, fork)
    assert reader.refuses(site.technician)
    injected(4)
    reader.snapshot(first, second, revoke(site, site.approver))
    assert reader.refuses(site.approver)
    assert reader.refuses(site.technician)


def test_nobody_is_reinstated_by_fewer_than_two_people(
    site: PumpSite, injected: Callable[[int], None]
) -> None:
    reader, one, two = Reader(site), site.pki.admin(1), site.pki.admin(2)
    revoked = revoke(site, site.technician)
    reader.snapshot(revoked)
    forgeries = [
        (site.pki.signer_credential("head"), site.pki.signer_credential("head")),
        (one, one),
        (one,),
        (one, site.technician),
        (site.pki.service("revocation"), one),
    ]
    for people in forgeries:
        with pytest.raises(Refused):
            reader.tail(free(site, revoked, *people))
        assert reader.refuses(site.technician)
    injected(len(forgeries))
    reader.tail(free(site, revoked, one, two))
    assert not reader.refuses(site.technician)


def test_another_chain_counts_in_a_later_era_alone(site: PumpSite) -> None:
    reader = Reader(site)
    lost = [revoke(site, site.technician), revoke(site, site.colleague)]
    reader.snapshot(*lost)
    site.entries.clear()
    again = revoke(site, site.colleague)
    reader.snapshot(again)
    assert reader.refuses(site.technician)
    reader.snapshot(again, site.open_era())
    assert not reader.refuses(site.technician)
    assert reader.refuses(site.colleague)


def test_what_comes_while_a_snapshot_is_on_its_way_changes_nothing_yet(site: PumpSite) -> None:
    reader = Reader(site)
    known = revoke(site, site.technician)
    reader.snapshot(known)
    reader.callers.reset()
    assert reader.refuses(site.technician)


def test_a_manufacturer_is_believed_as_soon_as_it_is_known(site: PumpSite) -> None:
    """Where a person waits, within the second in which the file is not looked at again elsewhere."""
    files = site.pki.service("release").tls_files
    verifiers = [
        CurrentVerifier(watcher=TlsWatcher(files=files, clock=site.clock), at_once=at_once)
        for at_once in (True, False)
    ]
    before = [verifier() for verifier in verifiers]
    chain = site.pki.manufacturer("newcomer").credential("profile").chain
    for verifier in before:
        with pytest.raises(Refused):
            verifier.verify(chain, at=site.clock.now())
    assert verifiers[0]().verify(chain, at=site.clock.now()).organization == "newcomer"
    assert verifiers[1]() is before[1]
    site.clock.advance(1)
    assert verifiers[1]().verify(chain, at=site.clock.now()).organization == "newcomer"
