"""Documents in JSON: profiles, baselines, SBOMs with their attestations, evidence to take away, policy bundles."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from tests.fuzz.harness import HERE, Harness, Run, expect
from tests.fuzz.source import Source, text
from tests.fuzz.statements import statement_seeds
from tests.fuzz.world import maker, trust_domain
from vigil.core import cbor, dsse, strict_json
from vigil.core.baselines import baseline_from_json, check_content
from vigil.core.census import Item, Placed
from vigil.core.digest import sha256
from vigil.core.keys import KeySigner
from vigil.core.profiles import profile_from_json, profile_to_json
from vigil.core.statements.bodies import BaselineKind
from vigil.policy.engine.bundle import DATA, DEFAULT_BUNDLE, MANIFEST, MODULE, read_bundle
from vigil.release import sbom
from vigil.verify.checks import Record
from vigil.verify.document import (
    CensusProof,
    Document,
    Earlier,
    Proven,
    SubjectClaim,
    document_from_json,
    document_to_json,
)
from vigil.verify.report import verify_document

DEMO: Final = Path(sbom.__file__).parents[1] / "demo" / "data"
WORDS: Final = (
    b'"',
    b"{}",
    b"[]",
    b"null",
    b"true",
    b"-0",
    b"1e308",
    b"1E-400",
    b"\\ud800",
    b"\\u0000",
    b":",
)
SMALL: Final[dict[str, Any]] = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "version": 1,
    "components": [{"type": "library", "name": "zlib", "version": "1.3", "purl": "pkg:generic/zlib@1.3"}],
}


def _strict_json(data: bytes) -> bool:
    """Raises ValueError, as its docstring says, and nothing else."""
    try:
        value = strict_json.parse(data, max_bytes=8_192, max_depth=32)
    except ValueError:
        return False
    written = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    again = strict_json.parse(written, max_bytes=1 << 20, max_depth=32)
    expect(strict_json.same(value, again), "a text means something else when it is written again")
    try:
        strict_json.parse(data, max_bytes=8_192, max_depth=32, decimals=Decimal)
    except ValueError:
        expect(False, "a text is accepted with doubles and refused with decimals")
    return True


def json_seeds() -> Iterator[bytes]:
    """Every kind of value."""
    yield b'{"a":[1,-2.5e3,true,false,null,"\\u00e9\\ud83d\\ude00"],"b":{"c":{}}}'
    yield b'{"a":1,"a":2}'
    yield b"[1e400]"
    yield json.dumps(SMALL).encode()


def _profile(data: bytes) -> bool:
    profile = profile_from_json(text(data))
    again = profile_from_json(profile_to_json(profile))
    expect(again == profile, "a profile does not come back as it was written")
    return True


def profile_seeds() -> Iterator[bytes]:
    """The demonstration's pump, whole and with one action."""
    source = (DEMO / "pump-profile.json").read_bytes()
    yield source
    value = json.loads(source)
    for action in value["actions"]:
        yield json.dumps({**value, "actions": [action]}).encode()


def _baseline(data: bytes) -> bool:
    source = baseline_from_json(text(data))
    value = check_content(source.kind, source.content)
    expect(cbor.encode(dict(value)) == source.content, "a baseline has another encoding")
    return True


def baseline_seeds() -> Iterator[bytes]:
    """A configuration and a drug library."""
    for name in ("baseline-configuration.json", "drug-library.json"):
        yield (DEMO / name).read_bytes()


def _content(data: bytes) -> bool:
    source = Source(data)
    kind = tuple(BaselineKind)[source.number(1) % len(BaselineKind)]
    content = source.rest()
    value = check_content(kind, content)
    expect(cbor.encode(dict(value)) == content, "an accepted baseline has another encoding")
    return True


def content_seeds() -> Iterator[bytes]:
    """As they are signed."""
    for seed in baseline_seeds():
        source = baseline_from_json(seed.decode())
        yield bytes((tuple(BaselineKind).index(source.kind),)) + source.content


@cache
def _signer() -> KeySigner:
    return maker().signer("release")


def _public_key() -> ec.EllipticCurvePublicKey:
    key = maker().credential("release").private_key.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def _dsse() -> Run:
    key = _public_key()

    def run(data: bytes) -> bool:
        """An envelope as it comes; then the input as the payload of a signed one."""
        source = Source(data)
        signed, payload = source.number(1) & 1, source.rest()
        envelope = dsse.make_dsse(payload, signer=_signer()) if signed and payload else payload
        statement = dsse.read_statement(dsse.verify_dsse(envelope, public_key=key))
        expect(all(len(digest) in (0, 32) for _, digest in statement.subjects), "a digest of another length")
        return True

    return run


