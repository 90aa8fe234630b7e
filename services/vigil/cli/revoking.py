"""Revocations and reinstatements: signed here, counted before they are sent, chained by the service."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vigil.api.attestation.v1 import attestation_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.api.release.v1 import release_pb2
from vigil.api.revocation.v1 import revocation_pb2 as pb
from vigil.cli.messages import instant
from vigil.cli.options import UsageError, one_of
from vigil.cli.output import DONE, REFUSED
from vigil.cli.proofs import Proof, attempt
from vigil.cli.session import Session
from vigil.cli.signing import sign_reinstatement, sign_revocation
from vigil.core.certificates import replace_file
from vigil.core.commands import person_of
from vigil.core.statements.bodies import (
    Reinstatement,
    Revocation,
    RevocationEffect,
    RevocationReason,
    Scope,
)
from vigil.core.statements.envelope import Statement, StatementKind, check, kind_of, read, read_any
from vigil.errors import Reason, refused

DEFAULT_EFFECT: Final = {
    Scope.CREDENTIAL: RevocationEffect.DENY,
    Scope.DEVICE: RevocationEffect.CORRECTIVE_ONLY,
    Scope.BUILD: RevocationEffect.CORRECTIVE_ONLY,
    Scope.BASELINE: RevocationEffect.NO_NEW,
    Scope.GATEWAY: RevocationEffect.DENY,
    Scope.SIGNER: RevocationEffect.DENY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What was typed. ``expires_ms`` from now; 0: until it is reinstated."""

    scope: str
    ids: tuple[str, ...]
    reason: str
    effect: str = ""
    expires_ms: int = 0
    dry_run: bool = False


async def revoke(session: Session, draft: Draft) -> int:
    """Sign and send a revocation; with --dry-run only tell what it would hit."""
    scope = Scope(draft.scope)
    ids = tuple(dict.fromkeys([await _resolve(session, scope, name) for name in draft.ids]))
    effect = draft.effect or DEFAULT_EFFECT[scope]
    body = Revocation(
        scope=scope,
        ids=ids,
        effect=RevocationEffect(one_of(effect, tuple(RevocationEffect), "--effect")),
        reason=RevocationReason(one_of(draft.reason, tuple(RevocationReason), "--reason")),
        expires=session.clock.now() + draft.expires_ms if draft.expires_ms else None,
    )
    if draft.dry_run:
        session.output.record(await _hits(session, body))
        return DONE
    statement = sign_revocation(session.scribe, body)
    made = await session.call(
        "revocation", session.revocations.Revoke, pb.RevokeRequest(revocation=statement.data)
    )
    session.output.record(entry_value(session, made))
    session.output.say(f"in force since its commit; watch it arrive: vigil revocation coverage {made.epoch}")
    return DONE


async def reinstate(
    session: Session, epoch: int, ids: list[str], *, reason: str, half: Path | None, out: Path
) -> int:
    """Take ids out of a revocation: the first person writes a file, the second completes it with theirs."""
    found = await session.call(
        "revocation", session.revocations.GetRevocation, pb.GetRevocationRequest(epoch=epoch)
    )
    if not found.statements or kind_of(found.statements[0]) is not StatementKind.REVOCATION:
        raise refused(Reason.STATE_CONFLICT, f"epoch {epoch} is no revocation")
    revoked = read(found.statements[0], Revocation)
    if half is None:
        body = Reinstatement(
            revocation=revoked.digest,
            scope=revoked.body.scope,
            ids=tuple(ids) or revoked.body.ids,
            reason=reason,
        )
        statement = sign_reinstatement(session.scribe, body)
        value = {"epoch": epoch, "reinstatement": base64.b64encode(statement.data).decode()}
        replace_file(out, (json.dumps(value, indent=1) + "\n").encode())
        session.output.record({"epoch": epoch, "ids": list(body.ids), "file": str(out), "complete": False})
        session.output.say(f"another person completes it: vigil reinstate {epoch} --with {out}")
        return DONE
    first = _read_half(half, epoch)
    if first.body.revocation != revoked.digest or (ids and set(ids) != set(first.body.ids)):
        raise refused(Reason.NOT_IN_TARGET, f"{half} speaks of another revocation, or of other ids")
    first_person = person_of(first, session.verifier, at=session.clock.now(), grace=True)
    if first_person.id == session.person.id:
        raise refused(
            Reason.APPROVER_NOT_DISTINCT,
            "the first half is your own",
            lifted_by="another person running this command",
            who="the recall team",
        )
    second = sign_reinstatement(session.scribe, first.body)
    request = pb.ReinstateRequest(reinstatements=[first.data, second.data])
    made = await session.call("revocation", session.revocations.Reinstate, request)
    session.output.record({**entry_value(session, made), "complete": True})
    return DONE


def entry_value(session: Session, entry: pb.RevocationEntry) -> dict[str, Any]:
    """One step of the chain as JSON, its signatures verified here."""
    value: dict[str, Any] = {
        "epoch": entry.epoch,
        "create_time": instant(entry.create_time_ms),
        "chain": entry.chain.hex(),
        "kind": "",
        "scope": "",
        "ids": [],
        "effect": "",
        "reason": "",
        "expires": None,
        "signed_by": [],
    }
    proofs: list[Proof] = []
    for data in entry.statements:
        kind = kind_of(data)
        if kind in (StatementKind.ERA, StatementKind.ROOT_LIST):
            value["kind"] = str(kind)
            proofs.append(_prove(session, read_any(data), value))
        elif kind is StatementKind.REVOCATION:
            statement = read(data, Revocation)
            body = statement.body
            value |= {"kind": "revocation", "scope": str(body.scope), "ids": list(body.ids)}
            value |= {
                "effect": str(body.effect),
                "reason": str(body.reason),
                "expires": instant(body.expires),
            }
            proofs.append(_prove(session, statement, value))
        else:
            freed = read(data, Reinstatement)
            value |= {"kind": "reinstatement", "scope": str(freed.body.scope), "ids": list(freed.body.ids)}
            value |= {"reason": freed.body.reason}
            proofs.append(_prove(session, freed, value))
    value["verified"] = bool(proofs) and all(proof.holds for proof in proofs)
    return value


