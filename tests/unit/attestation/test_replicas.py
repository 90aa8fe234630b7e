"""Reference values count for whose signature is under them, whatever a captured release service sends."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.pki import DEVICE, ORGANIZATION, SITE
from tests.support.pumps import MODEL, NEW_FIRMWARE, PumpSite
from vigil.api.release.v1 import release_pb2
from vigil.attestation.replicas import DeviceFacts, ReferenceValues
from vigil.core.certificates import ChainVerifier
from vigil.core.digest import sha256
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Statement
from vigil.feed import Change

pytestmark = pytest.mark.holds("stolen-signers", "rollback-and-mix")

FACTS = DeviceFacts(
    device_id=DEVICE, organization=ORGANIZATION, site=SITE, model=MODEL, state=2, attestation_chain=()
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> PumpSite:
    return PumpSite(tmp_path_factory.mktemp("site"))


class Feed:
    """What release sends."""

    def __init__(self, site: PumpSite) -> None:
        self.verifier = site.pki.verifier
        self.values = ReferenceValues(verifier=lambda: self.verifier)
        self.sequence = 0
        self.site = site
        self.model(site.profile)

    def put(self, kind: str, key: str, value: bytes) -> None:
        self.sequence += 1
        self.values.changed(Change(self.sequence, kind, key, value, False, ""))

    def model(self, profile: Statement[b.Profile]) -> None:
        self.put("model", MODEL, release_pb2.Model(model=MODEL, profile=profile.data).SerializeToString())

    def release(self, statement: Statement[b.Release]) -> None:
        message = release_pb2.Release(statement=statement.data, model=MODEL)
        self.put("release", statement.body.firmware.hex(), message.SerializeToString())

    def baseline(self, statement: Statement[b.Baseline]) -> None:
        message = release_pb2.Baseline(statement=statement.data)
        self.put("baseline", statement.body.content.hex(), message.SerializeToString())

    @property
    def builds(self) -> set[bytes]:
        return set(self.values.of(FACTS, now=self.site.clock.now()).releases)

    @property
    def configurations(self) -> frozenset[bytes]:
        return self.values.of(FACTS, now=self.site.clock.now()).configurations


def test_what_the_manufacturer_signed_counts(site: PumpSite) -> None:
    feed = Feed(site)
    assert feed.values.profile(MODEL) == site.profile.body
    feed.release(site.release())
    assert feed.builds == {sha256(NEW_FIRMWARE)}
    feed.values.changed(Change(99, "release", sha256(NEW_FIRMWARE).hex(), b"", True, ""))
    assert feed.builds == set()


def test_nobody_elses_build_does(site: PumpSite) -> None:
    """By the operator's signers, a person, another manufacturer whose root is trusted, or changed on the way."""
    feed, good = Feed(site), site.release(b"evil")
    other = site.pki.manufacturer("other-maker")
    feed.verifier = ChainVerifier(site.pki.bundle)
    for signer in (
        site.pki.signer_credential("decision"),
        site.pki.service("release"),
        site.technician,
        other.credential("release"),
        site.maker.credential("profile"),
    ):
        feed.release(site.sign(signer, good.body, numbered=True))
        assert feed.builds == set()
    forged = bytearray(good.data)
    forged[-1] ^= 1
    feed.put(
        "release",
        good.body.firmware.hex(),
        release_pb2.Release(statement=bytes(forged)).SerializeToString(),
    )
    feed.put("release", "what is no statement", release_pb2.Release(statement=b"no").SerializeToString())
    assert feed.builds == set()
    feed.release(good)
    assert feed.builds == {good.body.firmware}


def test_a_model_without_its_manufacturers_profile_is_unknown(site: PumpSite) -> None:
    feed = Feed(site)
    feed.release(site.release())
    feed.model(site.sign(site.technician, replace(site.profile.body, version=9)))
    assert feed.values.profile(MODEL) is None
    assert not feed.values.of(FACTS, now=site.clock.now()).model_known
    assert feed.builds == set()


def test_a_baseline_is_a_baseline_signers_of_the_site(site: PumpSite) -> None:
    feed = Feed(site)
    stranger = site.pki.person("p-elsewhere", "baseline-signer", sites=("site-9",))
    for signer in (site.technician, stranger, site.maker.credential("release")):
        statement, _ = site.baseline({"occlusion_pressure": 200}, signer=signer)
        feed.baseline(statement)
        assert feed.configurations == frozenset()
    statement, _ = site.baseline({"occlusion_pressure": 200})
    feed.baseline(statement)
    assert feed.configurations == {statement.body.content}


def test_a_manufacturer_that_becomes_known_later_counts_then(site: PumpSite, tmp_path: Path) -> None:
    stranger = PumpSite(tmp_path)
    feed = Feed(site)
    feed.verifier = stranger.pki.verifier
    feed.release(site.release())
    assert feed.builds == set()
    feed.verifier = site.pki.verifier
    assert feed.builds == {sha256(NEW_FIRMWARE)}
