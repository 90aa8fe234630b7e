"""Every method of every service, as an installation serves it: who gets in, and whose things they get at.

Certificates are made with the installation's own intermediates, so that what refuses is never the signature alone.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.contract.callers import (
    ELSEWHERE,
    FOREIGN,
    KINDS,
    METHODS,
    SERVED,
    Callers,
    Contents,
    Method,
    assert_unchanged,
    declared,
    foreign_methods,
    is_alone,
    settled,
)
from tests.support.stack import Stack
from tests.unit.rpc.raw import status_over_tls_1_2
from vigil.api.access.v1 import access_pb2
from vigil.core.certificates import Kind, TrustBundle
from vigil.core.clock import SystemClock
from vigil.demo.places import HOSPITALS
from vigil.errors import Reason

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOUR_MS = 3_600_000
GRACE = {
    "CertificateService/RenewGatewayCertificate",
    "EdgeService/Follow",
    "CommandService/PrepareCommand",
    "CommandService/SubmitCommand",
    "CommandService/GetReceipt",
    "DeviceLinkService/Connect",
}
"""Where somebody past the operational end is heard: to renew, to do class S1, to learn what is revoked."""

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda one: f"{one.process}:{one.name}")


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def before(stack: Stack) -> Contents:
    """What every database held before the first of these tests."""
    return await settled(stack)


@pytest.mark.holds("strangers")
async def test_tables_name_everything_that_is_served(callers: Callers) -> None:
    assert {service for services in SERVED.values() for service in services} == declared()
    for process, services in SERVED.items():
        method = next(one for one in METHODS if one.process == process)
        stub = reflection_pb2_grpc.ServerReflectionStub(callers.channel(method, callers.of(Kind.SERVICE)))

        async def ask() -> AsyncIterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        [answer] = [one async for one in stub.ServerReflectionInfo(ask(), timeout=20)]
        named = {one.name for one in answer.list_services_response.service}
        assert named == {*services, *FOREIGN}, process


@pytest.mark.holds("strangers")
async def test_every_method_has_an_access_option() -> None:
    assert len(METHODS) > 70
    for method in METHODS:
        assert method.rules, method.name
        for rule in method.rules:
            assert rule.kind in KINDS
            assert rule.rule != access_pb2.SCOPE_RULE_UNSPECIFIED


@pytest.mark.holds("strangers")
@every_method
async def test_nobody_without_a_certificate(callers: Callers, method: Method) -> None:
    await method.is_not_reached(callers.bare(method))


@pytest.mark.holds("strangers")
@every_method
async def test_nobody_whose_certificate_has_ended(callers: Callers, method: Method) -> None:
    ended = SystemClock().now() - 60_000
    for rule in method.rules:
        expired = callers.right(rule, not_after=ended)
        await method.is_not_reached(callers.channel(method, expired))


@pytest.mark.holds("strangers")
@every_method
async def test_nobody_past_the_operational_end(callers: Callers, method: Method) -> None:
    ended = SystemClock().now() // HOUR_MS * HOUR_MS - HOUR_MS // 2
    for rule in method.rules:
        late = callers.right(rule, operational_until=ended)
        if method.name in GRACE:
            request = method.naming(rule, "nobody") if rule.path is not None else method.request()
            refusal = await method.refusal(callers.channel(method, late), request)
            assert refusal.reason is Reason.NOT_IN_SCOPE, method.name
        else:
            refusal = await method.refusal(callers.channel(method, late))
            assert is_alone(refusal, Reason.CERTIFICATE_EXPIRED), method.name
            assert refusal.status == "UNAUTHENTICATED"


@pytest.mark.holds("strangers")
@every_method
async def test_nobody_of_another_trust_domain(callers: Callers, method: Method) -> None:
    for kind in method.kinds:
        await method.is_not_reached(callers.foreign(method, kind))


@pytest.mark.holds("strangers")
@every_method
async def test_nobody_of_another_kind_or_without_the_role(callers: Callers, method: Method) -> None:
    wrong = list(callers.wrong(method))
    assert {one.kind for one in wrong} >= set(KINDS) - method.kinds
    for credential in wrong:
        refusal = await method.refusal(callers.channel(method, credential))
        assert is_alone(refusal, Reason.ROLE_NOT_PERMITTED), (method.name, credential, refusal.refusals)
        assert refusal.status == "PERMISSION_DENIED"


@pytest.mark.holds("speaks-as-another")
@every_method
async def test_nobody_names_what_is_anothers(callers: Callers, method: Method) -> None:
    """Where the contract itself holds a field against the caller: another's id, no id, and none at all."""
    for rule in method.rules:
        if rule.path is None:
            continue
        if rule.rule == access_pb2.SCOPE_RULE_CALLER:
            caller, others = callers.right(rule), callers.another_id(rule.kind)
        else:
            assert rule.rule == access_pb2.SCOPE_RULE_ORGANIZATION, "a rule that this test does not know"
            caller, others = callers.right(rule, organization=ELSEWHERE), HOSPITALS
        for request in (method.naming(rule, others), method.naming(rule, "nobody"), method.request()):
            refusal = await method.refusal(callers.channel(method, caller), request)
            assert is_alone(refusal, Reason.NOT_IN_SCOPE), (method.name, request, refusal.refusals)
            assert refusal.status == "PERMISSION_DENIED"