def dsse_seeds() -> Iterator[bytes]:
    """Ours, and one that cosign would make."""
    payload = dsse.in_toto_statement(name="firmware", sha256=sha256(b"firmware"), predicate=SMALL)
    yield b"\x01" + payload
    yield b"\x00" + dsse.make_dsse(payload, signer=_signer())
    cosign = HERE.parent / "unit" / "release" / "cosign-envelope.json"
    yield b"\x00" + cosign.read_bytes()


def _sbom() -> Run:
    key = _public_key()

    def run(data: bytes) -> bool:
        """A document alone, then with the attestation that the manufacturer would have made of it."""
        found, value = sbom.read_sbom(data)
        expect(found.digest == sha256(data), "the digest is another one")
        expect(0 <= found.component_count <= sbom.MAX_COMPONENTS, "components beyond the bound")
        payload = dsse.in_toto_statement(name="firmware", sha256=bytes(32), predicate=value)
        envelope = dsse.make_dsse(payload, signer=_signer())
        sbom.check_attestation(envelope, key=key, firmware=bytes(32), predicate=value)
        return True

    return run


def sbom_seeds() -> Iterator[bytes]:
    """Small documents of every version; the corpus holds real ones."""
    for version in sbom.SPEC_VERSIONS:
        yield json.dumps({**SMALL, "specVersion": version}).encode()
    nested: dict[str, Any] = {"type": "library", "name": "a", "version": "1"}
    for _ in range(8):
        nested = {"type": "library", "name": "a", "version": "1", "components": [nested]}
    yield json.dumps({**SMALL, "components": [nested]}).encode()


def _evidence() -> Run:
    verifier = trust_domain().verifier
    key = "vigil.test/evidence+00000000+AQ=="

    def run(data: bytes) -> bool:
        document = document_from_json(text(data))
        expect(document_from_json(document_to_json(document)) == document, "a document reads as another one")
        expect(
            not verify_document(document, verifier=verifier, verifier_key=key).holds,
            "nothing was signed here",
        )
        return True

    return run


def evidence_seeds() -> Iterator[bytes]:
    """With a record of the vectors in it."""
    statement = next(iter(statement_seeds()))
    record = Record(
        index=3,
        leaf=b"leaf",
        statement=statement,
        chain=(b"certificate",),
        bodies=(b"body",),
        recorded=statement,
        recorded_path=(bytes(32),),
    )
    note = "vigil.test/evidence\n4\nAAAA\n\n\N{EM DASH} name AAAA\n"
    item = Placed(0, Item(bytes(32), 1, bytes(32)), (bytes(32),))
    claim = SubjectClaim(
        subject="device/dev-aaaaaaaaaaaaaaaa", first=1, leaves=(b"leaf",), census=CensusProof(3, (item,))
    )
    for records in ((), (Proven(record, (bytes(32),)),)):
        document = Document(
            trust_domain="vigil.test",
            checkpoint=note,
            records=records,
            subjects=(claim,),
            consistency=(Earlier(note, (bytes(32),)),),
        )
        yield document_to_json(document).encode()


def _policy_bundle(data: bytes) -> bool:
    bundle = read_bundle(data)
    expect(len(bundle.revision) == 64, "a bundle without a revision")
    return True


def _packed(members: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(archive.getvalue(), mtime=0)


def bundle_seeds() -> Iterator[bytes]:
    """A small one, and the first half of the default one."""
    manifest = json.dumps({"revision": "0" * 64}).encode()
    yield _packed({MANIFEST: manifest, MODULE: b"\0asm", DATA: b"{}"})
    yield _packed({MANIFEST: manifest})
    yield DEFAULT_BUNDLE.read_bytes()[:8_192]


HARNESSES: Final = (
    Harness(name="strict-json", reads="JSON", prepare=lambda: _strict_json, seeds=json_seeds, words=WORDS),
    Harness(
        name="profile",
        reads="profiles as people write them",
        prepare=lambda: _profile,
        seeds=profile_seeds,
        words=WORDS,
    ),
    Harness(
        name="baseline",
        reads="configurations and drug libraries as people write them",
        prepare=lambda: _baseline,
        seeds=baseline_seeds,
        words=WORDS,
    ),
    Harness(
        name="baseline-content",
        reads="configurations and drug libraries as they are signed",
        prepare=lambda: _content,
        seeds=content_seeds,
    ),
    Harness(
        name="dsse",
        reads="DSSE envelopes and in-toto Statements",
        prepare=_dsse,
        seeds=dsse_seeds,
        words=WORDS,
    ),
    Harness(
        name="sbom",
        reads="CycloneDX documents",
        prepare=_sbom,
        seeds=sbom_seeds,
        words=WORDS,
        max_bytes=65_536,
    ),
    Harness(
        name="evidence-document",
        reads="evidence to take away",
        prepare=_evidence,
        seeds=evidence_seeds,
        words=WORDS,
    ),
    Harness(
        name="policy-bundle",
        reads="policy bundles (gzip, tar)",
        prepare=lambda: _policy_bundle,
        seeds=bundle_seeds,
    ),
)
