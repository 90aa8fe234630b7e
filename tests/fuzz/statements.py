"""Statements: CBOR, COSE_Sign1, envelopes, bodies of every kind, leaves, grants."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cbor2

from tests.fuzz.harness import Harness, expect
from tests.fuzz.source import Source
from vigil.attestation import domain as attestation
from vigil.core import cbor, cose
from vigil.core.certificates import Grant, Kind
from vigil.core.certificates.grant import decode_grant, encode_grant
from vigil.core.merkle import Frontier
from vigil.core.statements.bodies import Evidence
from vigil.core.statements.envelope import (
    BODY_OF,
    Number,
    StatementKind,
    kind_of,
    read,
    read_any,
    read_envelope,
)
from vigil.core.statements.schema import decode_body, encode_body
from vigil.core.submission import submission_digest
from vigil.device.fuzzy_extractor import HelperData
from vigil.evidence import domain as evidence

VECTORS: Final = Path(__file__).parents[2] / "docs" / "vectors"
KINDS: Final = tuple(StatementKind)
WORDS: Final = (b"\xa0", b"\x84", b"\x58\x20", b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff", b"\x3b\x80", b"\xf6")


def _vectors(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def statement_seeds() -> Iterator[bytes]:
    """The published vectors, sound and malformed."""
    for item in _vectors("statements.json")["statements"]:
        yield base64.b64decode(item["statement"])
    for item in _vectors("malformed.json"):
        yield base64.b64decode(item["statement"])


def body_seeds() -> Iterator[bytes]:
    """The kind's place, then its payload."""
    for item in _vectors("statements.json")["statements"]:
        kind = StatementKind(item["kind"])
        yield bytes((KINDS.index(kind),)) + base64.b64decode(item["payload"])


def _cbor(data: bytes) -> bool:
    value = cbor.decode(data)
    expect(cbor.encode(value) == data, "accepted CBOR has another encoding")
    expect(cbor2.loads(data) == value, "another decoder reads something else")
    return True


def _cose(data: bytes) -> bool:
    sign1 = cose.parse(data)
    bare = sign1.without_chain
    expect(cose.without_chain(data) == bare, "two ways to the stored form differ")
    expect(cose.with_chain(bare, sign1.chain) == data, "an accepted COSE_Sign1 has another encoding")
    expect(cose.parse(bare).digest == sign1.digest, "the chain changes the digest")
    return True


def _statement(data: bytes) -> bool:
    envelope = read_envelope(data)
    expect(kind_of(data) is envelope.kind, "the kind is told in two ways")
    statement = read_any(data)
    expect(statement.digest == envelope.digest, "body and envelope give two digests")
    expect(encode_body(statement.body) == statement.sign1.payload, "an accepted body has another encoding")
    expect(read(data, type(statement.body)) == statement, "a statement reads as two")
    return True


def _body(data: bytes) -> bool:
    source = Source(data)
    kind = KINDS[source.number(1) % len(KINDS)]
    payload = source.rest()
    body = decode_body(BODY_OF[kind], payload)
    expect(encode_body(body) == payload, "an accepted body has another encoding")
    return True


def _leaf(data: bytes) -> bool:
    leaf = attestation.read_leaf(data)
    expect(len(leaf.digest) == 32, "a leaf's digest has another length")
    expect(0 <= leaf.boot < 2**64, "a leaf was written before the first boot")
    return True


def leaf_seeds() -> Iterator[bytes]:
    """As devices write them."""
    for permit in ({}, {"permit": bytes(32)}):
        yield cbor.encode(
            {"kind": "firmware", "boot": 1, "digest": bytes(range(32)), "time": 1_790_000_000_000, **permit}
        )


def _log_leaf(data: bytes) -> bool:
    expect(evidence.decode_leaf(data).encode() == data, "an accepted leaf has another encoding")
    return True


def log_leaf_seeds() -> Iterator[bytes]:
    """A leaf of the log, with and without a number and subjects."""
    for number, subjects in (
        (None, ()),
        (
            Number(bytes(16), 3, bytes(32)),
            (evidence.SubjectLink("device/dev-aaaaaaaaaaaaaaaa", 1, bytes(32)),),
        ),
    ):
        yield evidence.Leaf(
            kind="hold",
            log_time=1_790_000_000_000,
            digest=bytes(32),
            signer=bytes(range(32)),
            number=number,
            subjects=subjects,
            bodies=(bytes(32),),
        ).encode()


