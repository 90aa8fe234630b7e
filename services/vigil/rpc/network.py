"""The network as a port: how a server listens and how a channel connects. gRPC over mutual TLS, or a simulator's."""

from collections.abc import Callable
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
        """A `grpc.aio.Channel` to a server of this kind that must prove this DNS name; connects when it is used."""
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
        return grpc.aio.secure_channel(address, credentials, options=client_options(server_name))


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
