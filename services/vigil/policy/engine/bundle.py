"""Reading an OPA bundle: a gzipped tar with its manifest, the compiled module, the data and the sources."""

import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vigil.policy.engine.port import undefined

BUNDLE_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of a bundle, packed; its members may have MEMBERS_LIMIT bytes together."""

MEMBERS_LIMIT: Final = 32 * 1024 * 1024
_MEMBER_COUNT_LIMIT: Final = 512
_BLOCK: Final = 512
_GZIP: Final = 16 + zlib.MAX_WBITS
_OCTAL: Final = re.compile(rb" *[0-7]{1,11}")

MANIFEST: Final = ".manifest"
MODULE: Final = "policy.wasm"
DATA: Final = "data.json"

DEFAULT_BUNDLE: Final = Path(__file__).parent.parent / "bundles" / "default.tar.gz"
"""The bundle that comes with Vigil, built from `policies/`."""

_REVISION = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Bundle:
    """The parts of a bundle that an engine needs. `revision` is the digest of its sources, lowercase hex."""

    revision: str
    module: bytes
    data: bytes


def read_members(packed: bytes) -> dict[str, bytes]:
    """The files of a bundle by name, inside fixed bounds. Anything but a regular file is POLICY_UNDEFINED."""
    if len(packed) > BUNDLE_LIMIT:
        raise undefined(f"the bundle is larger than {BUNDLE_LIMIT} bytes")
    try:
        return _files(_unpacked(packed))
    except (zlib.error, ValueError) as error:
        raise undefined("the bundle is not a gzipped tar") from error


def _unpacked(packed: bytes) -> bytes:
    """The one gzip member, never more than the limit of it. Raises zlib.error, ValueError, POLICY_UNDEFINED."""
    inflater = zlib.decompressobj(wbits=_GZIP)
    archive = inflater.decompress(packed, MEMBERS_LIMIT + _MEMBER_COUNT_LIMIT * 2 * _BLOCK)
    if not inflater.eof:
        if inflater.unconsumed_tail:
            raise undefined(f"the bundle unpacks to more than {MEMBERS_LIMIT} bytes")
        raise ValueError("it ends too early")
    if inflater.unused_data:
        raise ValueError("something follows its end")
    return archive


def _files(archive: bytes) -> dict[str, bytes]:
    """Regular files of a ustar archive (POSIX.1-2017, pax, "ustar Interchange Format"), each name once.

    By hand, because extended headers, sparse files and links have no place here, and a library follows them all.
    """
    members: dict[str, bytes] = {}
    at = 0
    while header := archive[at : at + _BLOCK].rstrip(b"\0"):
        header = header.ljust(_BLOCK, b"\0")
        fields = b"%b        %b" % (header[:148], header[156:])  # the checksum counts as spaces
        if sum(fields) != _octal(header[148:156]):
            raise ValueError("a header's checksum is wrong")
        size, name = _octal(header[124:136]), _name(header)
        if header[156:157] not in {b"0", b"\0"} or name in members or len(members) == _MEMBER_COUNT_LIMIT:
            raise undefined("the bundle holds something other than distinct files")
        content = archive[at + _BLOCK : at + _BLOCK + size]
        if len(content) != size:
            raise ValueError("a file ends too early")
        members[name] = content
        at += _BLOCK + -(-size // _BLOCK) * _BLOCK
    return members


def _octal(field: bytes) -> int:
    text = field.rstrip(b" \0")
    if not _OCTAL.fullmatch(text):
        raise ValueError("a number is not octal")
    return int(text, 8)


def _name(header: bytes) -> str:
    prefix, name = (part.partition(b"\0")[0].decode() for part in (header[345:500], header[:100]))
    return f"{prefix}/{name}" if prefix and header[257:262] == b"ustar" else name


def read_bundle(packed: bytes) -> Bundle:
    """Read a bundle that the in-process engine can run; POLICY_UNDEFINED when a part is missing."""
    members = read_members(packed)
    try:
        revision = json.loads(members[MANIFEST])["revision"]
        module, data = members[MODULE], members[DATA]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise undefined(f"the bundle lacks {MANIFEST} with a revision, {MODULE} or {DATA}") from error
    if not isinstance(revision, str) or not _REVISION.fullmatch(revision):
        raise undefined("the bundle's revision is not the digest of its sources")
    return Bundle(revision=revision, module=module, data=data)
