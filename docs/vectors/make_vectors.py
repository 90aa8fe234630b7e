"""Write the test vectors of docs/protocol.md. Everything in them is fixed, so a second run writes the same bytes.

``python docs/vectors/make_vectors.py [--check]``: statements.json holds one statement of every kind, signed by a key
that stands in it (a published test key: never trust it), with what a reader must find. malformed.json holds bytes that
a reader must refuse, with the reason. merkle.json, census.json and revocations.json hold trees and the chain.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parents[1]))

from tests.support.statements import EXAMPLES, NOW  # noqa: E402
from vigil.core import cbor, census, cose, merkle  # noqa: E402
from vigil.core.clock import ManualClock  # noqa: E402
from vigil.core.keys import ES256, P256_ORDER, key_thumbprint  # noqa: E402
from vigil.core.revocations import EMPTY_CHAIN, chain_hash  # noqa: E402
from vigil.core.statements.envelope import KIND_OF, Scribe  # noqa: E402

SECRET = int.from_bytes(hashlib.sha256(b"vigil test vectors, never trust this key").digest()) % P256_ORDER


class VectorSigner:
    """Signs with the published test key, deterministically (RFC 6979)."""

    def __init__(self) -> None:
        self._key = ec.derive_private_key(SECRET, ec.SECP256R1())
        self.public_key = self._key.public_key()
        self.certificate_thumbprint = hashlib.sha256(b"the certificate of the test vectors' signer").digest()
        self.algorithm = ES256
        self.chain: tuple[bytes, ...] = ()

    def sign(self, data: bytes) -> bytes:
        """Raw r || s with the low s."""
        r, s = decode_dss_signature(self._key.sign(data, ec.ECDSA(SHA256(), deterministic_signing=True)))
        return r.to_bytes(32) + min(s, P256_ORDER - s).to_bytes(32)


def b64(data: bytes) -> str:
    """Base64, as every byte string in the vectors is written."""
    return base64.b64encode(data).decode()


def statements(signer: VectorSigner) -> dict[str, Any]:
    """One statement of each kind."""
    counter = iter(range(1, 1_000_000))

    def entropy(size: int) -> bytes:
        return hashlib.shake_128(next(counter).to_bytes(4)).digest(size)

    out = []
    for body, example in EXAMPLES.items():
        scribe = Scribe(
            signer=signer, issuer="signer/vectors", clock=ManualClock(now=NOW), entropy=entropy, numbered=True
        )
        signed = scribe.sign(example, subject="device/dev-aaaaaaaaaaaaaaaa")
        out.append(
            {
                "kind": str(KIND_OF[body]),
                "content_type": signed.sign1.content_type,
                "payload": b64(signed.sign1.payload),
                "statement": b64(signed.data),
                "sig_structure": b64(signed.sign1.to_be_signed),
                "digest": signed.digest.hex(),
            }
        )
    return {
        "public_key": b64(_uncompressed(signer)),
        "key_thumbprint": key_thumbprint(signer.public_key).hex(),
        "statements": out,
    }


def _uncompressed(signer: VectorSigner) -> bytes:
    numbers = signer.public_key.public_numbers()
    return b"\x04" + numbers.x.to_bytes(32) + numbers.y.to_bytes(32)


def malformed(signer: VectorSigner) -> list[dict[str, str]]:
    """Bytes that are refused: each is a valid statement with one thing wrong."""
    example = next(iter(EXAMPLES.values()))
    scribe = Scribe(
        signer=signer, issuer="signer/vectors", clock=ManualClock(now=NOW), entropy=bytes, numbered=False
    )
    good = scribe.sign(example, subject="device/d")
    parsed = cose.parse(good.data)
    payload = cbor.decode(parsed.payload)

    def wrap(protected: bytes, body: bytes, signature: bytes, unprotected: bytes = b"\xa0") -> bytes:
        return (
            b"\x84"
            + cbor.byte_string(protected)
            + unprotected
            + cbor.byte_string(body)
            + cbor.byte_string(signature)
        )

    protected, signature = parsed.protected, parsed.signature
    s = int.from_bytes(signature[32:])
    headers = dict(parsed.headers)
    reversed_map = b"\xa3" + b"".join(
        cbor.encode(name) + cbor.encode(value) for name, value in reversed(list(payload.items()))
    )
    cases = {
        "trailing byte": good.data + b"\x00",
        "tagged": b"\xd2" + good.data,
        "payload with a duplicate key": wrap(protected, b"\xa2\x61a\x01\x61a\x02", signature),
        "payload in another order": wrap(protected, reversed_map, signature),
        "payload with a float": wrap(protected, b"\xa1\x61a\xf9\x3c\x00", signature),
        "payload of indefinite length": wrap(protected, b"\xbf\x61a\x01\xff", signature),
        "unknown field": wrap(protected, cbor.encode({**payload, "surprise": 1}), signature),
        "critical header": wrap(cbor.encode({**headers, 2: [3]}), parsed.payload, signature),
        "unknown content type": wrap(
            cbor.encode({**headers, 3: "application/octet-stream"}), parsed.payload, signature
        ),
        "algorithm none": wrap(cbor.encode({**headers, 1: 0}), parsed.payload, signature),
        "unknown unprotected header": wrap(protected, parsed.payload, signature, b"\xa1\x04\x41k"),
        "signature of 63 bytes": wrap(protected, parsed.payload, signature[:-1]),
        "high s": wrap(protected, parsed.payload, signature[:32] + (P256_ORDER - s).to_bytes(32)),
    }
    return [
        {
            "what": what,
            "reason": "SIGNATURE_INVALID" if what == "high s" else "STATEMENT_MALFORMED",
            "statement": b64(data),
        }
        for what, data in cases.items()
    ]


def trees() -> list[dict[str, Any]]:
    """RFC 6962 trees over short leaves, with an inclusion and a consistency path."""
    out = []
    for size in (1, 2, 3, 7, 8, 13):
        leaves = [f"leaf {place}".encode() for place in range(size)]
        hashes = [merkle.leaf_hash(item) for item in leaves]
        index, old = size // 2, max(1, size // 2)
        out.append(
            {
                "leaves": [b64(item) for item in leaves],
                "root": merkle.tree_root(hashes).hex(),
                "inclusion": {
                    "index": index,
                    "path": [item.hex() for item in merkle.inclusion_path(hashes, index)],
                },
                "consistency": {
                    "old_size": old,
                    "old_root": merkle.tree_root(hashes[:old]).hex(),
                    "path": [item.hex() for item in merkle.consistency_path(hashes, old)],
                },
            }
        )
    return out


def censuses() -> list[dict[str, Any]]:
    """Censuses of some subjects: every item with its path, and what shows that another subject is not there."""
    out = []
    for count in (0, 1, 5, 300):
        news = {}
        for place in range(count):
            number = place % 3 + 1
            leaf = merkle.leaf_hash(f"record {place}".encode())
            news[census.subject_key(f"device/{place}")] = census.News(1, b"", number, leaf)
        merger = census.Merger(news)
        pages = merger.finish()
        roots = [census.page_root(page) for page in pages]
        absent = "device/absent"
        shown = sorted({0, count // 2, count - 1}) if count else []
        out.append(
            {
                "subjects": count,
                "root": merkle.tree_root(roots).hex(),
                "items": [_placed(pages, roots, place) for place in shown],
                "absent": {
                    "subject": absent,
                    "neighbours": [
                        _placed(pages, roots, place)
                        for place in _around(pages, census.subject_key(absent), count)
                    ],
                },
            }
        )
    return out


def _around(pages: list[bytes], key: bytes, count: int) -> list[int]:
    below = sum(census.place_below(page, key) + 1 for page in pages) - 1
    return [place for place in (below, below + 1) if 0 <= place < count]


def _placed(pages: list[bytes], roots: list[bytes], place: int) -> dict[str, Any]:
    number, inside = divmod(place, census.PAGE_ITEMS)
    one = census.placed_in(pages[number], inside, number=number, roots=roots)
    return {
        "place": one.place,
        "key": one.item.key.hex(),
        "number": one.item.number,
        "leaf": one.item.leaf.hex(),
        "data": b64(one.item.encode()),
        "path": [item.hex() for item in one.path],
    }


def chain() -> list[dict[str, Any]]:
    """The chain hash over three epochs, the last one of two statements."""
    out, previous = [], EMPTY_CHAIN
    for epoch, count in ((1, 1), (2, 1), (3, 2)):
        digests = [hashlib.sha256(f"{epoch}.{place}".encode()).digest() for place in range(count)]
        previous = chain_hash(previous, epoch, digests)
        out.append({"epoch": epoch, "digests": [item.hex() for item in digests], "chain": previous.hex()})
    return out


def render() -> dict[str, str]:
    """Every file's text by its name."""
    signer = VectorSigner()
    made: dict[str, Any] = {
        "statements.json": statements(signer),
        "malformed.json": malformed(signer),
        "merkle.json": trees(),
        "revocations.json": chain(),
        "census.json": censuses(),
    }
    return {name: json.dumps(value, indent=1) + "\n" for name, value in made.items()}


def main(arguments: list[str]) -> int:
    """Write the files, or with --check say which are not current."""
    stale = []
    for name, text in render().items():
        path = FOLDER / name
        if "--check" not in arguments:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(name)
    if stale:
        sys.stderr.write(f"not current: {', '.join(stale)}; run make vectors\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
