"""Inputs as large as the bounds let through, made as costly as they can be: bounded time and memory all the same."""

import base64
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.fuzz.documents import SMALL
from tests.fuzz.harness import Run, attempt
from tests.fuzz.registry import HARNESSES
from vigil.core import cbor, dsse
from vigil.policy.engine.bundle import BUNDLE_LIMIT, MEMBERS_LIMIT
from vigil.release.sbom import MAX_SBOM_BYTES

CPU_SECONDS = 90.0
"""Of this process, whatever else the machine does. What is quadratic in megabytes takes hours."""
MEMORY_BYTES = 1 << 30
BOUNDS = {"policy-bundle": BUNDLE_LIMIT, "sbom": MAX_SBOM_BYTES, "dsse": dsse.MAX_ENVELOPE_BYTES}

pytestmark = pytest.mark.holds("hostile-input")


@cache
def prepared(name: str) -> Run:
    return HARNESSES[name].prepare()


def _tar(name: str, size: int) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        entry = tarfile.TarInfo(name)
        entry.size = size
        tar.addfile(entry, io.BytesIO(bytes(size)))
    return gzip.compress(archive.getvalue())


def _gzip_of_zeros(size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    block = bytes(16 << 20)
    return b"".join(packer.compress(block) for _ in range(size // len(block))) + packer.flush()


def _sbom(**members: Any) -> bytes:
    return json.dumps({**SMALL, **members}).encode()


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "library", "name": "a"}
    for _ in range(depth):
        value = {"type": "library", "name": "a", "components": [value]}
    return value


def _many(count: int) -> list[dict[str, Any]]:
    return [{"type": "library", "name": f"n{place}", "version": "1"} for place in range(count)]


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a gzip of a quarter of a gigabyte": ("policy-bundle", lambda: _gzip_of_zeros(256 << 20)),
    "a tar of more than its limit": ("policy-bundle", lambda: _tar("data.json", MEMBERS_LIMIT + 1)),
    "a tar with a name of thirty megabytes": ("policy-bundle", lambda: _tar("n" * (30 << 20), 1)),
    "a bundle of a thousand gzip members": ("policy-bundle", lambda: gzip.compress(bytes(8 << 20)) * 800),
    "an SBOM nested by hundreds": ("sbom", lambda: _sbom(components=[_nested(400)])),
    "an SBOM of brackets": ("sbom", lambda: b'{"a":' * 200_000),
    "an SBOM of as many components as there may be": ("sbom", lambda: _sbom(components=_many(50_000))),
    "an SBOM with a version of megabytes": (
        "sbom",
        lambda: _sbom(components=[{"type": "library", "name": "a", "version": "1." * (3 << 20)}]),
    ),
    "an SBOM with references that parse in many ways": (
        "sbom",
        lambda: _sbom(externalReferences=[{"type": "website", "url": "a:" + "/" * 200_000 + "\x7f["}]),
    ),
    "an SBOM with a purl and a CPE that backtrack": (
        "sbom",
        lambda: _sbom(
            components=[
                {
                    "type": "library",
                    "name": "a",
                    "version": "1",
                    "purl": "pkg:" + "%2F" * 100_000 + "@",
                    "cpe": "cpe:2.3:a:" + "\\*" * 100_000 + ":",
                    "licenses": [{"expression": "(" * 50_000 + "MIT"}],
                    "mime-type": "a" * 100_000 + "!",
                }
            ]
        ),
    ),
    "an SBOM whose dependencies are all one": (
        "sbom",
        lambda: _sbom(dependencies=[{"ref": "a", "dependsOn": [f"r{n}" for n in range(100_000)]}]),
    ),
    "an SBOM with a serial number that backtracks": (
        "sbom",
        lambda: _sbom(serialNumber="urn:uuid:" + "a-" * 500_000),
    ),
    "a number of a million digits": ("strict-json", lambda: b"[" + b"9" * 8_000 + b"]"),
    "a number with an exponent of digits": ("strict-json", lambda: b"[1e" + b"9" * 60 + b"]"),
    "an envelope of megabytes of base64": (
        "dsse",
        lambda: (
            b"\x00"
            + json.dumps(
                {
                    "payloadType": dsse.PAYLOAD_TYPE,
                    "payload": base64.b64encode(bytes(7 << 20)).decode(),
                    "signatures": [{"sig": "AA=="}] * 8,
                }
            ).encode()
        ),
    ),
    "arrays inside arrays": ("cbor", lambda: b"\x81" * cbor.MAX_BYTES),
    "an array that says it has 2^64-1 items": ("cbor", lambda: b"\x9b" + b"\xff" * 8 + bytes(60_000)),
    "maps of maps of maps": ("cbor", lambda: b"\xa1\x00" * 30_000),
    "a carrier of brackets": ("udi", lambda: b"(01)" * 64),
    "a carrier of fields that could end anywhere": ("udi", lambda: b"0109504000059118" + b"10" * 120),
    "a note of signatures": ("note", lambda: b"\x00a\n\n" + "\N{EM DASH} a AAAAAA==\n".encode() * 3_000),
    "a status of details": ("status", lambda: b"\x1a\x02\x0a\x00" * 100_000),
    "a message to a pump, nested by hundreds": ("device-link", lambda: b"\x1a\x7f" * 10_000),
    "a grant of sites": ("grant", lambda: cbor.encode({4: ["a" * 63] * 100})),
}


@pytest.mark.parametrize("what", BOMBS)
def test_costs_little(what: str, injected: Callable[[int], None]) -> None:
    name, make = BOMBS[what]
    data = make()
    # What is refused for its size alone shows nothing about the rest.
    assert len(data) <= BOUNDS.get(name, len(data))
    attempt(prepared(name), data, cpu_seconds=CPU_SECONDS, memory=MEMORY_BYTES, exact=True)
    injected(1)
