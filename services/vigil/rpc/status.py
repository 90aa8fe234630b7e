"""Refusals as ``google.rpc.Status`` and back, without loss. The only place that knows this mapping.

The first refusal is an ``ErrorInfo`` (domain ``vigil``); where there are several, a ``PreconditionFailure``
names them all, in order. A refusal with a value ``field`` also stands in ``BadRequest``, and what is
UNAVAILABLE carries a ``RetryInfo`` (AIP-193). Words and values of all refusals travel in the metadata of the
one ErrorInfo.
"""

import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from typing import TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

from vigil.errors import Reason, Refusal, Refused, Status, refused
from vigil.rpc import deadline

T = TypeVar("T")

DOMAIN = "vigil"
TRAILER = "grpc-status-details-bin"
RETRY_SECONDS = 1
"""What RetryInfo proposes."""
MAX_SENTENCE = 1024
"""Bytes of a sentence; longer ones are cut, as values are at MAX_VALUE."""
MAX_VALUE = 256
MAX_VALUES = 16
MAX_REFUSALS = 16
MAX_STATUS_BYTES = 12 * 1024
"""Trailers of a few kilobytes pass every proxy; ours accept 32 KiB (see ``options``). One refusal always fits."""

_RESERVED = re.compile(r"^(?:value-|refusal-\d|lifted_by$|who$)")

_BY_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: Reason.FIELD_INVALID,
    grpc.StatusCode.NOT_FOUND: Reason.RESOURCE_NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Reason.RESOURCE_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED: Reason.POLICY_DENIED,
    grpc.StatusCode.UNAUTHENTICATED: Reason.CERTIFICATE_INVALID,
    grpc.StatusCode.FAILED_PRECONDITION: Reason.STATE_CONFLICT,
    grpc.StatusCode.ABORTED: Reason.STATE_CONFLICT,
    grpc.StatusCode.OUT_OF_RANGE: Reason.SNAPSHOT_REQUIRED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.QUOTA_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE: Reason.SERVICE_UNAVAILABLE,
    grpc.StatusCode.CANCELLED: Reason.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
}


def grpc_code(status: Status) -> grpc.StatusCode:
    """Give the code of gRPC that has this name."""
    return grpc.StatusCode[status.value]


def to_status(refusal: Refused) -> status_pb2.Status:
    """Make the rich status of a refusal; the least of several go when trailers could not hold them."""
    kept = list(refusal.refusals[:MAX_REFUSALS])
    status = _encode(kept)
    while status.ByteSize() > MAX_STATUS_BYTES and len(kept) > 1:
        kept.pop()
        status = _encode(kept)
    return status


def from_status(status: status_pb2.Status) -> Refused:
    """Read the refusal in a rich status; one is made from the code where it carries none of ours."""
    info = _detail(status, error_details_pb2.ErrorInfo)
    if info is None or info.domain != DOMAIN:
        return _from_code(_status_code(status.code), status.message)
    precondition = _detail(status, error_details_pb2.PreconditionFailure)
    named = [(info.reason, status.message)]
    if precondition is not None and len(precondition.violations) > 1:
        named = [(violation.type, violation.description) for violation in precondition.violations]
    code = _status_code(status.code)
    metadata = dict(info.metadata)
    return Refused([_decode(place, name, words, code, metadata) for place, (name, words) in enumerate(named)])


def message(refusal: Refused) -> str:
    """The first sentence as it travels beside the code: a header, so never longer than a peer takes."""
    return _cut(refusal.refusals[0].sentence, MAX_SENTENCE)


def trailers(refusal: Refused) -> tuple[tuple[str, bytes], ...]:
    """Make the trailing metadata of a refused call."""
    return ((TRAILER, to_status(refusal).SerializeToString()),)


def from_rpc_error(error: grpc.RpcError) -> Refused:
    """Read the refusal behind a failed call, whether a server made it or the transport did."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return refused(Reason.INTERNAL, "The call failed in a way that says nothing more.")
    for key, value in error.trailing_metadata() or ():
        if key == TRAILER and isinstance(value, bytes):
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    return _from_code(error.code(), error.details() or "")


async def translated(call: Awaitable[T]) -> T:
    """Await a call and raise its failure as Refused."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        deadline.raise_if_cancelled()
        raise from_rpc_error(error) from error


