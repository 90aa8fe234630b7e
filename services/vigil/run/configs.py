"""Writes the configurations of one machine's services as TOML; each room's `config.py` validates its own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vigil.core.certificates import replace_file
from vigil.run.layout import SERVICES, TILES, DataFolder

Value = str | int | bool | Sequence[str] | Mapping[str, str]

SIGNERS: Mapping[str, tuple[str, ...]] = {
    "attestation": ("result",),
    "policy": ("decision",),
    "revocation": ("head",),
    "evidence": ("recorded",),
}
"""Which signer's key each service holds (ARCHITECTURE section 4)."""

PEERS: Mapping[str, tuple[str, ...]] = {
    "identity": ("evidence", "revocation"),
    "release": ("evidence", "revocation"),
    "attestation": ("identity", "release", "evidence", "revocation"),
    "policy": ("identity", "release", "attestation", "revocation", "evidence"),
    "revocation": ("identity", "release", "evidence"),
    "edge": ("revocation",),
    "evidence": ("revocation",),
}
"""Whom each service dials."""

GATEWAY_PEERS = ("identity", "release", "attestation", "policy", "evidence")


def write_service_configs(
    folder: DataFolder,
    *,
    trust_domain: str,
    endpoints: Mapping[str, str],
    redis_url: str,
    metrics: Mapping[str, str],
) -> None:
    """Write one file a service, anew at every start: the bus's socket lies elsewhere each time.

    ``metrics``: where a service serves Prometheus, by its name; none of those that are missing there do.
    """
    folder.config("identity").parent.mkdir(mode=0o700, exist_ok=True)
    for service in SERVICES:
        tls = folder.path / "pki" / "services" / service
        values: dict[str, Value] = {
            "data_dir": str(folder.path / service),
            "listen": endpoints[service],
            "trust_domain": trust_domain,
            "certificate": str(tls / "tls.pem"),
            "key": str(tls / "tls.key"),
            "trust": str(folder.trust),
        }
        if service in metrics:
            values["metrics_listen"] = metrics[service]
        if service == "identity":
            values["pki_dir"] = str(folder.path / "pki")
        if service == "evidence":
            values["tiles_listen"] = endpoints[TILES]
        if service in ("revocation", "edge"):
            values["redis_url"] = redis_url
        if service == "revocation":
            values["edges"] = [endpoints["edge"]]
        for statement in SIGNERS.get(service, ()):
            values["signer_certificate"] = str(folder.path / "pki" / "signers" / f"{statement}.pem")
            values["signer_key"] = str(folder.path / "pki" / "signers" / f"{statement}.key")
        if service == "evidence" and folder.witness_policy.exists():
            values["witness_policy"] = str(folder.witness_policy)
        values["peers"] = {peer: endpoints[peer] for peer in PEERS[service]}
        (folder.path / service).mkdir(mode=0o700, exist_ok=True)
        replace_file(folder.config(service), toml(values).encode(), mode=0o600)


def gateway_config(
    folder: DataFolder,
    *,
    gateway_id: str,
    site_id: str,
    organization_id: str,
    trust_domain: str,
    listen: str,
    endpoints: Mapping[str, str],
    metrics_listen: str = "",
) -> str:
    """The configuration of one gateway, as text; ``metrics_listen`` empty: it serves no metrics."""
    home = folder.gateway(gateway_id)
    metrics = {"metrics_listen": metrics_listen} if metrics_listen else {}
    return toml(
        {
            **metrics,
            "gateway_id": gateway_id,
            "site_id": site_id,
            "organization_id": organization_id,
            "data_dir": str(home / "data"),
            "listen": listen,
            "trust_domain": trust_domain,
            "certificate": str(home / "tls.pem"),
            "key": str(home / "tls.key"),
            "trust": str(home / "trust.json"),
            "edges": [endpoints["edge"]],
            "peers": {peer: endpoints[peer] for peer in GATEWAY_PEERS},
        }
    )


def toml(values: Mapping[str, Value]) -> str:
    """Write a flat table with at most one level of sub-tables. JSON's strings are TOML's basic strings."""
    lines = [
        f"{name} = {_literal(value)}" for name, value in values.items() if not isinstance(value, Mapping)
    ]
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{name}]", *(f"{key} = {_literal(item)}" for key, item in value.items())]
    return "\n".join(lines) + "\n"


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value)
    return json.dumps(list(value))


def python_module(service: str) -> str:
    """The module that ``python -m`` runs for a service; the edge is a part of revocation."""
    return "vigil.revocation.edge" if service == "edge" else f"vigil.{service}"


def config_path(folder: DataFolder, process: str) -> Path:
    """The configuration of a process: a service's, or a gateway's in its own folder."""
    return folder.config(process) if process in SERVICES else folder.gateway(process) / "gateway.toml"
