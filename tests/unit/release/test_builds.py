"""Builds: artifact, model, SBOM and attestation must fit; nothing hostile takes long."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonValidator

from tests.unit.release.support import DATA, FIRMWARE, SBOM, SMALL, World, encoded
from tests.unit.release.test_models import refused_with
from vigil.core import dsse
from vigil.core.digest import sha256
from vigil.core.keys import KeySigner
from vigil.errors import Reason
from vigil.release import sbom as sboms

FIXTURE = Path(__file__).parent / "cosign-envelope.json"


@pytest.mark.holds("stolen-signers")
async def test_a_build_is_published_with_its_sbom_told_and_recorded(world: World) -> None:
    await world.with_model()
    world.upload()
    build = await world.publish()
    assert (build.name, build.component_count, build.size) == ("aria-3000@1.6.3", 201, len(FIRMWARE))
    assert world.artifacts.read(build.sbom, length=1 << 20) == SBOM
    assert world.artifacts.size(build.sbom_attestation)
    _, subjects, organization, _ = world.spool.items[-1]
    assert subjects == (f"build/{sha256(FIRMWARE).hex()}", "model/aria-3000")
    assert organization == "maker"
    for name in ("aria-3000@1.6.3", sha256(FIRMWARE).hex()):
        assert await world.service.get_release(name) == build
    assert (await world.service.list_releases(model="aria-3000", size=0, token=""))[0] == [build]
    assert (await world.service.list_releases(model="other", size=0, token=""))[0] == []


async def test_the_same_statement_again_answers_the_same(world: World) -> None:
    await world.with_model()
    world.upload()
    data = world.release()
    arguments: dict[str, Any] = {"attestation": world.attestation(), "document": SBOM}
    first = await world.service.publish_release(world.publisher, data, **arguments)
    assert await world.service.publish_release(world.publisher, data, **arguments) == first
    assert len(world.spool.items) == 2


@pytest.mark.holds("rollback-and-mix")
async def test_neither_name_nor_firmware_is_published_twice(world: World) -> None:
    await world.with_model()
    world.upload()
    await world.publish()
    await refused_with(Reason.RESOURCE_EXISTS, world.publish(security_version=4))
    await refused_with(Reason.RESOURCE_EXISTS, world.publish(version="1.6.4"))
    other = b"another firmware"
    world.upload(other)
    await refused_with(Reason.RESOURCE_EXISTS, world.publish(firmware=other))


@pytest.mark.holds("rollback-and-mix")
async def test_what_must_be_there_first(world: World) -> None:
    await refused_with(Reason.RESOURCE_NOT_FOUND, world.publish())
    await world.with_model()
    await refused_with(Reason.RESOURCE_NOT_FOUND, world.publish())
    world.upload()
    await refused_with(Reason.FIELD_INVALID, world.publish(size=1))
    await refused_with(Reason.FIELD_INVALID, world.publish(version="1@2"))
    await refused_with(Reason.RESOURCE_NOT_FOUND, world.publish(model="other"))
    await refused_with(Reason.STATEMENT_MALFORMED, world.publish(subject="build/00"))
    await refused_with(Reason.SIGNATURE_INVALID, world.publish(signer=world.maker.credential("profile")))
    assert (await world.publish()).component_count == 201


async def test_an_sbom_may_have_been_uploaded(world: World) -> None:
    await world.with_model()
    world.upload()
    data, attestation = world.release(), world.attestation()
    await refused_with(
        Reason.SBOM_INVALID,
        world.service.publish_release(world.publisher, data, attestation=attestation, document=b""),
    )
    world.upload(SBOM)
    build = await world.service.publish_release(world.publisher, data, attestation=attestation, document=b"")
    assert build.sbom == sha256(SBOM)


def nested(levels: int) -> dict[str, Any]:
    component: dict[str, Any] = {"type": "library", "name": "n"}
    for _ in range(levels):
        component = {"type": "library", "name": "n", "components": [component]}
    return {**SMALL, "components": [component]}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\x1f\x8b\x08" + bytes(100),  # gzip is never unpacked
        encoded({**SMALL, "bomFormat": "SPDX"}),
        encoded({**SMALL, "specVersion": "1.1"}),
        encoded({**SMALL, "specVersion": ["1.5"]}),
        encoded({**SMALL, "unknown": 1}),
        encoded({**SMALL, "version": "NaN"}),
        encoded({**SMALL, "components": [{"type": "library"}]}),
        encoded({**SMALL, "components": SMALL["components"] * 2}),
        encoded({**SMALL, "components": [{"type": "library", "name": "nul\x00"}]}),
        encoded(nested(60)),
        encoded(SMALL).replace(b'"version": 1,', b'"version": 1, "version": 1,'),
        encoded(SMALL).replace(b'"version": 1,', b'"version": NaN,'),
        encoded(SMALL).replace(b'"version": 1,', b'"version": 1e999,'),
        encoded(SMALL).replace(b'"version": 1,', b'"version": ' + b"9" * 5000 + b","),
        encoded(SMALL).replace(b"zlib", b"\\ud800"),
        b'{"bomFormat":"CycloneDX","specVersion":"1.5","x":"' + b"a" * sboms.MAX_SBOM_BYTES + b'"}',
    ],
    ids=range(22),
)
async def test_a_hostile_sbom_is_refused(world: World, document: bytes) -> None:
    await world.with_model()
    world.upload()
    world.artifacts.put(document)  # a document of no bytes counts as uploaded, and is no SBOM either
    await refused_with(
        Reason.SBOM_INVALID,
        world.service.publish_release(
            world.publisher,
            world.release(sbom=document),
            attestation=world.attestation(encoded(SMALL)),
            document=document,
        ),
    )


def test_nothing_compares_every_pair_or_parses_ambiguously(monkeypatch: pytest.MonkeyPatch) -> None:
    link = {"type": "vcs", "url": "http://" + "a" * 200_000}
    components = [{"type": "library", "name": f"n{n}", "externalReferences": [link]} for n in range(3)]
    document = {**SMALL, "components": components}

    def quadratic(_container: object) -> bool:
        raise ArithmeticError("every pair was compared")

    monkeypatch.setattr("jsonschema._keywords.uniq", quadratic)
    with pytest.raises(ArithmeticError):
        JsonValidator(SchemaVersion.V1_5).validate_str(json.dumps(SMALL))
    # The library's grammar of IRIs takes a second for a hundredth of such a link.
    assert sboms._validator("1.5").format_checker is None
    assert sboms.read_sbom(encoded(document))[0].component_count == 3


@pytest.mark.parametrize("version", ["1.2", "1.3", "1.4", "1.5", "1.6", "1.7"])
def test_every_version_of_the_format_is_read(version: str) -> None:
    facts, _ = sboms.read_sbom(encoded({**SMALL, "specVersion": version}))
    assert (facts.spec_version, facts.component_count) == (version, 1)


def test_nested_components_count() -> None:
    assert sboms.read_sbom(encoded(nested(10)))[0].component_count == 11


@pytest.mark.holds("rollback-and-mix")
async def test_the_attestation_must_be_this_ones(world: World) -> None:
    await world.with_model()
    world.upload()
    document = encoded(SMALL)
    payload = dsse.in_toto_statement(name="f", sha256=sha256(FIRMWARE), predicate=SMALL)
    good = json.loads(dsse.make_dsse(payload, signer=world.maker.signer("release")))
    signature = good["signatures"][0]
    altered = {**SMALL, "version": 2}
    wrong: list[tuple[Reason, bytes]] = [
        (Reason.SBOM_INVALID, b""),
        (Reason.SBOM_INVALID, b"{}"),
        (Reason.SBOM_INVALID, encoded({**good, "payloadType": "text/plain"})),
        (Reason.SBOM_INVALID, encoded({**good, "signatures": []})),
        (Reason.SBOM_INVALID, encoded({**good, "signatures": [signature] * 9})),
        (Reason.SBOM_INVALID, encoded({**good, "payload": "!"})),
        (Reason.SBOM_INVALID, encoded({**good, "payload": 1})),
        (Reason.SBOM_INVALID, b"[" * 100_000),
        (Reason.SIGNATURE_INVALID, encoded({**good, "payload": base64.b64encode(payload + b" ").decode()})),
        (Reason.SIGNATURE_INVALID, encoded({**good, "signatures": [{"sig": "AAAA"}]})),
        (Reason.SIGNATURE_INVALID, world.attestation(document, signer=world.maker.signer("profile"))),
        (Reason.SBOM_INVALID, world.attestation(document, firmware=b"other")),
        (Reason.SBOM_INVALID, world.attestation(document, predicate_type="https://spdx.dev/Document")),
        (Reason.SBOM_INVALID, world.attestation(document, predicate=altered)),
        (Reason.SBOM_INVALID, world.attestation(document, predicate={**SMALL, "version": True})),
        (Reason.SBOM_INVALID, world.attestation(document, version="v2")),
        (Reason.SBOM_INVALID, dsse.make_dsse(b"[]", signer=world.maker.signer("release"))),
        (Reason.SBOM_INVALID, dsse.make_dsse(b'{"_type":{}}', signer=world.maker.signer("release"))),
    ]
    for reason, envelope in wrong:
        await refused_with(
            reason,
            world.service.publish_release(
                world.publisher, world.release(sbom=document), attestation=envelope, document=document
            ),
        )
    await refused_with(
        Reason.SBOM_INVALID,
        world.service.publish_release(
            world.publisher,
            world.release(sbom=document),
            attestation=world.attestation(encoded(altered)),
            document=encoded(altered),
        ),
    )
    build = await world.service.publish_release(
        world.publisher, world.release(sbom=document), attestation=encoded(good), document=document
    )
    assert build.component_count == 1


def cosign_envelope(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    """As `cosign attest --type cyclonedx` writes it: Statement v0.1, no keyid, a DER signature, Go's JSON."""
    statement = {
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": "https://cyclonedx.org/bom",
        "subject": [{"name": "registry/firmware", "digest": {"sha256": sha256(FIRMWARE).hex()}}],
        "predicate": dict(sorted(SMALL.items())),
    }
    payload = json.dumps(statement, separators=(",", ":")).encode()
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    signature = key.sign(signed, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return {
        "payloadType": "application/vnd.in-toto+json",
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
    }


def test_an_envelope_as_cosign_writes_it_is_taken() -> None:
    stored = json.loads(FIXTURE.read_text())
    number = ec.EllipticCurvePublicNumbers(int(stored["x"], 16), int(stored["y"], 16), ec.SECP256R1())
    key = number.public_key()
    envelope = encoded(stored["envelope"])
    sboms.check_attestation(envelope, key=key, firmware=sha256(FIRMWARE), predicate=SMALL)
    private = ec.generate_private_key(ec.SECP256R1())
    fresh = encoded(cosign_envelope(private))
    sboms.check_attestation(fresh, key=private.public_key(), firmware=sha256(FIRMWARE), predicate=SMALL)
    without = stored["envelope"]
    del without["signatures"][0]["keyid"]
    sboms.check_attestation(encoded(without), key=key, firmware=sha256(FIRMWARE), predicate=SMALL)


def test_what_we_sign_securesystemslib_verifies(world: World) -> None:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer._key import SSlibKey

    payload = dsse.in_toto_statement(name="f", sha256=sha256(FIRMWARE), predicate=SMALL)
    signer = world.maker.signer("release")
    assert isinstance(signer, KeySigner)
    made = dsse.make_dsse(payload, signer=signer)
    envelope = json.loads(made)
    key = SSlibKey.from_crypto(world.maker.credential("release").identity.public_key)
    envelope["signatures"][0]["keyid"] = key.keyid
    assert Envelope.from_dict(envelope).verify([key], 1)
    assert dsse.verify_dsse(made, public_key=world.maker.credential("release").identity.public_key) == payload


def test_both_builds_of_the_demonstration_are_good() -> None:
    for name in ("1.6.3", "1.8.0"):
        facts, _ = sboms.read_sbom((DATA / f"proton-bridge-v{name}.cdx.json").read_bytes())
        assert (facts.spec_version, facts.component_count) == ("1.2", 201)
