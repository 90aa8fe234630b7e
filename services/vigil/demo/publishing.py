"""What the manufacturer and the sites publish: the profile, two builds with their SBOMs, baselines."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from vigil.api.release.v1 import release_pb2
from vigil.cli.session import Session
from vigil.cli.signing import manufacturer_scribe, manufacturer_signer
from vigil.core.baselines import content_of_settings
from vigil.core.digest import sha256
from vigil.core.dsse import in_toto_statement, make_dsse
from vigil.core.keys import KeySigner
from vigil.core.profiles import profile_from_json
from vigil.core.statements.bodies import Baseline, BaselineKind, Release
from vigil.core.statements.envelope import Scribe
from vigil.demo.places import GTIN, HOSPITALS, MAKER, MODEL
from vigil.run import manufacturer

FIRMWARE_BYTES = 400_000
"""Small enough to move in a second, large enough to need several chunks."""
VALID_MS = 365 * 86_400_000

Progress = Callable[[str, int, int], None]
"""``(what, done, of)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One firmware build as the manufacturer made it."""

    version: str
    security_version: int
    image: bytes
    sbom: bytes

    @property
    def digest(self) -> bytes:
        return sha256(self.image)


def demo_file(name: str) -> bytes:
    """A file of the demonstration's data."""
    return files("vigil.demo").joinpath("data").joinpath(name).read_bytes()


def make_builds() -> list[Build]:
    """Two builds; the images are made of their SBOMs, so each demonstration has the same digests."""
    builds = []
    for place, version in enumerate(("1.6.3", "1.8.0")):
        sbom = demo_file(f"proton-bridge-v{version}.cdx.json")
        image = (f"aria-3000 firmware {version}\n".encode() + sbom * 3)[:FIRMWARE_BYTES]
        builds.append(Build(version=version, security_version=place + 1, image=image, sbom=sbom))
    return builds


class Maker:
    """The manufacturer with its own root, on its own machine (here: a folder)."""

    def __init__(self, home: Path, trust_domain: str) -> None:
        self.home = home
        self.root = manufacturer.init(home, organization=MAKER, trust_domain=trust_domain)

    def signer(self, statement: str) -> KeySigner:
        """The manufacturer's key for one kind of statement."""
        return manufacturer_signer(self.home, statement)

    def scribe(self, statement: str) -> Scribe:
        """Signs in the name of that signer."""
        return manufacturer_scribe(self.home, statement)


async def publish_everything(
    publisher: Session, pharmacist: Session, maker: Maker, sites: Sequence[str], progress: Progress
) -> list[Build]:
    """The model's profile, two builds with their SBOMs, and a configuration baseline for each site."""
    total = 3 + len(sites)
    builds = make_builds()
    body = profile_from_json(demo_file("pump-profile.json").decode())
    profile = maker.scribe("profile").sign(body, subject=f"model/{MODEL}")
    await publisher.call(
        "release", publisher.releases.PublishModel, release_pb2.PublishModelRequest(profile=profile.data)
    )
    progress("profile, builds and baselines", 1, total)
    for place, build in enumerate(builds):
        await upload(publisher, build.image)
        await publish_build(publisher, maker, build)
        progress("profile, builds and baselines", 2 + place, total)
    content = content_of_settings(demo_file("baseline-configuration.json").decode())
    for place, site in enumerate(sites):
        await publish_baseline(pharmacist, content, site=site, name="general-ward")
        progress("profile, builds and baselines", 4 + place, total)
    return builds


async def upload(session: Session, content: bytes) -> None:
    """Upload an artifact's bytes in chunks."""

    async def messages() -> AsyncIterator[release_pb2.UploadArtifactRequest]:
        start = release_pb2.UploadStart(digest=sha256(content), size=len(content), offset=0)
        yield release_pb2.UploadArtifactRequest(start=start)
        for place in range(0, len(content), 65_536):
            yield release_pb2.UploadArtifactRequest(chunk=content[place : place + 65_536])

    await session.call("release", session.artifacts.UploadArtifact, messages())


async def publish_build(session: Session, maker: Maker, build: Build) -> None:
    """Sign and publish a build with its SBOM in a DSSE in-toto attestation."""
    body = Release(
        model=MODEL,
        version=build.version,
        firmware=build.digest,
        size=len(build.image),
        security_version=build.security_version,
        sbom=sha256(build.sbom),
        udi_di=GTIN,
    )
    statement = in_toto_statement(
        name=f"{MODEL}-{build.version}.bin", sha256=build.digest, predicate=json.loads(build.sbom)
    )
    request = release_pb2.PublishReleaseRequest(
        release=maker.scribe("release").sign(body, subject=f"build/{build.digest.hex()}").data,
        sbom_attestation=make_dsse(statement, signer=maker.signer("release")),
        sbom=build.sbom,
    )
    await session.call("release", session.releases.PublishRelease, request)


async def publish_baseline(session: Session, content: bytes, *, site: str, name: str) -> None:
    """Sign and publish a configuration baseline for one site."""
    now = session.clock.now()
    body = Baseline(
        baseline_kind=BaselineKind.CONFIGURATION,
        name=name,
        site=site,
        organization=HOSPITALS,
        content=sha256(content),
        size=len(content),
        models=(MODEL,),
        valid_from=now,
        valid_to=now + VALID_MS,
    )
    signed = session.scribe.sign(body, subject=f"site/{site}")
    request = release_pb2.PublishBaselineRequest(baseline=signed.data, content=content)
    await session.call("release", session.releases.PublishBaseline, request)