async def translated_stream(call: AsyncIterable[T]) -> AsyncIterator[T]:
    """Iterate over a call's responses and raise its failure as Refused."""
    try:
        async for response in call:
            yield response
    except grpc.aio.AioRpcError as error:
        deadline.raise_if_cancelled()
        raise from_rpc_error(error) from error


def _encode(refusals: list[Refusal]) -> status_pb2.Status:
    first = refusals[0]
    metadata: dict[str, str] = {}
    for place, refusal in enumerate(refusals):
        prefix = f"refusal-{place}-" if place else ""
        if refusal.lifted_by:
            metadata[f"{prefix}lifted_by"] = _cut(refusal.lifted_by, MAX_SENTENCE)
        if refusal.who:
            metadata[f"{prefix}who"] = _cut(refusal.who, MAX_SENTENCE)
        for name, value in list(refusal.values.items())[:MAX_VALUES]:
            plain = not place and not _RESERVED.match(name)
            metadata[name if plain else f"{prefix}value-{name}"] = _cut(value, MAX_VALUE)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=first.reason.value, domain=DOMAIN, metadata=metadata)
    ]
    if len(refusals) > 1:
        details.append(
            error_details_pb2.PreconditionFailure(
                violations=[
                    error_details_pb2.PreconditionFailure.Violation(
                        type=each.reason.value,
                        subject=each.values.get("subject", ""),
                        description=_cut(each.sentence, MAX_SENTENCE),
                    )
                    for each in refusals
                ]
            )
        )
    fields = [each for each in refusals if "field" in each.values]
    if fields:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=each.values["field"],
                        description=_cut(each.sentence, MAX_SENTENCE),
                        reason=each.reason.value,
                    )
                    for each in fields
                ]
            )
        )
    if first.status is Status.UNAVAILABLE:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = RETRY_SECONDS
        details.append(retry)
    return status_pb2.Status(
        code=grpc_code(first.status).value[0],
        message=_cut(first.sentence, MAX_SENTENCE),
        details=[_packed(detail) for detail in details],
    )


def _decode(place: int, name: str, sentence: str, code: grpc.StatusCode, metadata: dict[str, str]) -> Refusal:
    prefix = f"refusal-{place}-" if place else ""
    values: dict[str, str] = {}
    for key, value in metadata.items():
        if not place and not _RESERVED.match(key):
            values[key] = value
        elif key.startswith(f"{prefix}value-"):
            values[key.removeprefix(f"{prefix}value-")] = value
    try:
        reason = Reason(name)
    except ValueError:
        # A newer peer may know more reasons: keep its name, and let the code say how to treat it.
        reason = _BY_STATUS.get(code, Reason.INTERNAL)
        values["reason"] = name
    return Refusal(
        reason, sentence, metadata.get(f"{prefix}lifted_by", ""), metadata.get(f"{prefix}who", ""), values
    )


def _from_code(code: grpc.StatusCode, details: str) -> Refused:
    reason = _BY_STATUS.get(code, Reason.INTERNAL)
    if code is grpc.StatusCode.UNAVAILABLE:
        return refused(
            reason,
            "The service cannot be reached, or it did not accept this end's certificate.",
            lifted_by="a service that is up, and a certificate that is not expired and of its trust domain",
            who="the operator",
            transport=details,
        )
    if code is grpc.StatusCode.CANCELLED:
        return refused(reason, "The other end cancelled the call.", transport=details)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return refused(reason, "The answer did not come in time.", transport=details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return refused(
            Reason.REQUEST_TOO_LARGE, "A message is larger than this method takes.", transport=details
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return refused(reason, "The other end does not know this method; it may be of another version.")
    return refused(reason, details or f"The call failed with {code.name}.", code=code.name)


def _detail(status: status_pb2.Status, kind: type[T]) -> T | None:
    wanted = kind()
    if isinstance(wanted, Message):
        for packed in status.details:
            try:
                if packed.Is(wanted.DESCRIPTOR) and packed.Unpack(wanted):
                    return wanted
            except DecodeError:  # the status was readable, what is packed in it is not
                return None
    return None


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _status_code(number: int) -> grpc.StatusCode:
    try:
        return grpc.StatusCode[code_pb2.Code.Name(number)]
    except (ValueError, KeyError):
        return grpc.StatusCode.UNKNOWN


def _cut(words: str, size: int) -> str:
    # Lone surrogates have no encoding; a sentence with one is still told.
    encoded = words.encode("utf-8", "replace")
    if len(encoded) <= size:
        return encoded.decode()
    return encoded[: size - 3].decode("utf-8", "ignore") + "…"