@pytest.mark.holds("strangers")
@every_method
async def test_nobody_over_tls_1_2(callers: Callers, method: Method) -> None:
    process = callers.process(method)
    bundle = TrustBundle.from_json(callers.stack.folder.trust.read_text())
    answer = await asyncio.to_thread(
        status_over_tls_1_2,
        int(callers.stack.address(process).rpartition(":")[2]),
        callers.right(method.rules[0]).tls_files,
        bundle.root_pem,
        method.path,
        server_name=callers.server_name(method),
    )
    assert b"does not use TLS 1.3" in answer


@pytest.mark.holds("strangers")
@pytest.mark.parametrize("process", sorted(SERVED))
async def test_health_and_reflection_answer_verified_callers_only(callers: Callers, process: str) -> None:
    for method in foreign_methods(process):
        await method.is_not_reached(callers.bare(method))
        for kind in KINDS:
            answer = await method.call(callers.channel(method, callers.of(kind)), method.request())
            assert answer is not None, (method.name, kind)
            await method.is_not_reached(callers.foreign(method, kind))


@pytest.mark.holds("strangers")
@pytest.mark.parametrize("process", sorted(SERVED))
async def test_what_is_not_there_is_told_to_verified_callers_only(callers: Callers, process: str) -> None:
    method = next(one for one in METHODS if one.process == process)
    for channel, code in (
        (callers.channel(method, callers.of(Kind.PERSON)), grpc.StatusCode.UNIMPLEMENTED),
        (callers.bare(method), grpc.StatusCode.UNAVAILABLE),
    ):
        call = channel.unary_unary("/vigil.api.identity.v1.RegistryService/DropEverything")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"", timeout=20)
        assert raised.value.code() is code


@pytest.mark.holds("strangers")
@pytest.mark.parametrize("process", sorted(SERVED))
async def test_nobody_through_another_kinds_intermediate(callers: Callers, process: str) -> None:
    """A gateway's certificate under the people's intermediate is nobody's, whatever it says of itself."""
    method = next(one for one in METHODS if one.process == process)
    for kind, issuer in (
        (Kind.GATEWAY, Kind.PERSON),
        (Kind.SERVICE, Kind.DEVICE),
        (Kind.PERSON, Kind.GATEWAY),
    ):
        crossed = callers.of(kind, issuer=issuer)
        refusal = await method.refusal(callers.channel(method, crossed))
        assert refusal.reason in (Reason.CERTIFICATE_INVALID, Reason.SERVICE_UNAVAILABLE), refusal


@pytest.mark.holds("strangers")
async def test_nothing_has_changed(stack: Stack, before: Contents) -> None:
    assert_unchanged(before, await settled(stack))
