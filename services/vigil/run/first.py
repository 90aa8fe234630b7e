"""First start of one machine: trust, addresses and the two administrators' contexts, before any port opens."""

import json
import os
from pathlib import Path

from vigil.core.certificates import replace_file
from vigil.core.clock import SystemClock
from vigil.identity import ceremony
from vigil.run.layout import DEFAULT_OPERATOR, FIRST_PORT, SERVICES, TILES, DataFolder, free_ports, port_of

SUPERVISOR = "supervisor"
"""The role under which `vigil up` asks its services how they are."""


def first_start(
    folder: DataFolder, *, trust_domain: str, base_port: int | None, passphrase_file: Path | None
) -> ceremony.FirstStart:
    """Make trust offline, choose addresses, and leave two admin contexts. Raises what the ceremony raises."""
    made = ceremony.first_start(
        folder.path,
        trust_domain=trust_domain,
        operator_organization=DEFAULT_OPERATOR,
        clock=SystemClock(),
        entropy=os.urandom,
        passphrase_file=passphrase_file,
        service_roles=(*ceremony.SERVICE_ROLES, SUPERVISOR),
    )
    choose_endpoints(folder, base_port)
    write_admin_contexts(folder, trust_domain)
    return made


def choose_endpoints(folder: DataFolder, base_port: int | None) -> dict[str, str]:
    """Choose an address for each service, and for the log's tiles, once and keep it."""
    endpoints = folder.read_endpoints()
    missing = [name for name in (*SERVICES, TILES) if name not in endpoints]
    # An older folder lacks some, and nobody listens on the others now.
    taken = {port_of(address) for address in endpoints.values()}
    ports = free_ports(len(missing), base_port or FIRST_PORT, taken)
    endpoints |= {service: f"127.0.0.1:{port}" for service, port in zip(missing, ports, strict=True)}
    folder.write_endpoints(endpoints)
    return endpoints


def write_admin_contexts(folder: DataFolder, trust_domain: str) -> None:
    """Leave a context for each of the first administrators, the first one current."""
    contexts = {}
    for admin in ceremony.FIRST_ADMINS:
        home = folder.path / "people" / admin
        contexts[admin.removeprefix("p-")] = {
            "principal": admin,
            "certificate": str(home / "tls.pem"),
            "key": str(home / "tls.key"),
            "trust": str(home / "trust.json"),
            "trust_domain": trust_domain,
            "endpoints": folder.read_endpoints(),
            "gateways": {},
        }
    document = {"current": next(iter(contexts)), "contexts": contexts}
    replace_file(folder.contexts_file, (json.dumps(document, indent=2) + "\n").encode(), mode=0o600)


def renew_services(folder: DataFolder) -> tuple[str, ...]:
    """Renew service certificates that are due; needs neither network nor root."""
    return ceremony.renew_services(
        folder.path,
        clock=SystemClock(),
        entropy=os.urandom,
        roles=(*ceremony.SERVICE_ROLES, SUPERVISOR),
    )
