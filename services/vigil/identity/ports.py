"""What the use cases are given, and how their changes reach the feed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import Connection

from vigil.core.clock import Clock, Entropy
from vigil.errors import Refused
from vigil.feed import Outbox
from vigil.identity import convert, domain
from vigil.identity.ca import CertificateAuthority
from vigil.identity.trust import Trust
from vigil.rpc.access import not_in_scope
from vigil.storage import Database


class Spool(Protocol):
    """Takes statements for the log, in the transaction of the facts (`vigil.feed.evidence.EvidenceSpool`)."""

    def put(
        self,
        connection: Connection,
        statement: bytes,
        *,
        subjects: Sequence[str] = (),
        bodies: Sequence[bytes] = (),
        organization_id: str = "",
        site_id: str = "",
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Everything outside that the use cases touch."""

    database: Database
    outbox: Outbox
    spool: Spool
    authority: CertificateAuthority
    trust: Trust
    clock: Clock
    entropy: Entropy
    time_zones: frozenset[str]


def publish(outbox: Outbox, connection: Connection, value: Any) -> None:
    """Inside a write function: tell readers of this value.

    Organizations, people and credentials concern everybody: any gateway may meet them. A site, its gateways and
    its devices concern that site. Certificates of people are left out.
    """
    match value:
        case domain.Organization():
            message: Any = convert.organization_to(value)
            kind, key, site = "organization", value.organization_id, ""
        case domain.Site():
            message = convert.site_to(value)
            kind, key, site = "site", value.site_id, value.site_id
        case domain.Gateway():
            message = convert.gateway_to(value)
            kind, key, site = "gateway", value.gateway_id, value.site_id
        case domain.Principal():
            message = convert.principal_to(value)
            kind, key, site = "principal", value.principal_id, ""
        case domain.Credential():
            message = convert.credential_to(value, with_certificate=False)
            kind, key, site = "credential", value.thumbprint, ""
        case domain.Device():
            message = convert.device_to(value)
            kind, key, site = "device", value.device_id, value.site_id
        case _:
            raise TypeError(f"{type(value).__name__} is not told to anybody")
    outbox.put(connection, kind, key, message.SerializeToString(deterministic=True), site)


def unknown() -> Refused:
    """Word for word what somebody else's resource is refused with."""
    return not_in_scope()


ALL_OF_THEM: Final = 100_000
"""More rows than the lists that are read whole can have."""
