"""One archive of a whole data folder, made while everything runs: every database at one moment of it, and every file.

A gzipped tar. The last member is `manifest.json`: size, mode and SHA-256 of every other, the log's newest checkpoint,
and what was left out. The log is copied last: what any other database takes for recorded is then in it, so that a
restored service never waits for a record that nobody will send again.

Keys and passphrases stay where they are unless they are asked for: an archive with them is worth as much as the folder.
"""

import hashlib
import io
import json
import os
import sqlite3
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vigil import __version__
from vigil.core.certificates import TrustBundle
from vigil.core.clock import Clock
from vigil.core.keys import load_private_key
from vigil.core.notes import origin_of, verifier_key
from vigil.errors import Reason, refused
from vigil.run.layout import DataFolder
from vigil.storage.copying import copy_database

MANIFEST: Final = "manifest.json"
VERSION: Final = 1
LOG: Final = "evidence/evidence.db"
_SKIPPED_NAMES: Final = frozenset({"lock"})
_SKIPPED_ENDS: Final = ("-wal", "-shm", "-journal", "-reserve", ".writer", ".part", ".sock", ".pid")
_SKIPPED_FOLDERS: Final = frozenset({"logs", "redis"})

Progress = Callable[[str, int, int], None]
"""``progress(what, done, all)``."""


@dataclass(slots=True)
class Made:
    """What became of it."""

    files: int = 0
    databases: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    log_size: int | None = None
    checkpoint: str = ""


def is_secret(path: Path) -> bool:
    """Whether a file is a key, or opens one."""
    return path.suffix in (".key", ".p12") or path.name == "passphrase"


def back_up(folder: DataFolder, target: Path, *, with_keys: bool, clock: Clock, progress: Progress) -> Made:
    """Write the archive (0600); it appears when it is whole. Raises RESOURCE_EXISTS, STATE_CONFLICT, OSError."""
    if not folder.exists():
        raise refused(Reason.STATE_CONFLICT, f"{folder.path} holds no installation.", who="you")
    if target.exists():
        raise refused(
            Reason.RESOURCE_EXISTS, f"{target} exists already.", lifted_by="another name", who="you"
        )
    made = Made()
    part = target.with_name(f"{target.name}.part")
    descriptor = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as raw:
            with tarfile.open(
                fileobj=raw, mode="w:gz", compresslevel=1, format=tarfile.PAX_FORMAT
            ) as archive:
                members = list(_fill(folder, archive, made, with_keys=with_keys, progress=progress))
                _add_manifest(archive, _manifest(folder, made, members, clock), clock)
            raw.flush()
            os.fsync(raw.fileno())
        part.rename(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return made


def _fill(
    folder: DataFolder, archive: tarfile.TarFile, made: Made, *, with_keys: bool, progress: Progress
) -> Iterator[dict[str, Any]]:
    databases, files = _contents(folder.path)
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=folder.path) as staging:
        log = folder.path / LOG
        copy = Path(staging) / "copy.db"
        copied = partial(_database, archive=archive, made=made, progress=progress)
        for path in [one for one in databases if one != log]:
            yield copied(path, str(path.relative_to(folder.path)), copy)
        for path in files:
            name = str(path.relative_to(folder.path))
            if is_secret(path) and not with_keys:
                made.left_out.append(name)
                continue
            made.files += 1
            yield _add(archive, path, name, "file", made)
        if log in databases:
            yield copied(log, LOG, copy)
    made.elsewhere = _elsewhere(folder)


def _contents(root: Path) -> tuple[list[Path], list[Path]]:
    """Every database, and every other file that belongs to an installation."""
    databases: list[Path] = []
    files: list[Path] = []
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root).parts
        if path.is_symlink() or not path.is_file() or inside[0] in _SKIPPED_FOLDERS:
            continue
        if (
            path.name in _SKIPPED_NAMES
            or path.name.endswith(_SKIPPED_ENDS)
            or inside[0].startswith(".backup-")
        ):
            continue
        (databases if path.suffix == ".db" else files).append(path)
    return databases, files


def _database(
    path: Path, name: str, copy: Path, *, archive: tarfile.TarFile, made: Made, progress: Progress
) -> dict[str, Any]:
    copy_database(path, copy, lambda done, size: progress(name, done, size))
    if name == LOG:
        made.log_size, made.checkpoint = _newest(copy)
    made.databases += 1
    member = _add(archive, copy, name, "database", made)
    copy.unlink()
    return member


def _add(archive: tarfile.TarFile, path: Path, name: str, kind: str, made: Made) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        status = os.fstat(content.fileno())
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = status.st_size, status.st_mode & 0o777, int(status.st_mtime)

        class Hashed:
            """What is read is what is digested."""

            def read(self, size: int = -1) -> bytes:
                data = content.read(size)
                digest.update(data)
                return data

        archive.addfile(info, Hashed())
    made.bytes += info.size
    return {"path": name, "kind": kind, "size": info.size, "mode": info.mode, "sha256": digest.hexdigest()}


def _newest(copy: Path) -> tuple[int | None, str]:
    """The log's newest checkpoint in a copy, for the manifest."""
    with closing(sqlite3.connect(f"file:{copy}?mode=ro", uri=True)) as connection:
        row = connection.execute("SELECT size, note FROM checkpoint ORDER BY size DESC LIMIT 1").fetchone()
    return (None, "") if row is None else (int(row[0]), str(row[1]))


def _elsewhere(folder: DataFolder) -> list[str]:
    """Services whose database is no file here."""
    configs = sorted((folder.path / "config").glob("*.toml"))
    return [
        path.stem for path in configs if tomllib.loads(path.read_text(encoding="utf-8")).get("database_url")
    ]


def _manifest(folder: DataFolder, made: Made, members: list[dict[str, Any]], clock: Clock) -> dict[str, Any]:
    bundle = TrustBundle.from_json(folder.trust.read_text(encoding="utf-8"))
    return {
        "vigil_backup": VERSION,
        "version": __version__,
        "time": clock.now(),
        "trust_domain": bundle.trust_domain,
        "data": str(folder.path),
        "checkpoint": made.checkpoint,
        "log_size": made.log_size,
        "verifier_key": _verifier_key(folder, bundle.trust_domain),
        "left_out": made.left_out,
        "elsewhere": made.elsewhere,
        "members": members,
    }


def _verifier_key(folder: DataFolder, trust_domain: str) -> str:
    """The log's key, by which its checkpoints are checked; empty where there is no log yet."""
    path = folder.path / "evidence" / "log.key"
    key = load_private_key(path) if path.exists() else None
    if not isinstance(key, Ed25519PrivateKey):
        return ""
    return verifier_key(
        origin_of(trust_domain), key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    )


def _add_manifest(archive: tarfile.TarFile, manifest: dict[str, Any], clock: Clock) -> None:
    data = (json.dumps(manifest, indent=1) + "\n").encode()
    info = tarfile.TarInfo(MANIFEST)
    info.size, info.mode, info.mtime = len(data), 0o600, clock.now() // 1000
    archive.addfile(info, io.BytesIO(data))
