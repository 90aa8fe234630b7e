"""`vigil status`: what runs, how fresh it is, what is about to end. Works when nothing runs, and says so."""

from typing import TYPE_CHECKING, Any, Final

import typer

from vigil.cli.perform import perform, plainly

if TYPE_CHECKING:
    from vigil.cli.output import Output
    from vigil.cli.session import Session

HEALTH_S: Final = 2.0
SERVICES: Final = ("identity", "release", "attestation", "policy", "revocation", "edge", "evidence")
SOON_S: Final = 4 * 3600
"""A credential with less than this left is named."""


def status(ctx: typer.Context) -> None:
    """Show what runs and what does not, how fresh it is, devices by state and trust, credentials about to end."""

    async def work(session: "Session") -> int:
        value = await _gather(session)
        _show(session.output, value)
        return 0 if value["ready"] and not _wrong(value["log"]) else 1

    if _usable(ctx):
        perform(ctx, work)
    plainly(ctx, _nothing)


def _usable(ctx: typer.Context) -> bool:
    """Whether there is a context to ask with; a broken one is told as every command tells it."""
    from vigil.cli.contexts import read_contexts
    from vigil.cli.options import options_of
    from vigil.cli.session import data_folder
    from vigil.errors import Refused

    options = options_of(ctx)
    try:
        return options.context is not None or bool(read_contexts(data_folder(options)).contexts)
    except Refused:
        return True


def _nothing(output: "Output") -> int:
    """Nothing was ever started here."""
    value: dict[str, Any] = {
        "ready": False,
        "context": "",
        "principal": "",
        "services": [
            _row(name, "", "nothing was started on this data folder", role=True) for name in SERVICES
        ],
        **dict.fromkeys(("policy_revision", "policy_engine", "revocation_epoch")),
        **dict.fromkeys(("policy_revocation_epoch", "log_size", "witnessed_size", "log")),
        "feed_lag_ms": {},
        "devices": {"by_state": {}, "by_trust": {}},
        "expiring": [],
    }
    _show(output, value)
    return 1


def _row(name: str, address: str, sentence: str, *, role: bool) -> dict[str, Any]:
    """One line of the table of processes; healthy when there is nothing to say."""
    kind = "service" if role else "gateway"
    row = {"name": name, "kind": kind, "endpoint": address, "healthy": not sentence}
    return {**row, "version": None, "sentence": sentence}


async def _gather(session: "Session") -> dict[str, Any]:
    import asyncio

    gateways = session.context.gateways
    checks = [_health(session, role, session.context.endpoints.get(role, ""), role=True) for role in SERVICES]
    checks += [_health(session, name, known.address, role=False) for name, known in gateways.items()]
    services = list(await asyncio.gather(*checks))
    healthy = {row["name"] for row in services if row["healthy"]}
    policy, epoch, log, states, trust = await asyncio.gather(
        _policy(session, healthy),
        _epoch(session, healthy),
        _log(session, healthy),
        _states(session, healthy),
        _trust(session, healthy),
    )
    ready = all(row["healthy"] for row in services if row["kind"] == "service")
    return {
        "ready": ready,
        "context": session.context.name,
        "principal": session.context.principal,
        "services": services,
        "policy_revision": policy.get("revision"),
        "policy_engine": policy.get("engine"),
        "feed_lag_ms": policy.get("replica_age_ms", {}),
        "revocation_epoch": epoch,
        "policy_revocation_epoch": policy.get("revocation_epoch"),
        **log,
        "devices": {"by_state": states, "by_trust": trust},
        "expiring": _expiring(session),
    }


async def _health(session: "Session", name: str, address: str, *, role: bool) -> dict[str, Any]:
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

    from vigil.errors import Refused
    from vigil.rpc.builtin import VERSION_METADATA
    from vigil.rpc.status import translated
    from vigil.rpc.tls import TlsFilesError

    why, version = "no address is known", None
    if address:
        try:
            channels = session.channels
            channel = channels.service(address, name) if role else channels.gateway(address, name)
            stub = health_pb2_grpc.HealthStub(channel)
            call = stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_S)
            answer = await translated(call)
            version = dict(await call.initial_metadata()).get(VERSION_METADATA)
            serving = answer.status == health_pb2.HealthCheckResponse.SERVING
            why = "" if serving else "it runs, but does not serve yet"
        except Refused as error:
            why = error.refusals[0].sentence
        except TlsFilesError as error:
            why = str(error)
    return {**_row(name, address, why, role=role), "version": version}


async def _policy(session: "Session", healthy: set[str]) -> dict[str, Any]:
    from vigil.api.policy.v1 import policy_pb2
    from vigil.cli.messages import plain

    if "policy" not in healthy:
        return {}
    found = await _unless_refused(
        session, "policy", session.policy.GetPolicyStatus, policy_pb2.GetPolicyStatusRequest()
    )
    return plain(found) if found is not None else {}


async def _epoch(session: "Session", healthy: set[str]) -> int | None:
    from vigil.api.revocation.v1 import revocation_pb2

    if "revocation" not in healthy:
        return None
    found = await _unless_refused(
        session,
        "revocation",
        session.revocations.ListRevocations,
        revocation_pb2.ListRevocationsRequest(page_size=1),
    )
    return None if found is None else int(found.epoch)


