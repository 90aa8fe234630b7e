"""Who is answered: certificates, kinds, roles and scope, at every call and message."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.pki import TestPki
from tests.unit.rpc.conftest import Serve, World, tls_files
from tests.unit.rpc.probe import SERVICE, Probe, ProbeStub
from tests.unit.rpc.raw import status_over_tls_1_2
from vigil.core.certificates import Kind
from vigil.errors import Reason, Refused, refused
from vigil.rpc.options import StreamSettings
from vigil.rpc.status import from_rpc_error, translated, translated_stream

OWN = Probe(gateway_id="gateway-1")


async def refusal_of(call: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await asyncio.wait_for(translated(call), 10)
    return caught.value


async def exchange(call: Any, *messages: Any) -> list[Any]:
    """Send messages one after the other, reading one answer for each."""
    answers = []
    for message in messages:
        await call.write(message)
        answers.append(await asyncio.wait_for(call.read(), 10))
    return answers


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Kind.SERVICE, "evidence"),
        (Kind.GATEWAY, "gateway-1"),
        (Kind.PERSON, "p-anna"),
        (Kind.DEVICE, "dev-aaaaaaaaaaaaaaaa"),
    ],
)
async def test_each_kind_is_known_by_its_certificate(world: World, kind: Kind, name: str) -> None:
    caller = world.caller(world.pki.issue(kind, name))
    answer = await translated(caller.stub.Ping(Probe(text="who"), timeout=10))
    assert answer.text == f"spiffe://vigil.test/{kind}/{name}"


@pytest.mark.holds("strangers")
async def test_without_a_certificate_nothing_is_answered(world: World) -> None:
    credentials = grpc.ssl_channel_credentials(world.pki.bundle.root_pem)
    options = [("grpc.ssl_target_name_override", "policy.vigil.test")]
    async with grpc.aio.secure_channel(world.address, credentials, options=options) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Ping")
        refusal = await refusal_of(call(b"", timeout=10))
    assert refusal.reason is Reason.SERVICE_UNAVAILABLE
    assert "certificate" in refusal.refusals[0].sentence
    assert world.servicer.seen == []


@pytest.mark.holds("strangers")
async def test_an_expired_certificate_fails_in_the_handshake(world: World) -> None:
    now = world.clock.now()
    expired = world.pki.issue(Kind.GATEWAY, "gateway-1", not_after=now - 1000, not_before=now - 5000)
    refusal = await refusal_of(world.caller(expired).stub.Own(OWN, timeout=10))
    assert refusal.reason is Reason.SERVICE_UNAVAILABLE


@pytest.mark.holds("strangers")
async def test_a_certificate_of_another_domain_fails_in_the_handshake(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    foreign = TestPki(tmp_path_factory.mktemp("foreign"), trust_domain="other.test")
    paths = foreign.issue(Kind.GATEWAY, "gateway-1").tls_files
    credentials = grpc.ssl_channel_credentials(
        world.pki.bundle.root_pem, paths.key.read_bytes(), paths.certificate.read_bytes()
    )
    options = [("grpc.ssl_target_name_override", "policy.vigil.test")]
    async with grpc.aio.secure_channel(world.address, credentials, options=options) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Own")
        refusal = await refusal_of(call(OWN.SerializeToString(), timeout=10))
    assert refusal.reason is Reason.SERVICE_UNAVAILABLE


@pytest.mark.holds("strangers")
async def test_a_chain_through_another_kinds_intermediate_is_refused(world: World) -> None:
    crossed = world.pki.issue(Kind.PERSON, "p-anna", issuer=world.pki.issuers[Kind.SERVICE])
    refusal = await refusal_of(world.caller(crossed).stub.Ping(Probe(), timeout=10))
    assert refusal.reason in {Reason.CERTIFICATE_INVALID, Reason.SERVICE_UNAVAILABLE}
    assert world.servicer.seen == []


@pytest.mark.holds("strangers")
async def test_a_signers_certificate_is_no_caller(world: World) -> None:
    credential = world.pki.signer_credential("decision")
    refusal = await refusal_of(world.caller(credential).stub.Ping(Probe(), timeout=10))
    assert refusal.reason in {Reason.CERTIFICATE_INVALID, Reason.SERVICE_UNAVAILABLE}
    assert world.servicer.seen == []


async def test_tls_1_2_is_refused_by_name(world: World) -> None:
    files = world.pki.issue(Kind.GATEWAY, "gateway-1").tls_files
    answer = await asyncio.to_thread(
        status_over_tls_1_2, world.port, files, world.pki.bundle.root_pem, f"/{SERVICE}/Own"
    )
    assert b"does not use TLS 1.3" in answer
    assert world.servicer.seen == []


@pytest.mark.holds("stolen-technician")
async def test_expiry_is_judged_at_each_call_of_an_open_connection(world: World) -> None:
    caller = world.gateway()
    await translated(caller.stub.Own(OWN, timeout=10))
    world.clock.ahead = 400 * 24 * 3600.0
    refusal = await refusal_of(caller.stub.Own(OWN, timeout=10))
    assert refusal.reason is Reason.CERTIFICATE_EXPIRED
    assert refusal.status == "UNAUTHENTICATED"


@pytest.mark.holds("stolen-technician")
async def test_past_its_operational_end_a_caller_needs_a_grace_method(serve: Serve) -> None:
    world = await serve(grace_methods=(f"/{SERVICE}/Own",))
    caller = world.gateway(operational_until=world.clock.now() + 60_000, not_after=world.clock.now() + 10**9)
    world.clock.ahead = 3600.0
    await translated(caller.stub.Own(OWN, timeout=10))
    refusal = await refusal_of(caller.stub.Ping(Probe(), timeout=10))
    assert refusal.reason is Reason.CERTIFICATE_EXPIRED


@pytest.mark.holds("stolen-technician")
async def test_a_revoked_caller_is_refused_at_the_next_call(world: World) -> None:
    caller = world.gateway()
    await translated(caller.stub.Own(OWN, timeout=10))
    world.revoke(caller, Reason.GATEWAY_REVOKED)
    refusal = await refusal_of(caller.stub.Own(OWN, timeout=10))
    assert refusal.reason is Reason.GATEWAY_REVOKED


async def test_an_unregistered_method_is_unimplemented(world: World) -> None:
    caller = world.gateway()
    channel = caller.channels.service(world.address, "policy")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    world.revoke(caller)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=10)
    assert from_rpc_error(caught.value).reason is Reason.CREDENTIAL_REVOKED


@pytest.mark.parametrize("kind", [Kind.SERVICE, Kind.PERSON, Kind.DEVICE])
async def test_a_kind_that_is_not_named_is_refused(world: World, kind: Kind) -> None:
    names = {Kind.SERVICE: "evidence", Kind.PERSON: "p-anna", Kind.DEVICE: "dev-aaaaaaaaaaaaaaaa"}
    caller = world.caller(world.pki.issue(kind, names[kind]))
    refusal = await refusal_of(caller.stub.Own(OWN, timeout=10))
    assert refusal.reason is Reason.ROLE_NOT_PERMITTED


async def test_a_role_that_is_not_named_is_refused(world: World) -> None:
    await translated(world.person("technician", "admin").stub.Admin(Probe(), timeout=10))
    await translated(world.caller(world.pki.service("policy")).stub.Admin(Probe(), timeout=10))
    for caller in (world.person("technician"), world.caller(world.pki.service("evidence"))):
        refusal = await refusal_of(caller.stub.Admin(Probe(), timeout=10))
        assert refusal.reason is Reason.ROLE_NOT_PERMITTED


@pytest.mark.holds("speaks-as-another")
@pytest.mark.parametrize("named", ["gateway-2", ""])
async def test_a_field_that_is_not_the_caller_is_refused(world: World, named: str) -> None:
    refusal = await refusal_of(world.gateway().stub.Own(Probe(gateway_id=named), timeout=10))
    assert refusal.reason is Reason.NOT_IN_SCOPE
    assert len(refusal.refusals) == 1


@pytest.mark.holds("speaks-as-another")
async def test_a_site_must_lie_in_the_callers_scope(world: World) -> None:
    caller = world.person(sites=("site-1", "site-2"))
    await translated(caller.stub.Site(Probe(site_id="site-2"), timeout=10))
    for site in ("site-3", ""):
        assert (
            await refusal_of(caller.stub.Site(Probe(site_id=site), timeout=10))
        ).reason is Reason.NOT_IN_SCOPE


async def test_every_site_of_one_organization_leaves_whose_site_it_is_to_the_handler(world: World) -> None:
    caller = world.person(sites=("*",))
    # The handler of Site never asks whose site it is, which is a defect.
    assert (await refusal_of(caller.stub.Site(Probe(site_id="site-9"), timeout=10))).reason is Reason.INTERNAL


async def test_an_organization_must_be_the_callers_or_the_callers_the_operators(world: World) -> None:
    caller = world.person()
    operator = world.person(organization="operator", sites=())
    own, other = (Probe(owner={"organization_id": name}) for name in ("hospital", "clinic"))
    await translated(caller.stub.Owner(own, timeout=10))
    await translated(operator.stub.Owner(other, timeout=10))
    for request in (other, Probe(), Probe(owner={})):
        assert (await refusal_of(caller.stub.Owner(request, timeout=10))).reason is Reason.NOT_IN_SCOPE


@pytest.mark.holds("speaks-as-another")
async def test_each_of_several_values_must_be_in_scope(world: World) -> None:
    stub = world.gateway(sites=("site-1", "site-2")).stub
    await translated(stub.Batch(Probe(items=[{"site_id": "site-1"}, {"site_id": "site-2"}]), timeout=10))
    for items in ([{"site_id": "site-1"}, {"site_id": "site-3"}], [{"site_id": "site-1"}, {}], []):
        refusal = await refusal_of(stub.Batch(Probe(items=items), timeout=10))
        assert refusal.reason is Reason.NOT_IN_SCOPE


async def test_a_handler_that_forgets_to_ask_whose_resource_it_is_answers_nothing(world: World) -> None:
    caller = world.person(sites=("site-1",))
    refusal = await refusal_of(caller.stub.Resource(Probe(), timeout=10))
    assert refusal.reason is Reason.INTERNAL
    assert world.servicer.seen == ["answered"]
    for text in ("site", "organization"):
        answer = await translated(caller.stub.Resource(Probe(site_id="site-1", text=text), timeout=10))
        assert answer.text == "secret"
    refusal = await refusal_of(caller.stub.Resource(Probe(site_id="site-2", text="site"), timeout=10))
    assert refusal.reason is Reason.NOT_IN_SCOPE


async def test_a_stream_that_forgets_it_sends_nothing(world: World) -> None:
    caller = world.person(sites=("site-1",))
    good = translated_stream(caller.stub.Resources(Probe(site_id="site-1", text="site"), timeout=10))
    assert [answer.text async for answer in good] == ["secret"]
    silent = caller.stub.Resources(Probe(), timeout=10)
    assert (await refusal_of(silent.read())).reason is Reason.INTERNAL


@pytest.mark.holds("speaks-as-another")
async def test_the_first_message_of_a_stream_must_name_the_caller(world: World) -> None:
    call = world.gateway().stub.Echo(timeout=10)
    await call.write(Probe(text="nameless"))
    assert (await refusal_of(call.read())).reason is Reason.NOT_IN_SCOPE
    assert "nameless" not in world.servicer.seen


@pytest.mark.holds("speaks-as-another")
async def test_a_later_message_of_a_stream_is_held_against_the_caller_too(world: World) -> None:
    call = world.gateway().stub.Echo(timeout=10)
    answers = await exchange(call, OWN, Probe(text="later"), Probe(gateway_id="gateway-1", text="again"))
    assert [answer.text for answer in answers] == ["", "later", "again"]
    await call.write(Probe(gateway_id="gateway-2", text="foreign"))
    # The handler swallows the refusal and answers all the same: nothing of that leaves.
    assert (await refusal_of(call.read())).reason is Reason.NOT_IN_SCOPE
    assert "foreign" not in world.servicer.seen
    assert "swallowed" in world.servicer.seen


async def test_a_client_stream_is_held_against_the_caller(world: World) -> None:
    stub = world.gateway().stub
    answer = await translated(stub.Collect(iter([OWN, Probe(), OWN]), timeout=10))
    assert answer.count == 3
    messages = [OWN, Probe(gateway_id="gateway-2")]
    assert (await refusal_of(stub.Collect(iter(messages), timeout=10))).reason is Reason.NOT_IN_SCOPE


async def test_one_stream_keeps_to_one_of_several_rules(world: World) -> None:
    stub = world.gateway().stub
    both = Probe(gateway_id="gateway-1", site_id="site-1")
    assert len(await exchange(stub.Either(timeout=10), both, both)) == 2
    call = stub.Either(timeout=10)
    # Admitted as itself; a foreign site then does not matter, a foreign gateway does.
    await exchange(call, OWN, Probe(site_id="site-9"))
    await call.write(Probe(gateway_id="gateway-2", site_id="site-1"))
    assert (await refusal_of(call.read())).reason is Reason.NOT_IN_SCOPE


async def test_what_is_no_message_of_the_method_is_invalid(world: World) -> None:
    channel = world.gateway().channels.service(world.address, "policy")
    refusal = await refusal_of(channel.unary_unary(f"/{SERVICE}/Own")(b"\xff\xff\xff", timeout=10))
    assert refusal.reason is Reason.FIELD_INVALID


async def test_a_request_over_the_bound_is_refused(serve: Serve) -> None:
    world = await serve(max_message_bytes=10_000)
    stub = world.gateway().stub
    await translated(stub.Ping(Probe(text="x" * 9_000), timeout=10))
    refusal = await refusal_of(stub.Ping(Probe(text="x" * 20_000), timeout=10))
    assert refusal.reason is Reason.REQUEST_TOO_LARGE
    call = stub.Echo(timeout=10)
    await exchange(call, OWN)
    await call.write(Probe(text="x" * 20_000))
    assert (await refusal_of(call.read())).reason is Reason.REQUEST_TOO_LARGE


async def test_a_server_takes_no_larger_bound(serve: Serve) -> None:
    with pytest.raises(ValueError, match="message bound"):
        await serve(max_message_bytes=(4 << 20) + 1)


@pytest.mark.holds("floods-by-credential")
async def test_calls_of_one_caller_are_bounded(serve: Serve) -> None:
    world = await serve(settings=StreamSettings(max_calls_per_caller=2))
    caller, other = world.gateway(), world.gateway("gateway-2")
    streams = [caller.stub.Echo(timeout=30) for _ in range(2)]
    for stream in streams:
        await exchange(stream, OWN)
    assert (await refusal_of(caller.stub.Own(OWN, timeout=10))).reason is Reason.QUOTA_EXCEEDED
    await translated(other.stub.Own(Probe(gateway_id="gateway-2"), timeout=10))
    await streams[0].done_writing()
    assert await streams[0].read() is grpc.aio.EOF
    await translated(caller.stub.Own(OWN, timeout=10))


async def test_a_services_own_bar_stands_before_its_methods(serve: Serve) -> None:
    def bar(caller: Any, method: str) -> None:
        if method.endswith("/Ping"):
            raise refused(Reason.QUOTA_EXCEEDED, f"{caller.id} has used it up.")

    world = await serve(authorizer=bar)
    caller = world.gateway()
    await translated(caller.stub.Own(OWN, timeout=10))
    assert (await refusal_of(caller.stub.Ping(Probe(), timeout=10))).reason is Reason.QUOTA_EXCEEDED


@pytest.mark.parametrize("kind", [Kind.SERVICE, Kind.GATEWAY, Kind.PERSON, Kind.DEVICE])
async def test_health_answers_every_verified_caller(world: World, kind: Kind) -> None:
    names = {
        Kind.SERVICE: "evidence",
        Kind.GATEWAY: "g",
        Kind.PERSON: "p-a",
        Kind.DEVICE: "dev-aaaaaaaaaaaaaaaa",
    }
    caller = world.caller(world.pki.issue(kind, names[kind]))
    stub = health_pb2_grpc.HealthStub(caller.channels.service(world.address, "policy"))
    for service in ("", SERVICE):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    world.revoke(caller)
    assert (await refusal_of(stub.Check(health_pb2.HealthCheckRequest()))).reason is Reason.CREDENTIAL_REVOKED


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_names_the_services(world: World, version: str) -> None:
    channel = world.gateway().channels.service(world.address, "policy")
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(timeout=10)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}
    assert names == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    for name in names:
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
        assert (await call.read()).WhichOneof("message_response") == "file_descriptor_response"
    assert hasattr(reflection_pb2_grpc, "ServerReflectionStub")


async def test_the_server_must_be_the_one_that_was_named(world: World) -> None:
    caller = world.gateway()
    stub_of_another = world.caller(world.pki.service("policy"), role="evidence").stub
    await translated(caller.stub.Ping(Probe(), timeout=10))
    assert (await refusal_of(stub_of_another.Ping(Probe(), timeout=10))).reason is Reason.SERVICE_UNAVAILABLE


async def test_a_server_of_another_kind_is_not_believed(serve: Serve, pki: TestPki) -> None:
    # A gateway serves under its own name, but a client that looks for a service never accepts it.
    world = await serve(tls=tls_files(pki.issue(Kind.GATEWAY, "gateway-1")))
    caller = world.caller(pki.service("evidence"))
    refusal = await refusal_of(caller.stub.Ping(Probe(), timeout=10))
    assert refusal.reason is Reason.SERVICE_UNAVAILABLE
    stub = ProbeStub(caller.channels.gateway(world.address, "gateway-1"))
    await translated(stub.Ping(Probe(), timeout=10))