def _grant(data: bytes) -> bool:
    expect(encode_grant(decode_grant(data)) == data, "an accepted grant has another encoding")
    return True


def grant_seeds() -> Iterator[bytes]:
    """One of each kind."""
    yield encode_grant(Grant(kind=Kind.SERVICE, subject_id="policy", organization="*", roles=("policy",)))
    yield encode_grant(
        Grant(kind=Kind.GATEWAY, subject_id="gateway-1", organization="hospital", sites=("site-1",))
    )
    yield encode_grant(
        Grant(kind=Kind.PERSON, subject_id="p-ada", organization="hospital", sites=("*",), roles=("admin",))
    )
    yield encode_grant(
        Grant(kind=Kind.SIGNER, subject_id="head", organization="operator", statements=("head",))
    )


def _helper(data: bytes) -> bool:
    expect(HelperData.decode(data).encode() == data, "accepted helper data have another encoding")
    return True


def helper_seeds() -> Iterator[bytes]:
    """As a pump keeps them beside its PUF."""
    import random

    from vigil.device.fuzzy_extractor import enrol
    from vigil.device.puf import SimulatedSramPuf

    chance = random.Random(7)
    yield enrol(
        SimulatedSramPuf.from_seed(b"fuzz", entropy=chance.randbytes), entropy=chance.randbytes
    ).encode()


def _submission(data: bytes) -> bool:
    """Evidence with leaves, through the checks and the appraisal, as if the device had signed it."""
    source = Source(data)
    first, leaves, permits = source.number(), source.chunks(), source.chunks(4)
    body = decode_body(Evidence, source.rest())
    known = attestation.Known()
    attestation.check_submission(known, body, first_leaf=first, leaves=leaves, permits=permits)
    references = attestation.References(
        model_known=True, releases={}, configurations=frozenset(), libraries=frozenset()
    )
    before = known
    result = attestation.appraise(body, leaves=leaves, permits={}, known=known, references=references)
    expect(known == before, "an appraisal changed what was known before it")
    expect(result.status in attestation.TrustTier, "an appraisal has no tier")
    return True


def submission_seeds() -> Iterator[bytes]:
    """The vectors' evidence with no leaves and with two."""
    from dataclasses import replace

    from tests.fuzz.source import pack
    from vigil.core.merkle import leaf_hash

    [payload] = [
        base64.b64decode(item["payload"])
        for item in _vectors("statements.json")["statements"]
        if item["kind"] == "evidence"
    ]
    body = decode_body(Evidence, payload)
    leaves = list(leaf_seeds())
    frontier = Frontier.empty().extend(leaf_hash(leaf) for leaf in leaves)
    for given in ([], leaves):
        sound = replace(
            body,
            eat_profile=attestation.EAT_PROFILE,
            log=replace(body.log, size=frontier.size, root=frontier.root()),
            submission=submission_digest(first_leaf=0, leaves=given, permits=[]),
        )
        yield pack(0, given, [], rest=encode_body(sound))


HARNESSES: Final = (
    Harness(
        name="cbor",
        reads="deterministic CBOR",
        prepare=lambda: _cbor,
        seeds=lambda: [seed[1:] for seed in body_seeds()],
        words=WORDS,
    ),
    Harness(name="cose", reads="COSE_Sign1", prepare=lambda: _cose, seeds=statement_seeds, words=WORDS),
    Harness(
        name="statement",
        reads="statements of every kind",
        prepare=lambda: _statement,
        seeds=statement_seeds,
        words=WORDS,
    ),
    Harness(
        name="body",
        reads="bodies of every kind: vouchers, evidence (EAT), intents, permits and the rest",
        prepare=lambda: _body,
        seeds=body_seeds,
        words=WORDS,
    ),
    Harness(name="leaf", reads="leaves of a device's log", prepare=lambda: _leaf, seeds=leaf_seeds),
    Harness(
        name="log-leaf", reads="leaves of the evidence log", prepare=lambda: _log_leaf, seeds=log_leaf_seeds
    ),
    Harness(
        name="submission",
        reads="evidence with its leaves",
        prepare=lambda: _submission,
        seeds=submission_seeds,
    ),
    Harness(name="grant", reads="the grant inside a certificate", prepare=lambda: _grant, seeds=grant_seeds),
    Harness(name="helper-data", reads="helper data of a PUF", prepare=lambda: _helper, seeds=helper_seeds),
)
