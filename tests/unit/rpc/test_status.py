"""Refusals survive the way through a status without loss."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil.errors import STATUS_OF, Reason, Refusal, Refused, refused
from vigil.rpc import status

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)
NAMES = st.one_of(
    st.sampled_from(
        ["field", "subject", "lifted_by", "who", "value-who", "refusal-1-who", "refusal-0-value-x"]
    ),
    st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True),
)
REFUSALS = st.builds(
    Refusal, st.sampled_from(Reason), WORDS, WORDS, WORDS, st.dictionaries(NAMES, WORDS, max_size=4)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(REFUSALS, min_size=1, max_size=5))
def test_round_trip(refusals: list[Refusal]) -> None:
    refusal = Refused(refusals)
    encoded = status.to_status(refusal).SerializeToString()
    assert status.from_status(status_pb2.Status.FromString(encoded)).refusals == refusal.refusals


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_its_code(reason: Reason) -> None:
    encoded = status.to_status(refused(reason, "It is so."))
    assert encoded.code == status.grpc_code(STATUS_OF[reason]).value[0]
    assert status.from_status(encoded).reason is reason


def test_details_are_those_that_other_tools_know() -> None:
    refusal = Refused(
        [
            Refusal(Reason.FIELD_INVALID, "No UDI.", values={"field": "udi"}),
            Refusal(Reason.REPLICA_STALE, "Too old.", "waiting", "nobody", {"replica": "identity"}),
        ]
    )
    details = {detail.TypeName(): detail for detail in status.to_status(refusal).details}
    assert set(details) == {
        "google.rpc.ErrorInfo",
        "google.rpc.PreconditionFailure",
        "google.rpc.RetryInfo",
        "google.rpc.BadRequest",
    }
    info = error_details_pb2.ErrorInfo()
    details["google.rpc.ErrorInfo"].Unpack(info)
    assert (info.domain, info.reason) == ("vigil", "REPLICA_STALE")
    assert info.metadata["replica"] == "identity"
    bad = error_details_pb2.BadRequest()
    details["google.rpc.BadRequest"].Unpack(bad)
    assert [(each.field, each.description) for each in bad.field_violations] == [("udi", "No UDI.")]


def test_a_status_fits_into_trailers_and_keeps_the_most_fundamental() -> None:
    values = {f"name{number}": "x" * 5000 for number in range(20)}
    long = [Refusal(reason, "y" * 5000, "z" * 5000, "w", values) for reason in list(Reason)[6:40]]
    encoded = status.to_status(Refused(long))
    assert encoded.ByteSize() <= status.MAX_STATUS_BYTES
    assert status.from_status(encoded).reason is Reason.CREDENTIAL_REVOKED


def test_a_sentence_that_quotes_what_was_sent_fits_into_a_header() -> None:
    refusal = refused(Reason.RESOURCE_NOT_FOUND, f"There is no model {'ü' * 70_000}.")
    assert len(status.message(refusal).encode()) <= status.MAX_SENTENCE
    assert status.message(refusal) == status.to_status(refusal).message
    assert status.message(refused(Reason.RESOURCE_NOT_FOUND, "There is no \ud800.")) == "There is no ?."


def test_a_reason_of_a_newer_peer_keeps_its_name_and_its_class() -> None:
    encoded = status.to_status(refused(Reason.QUOTA_EXCEEDED, "Too much.", limit=3))
    info = error_details_pb2.ErrorInfo()
    encoded.details[0].Unpack(info)
    info.reason = "SOMETHING_NEW"
    encoded.details[0].Pack(info)
    refusal = status.from_status(encoded)
    assert refusal.reason is Reason.QUOTA_EXCEEDED
    assert refusal.refusals[0].values == {"limit": "3", "reason": "SOMETHING_NEW"}


def test_details_of_another_domain_are_not_ours() -> None:
    encoded = status.to_status(refused(Reason.UDI_INVALID, "No."))
    info = error_details_pb2.ErrorInfo(reason="UDI_INVALID", domain="example.com")
    encoded.details[0].Pack(info)
    assert status.from_status(encoded).reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    ("code", "details", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "connection refused", Reason.SERVICE_UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", Reason.DEADLINE_EXCEEDED),
        (grpc.StatusCode.CANCELLED, "", Reason.SERVICE_UNAVAILABLE),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Received message larger than max (2 vs. 1)",
            Reason.REQUEST_TOO_LARGE,
        ),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "", Reason.QUOTA_EXCEEDED),
        (grpc.StatusCode.UNIMPLEMENTED, "", Reason.INTERNAL),
        (grpc.StatusCode.UNKNOWN, "", Reason.INTERNAL),
        (grpc.StatusCode.DATA_LOSS, "", Reason.INTERNAL),
    ],
)
def test_failures_of_the_transport(code: grpc.StatusCode, details: str, reason: Reason) -> None:
    assert status.from_rpc_error(grpc.aio.AioRpcError(code, details=details)).reason is reason


def test_broken_details_fall_back_to_the_code() -> None:
    metadata = grpc.aio.Metadata((status.TRAILER, b"\xff\xff"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, trailing_metadata=metadata, details="gone")
    assert status.from_rpc_error(error).reason is Reason.RESOURCE_NOT_FOUND


async def test_a_cancellation_of_ones_own_stays_one() -> None:
    waiting = asyncio.ensure_future(status.translated(asyncio.Event().wait()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
