"""Build the policy bundle: check the sources, compile them to WebAssembly, pack byte for byte the same each time.

`python -m vigil.policy.engine.build` writes the bundle that comes with Vigil; with `--check` it compares instead.
The bundle holds what both engines need: an OPA server loads the Rego and the data, the engine in this process the
compiled module. Its revision is the digest of the sources.
"""

import argparse
import asyncio
import gzip
import hashlib
import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vigil.errors import Refused, VigilError
from vigil.policy.engine.bundle import DATA, DEFAULT_BUNDLE, MANIFEST, MODULE, read_bundle, read_members
from vigil.policy.engine.check import TEST_SUFFIX, check
from vigil.policy.engine.opa import Opa, OpaFailed
from vigil.policy.engine.port import ENTRYPOINT
from vigil.policy.engine.wasm import WasmEngine

DEFAULT_SOURCE: Final = Path("policies")


def sources(folder: Path) -> dict[str, bytes]:
    """The files that make up the policy, by their path below `folder`: Rego without its tests, and data."""
    found = [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and ((path.suffix == ".rego" and not path.name.endswith(TEST_SUFFIX)) or path.name == DATA)
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


def revision_of(files: Mapping[str, bytes]) -> str:
    """SHA-256 over the sources: for each, in order of paths, its path, NUL, its length, NUL, its bytes."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def build(folder: Path, opa: Opa) -> bytes:
    """The bundle of the policies in `folder`. Does not check them; `OpaFailed` when they do not compile."""
    files = sources(folder)
    if not files:
        raise OpaFailed(f"{folder} holds no policy.")
    revision = revision_of(files)
    compiled = _compile(files, revision, opa)
    manifest = {
        "revision": revision,
        "roots": sorted({name.partition("/")[0] for name in files}),
        "rego_version": 1,
        "metadata": {"opa_version": opa.version()},
    }
    # No `wasm` member in the manifest: it would ask the server to run the module, and an OPA built without that
    # runtime does not start then. The server evaluates the Rego.
    rego = {name: content for name, content in files.items() if name.endswith(".rego")}
    encoded = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return _pack({MANIFEST: encoded, DATA: compiled[DATA], MODULE: compiled[MODULE], **rego})


def _compile(files: Mapping[str, bytes], revision: str, opa: Opa) -> dict[str, bytes]:
    """Run `opa build` in a folder of its own, since the module remembers the paths it was compiled from."""
    with tempfile.TemporaryDirectory(prefix="vigil-policy-") as name:
        stage, output = Path(name, "source"), Path(name, "bundle.tar.gz")
        for path, content in files.items():
            target = stage / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        arguments = ["build", "--bundle", ".", "--target", "wasm", "--entrypoint", ENTRYPOINT]
        opa.output([*arguments, "--revision", revision, "--output", str(output)], folder=stage)
        members = read_members(output.read_bytes())
    return {name.lstrip("/"): content for name, content in members.items()}


def _pack(members: Mapping[str, bytes]) -> bytes:
    """A gzipped tar whose bytes depend on names and contents alone."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(members.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o644, 0
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(archive.getvalue(), compresslevel=9, mtime=0)


def verify(packed: bytes) -> None:
    """Load the bundle as the service does and ask it an empty question, which must be refused by a reason."""

    async def ask() -> bool:
        engine = WasmEngine(read_bundle(packed))
        try:
            return (await engine.decide({})).allow
        finally:
            await engine.close()

    if asyncio.run(ask()):
        raise OpaFailed("The policy allows an empty question.")


def differences(built: bytes, committed: bytes) -> list[str]:
    """The files in which two bundles differ. The packing is not compared: zlib may pack otherwise elsewhere."""
    ours, theirs = read_members(built), read_members(committed)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command; 0 when all is well, 1 with sentences on standard error otherwise."""
    parser = argparse.ArgumentParser(prog="python -m vigil.policy.engine.build", description=__doc__)
    parser.add_argument("--source", type=Path, default=DEFAULT_SOURCE, help="folder of the policies")
    parser.add_argument("--output", type=Path, default=DEFAULT_BUNDLE, help="the bundle to write or compare")
    parser.add_argument("--opa", type=Path, help="the opa command (default: PATH, then .tools/bin)")
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed bundle, write nothing"
    )
    options = parser.parse_args(arguments)
    try:
        problems = _run(options.source, options.output, Opa.find(options.opa), compare=options.check)
    except Refused as error:
        problems = [refusal.sentence for refusal in error.refusals]
    except VigilError as error:
        problems = [str(error)]
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


def _run(source: Path, output: Path, opa: Opa, *, compare: bool) -> list[str]:
    problems = check(source, opa)
    if problems:
        return problems
    built = build(source, opa)
    verify(built)
    if not compare:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(built)
        sys.stdout.write(f"{output}: revision {read_bundle(built).revision}\n")
        return []
    if not output.is_file():
        return [f"{output} is missing: build it without --check."]
    return [
        f"{output} is not what {source} builds to: {name} differs. Build it without --check, and commit it."
        for name in differences(built, output.read_bytes())
    ]


if __name__ == "__main__":
    sys.exit(main())
