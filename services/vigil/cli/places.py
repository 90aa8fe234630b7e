"""Finding the gateway in front of a device, and the gateway that keeps an intent or a command."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.cli.contexts import KnownGateway, remember_gateways
from vigil.cli.options import UsageError
from vigil.cli.session import UNREACHABLE, GatewayEnd, Session
from vigil.errors import Reason, Refused, refused

T = TypeVar("T")

MOST_ASKED: Final = 64
"""Gateways that are asked for something whose place nobody told; past it, one is named with --gateway."""


async def gateway_of(
    session: Session, device: str, named: str
) -> tuple[GatewayEnd, gateway_pb2.ConnectedDevice]:
    """The gateway in front of a device, and the device as it is seen there.

    Identity tells its site and the site's gateways; when nobody answers there, every gateway that this context
    remembers is asked. Raises NOT_IN_SCOPE, SERVICE_UNAVAILABLE, and what the gateways answered.
    """
    ends = [await named_gateway(session, named)] if named else await _candidates(session, device)
    request = gateway_pb2.GetConnectedDeviceRequest(device_id=device)
    seen: list[tuple[GatewayEnd, gateway_pb2.ConnectedDevice]] = []
    failures: list[Refused] = []
    for end in ends:
        try:
            found = await session.call(end.whom, end.devices.GetConnectedDevice, request)
        except Refused as error:
            failures.append(error)
            continue
        seen.append((end, found))
        if found.connected:
            break
    if seen:
        return next((one for one in seen if one[1].connected), seen[0])
    if failures:
        raise _worst(failures)
    raise refused(
        Reason.SERVICE_UNAVAILABLE,
        "no gateway stands at the device's site",
        lifted_by="`vigil gateway create`",
        who="an administrator",
    )


async def named_gateway(session: Session, named: str) -> GatewayEnd:
    """A gateway as it was typed: ``id``, or ``id=host:port``. Raises RESOURCE_NOT_FOUND, UsageError."""
    gateway_id, _, address = named.partition("=")
    if address:
        return session.gateway_end(gateway_id, address)
    for known_id, known in session.context.gateways.items():
        if named in (known_id, known.address):
            return session.gateway_end(known_id, known.address, known.site)
    if ":" in named:
        raise UsageError("a gateway is named by its id, or as id=host:port")
    request = identity_pb2.GetGatewayRequest(gateway_id=gateway_id)
    found = await session.call("identity", session.registry.GetGateway, request)
    return _end(session, found)


async def gateways(session: Session, named: str) -> list[GatewayEnd]:
    """The named gateway, or all in scope; from memory when identity does not answer."""
    if named:
        return [await named_gateway(session, named)]
    try:
        found = await session.every(
            "identity", session.registry.ListGateways, identity_pb2.ListGatewaysRequest(), "gateways"
        )
    except Refused as error:
        return _remembered(session, error)
    return _ends(session, found)


async def first_that_knows(
    session: Session,
    named: str,
    ask: Callable[[GatewayEnd], Awaitable[T]],
) -> tuple[GatewayEnd, T]:
    """Ask gateways at once until one knows. Raises the most telling of what they answered."""
    ends = await gateways(session, named)
    if len(ends) > MOST_ASKED:
        raise UsageError(f"{len(ends)} gateways are in your scope: name one with --gateway")
    answers = await asyncio.gather(*(_attempt(ask, end) for end in ends))
    failures: list[Refused] = []
    for end, answer in zip(ends, answers, strict=True):
        if isinstance(answer, Refused):
            failures.append(answer)
        else:
            return end, answer
    raise _worst(failures)


async def from_all(
    session: Session, named: str, ask: Callable[[GatewayEnd], Awaitable[list[Any]]]
) -> list[tuple[GatewayEnd, Any]]:
    """Rows of every gateway in scope; those that do not answer are named on stderr. Raises when none does."""
    ends = await gateways(session, named)
    answers = await asyncio.gather(*(_attempt(ask, end) for end in ends))
    rows: list[tuple[GatewayEnd, Any]] = []
    failures = [answer for answer in answers if isinstance(answer, Refused)]
    if failures and len(failures) == len(ends):
        raise _worst(failures)
    for end, answer in zip(ends, answers, strict=True):
        if isinstance(answer, Refused):
            session.output.say(f"{end.gateway_id}: {answer.refusals[0].sentence}")
        else:
            rows += [(end, row) for row in answer]
    return rows


async def _attempt(ask: Callable[[GatewayEnd], Awaitable[T]], end: GatewayEnd) -> "T | Refused":
    try:
        return await ask(end)
    except Refused as error:
        return error


async def _candidates(session: Session, device: str) -> list[GatewayEnd]:
    try:
        request = identity_pb2.GetDeviceRequest(device_id=device)
        registered = await session.call("identity", session.devices.GetDevice, request)
        asked = identity_pb2.ListGatewaysRequest(site_id=registered.site_id)
        found = await session.every("identity", session.registry.ListGateways, asked, "gateways")
    except Refused as error:
        return _remembered(session, error)
    ends = _ends(session, found)
    ends.sort(key=lambda end: end.gateway_id != registered.observed_gateway_id)
    return ends


def _remembered(session: Session, error: Refused) -> list[GatewayEnd]:
    """What the context remembers, when identity cannot be reached; any other refusal is raised."""
    known = session.context.gateways
    if error.reason not in UNREACHABLE or not known:
        raise error
    session.output.say(f"{error.refusals[0].sentence}; asking the gateways that this context remembers")
    return [session.gateway_end(name, one.address, one.site) for name, one in known.items()]


def _ends(session: Session, found: list[identity_pb2.Gateway]) -> list[GatewayEnd]:
    known = {one.gateway_id: KnownGateway(one.address, one.site_id) for one in found}
    remember_gateways(session.folder, session.context.name, known)
    return [_end(session, one) for one in found]


def _end(session: Session, gateway: identity_pb2.Gateway) -> GatewayEnd:
    return session.gateway_end(gateway.gateway_id, gateway.address, gateway.site_id)


def _worst(failures: list[Refused]) -> Refused:
    """Of several gateways' answers, one that says more than that nobody was there."""
    if not failures:
        return refused(
            Reason.RESOURCE_NOT_FOUND,
            "no gateway is in your scope",
            lifted_by="`vigil gateway create`, or --gateway",
            who="an administrator",
        )
    telling = [
        one for one in failures if one.reason not in UNREACHABLE and one.reason is not Reason.NOT_IN_SCOPE
    ]
    unreachable = [one for one in failures if one.reason in UNREACHABLE]
    return (telling or unreachable or failures)[0]
