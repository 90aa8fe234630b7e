"""What was sent, on disk before it leaves: a retry asks for the same thing, never for a second.

One file for each request id: DATA/requests/<hex>.json, mode 0600.
"""

import base64
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vigil.core.certificates import replace_file
from vigil.errors import Reason, refused
from vigil.run.layout import DataFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One request: its intent's very bytes, and the digests of the commands that were made of it."""

    request_id: bytes
    principal: str
    device_id: str
    gateway_id: str
    action: str
    intent: bytes
    commands: tuple[bytes, ...] = ()

    def with_command(self, digest: bytes) -> "Sent":
        """The same, with one command more."""
        return replace(self, commands=(*self.commands, digest))


def keep(folder: DataFolder, sent: Sent) -> None:
    """Write it, durably. Raises OSError."""
    path = _path(folder, sent.request_id)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    value = {
        "request_id": sent.request_id.hex(),
        "principal": sent.principal,
        "device_id": sent.device_id,
        "gateway_id": sent.gateway_id,
        "action": sent.action,
        "intent": base64.b64encode(sent.intent).decode(),
        "commands": [digest.hex() for digest in sent.commands],
    }
    replace_file(path, (json.dumps(value, indent=1) + "\n").encode(), mode=0o600)


def find(folder: DataFolder, request_id: bytes) -> Sent | None:
    """What was sent under a request id from this data folder. Raises FIELD_INVALID for a torn file."""
    path = _path(folder, request_id)
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Sent(
            request_id=bytes.fromhex(value["request_id"]),
            principal=str(value["principal"]),
            device_id=str(value["device_id"]),
            gateway_id=str(value["gateway_id"]),
            action=str(value["action"]),
            intent=base64.b64decode(value["intent"]),
            commands=tuple(bytes.fromhex(digest) for digest in value["commands"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise refused(Reason.FIELD_INVALID, f"{path} cannot be used: {error}") from error


def _path(folder: DataFolder, request_id: bytes) -> Path:
    return folder.path / "requests" / f"{request_id.hex()}.json"
