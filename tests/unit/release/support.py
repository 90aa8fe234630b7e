"""A release room on a real database and folder, a manufacturer with real signers, a site with people."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from tests.support.pki import ORGANIZATION, SITE, Credential, Manufacturer, TestPki
from vigil.core import cbor, dsse
from vigil.core.certificates import ChainVerifier, Identity
from vigil.core.clock import ManualClock
from vigil.core.digest import sha256
from vigil.core.keys import Signer
from vigil.core.profiles import profile_from_json
from vigil.core.statements.bodies import Baseline, BaselineKind, Profile, Release
from vigil.core.statements.envelope import Scribe
from vigil.errors import Reason
from vigil.feed import Outbox
from vigil.release.artifacts import ArtifactStore
from vigil.release.service import Ports, ReleaseService
from vigil.release.store import METADATA, MIGRATIONS
from vigil.storage import Database, open_database

DATA = Path(__file__).parents[3] / "services" / "vigil" / "demo" / "data"
FIRMWARE = b"firmware of build one" * 100
SBOM = (DATA / "proton-bridge-v1.6.3.cdx.json").read_bytes()
SMALL: dict[str, Any] = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "version": 1,
    "components": [{"type": "library", "name": "zlib", "version": "1.3"}],
}
SETTINGS = {"occlusion_pressure": 300, "lock_keypad": True, "display_language": "en"}


def pump() -> Profile:
    return profile_from_json((DATA / "pump-profile.json").read_text())


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


@dataclass
class Spooled:
    """What would go to evidence."""

    items: list[tuple[bytes, tuple[str, ...], str, str]] = field(default_factory=list)

    def put(
        self,
        connection: Connection,
        statement: bytes,
        *,
        subjects: Sequence[str] = (),
        bodies: Sequence[bytes] = (),
        organization_id: str = "",
        site_id: str = "",
    ) -> None:
        assert connection.in_transaction()
        assert not bodies
        self.items.append((statement, tuple(subjects), organization_id, site_id))


class World:
    """Everything around the use cases."""

    def __init__(self, pki: TestPki, maker: Manufacturer, folder: Path) -> None:
        self.pki, self.maker, self.folder = pki, maker, folder
        self.clock = pki.clock
        assert isinstance(self.clock, ManualClock)
        self.spool = Spooled()
        self.revoked: dict[bytes, Reason] = {}
        self.verifier = ChainVerifier(pki.bundle)
        self.database: Database = open_database(
            folder / "release.db", metadata=METADATA, migrations=MIGRATIONS
        )
        self.artifacts = ArtifactStore(folder / "artifacts")
        self.service = ReleaseService(
            Ports(
                database=self.database,
                outbox=Outbox(self.database),
                spool=self.spool,
                artifacts=self.artifacts,
                verifier=lambda: self.verifier,
                revoked=lambda who: self.revoked.get(who.thumbprint),
                clock=self.clock,
            )
        )
        self.publisher = pki.person("p-publisher", "publisher", organization="maker", sites=("*",)).identity
        self.nurse = pki.person("p-nurse", "baseline-signer")

    def sign(self, signer: Credential, body: Any, subject: str) -> bytes:
        scribe = Scribe(
            signer=signer.signer,
            issuer=signer.issuer_name,
            clock=self.clock,
            entropy=os.urandom,
            numbered=False,
        )
        return scribe.sign(body, subject=subject).data

    # --- models

    def profile(self, version: int = 1, *, signer: Credential | None = None, **values: Any) -> bytes:
        body = replace(pump(), version=version, **values)
        return self.sign(signer or self.maker.credential("profile"), body, f"model/{body.model}")

    async def with_model(self) -> "World":
        await self.service.publish_model(self.publisher, self.profile())
        return self

    # --- builds

    def upload(self, data: bytes = FIRMWARE) -> bytes:
        return self.artifacts.put(data)

    def release(
        self,
        *,
        firmware: bytes = FIRMWARE,
        sbom: bytes = SBOM,
        signer: Credential | None = None,
        subject: str = "",
        **values: Any,
    ) -> bytes:
        body = Release(
            model="aria-3000",
            version="1.6.3",
            firmware=sha256(firmware),
            size=len(firmware),
            security_version=3,
            sbom=sha256(sbom),
            udi_di="09504000059118",
        )
        body = replace(body, **values)
        return self.sign(
            signer or self.maker.credential("release"), body, subject or f"build/{body.firmware.hex()}"
        )

    def attestation(
        self, sbom: bytes = SBOM, *, firmware: bytes = FIRMWARE, signer: Signer | None = None, **values: Any
    ) -> bytes:
        payload = dsse.in_toto_statement(
            name="firmware", sha256=sha256(firmware), **{"predicate": json.loads(sbom), **values}
        )
        return dsse.make_dsse(payload, signer=signer or self.maker.signer("release"))

    async def publish(self, sbom: bytes = SBOM, **values: Any) -> Any:
        return await self.service.publish_release(
            self.publisher,
            self.release(sbom=sbom, **values),
            attestation=self.attestation(sbom),
            document=sbom,
        )

    # --- baselines

    def baseline(
        self,
        content: bytes | None = None,
        *,
        signer: Credential | None = None,
        subject: str = "",
        **values: Any,
    ) -> bytes:
        content = cbor.encode(SETTINGS) if content is None else content
        now = self.clock.now()
        body = Baseline(
            baseline_kind=BaselineKind.CONFIGURATION,
            name="general-ward",
            site=SITE,
            organization=ORGANIZATION,
            content=sha256(content),
            size=len(content),
            models=("aria-3000",),
            valid_from=now,
            valid_to=now + 86_400_000,
        )
        body = replace(body, **values)
        return self.sign(signer or self.nurse, body, subject or f"site/{body.site}")

    async def approve(
        self, content: bytes | None = None, *, caller: Identity | None = None, **values: Any
    ) -> Any:
        content = cbor.encode(SETTINGS) if content is None else content
        return await self.service.publish_baseline(
            caller or self.nurse.identity, self.baseline(content, **values), content
        )