async def _log(session: "Session", healthy: set[str]) -> dict[str, Any]:
    """How much is under the newest checkpoints, what the log's auditor found, and what each witness holds."""
    from vigil.api.evidence.v1 import evidence_pb2
    from vigil.cli.messages import plain

    nothing: dict[str, Any] = dict.fromkeys(("log_size", "witnessed_size", "log"))
    if "evidence" not in healthy:
        return nothing
    request = evidence_pb2.GetLogStatusRequest()
    found = await _unless_refused(session, "evidence", session.evidence.GetLogStatus, request)
    if found is None:
        return nothing
    return {
        "log_size": int(found.checkpoint_size),
        "witnessed_size": int(found.witnessed_size) or None,
        "log": plain(found),
    }


async def _states(session: "Session", healthy: set[str]) -> dict[str, int]:
    from vigil.api.identity.v1 import identity_pb2

    if "identity" not in healthy:
        return {}
    found = await _unless_refused(
        session, "identity", session.devices.CountDevices, identity_pb2.CountDevicesRequest()
    )
    return {} if found is None else {name: int(found.by_state[name]) for name in sorted(found.by_state)}


async def _trust(session: "Session", healthy: set[str]) -> dict[str, int]:
    from vigil.api.attestation.v1 import attestation_pb2

    if "attestation" not in healthy:
        return {}
    found = await _unless_refused(
        session, "attestation", session.attestation.CountResults, attestation_pb2.CountResultsRequest()
    )
    if found is None:
        return {}
    return {
        **{name: int(found.by_status[name]) for name in sorted(found.by_status)},
        "stale": int(found.stale),
    }


async def _unless_refused(session: "Session", whom: str, method: Any, request: Any) -> Any:
    from vigil.errors import Refused

    try:
        return await session.call(whom, method, request)
    except Refused as error:
        session.output.say(f"{whom}: {error.refusals[0].sentence}")
        return None


def _expiring(session: "Session") -> list[dict[str, Any]]:
    """Contexts of this folder whose credential ends soon, or has ended."""
    from vigil.cli.contexts import read_contexts
    from vigil.cli.messages import instant
    from vigil.core.certificates import read_chain
    from vigil.errors import Refused

    now = session.clock.now()
    rows = []
    for context in read_contexts(session.folder).contexts.values():
        try:
            chain = read_chain(context.certificate.read_bytes())
            until = session.verifier.remember(chain).operational_until
        except (Refused, OSError):
            continue
        if until - now < SOON_S * 1000:
            row = {"context": context.name, "principal": context.principal}
            rows.append({**row, "operational_until": instant(until), "ended": until <= now})
    return rows


def _show(output: "Output", value: dict[str, Any]) -> None:
    if output.json:
        output.value(value)
        return
    output.table(
        ["", "process", "listens on", "version", ""],
        [
            (
                "up" if row["healthy"] else "DOWN",
                row["name"],
                row["endpoint"],
                row["version"] or "",
                row["sentence"],
            )
            for row in value["services"]
        ],
    )
    lag = value["feed_lag_ms"]
    facts = {
        "context": f"{value['context']} ({value['principal']})",
        "policy_revision": value["policy_revision"] or "unknown",
        "policy's_facts": ", ".join(f"{name} {age} ms old" for name, age in lag.items()) or "unknown",
        "revocation_epoch": "unknown" if value["revocation_epoch"] is None else value["revocation_epoch"],
        "log_size": "unknown" if value["log_size"] is None else value["log_size"],
        "witnessed": "by nobody" if value["witnessed_size"] is None else value["witnessed_size"],
        "devices": value["devices"]["by_state"] or "unknown",
        "trust": value["devices"]["by_trust"] or "unknown",
        "ends_soon": [f"{row['context']} at {row['operational_until']}" for row in value["expiring"]],
    }
    output.record({**facts, **_facts(value["log"])})
    for sentence in _wrong(value["log"]):
        output.say(sentence)
    if not value["ready"]:
        output.say("not ready: start it with `vigil up`")


def _facts(log: dict[str, Any] | None) -> dict[str, Any]:
    """What is shown of the log itself."""
    if log is None:
        return {}
    audit = log["audit"]
    last = f"; {audit['passes']} passes, the last until {audit['ended_time']}" if audit["passes"] else ""
    return {
        "log_audited": f"{audit['checked']} of {audit['size']} records, {audit['damaged']} places damaged{last}",
        "witnesses": [
            f"{one['name']} at {one['size']}{' (' + one['trouble'] + ')' if one['trouble'] else ''}"
            for one in log["witnesses"]
        ],
    }


def _wrong(log: dict[str, Any] | None) -> list[str]:
    """What must not be overlooked."""
    if log is None:
        return []
    found = [
        f"THE LOG IS DAMAGED at record {one['index']} ({one['what']}): {one['sentence']}"
        for one in log["audit"]["damages"]
    ]
    if log["older"]:
        found.append(
            "THE LOG IS AN OLDER COPY: its witnesses hold more or other than it, and no checkpoint is signed"
        )
    return found
