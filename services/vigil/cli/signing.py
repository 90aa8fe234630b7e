"""Statements of people and of manufacturers, signed on this machine."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vigil.core.certificates import load_pair
from vigil.core.clock import SystemClock
from vigil.core.commands import target_path, target_root
from vigil.core.keys import KeySigner
from vigil.core.statements.bodies import (
    Approval,
    Command,
    Hold,
    HoldAction,
    Intent,
    Mode,
    Reinstatement,
    Revocation,
    Scope,
)
from vigil.core.statements.envelope import Scribe, Statement
from vigil.core.statements.schema import Scalar

SUBJECT_OF: Mapping[Scope, str] = {
    Scope.CREDENTIAL: "credential",
    Scope.DEVICE: "device",
    Scope.BUILD: "build",
    Scope.BASELINE: "baseline",
    Scope.GATEWAY: "gateway",
    Scope.SIGNER: "signer",
}


def manufacturer_scribe(folder: Path, statement: str) -> Scribe:
    """A manufacturer's signer for one kind of statement, from its folder. Raises OSError, CERTIFICATE_INVALID."""
    return Scribe(
        signer=manufacturer_signer(folder, statement),
        issuer=f"signer/{statement}",
        clock=SystemClock(),
        entropy=os.urandom,
        numbered=False,
    )


def manufacturer_signer(folder: Path, statement: str) -> KeySigner:
    """The key behind ``manufacturer_scribe``, for what is no statement (a DSSE envelope)."""
    signers = folder / "signers" if (folder / "signers").is_dir() else folder
    return load_pair(signers / f"{statement}.pem", signers / f"{statement}.key").signer


def sign_intent(
    scribe: Scribe,
    *,
    device_ids: Sequence[str],
    action: str,
    parameters: Mapping[str, Scalar],
    request_id: bytes,
    mode: Mode,
    not_before: int,
    expires: int,
    work_order: str,
) -> Statement[Intent]:
    """What a person wants done."""
    body = Intent(
        target_root=target_root(device_ids),
        target_count=len(device_ids),
        action=action,
        parameters=dict(parameters),
        request_id=request_id,
        mode=mode,
        not_before=not_before,
        expires=expires,
        work_order=work_order or None,
    )
    return scribe.sign(body, subject=f"device/{device_ids[0]}")


def sign_command(
    scribe: Scribe, *, intent: Statement[Intent], device_ids: Sequence[str], device_id: str, nonce: bytes
) -> Statement[Command]:
    """Bind an intent to one device and its nonce. Raises NOT_IN_TARGET."""
    index, path = target_path(device_ids, device_id)
    body = Command(intent=intent.digest, device=device_id, index=index, path=path, nonce=nonce)
    return scribe.sign(body, subject=f"device/{device_id}")


def sign_approval(scribe: Scribe, intent: Statement[Intent], *, meaning: str) -> Statement[Approval]:
    """Approve exactly these bytes, for as long as they live."""
    body = Approval(intent=intent.digest, meaning=meaning, expires=intent.body.expires)
    return scribe.sign(body, subject=intent.subject)


def sign_revocation(scribe: Scribe, body: Revocation) -> Statement[Revocation]:
    """Revoke."""
    return scribe.sign(body, subject=subject_of(body.scope, body.ids[0]))


def sign_reinstatement(scribe: Scribe, body: Reinstatement) -> Statement[Reinstatement]:
    """Say one half of taking a revocation back."""
    return scribe.sign(body, subject=subject_of(body.scope, body.ids[0]))


def sign_hold(scribe: Scribe, device_id: str, *, action: HoldAction, reason: str) -> Statement[Hold]:
    """Hold a device's evidence in the registry, or say one half of lifting it."""
    return scribe.sign(Hold(device=device_id, action=action, reason=reason), subject=f"device/{device_id}")


def subject_of(scope: Scope, name: str) -> str:
    """The history that a statement about this id belongs to."""
    if name.startswith("principal/"):
        return f"person/{name.removeprefix('principal/')}"
    return f"{SUBJECT_OF[scope]}/{name}"
