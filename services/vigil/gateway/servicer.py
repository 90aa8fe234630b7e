"""The four services of a gateway: convert, call, convert."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from vigil.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from vigil.gateway.command_path import CommandPath
from vigil.gateway.device_link import DeviceLink
from vigil.gateway.intents import Intents
from vigil.gateway.preview import Preview
from vigil.gateway.queries import Queries
from vigil.rpc.caller import caller_of

Context = grpc.aio.ServicerContext[Any, Any]

COMMAND_SERVICE = "vigil.api.gateway.v1.CommandService"
INTENT_SERVICE = "vigil.api.gateway.v1.IntentService"
DEVICE_SERVICE = "vigil.api.gateway.v1.GatewayDeviceService"
LINK_SERVICE = "vigil.api.gateway.v1.DeviceLinkService"

GRACE_METHODS = frozenset(
    {
        f"/{COMMAND_SERVICE}/PrepareCommand",
        f"/{COMMAND_SERVICE}/SubmitCommand",
        f"/{COMMAND_SERVICE}/GetReceipt",
        f"/{LINK_SERVICE}/Connect",
    }
)
"""Where a certificate past its operational end is judged by the class of what is asked, or renewed."""


class CommandServicer(gateway_pb2_grpc.CommandServiceServicer):
    """Commands, as a technician gives them."""

    def __init__(self, *, path: CommandPath, preview: Preview, queries: Queries) -> None:
        self._path = path
        self._preview = preview
        self._queries = queries

    async def PrepareCommand(  # noqa: N802 - the contract's name
        self, request: gateway_pb2.PrepareCommandRequest, context: Context
    ) -> gateway_pb2.PrepareCommandResponse:
        return await self._path.prepare(caller_of(context), request)

    async def SubmitCommand(  # noqa: N802
        self, request: gateway_pb2.SubmitCommandRequest, context: Context
    ) -> gateway_pb2.SubmitCommandResponse:
        return await self._path.submit(caller_of(context), request)

    async def PreviewCommand(  # noqa: N802
        self, request: gateway_pb2.PreviewCommandRequest, context: Context
    ) -> gateway_pb2.PreviewCommandResponse:
        return await self._preview.of(caller_of(context), request)

    async def GetReceipt(  # noqa: N802
        self, request: gateway_pb2.GetReceiptRequest, context: Context
    ) -> gateway_pb2.SubmitCommandResponse:
        return await self._queries.receipt(caller_of(context), request)

    async def GetCommand(  # noqa: N802
        self, request: gateway_pb2.GetCommandRequest, context: Context
    ) -> gateway_pb2.CommandRecord:
        return await self._queries.command(caller_of(context), request.command_id)

    async def ListCommands(  # noqa: N802
        self, request: gateway_pb2.ListCommandsRequest, context: Context
    ) -> gateway_pb2.ListCommandsResponse:
        return await self._queries.commands(caller_of(context), request)


class IntentServicer(gateway_pb2_grpc.IntentServiceServicer):
    """Intents that wait for approvals."""

    def __init__(self, *, intents: Intents) -> None:
        self._intents = intents

    async def CreateIntent(  # noqa: N802
        self, request: gateway_pb2.CreateIntentRequest, context: Context
    ) -> gateway_pb2.IntentRecord:
        return await self._intents.create(caller_of(context), request)

    async def GetIntent(  # noqa: N802
        self, request: gateway_pb2.GetIntentRequest, context: Context
    ) -> gateway_pb2.IntentRecord:
        return await self._intents.get(caller_of(context), request.intent_id)

    async def ListIntents(  # noqa: N802
        self, request: gateway_pb2.ListIntentsRequest, context: Context
    ) -> gateway_pb2.ListIntentsResponse:
        return await self._intents.list_all(caller_of(context), request)

    async def ApproveIntent(  # noqa: N802
        self, request: gateway_pb2.ApproveIntentRequest, context: Context
    ) -> gateway_pb2.IntentRecord:
        return await self._intents.approve(caller_of(context), request)

    async def CancelIntent(  # noqa: N802
        self, request: gateway_pb2.CancelIntentRequest, context: Context
    ) -> gateway_pb2.IntentRecord:
        return await self._intents.cancel(caller_of(context), request.intent_id)


class GatewayDeviceServicer(gateway_pb2_grpc.GatewayDeviceServiceServicer):
    """Devices as this gateway sees them now."""

    def __init__(self, *, queries: Queries) -> None:
        self._queries = queries

    async def GetConnectedDevice(  # noqa: N802
        self, request: gateway_pb2.GetConnectedDeviceRequest, context: Context
    ) -> gateway_pb2.ConnectedDevice:
        return self._queries.device(caller_of(context), request.device_id)

    async def ListConnectedDevices(  # noqa: N802
        self, request: gateway_pb2.ListConnectedDevicesRequest, context: Context
    ) -> gateway_pb2.ListConnectedDevicesResponse:
        return self._queries.devices(caller_of(context), request)

    async def FollowDevice(  # noqa: N802
        self, request: gateway_pb2.FollowDeviceRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.FollowDeviceResponse]:
        async for report in self._queries.follow(caller_of(context), request.device_id):
            yield report

    async def GetGatewayStatus(  # noqa: N802
        self, _request: gateway_pb2.GetGatewayStatusRequest, context: Context
    ) -> gateway_pb2.GatewayStatus:
        return await self._queries.gateway(caller_of(context))


class DeviceLinkServicer(gateway_pb2_grpc.DeviceLinkServiceServicer):
    """The devices' streams."""

    def __init__(self, *, link: DeviceLink) -> None:
        self._link = link

    async def Connect(  # noqa: N802
        self, request_iterator: AsyncIterator[gateway_pb2.ConnectRequest], context: Context
    ) -> AsyncIterator[gateway_pb2.ConnectResponse]:
        async for message in self._link.connect(request_iterator, caller_of(context)):
            yield message