async def list_entries(session: Session, limit: int) -> tuple[list[dict[str, Any]], int]:
    """The chain as it stands in the caller's scope; and the newest epoch."""
    request = pb.ListRevocationsRequest(page_size=min(limit, 500))
    rows: list[dict[str, Any]] = []
    epoch = 0
    while True:
        found = await session.call("revocation", session.revocations.ListRevocations, request)
        rows += [entry_value(session, entry) for entry in found.entries]
        epoch = max(epoch, int(found.epoch))
        request.page_token = found.next_page_token
        if not request.page_token or len(rows) >= limit:
            return rows[:limit], epoch


def exit_of(rows: list[dict[str, Any]]) -> int:
    """3 when a signature among them does not hold."""
    return DONE if all(row["verified"] for row in rows) else REFUSED


def _prove(session: Session, statement: "Statement[Any]", value: dict[str, Any]) -> Proof:
    def run() -> str:
        root = session.verifier.root_identity
        if statement.signer == root.thumbprint:
            check(statement, root)
            return "signed by the offline root"
        person = person_of(statement, session.verifier, at=statement.issued_at * 1000, grace=True)
        value["signed_by"].append(person.id)
        return f"signed by {person.id} of {person.organization}"

    proof = attempt(str(statement.kind), run)
    if not proof.holds:
        session.output.say(f"NOT VERIFIED: {proof.sentence}")
    return proof


def _read_half(path: Path, epoch: int) -> "Statement[Reinstatement]":
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["epoch"] != epoch:
            raise UsageError(f"{path} is for epoch {value['epoch']}")
        data = base64.b64decode(value["reinstatement"], validate=True)
    except (ValueError, KeyError, TypeError) as error:
        raise refused(Reason.FIELD_INVALID, f"{path} cannot be used: {error}") from error
    return read(data, Reinstatement)


async def _resolve(session: Session, scope: Scope, name: str) -> str:
    """What people call a thing, as the id that a revocation names."""
    match scope:
        case Scope.DEVICE:
            request = identity_pb2.GetDeviceRequest(device_id=name)
            return (await session.call("identity", session.devices.GetDevice, request)).device_id
        case Scope.BUILD if "@" in name:
            asked = release_pb2.GetReleaseRequest(release=name)
            return (await session.call("release", session.releases.GetRelease, asked)).firmware.hex()
        case Scope.CREDENTIAL if name.startswith("p-"):
            return f"principal/{name}"
        case _:
            return name


async def _hits(session: Session, body: Revocation) -> dict[str, Any]:
    """What a revocation would hit, as the lists say now."""
    value: dict[str, Any] = {
        "dry_run": True,
        "scope": str(body.scope),
        "ids": list(body.ids),
        "effect": str(body.effect),
        "reason": str(body.reason),
        "hits": {},
    }
    match body.scope:
        case Scope.BUILD:
            value["hits"] = await _count_builds(session, body.ids)
        case Scope.CREDENTIAL:
            value["hits"] = await _count_credentials(session, body.ids)
        case Scope.BASELINE:
            value["hits"] = await _count_configurations(session, body.ids)
        case Scope.GATEWAY:
            value["hits"] = await _count_gateways(session, body.ids)
        case _:
            value["hits"] = {str(body.scope): len(body.ids)}
    return value


async def _count_builds(session: Session, ids: tuple[str, ...]) -> dict[str, int]:
    counts: dict[str, int] = {"devices": 0}
    for name in ids:
        request = attestation_pb2.CountResultsRequest(firmware=bytes.fromhex(name))
        found = await session.call("attestation", session.attestation.CountResults, request)
        for status, number in found.by_status.items():
            counts[status] = counts.get(status, 0) + int(number)
            counts["devices"] += int(number)
    return counts


async def _count_configurations(session: Session, ids: tuple[str, ...]) -> dict[str, int]:
    wanted = set(ids)
    results = await session.every(
        "attestation", session.attestation.ListResults, attestation_pb2.ListResultsRequest(), "results"
    )
    return {"devices": sum(one.configuration.hex() in wanted for one in results)}


async def _count_credentials(session: Session, ids: tuple[str, ...]) -> dict[str, int]:
    found = await session.every(
        "identity",
        session.certificates.ListCredentials,
        identity_pb2.ListCredentialsRequest(),
        "credentials",
    )
    now = session.clock.now()
    hit = [one for one in found if one.thumbprint in ids or f"principal/{one.principal_id}" in ids]
    usable = [one for one in hit if one.not_after_ms > now]
    return {"credentials": len(hit), "usable": len(usable), "people": len({one.principal_id for one in hit})}


async def _count_gateways(session: Session, ids: tuple[str, ...]) -> dict[str, int]:
    devices = await session.every(
        "identity", session.devices.ListDevices, identity_pb2.ListDevicesRequest(), "devices"
    )
    behind = sum(one.observed_gateway_id in ids for one in devices)
    return {"gateways": len(ids), "devices_behind": behind}
