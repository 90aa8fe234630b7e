"""Reading an OPA bundle: a gzipped tar with its manifest, the compiled module, the data and the sources."""

import io
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vigil.policy.engine.port import undefined

BUNDLE_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of a bundle, packed; its members may have MEMBERS_LIMIT bytes together."""

MEMBERS_LIMIT: Final = 32 * 1024 * 1024
_MEMBER_COUNT_LIMIT: Final = 512

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
    members: dict[str, bytes] = {}
    remaining = MEMBERS_LIMIT
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
            for entry in archive:
                content = archive.extractfile(entry) if entry.isreg() else None
                if content is None or entry.name in members or len(members) == _MEMBER_COUNT_LIMIT:
                    raise undefined("the bundle holds something other than distinct files")
                if entry.size > remaining:
                    raise undefined(f"the bundle unpacks to more than {MEMBERS_LIMIT} bytes")
                remaining -= entry.size
                members[entry.name] = content.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise undefined("the bundle is not a gzipped tar") from error
    return members


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
