"""Health and reflection, which every server has (grpc.health.v1, grpc.reflection.v1 and v1alpha)."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import Default
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped]

from vigil import __version__

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"
REFLECTION_ALPHA = "grpc.reflection.v1alpha.ServerReflection"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Handlers = Mapping[str, Handler]


class Collector:
    """Stands in for a server while generated code registers its handlers, and keeps them."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handlers] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Ignore the same handlers in their other form."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Handlers) -> None:
        """Keep the handlers of a service."""
        self.handlers[service_name] = method_handlers


VERSION_METADATA: Final = "vigil-version"
"""Initial metadata of a health check's answer: which version of Vigil answered."""


class _VersionedHealth(health.aio.HealthServicer):  # type: ignore[misc]
    """The standard servicer, which also says the version."""

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        await context.send_initial_metadata(((VERSION_METADATA, __version__),))
        return await super().Check(request, context)

    async def List(self, _request: Any, _context: Any) -> Any:  # noqa: N802 - the one method that grpcio's lacks
        """Tell the status of each service."""
        return health_pb2.HealthListResponse(
            statuses={
                service: health_pb2.HealthCheckResponse(status=status)
                for service, status in self._server_status.items()
            }
        )


class Health:
    """Whether the server serves; standard clients ask and watch it."""

    def __init__(self) -> None:
        self.servicer = _VersionedHealth()

    async def serving(self, services: Sequence[str]) -> None:
        """Say that the server and its services serve."""
        for service in ("", *services):
            await self.servicer.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def stopping(self) -> None:
        """Say that nothing is served any more, for good."""
        await self.servicer.enter_graceful_shutdown()

    async def set(self, service: str, *, serving: bool) -> None:
        """Say whether one service serves."""
        states = health_pb2.HealthCheckResponse
        await self.servicer.set(service, states.SERVING if serving else states.NOT_SERVING)


def health_handlers(health_of_server: Health) -> dict[str, Handlers]:
    """Make the handlers of the health service."""
    collector = Collector()
    health_pb2_grpc.add_HealthServicer_to_server(health_of_server.servicer, cast("Any", collector))
    return collector.handlers


def reflection_handlers(services: Sequence[str]) -> dict[str, Handlers]:
    """Make the handlers of both versions of reflection over these services."""
    _describe_v1()
    servicer = reflection.aio.ReflectionServicer([*services, HEALTH, REFLECTION, REFLECTION_ALPHA])
    collector = Collector()
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, cast("Any", collector))
    # Version 1 has the very messages of v1alpha under another package name.
    return {**collector.handlers, REFLECTION: collector.handlers[REFLECTION_ALPHA]}


def _describe_v1() -> None:
    """Make the contract of version 1 known, so that it can be looked up like the others."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = file.package.replace("v1alpha", "v1")
    for field in (field for message in file.message_type for field in message.field if field.type_name):
        field.type_name = field.type_name.replace("v1alpha", "v1")
    for method in (method for service in file.service for method in service.method):
        method.input_type = method.input_type.replace("v1alpha", "v1")
        method.output_type = method.output_type.replace("v1alpha", "v1")
    # Adding the same file again changes nothing.
    Default().AddSerializedFile(file.SerializeToString())
