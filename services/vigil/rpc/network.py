"""The network as a port: how a server listens and how a channel connects. gRPC over mutual TLS, or a simulator's."""

import ipaddress
import json
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final, Protocol

import grpc

from vigil.core.certificates import TLS_KINDS, Kind
from vigil.errors import VigilError
from vigil.rpc.options import Options, client_options
from vigil.rpc.tls import TlsMaterial

Current = Callable[[], TlsMaterial]
"""What is to be presented now; another object once the files were replaced."""


class ListenError(VigilError):
    """The address cannot be bound."""


class Network(Protocol):
    """Makes servers and channels that show each other their certificates."""

    def server(self, *, options: Options) -> Any:
        """A `grpc.aio.Server` that is not bound yet."""
        ...

    def bind(self, server: Any, listen: str, current: Current) -> int:
        """Bind it to ``host:port`` with the newest certificate; answers the port. Raises ListenError."""
        ...

    def channel(
        self, *, address: str, server_name: str, kind: Kind, material: TlsMaterial
    ) -> grpc.aio.Channel:
        """A `grpc.aio.Channel` to a server of this kind that must prove this DNS name; connects when it is used.

        ``address``: host:port, or several IP addresses of processes of which one serves at a time, with commas.
        """
        ...


class GrpcNetwork:
    """gRPC over TLS; both ends present certificates."""

    def server(self, *, options: Options) -> Any:
        return grpc.aio.server(options=options)

    def bind(self, server: Any, listen: str, current: Current) -> int:
        try:
            return int(server.add_secure_port(listen, _server_credentials(current)))
        except RuntimeError as error:
            raise ListenError(f"{listen} cannot be bound: is another process using it?") from error

    def channel(
        self, *, address: str, server_name: str, kind: Kind, material: TlsMaterial
    ) -> grpc.aio.Channel:
        # The intermediates of the server's kind are the anchors: a chain through another kind's ends nowhere.
        credentials = grpc.ssl_channel_credentials(
            material.anchors_pem(kind), material.key_pem, material.certificate_pem
        )
        target, options = target_of(address, server_name)
        return grpc.aio.secure_channel(target, credentials, options=[*client_options(server_name), *options])


WRITER_SERVICE: Final = MappingProxyType({"evidence": "vigil.api.evidence.v1.EvidenceLogService"})
"""By role: the service whose health says which of several processes is the one to talk to."""


def target_of(address: str, server_name: str) -> tuple[str, Options]:
    """How gRPC is told of an address. Of several, calls go to those alone that say they serve (gRFC A17).

    Raises ValueError for several that are no IP addresses, and for a role that one process serves.
    """
    if "," not in address:
        return address, []
    service = WRITER_SERVICE.get(server_name.partition(".")[0])
    if service is None:
        raise ValueError(f"{server_name} has one address")
    hosts = [part.strip() for part in address.split(",")]
    versions = {ipaddress.ip_address(host.rpartition(":")[0].strip("[]")).version for host in hosts}
    if len(versions) != 1:
        raise ValueError("several addresses are of one kind, IPv4 or IPv6")
    balanced = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": service},
    }
    scheme = "ipv4" if versions == {4} else "ipv6"
    return f"{scheme}:{','.join(hosts)}", [("grpc.service_config", json.dumps(balanced))]


GRPC: Final = GrpcNetwork()


def _server_credentials(current: Current) -> grpc.ServerCredentials:
    used = current()

    def newer() -> Any:
        # Called by gRPC before each handshake; None means no change.
        nonlocal used
        material = current()
        if material is used:
            return None
        used = material
        return _configuration(material)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(used), newer, require_client_authentication=True
    )


def _configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key_pem, material.certificate_pem)],
        root_certificates=b"".join(material.anchors_pem(kind) for kind in TLS_KINDS),
    )
