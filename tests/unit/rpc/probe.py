# ruff: noqa: N802 - a servicer has the contract's names
"""A contract made for these tests, with every kind of admission rule, its servicer and its client."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import status_pb2

from vigil.api.access.v1 import access_pb2
from vigil.errors import Reason, Refusal, Refused, refused
from vigil.rpc.caller import caller_of, require_organization, require_site
from vigil.rpc.stream_server import serve_exchange

PACKAGE = "vigil.probe.v1"
SERVICE = f"{PACKAGE}.ProbeService"
FIELD = descriptor_pb2.FieldDescriptorProto
KIND = {name.removeprefix("CALLER_KIND_").lower(): number for name, number in access_pb2.CallerKind.items()}
RULE = {name.removeprefix("SCOPE_RULE_").lower(): number for name, number in access_pb2.ScopeRule.items()}

Rule = tuple[str, str, tuple[str, ...], str]
"""Kind, rule, roles, field."""

METHODS: dict[str, tuple[bool, bool, list[Rule]]] = {
    "Ping": (False, False, [(kind, "none", (), "") for kind in ("service", "gateway", "person", "device")]),
    "Admin": (False, False, [("person", "none", ("admin",), ""), ("service", "none", ("policy",), "")]),
    "Own": (False, False, [("gateway", "caller", (), "gateway_id")]),
    "Site": (False, False, [("person", "site", (), "site_id"), ("gateway", "site", (), "site_id")]),
    "Owner": (False, False, [("person", "organization", (), "owner.organization_id")]),
    "Resource": (False, False, [("person", "resource", (), "site_id")]),
    "Resources": (False, True, [("person", "resource", (), "site_id")]),
    "Batch": (False, False, [("gateway", "site", (), "items.site_id")]),
    "Either": (True, True, [("gateway", "caller", (), "gateway_id"), ("gateway", "site", (), "site_id")]),
    "Echo": (True, True, [("gateway", "caller", (), "gateway_id"), ("service", "none", (), "")]),
    "Exchange": (True, True, [("gateway", "caller", (), "gateway_id"), ("service", "none", (), "")]),
    "Collect": (True, False, [("gateway", "caller", (), "gateway_id")]),
    "Follow": (False, True, [("gateway", "caller", (), "gateway_id"), ("person", "none", (), "")]),
    "Flood": (False, True, [("gateway", "caller", (), "gateway_id")]),
}


def _file(
    name: str, package: str, methods: dict[str, tuple[bool, bool, list[Rule]]]
) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name=name,
        package=package,
        syntax="proto3",
        dependency=["vigil/api/access/v1/access.proto", "google/rpc/status.proto"],
    )
    item = file.message_type.add(name="Item")
    item.oneof_decl.add(name="outcome")
    item.field.add(name="call_id", number=1, type=FIELD.TYPE_UINT64, label=FIELD.LABEL_OPTIONAL)
    item.field.add(name="site_id", number=2, type=FIELD.TYPE_STRING, label=FIELD.LABEL_OPTIONAL)
    item.field.add(name="text", number=3, type=FIELD.TYPE_STRING, label=FIELD.LABEL_OPTIONAL, oneof_index=0)
    item.field.add(
        name="error",
        number=4,
        type=FIELD.TYPE_MESSAGE,
        type_name=".google.rpc.Status",
        label=FIELD.LABEL_OPTIONAL,
        oneof_index=0,
    )
    owner = file.message_type.add(name="Owner")
    owner.field.add(name="organization_id", number=1, type=FIELD.TYPE_STRING, label=FIELD.LABEL_OPTIONAL)
    probe = file.message_type.add(name="Probe")
    for number, text in ((1, "gateway_id"), (2, "site_id"), (4, "text")):
        probe.field.add(name=text, number=number, type=FIELD.TYPE_STRING, label=FIELD.LABEL_OPTIONAL)
    probe.field.add(
        name="owner",
        number=3,
        type=FIELD.TYPE_MESSAGE,
        type_name=f".{package}.Owner",
        label=FIELD.LABEL_OPTIONAL,
    )
    probe.field.add(
        name="items",
        number=5,
        type=FIELD.TYPE_MESSAGE,
        type_name=f".{package}.Item",
        label=FIELD.LABEL_REPEATED,
    )
    probe.field.add(name="count", number=6, type=FIELD.TYPE_INT32, label=FIELD.LABEL_OPTIONAL)
    service = file.service.add(name="ProbeService")
    for method, (client_streams, server_streams, rules) in methods.items():
        added = service.method.add(
            name=method,
            input_type=f".{package}.Probe",
            output_type=f".{package}.Probe",
            client_streaming=client_streams,
            server_streaming=server_streams,
        )
        callers = added.options.Extensions[access_pb2.access].callers
        for kind, rule, roles, field in rules:
            callers.add(kind=KIND[kind], rule=RULE[rule], roles=roles, field=field)
    return file


def add_contract(
    package: str, methods: dict[str, tuple[bool, bool, list[Rule]]]
) -> descriptor_pool.DescriptorPool:
    """A pool of its own with one contract, to show what is refused at a start."""
    assert status_pb2.DESCRIPTOR is not None
    pool = descriptor_pool.DescriptorPool()
    for known in ("google/protobuf/descriptor.proto", "google/protobuf/any.proto"):
        _copy(pool, known)
    for known in ("vigil/api/access/v1/access.proto", "google/rpc/status.proto"):
        _copy(pool, known)
    pool.Add(_file(f"{package}.proto", package, methods))
    return pool


def _copy(pool: descriptor_pool.DescriptorPool, name: str) -> None:
    file = descriptor_pb2.FileDescriptorProto()
    descriptor_pool.Default().FindFileByName(name).CopyToProto(file)
    pool.Add(file)


descriptor_pool.Default().AddSerializedFile(
    _file("vigil/probe/v1/probe.proto", PACKAGE, METHODS).SerializeToString()
)
Probe: Any = message_factory.GetMessageClass(
    descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.Probe")
)
Item: Any = message_factory.GetMessageClass(
    descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.Item")
)

SEVERAL = Refused(
    [
        Refusal(Reason.ATTESTATION_STALE, "It attested too long ago.", "attesting again", "the device"),
        Refusal(Reason.APPROVALS_MISSING, "One approval is missing.", "", "an approver", {"missing": "1"}),
    ]
)


class ProbeServicer:
    """Answers what each test asks for by ``text``."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.ended: asyncio.Event = asyncio.Event()
        self.hold = asyncio.Event()
        self.flooded = 0
        self.remaining: Callable[[], float | None] = lambda: None

    async def Ping(self, request: Any, context: Any) -> Any:
        self.seen.append(request.text)
        match request.text:
            case "who":
                return Probe(text=caller_of(context).spiffe_id)
            case "one":
                raise refused(Reason.UDI_INVALID, "No.", lifted_by="another", who="you", field="udi", n=1)
            case "several":
                raise SEVERAL
            case "quoting":
                raise refused(Reason.RESOURCE_NOT_FOUND, f"There is no {'x' * request.count}.")
            case "defect":
                raise RuntimeError("the secret is forty-two")
            case "remaining":
                return Probe(text=repr(self.remaining()))
            case "hold":
                await self.hold.wait()
            case "large":
                return Probe(text="x" * request.count)
        return Probe(text=request.text)

    async def Admin(self, _request: Any, _context: Any) -> Any:
        return Probe()

    Own = Site = Owner = Batch = Admin

    async def Resource(self, request: Any, context: Any) -> Any:
        await asyncio.sleep(0)
        if request.text == "site":
            require_site(caller_of(context), "hospital", request.site_id)
        elif request.text == "organization":
            require_organization(caller_of(context), "hospital")
        self.seen.append("answered")
        return Probe(text="secret")

    async def Resources(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.text == "site":
            require_site(caller_of(context), "hospital", request.site_id)
        yield Probe(text="secret")

    async def Either(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request

    async def Echo(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
        try:
            async for request in requests:
                self.seen.append(request.text)
                yield request
        except Refused:
            self.seen.append("swallowed")
            yield Probe(text="swallowed")
        finally:
            self.ended.set()

    async def Collect(self, requests: AsyncIterator[Any], _context: Any) -> Any:
        return Probe(count=len([request async for request in requests]))

    async def Follow(self, _request: Any, context: Any) -> None:
        await context.write(Probe(text="first"))
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def Flood(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        try:
            while True:
                self.flooded += 1
                yield Probe(text="x" * 500_000)
        finally:
            self.ended.set()

    def Exchange(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
        return serve_exchange(
            requests,
            self.serve_item,
            unpack=lambda probe: probe.items,
            pack=lambda items: Probe(items=items),
            failed=lambda call_id, error: Item(call_id=call_id, error=error),
            max_in_flight=8,
        )

    async def serve_item(self, item: Any) -> Any:
        self.seen.append(item.text)
        match item.text:
            case "refuse":
                raise SEVERAL
            case "defect":
                raise RuntimeError("the secret is forty-two")
            case "hold":
                await self.hold.wait()
        return Item(text=item.text)


def add_to_server(servicer: ProbeServicer, server: Any) -> None:
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    handlers = {
        name: makers[client, answer](  # type: ignore[operator]
            getattr(servicer, name),
            request_deserializer=Probe.FromString,
            response_serializer=Probe.SerializeToString,
        )
        for name, (client, answer, _rules) in METHODS.items()
    }
    server.add_registered_method_handlers(SERVICE, handlers)


class ProbeStub:
    """One multicallable for each method, as generated stubs have them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        for name, (client, answer, _rules) in METHODS.items():
            kind = f"{'stream' if client else 'unary'}_{'stream' if answer else 'unary'}"
            make = getattr(channel, kind)
            setattr(
                self,
                name,
                make(
                    f"/{SERVICE}/{name}",
                    request_serializer=Probe.SerializeToString,
                    response_deserializer=Probe.FromString,
                ),
            )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)
