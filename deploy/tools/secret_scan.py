"""Look for secrets in what is committed, with detect-secrets. Part of `make lint`.

Whatever looks like one and is none stands below with the reason, by file and kind. A place without a finding must not
stay in the list: it would hide the next one.
"""

import concurrent.futures
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from detect_secrets.core.scan import scan_file
from detect_secrets.settings import default_settings

ROOT: Final = Path(__file__).parents[2]
NOT_READ: Final = {
    r"requirements.*\.lock": "hashes of packages",
    r"services/vigil/api/.*": "generated from proto/, which is read",
    r".*\.cdx\.json": "CycloneDX documents: hashes of packages",
    r"docs/vectors/.*\.json": "signatures and digests, and the key of the vectors, which is published and says so",
    r"docs/(benchmarks|reliability)\.json": "figures",
    r"docs/.*\.svg": "pictures",
    r"tests/fuzz/(corpus|found)/.*": "inputs of the fuzzer: hashes in SBOMs, certificates of made-up domains",
    r".*\.(tar\.gz|wasm|png|bin)": "built or drawn; its sources are read",
}
_BASE64, _HEX = "Base64 High Entropy String", "Hex High Entropy String"
NO_SECRETS: Final = {"abcdefghijklmnopqrstuvwxyz234567": "the alphabet of base32 (RFC 4648 section 6)"}
ALLOWED: Final = {
    ("tests/unit/core/.*", _HEX): "test vectors of RFC 8949, RFC 9679, FIPS 180 and RFC 6962",
    (r"tests/unit/core/test_cosignatures\.py", _BASE64): "the example of C2SP tlog-cosignature",
    ("tests/unit/evidence/.*", _BASE64): "a published key of a signed note",
    (r"tests/unit/release/cosign-envelope\.json", _BASE64): "a signature and its payload",
    (r"tests/unit/release/cosign-envelope\.json", _HEX): "digests",
    (
        r"tests/unit/rpc/test_service_main\.py",
        "Basic Auth Credentials",
    ): "a made-up address that must not be logged",
}


def committed() -> list[str]:
    """Every file that is committed, by its path below the project."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout  # noqa: S607 - git of PATH
    return [name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def scan(name: str) -> list[tuple[str, str, int]]:
    """What looks like a secret in one file: path, kind, line."""
    with default_settings():
        return [
            (name, found.type, found.line_number)
            for found in scan_file(str(ROOT / name))
            if found.secret_value not in NO_SECRETS
        ]


def judge(findings: list[tuple[str, str, int]]) -> list[str]:
    """What is wrong: findings without a reason, and reasons without a finding."""
    used: Counter[tuple[str, str]] = Counter()
    faults = []
    for name, kind, line in findings:
        reasons = [key for key in ALLOWED if key[1] == kind and re.fullmatch(key[0], name)]
        used.update(reasons)
        if not reasons:
            faults.append(
                f"{name}:{line}: {kind}: a secret? Remove it, or say in deploy/tools/secret_scan.py why it is none"
            )
    faults += [
        f"deploy/tools/secret_scan.py allows {kind} in {place}, where none is"
        for place, kind in ALLOWED
        if not used[place, kind]
    ]
    return faults


def main() -> int:
    """Scan and judge."""
    names = [name for name in committed() if not any(re.fullmatch(pattern, name) for pattern in NOT_READ)]
    with concurrent.futures.ProcessPoolExecutor() as pool:
        findings = [found for part in pool.map(scan, names, chunksize=16) for found in part]
    faults = judge(findings)
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
