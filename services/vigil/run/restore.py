"""An archive put back, after it was held against its manifest, and its log against its key and its witnesses.

Nothing is overwritten: the data folder must be empty or not there, and it appears when everything in it was checked.
What an archive claims of itself proves nothing; what counts is the log's signature, its witnesses, and what the caller
brings.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from vigil.core import strict_json
from vigil.core.certificates import replace_file
from vigil.errors import Reason, Refusal, Refused, refused
from vigil.run.backup import LOG, MANIFEST, VERSION, Progress
from vigil.run.layout import DataFolder
from vigil.storage.copying import check_database

MAX_MANIFEST: Final = 64 << 20
MAX_MEMBERS: Final = 1_000_000
CHUNK: Final = 1 << 20
BEFORE: Final = "evidence-before"
"""Where the restored log lies when another is begun."""
_MEMBERS: Final = {"path", "kind", "size", "mode", "sha256"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What the caller brings. ``log_key``: the log's verifier key; without it the one that the archive names."""

    archive: Path
    log_key: str
    policy: Path | None = None
    checkpoint: Path | None = None
    unwitnessed: bool = False
    new_log: bool = False


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put back. ``missing``: files that were not in the archive and must be put in place before it starts."""

    manifest: dict[str, Any]
    log: dict[str, Any] | None
    missing: list[str]


def restore(folder: DataFolder, ask: Ask, progress: Progress) -> Restored:
    """Put an archive back. Raises STATE_CONFLICT, ARTIFACT_CORRUPT, NOT_WITNESSED, SIGNATURE_INVALID, OSError."""
    if folder.path.exists() and any(folder.path.iterdir()):
        raise refused(
            Reason.STATE_CONFLICT,
            f"{folder.path} is not empty, and nothing is ever overwritten.",
            lifted_by="an empty folder, or none",
            who="you",
        )
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".restoring-", dir=folder.path.parent))
    try:
        found = _unpack(ask.archive, staging, progress)
        manifest = _manifest(staging)
        _hold_against(manifest, found)
        _check_members(staging, manifest)
        own_key = str(manifest.get("verifier_key", ""))
        log = None
        if (staging / LOG).exists():
            log = _check_log(staging, ask, own_key)
        elif not ask.new_log and "evidence" not in manifest["elsewhere"]:
            _check_no_log(ask, own_key)
        if ask.new_log and (staging / "evidence").exists():
            (staging / "evidence").rename(staging / BEFORE)
        _move_names(staging, manifest["data"], str(folder.path))
        (staging / MANIFEST).unlink()
        if folder.path.exists():
            folder.path.rmdir()
        staging.rename(folder.path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    missing = [name for name in manifest["left_out"] if not (ask.new_log and name == "evidence/log.key")]
    return Restored(manifest, log, missing)


def _unpack(archive: Path, staging: Path, progress: Progress) -> dict[str, tuple[int, str]]:
    """Write every member below the folder; answers size and digest of each. Raises ARTIFACT_CORRUPT."""
    found: dict[str, tuple[int, str]] = {}
    whole = archive.stat().st_size
    try:
        with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:gz") as members:
            for info in members:
                path = PurePosixPath(info.name)
                if not info.isfile() or path.is_absolute() or ".." in path.parts or info.name in found:
                    raise _corrupt(f"{info.name!r} is no plain file below the folder, or is there twice")
                if len(found) >= MAX_MEMBERS or (info.name == MANIFEST and info.size > MAX_MANIFEST):
                    raise _corrupt("it has too many members, or too long a manifest")
                content = members.extractfile(info)
                if content is None:
                    raise _corrupt(f"{info.name!r} cannot be read")
                target = staging / info.name
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                digest, size = hashlib.sha256(), 0
                descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as out:
                    while data := content.read(CHUNK):
                        digest.update(data)
                        size += len(data)
                        out.write(data)
                        progress(info.name, min(raw.tell(), whole), whole)
                    out.flush()
                    os.fsync(out.fileno())
                found[info.name] = size, digest.hexdigest()
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise _corrupt(f"it cannot be read to its end: {error}") from error
    return found


def _manifest(staging: Path) -> dict[str, Any]:
    path = staging / MANIFEST
    if not path.exists():
        raise _corrupt("it has no manifest")
    try:
        value = strict_json.parse(path.read_bytes(), max_bytes=MAX_MANIFEST)
    except ValueError as error:
        raise _corrupt(f"its manifest: {error}") from error
    if not isinstance(value, dict) or value.get("vigil_backup") != VERSION:
        raise _corrupt("its manifest is of another version")
    members, left_out = value.get("members"), value.get("left_out")
    names = all(
        isinstance(some, list) and all(isinstance(one, str) for one in some)
        for some in (left_out, value.get("elsewhere"))
    )
    if not names or not isinstance(members, list) or not isinstance(value.get("data"), str):
        raise _corrupt("its manifest has other members")
    for member in members:
        if not isinstance(member, dict) or set(member) != _MEMBERS or type(member["mode"]) is not int:
            raise _corrupt("its manifest names a member in another form")
    return value


def _hold_against(manifest: dict[str, Any], found: dict[str, tuple[int, str]]) -> None:
    named = {str(one["path"]): (one["size"], one["sha256"]) for one in manifest["members"]}
    for name in sorted({*named, *found} - {MANIFEST}):
        if name not in found:
            raise _corrupt(f"{name} is missing")
        if name not in named:
            raise _corrupt(f"{name} is not in its manifest")
        if found[name] != named[name]:
            raise _corrupt(f"{name} is not what its manifest says")


def _check_members(staging: Path, manifest: dict[str, Any]) -> None:
    """Every database is whole, and every file as readable as it was."""
    for member in manifest["members"]:
        path = staging / member["path"]
        wrong = check_database(path) if member["kind"] == "database" else []
        if wrong:
            raise _corrupt(f"{member['path']}: {wrong[0]}")
        path.chmod(member["mode"] & 0o755)


def _check_log(staging: Path, ask: Ask, own_key: str) -> dict[str, Any]:
    """Have the log's own code hold the copy against its key, its witnesses and what the caller knows."""
    policy = ask.policy
    if policy is None and (staging / "witness-policy").exists():
        policy = staging / "witness-policy"
    if policy is None and ask.checkpoint is None and not ask.unwitnessed and not ask.new_log:
        raise refused(
            Reason.NOT_WITNESSED,
            "Nobody can tell here whether the log has gone on since this backup.",
            lifted_by="--policy with its witnesses, --checkpoint with the newest known, or --unwitnessed",
            who="the operator",
        )
    arguments = [
        sys.executable,
        "-m",
        "vigil.evidence.copied",
        "--database",
        str(staging / LOG),
        "--log",
        ask.log_key or own_key,
    ]
    if not ask.new_log and not ask.unwitnessed and policy is not None:
        arguments += ["--policy", str(policy)]
    if ask.checkpoint is not None and not ask.new_log:
        arguments += ["--checkpoint", str(ask.checkpoint)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - a list of our own, no shell
    if not done.stdout:
        raise refused(Reason.STATE_CONFLICT, "The copy of the log could not be checked.", who="the operator")
    value: dict[str, Any] = json.loads(done.stdout)
    if "refused" in value:
        told = value["refused"]
        raise Refused([Refusal(Reason(told["reason"]), told["sentence"], told["lifted_by"], told["who"], {})])
    for extra in ("-wal", "-shm"):
        (staging / f"{LOG}{extra}").unlink(missing_ok=True)
    return value


def _check_no_log(ask: Ask, own_key: str) -> None:
    """Raises STATE_CONFLICT for an archive without the log that it, or the caller, knows a key or a checkpoint of."""
    if own_key or ask.log_key or ask.checkpoint is not None:
        raise refused(
            Reason.STATE_CONFLICT,
            "This archive holds no log, and there was one: its database was gone when the archive was made.",
            lifted_by="an archive with the log; or everything else restored beside a new log (--new-log)",
            who="the operator",
        )


def _move_names(staging: Path, before: str, after: str) -> None:
    """Configurations and contexts name files by their whole path."""
    if before == after:
        return
    for path in [*staging.rglob("*.toml"), *staging.glob("contexts.json")]:
        text = path.read_text(encoding="utf-8")
        if before in text:
            replace_file(path, text.replace(before, after).encode(), mode=0o600)


def _corrupt(sentence: str) -> Refused:
    return refused(
        Reason.ARTIFACT_CORRUPT,
        f"This archive is not one that `vigil backup` finished: {sentence}.",
        lifted_by="another archive",
        who="the operator",
    )
