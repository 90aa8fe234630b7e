"""Both engines behind the policy port give the same answers, and refuse in the same way when something is wrong."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.opa import OpaServer, free_port, opa
from tests.support.policy_documents import ALLOWED, CHANGE, changed, documents, mutilated_documents
from vigil.errors import Reason, Refused
from vigil.policy.engine.build import build
from vigil.policy.engine.bundle import DEFAULT_BUNDLE, Bundle, read_bundle
from vigil.policy.engine.opa_server import OpaServerEngine
from vigil.policy.engine.port import Obligation, PolicyEngine, RuleReason, Verdict
from vigil.policy.engine.wasm import WasmEngine

PATIENT_MS = 60_000  # where a test is not about deadlines, a busy machine must not decide it
LATE_MS = 300

FAULTS = """package vigil.command

decision := {"allow": true, "reasons": [], "obligations": []} if not faulty

decision := {"allow": "true", "reasons": [], "obligations": []} if input.fault == "text"

decision := {"allow": 1, "reasons": [], "obligations": []} if input.fault == "number"

decision := {"allow": null, "reasons": [], "obligations": []} if input.fault == "null"

decision := true if input.fault == "boolean alone"

decision := {"allow": true, "reasons": []} if input.fault == "member missing"

decision := {"allow": true, "reasons": [], "obligations": [], "note": ""} if input.fault == "member too many"

decision := {"allow": true, "reasons": [r], "obligations": []} if {
	input.fault == "reasons of a permission"
	r := {"reason": "EVIDENCE_HOLD", "rule": "vigil.command.x", "values": {}}
}

decision := {"allow": true, "reasons": [], "obligations": [o]} if {
	input.fault == "obligation unknown"
	o := {"kind": "fly", "values": {}}
}

decision := {"allow": false, "reasons": [], "obligations": [o]} if {
	input.fault == "obligation of a refusal"
	o := {"kind": "review", "values": {}}
}

decision := {"allow": false, "reasons": [r], "obligations": []} if {
	input.fault == "fraction"
	r := {"reason": "EVIDENCE_HOLD", "rule": "vigil.command.x", "values": {"holds": 1 / 2}}
}

decision := {"allow": false, "reasons": [r], "obligations": []} if {
	input.fault == "nested"
	r := {"reason": "EVIDENCE_HOLD", "rule": "vigil.command.x", "values": {"holds": [1]}}
}

decision := {"allow": false, "reasons": [], "obligations": []} if input.fault == "bare no"

decision := {"allow": false, "reasons": [r], "obligations": []} if {
	input.fault == "reason unknown"
	r := {"reason": "MERCURY_RETROGRADE", "rule": "vigil.command.planets", "values": {"planet": 1}}
}

decision := {"allow": false, "reasons": [r], "obligations": []} if {
	input.fault == "reason of another kind"
	r := {"reason": "INTERNAL", "rule": "vigil.command.inside", "values": {}}
}

decision := {"allow": input.fault, "reasons": [text | some _ in numbers.range(1, 3000)], "obligations": []} if {
	input.fault == "large"
	text := "a reason without end, told again and again"
}

decision := {"allow": true, "reasons": [], "obligations": []} if input.fault == "conflict"

decision := {"allow": false, "reasons": [], "obligations": []} if input.fault == "conflict"

decision := {"allow": true, "reasons": [], "obligations": []} if {
	input.fault == "late"
	some _ in numbers.range(1, 3000)
	some _ in numbers.range(1, 3000)
	some last in numbers.range(1, 3000)
	last < 0
}

decision := {"allow": true, "reasons": [], "obligations": []} if {
	input.fault == "late without memory"
	hay := concat("", ["aaaaaaaaaaaaaaaa" | some _ in numbers.range(1, 20000)])
	needle := concat("", ["aaaaaaaa" | some _ in numbers.range(1, 20000)])
	contains(hay, concat("", [needle, "b"]))
}

default faulty := false

faulty if is_string(input.fault)
"""

UNUSABLE = [
    "undefined",
    "text",
    "number",
    "null",
    "boolean alone",
    "member missing",
    "member too many",
    "reasons of a permission",
    "obligation unknown",
    "obligation of a refusal",
    "fraction",
    "nested",
    "large",
]


def bundle_at(path: Path) -> Bundle:
    return read_bundle(path.read_bytes())


@pytest.fixture(scope="module")
def fault_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that does what `input.fault` says, compiled by the real OPA."""
    folder = tmp_path_factory.mktemp("faults")
    module = folder / "policies" / "vigil" / "command" / "faults.rego"
    module.parent.mkdir(parents=True)
    module.write_text(FAULTS)
    (folder / "policies" / "vigil" / "config").mkdir()
    (folder / "policies" / "vigil" / "config" / "data.json").write_text("{}")
    bundle = folder / "bundle.tar.gz"
    bundle.write_bytes(build(folder / "policies", opa()))
    return bundle


@pytest.fixture(scope="module")
def fault_server(fault_bundle: Path) -> Iterator[OpaServer]:
    with OpaServer(fault_bundle) as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[OpaServer]:
    with OpaServer(DEFAULT_BUNDLE) as running:
        yield running


@pytest.fixture(params=["wasm", "opa server"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[PolicyEngine]:
    """Each engine with the bundle that comes with Vigil."""
    bundle = bundle_at(DEFAULT_BUNDLE)
    made: PolicyEngine
    if request.param == "wasm":
        made = WasmEngine(bundle, deadline_ms=PATIENT_MS)
    else:
        server = request.getfixturevalue("server")
        await server.ready()
        made = await OpaServerEngine.open(
            host="127.0.0.1", port=server.port, revision=bundle.revision, deadline_s=PATIENT_MS / 1000
        )
    yield made
    await made.close()


@pytest.fixture(params=["wasm", "opa server"])
async def faulty(request: pytest.FixtureRequest, fault_bundle: Path) -> AsyncIterator[PolicyEngine]:
    """Each engine with the bundle that misbehaves on demand."""
    bundle = bundle_at(fault_bundle)
    made: PolicyEngine
    if request.param == "wasm":
        made = WasmEngine(bundle, deadline_ms=PATIENT_MS)
    else:
        server = request.getfixturevalue("fault_server")
        await server.ready()
        made = await OpaServerEngine.open(
            host="127.0.0.1", port=server.port, revision=bundle.revision, deadline_s=PATIENT_MS / 1000
        )
    yield made
    await made.close()


async def outcome(engine: PolicyEngine, document: Mapping[str, Any]) -> Verdict | Reason:
    """What an engine answers, a refusal to answer included."""
    try:
        return await engine.decide(document)
    except Refused as refusal:
        return refusal.reason


@pytest.mark.parametrize("name", sorted(ALLOWED))
async def test_each_class_can_be_allowed(engine: PolicyEngine, name: str) -> None:
    owed = {
        "R": (Obligation("show_attestation", {}),),
        "U": (Obligation("stage", {"until": "idle"}),),
    }
    assert await engine.decide(ALLOWED[name]) == Verdict(
        allow=True, reasons=(), obligations=owed.get(name, ())
    )


async def test_reasons_come_in_the_order_of_the_error_tree(engine: PolicyEngine) -> None:
    document = changed(CHANGE, {"work_order": False, "device.state": "banned", "attestation.stale": True})
    assert await engine.decide(document) == Verdict(
        allow=False,
        reasons=(
            RuleReason(Reason.DEVICE_REVOKED, "vigil.command.device_serviceable", {"state": "banned"}),
            RuleReason(Reason.WORK_ORDER_MISSING, "vigil.command.work_order_present", {}),
            RuleReason(Reason.ATTESTATION_STALE, "vigil.command.attestation_fresh", {"age_ms": 1000}),
        ),
        obligations=(),
    )


async def test_an_empty_question_is_refused(engine: PolicyEngine) -> None:
    assert await engine.decide({}) == Verdict(
        allow=False,
        reasons=(RuleReason(Reason.POLICY_DENIED, "vigil.command.class_known", {}),),
        obligations=(),
    )


async def test_strings_with_quotes_nul_and_wide_characters_pass_through(engine: PolicyEngine) -> None:
    for text in ('"', "\\", "\0", "a\0b", "\x1f", "é", "☃", "\U0001f489", "\u2028"):
        assert (await engine.decide(changed(CHANGE, {"device.site": text, "requester.sites": [text]}))).allow
        verdict = await engine.decide(changed(CHANGE, {"build.effect": text}))
        assert verdict.reasons[0].values == {"effect": text}


@pytest.mark.parametrize(
    "document",
    [
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": b"bytes"},
        {"a": "\ud800"},
        {"a": "x" * 40_000},
    ],
    ids=["nan", "infinity", "bytes", "lone surrogate", "large"],
)
async def test_a_question_that_is_no_small_json_is_refused(
    engine: PolicyEngine, document: dict[str, Any]
) -> None:
    assert await outcome(engine, document) is Reason.POLICY_UNDEFINED


async def test_a_question_nested_without_end_is_refused(engine: PolicyEngine) -> None:
    endless: dict[str, Any] = {}
    endless["deeper"] = endless
    assert await outcome(engine, endless) is Reason.POLICY_UNDEFINED


async def test_many_callers_at_once_get_their_own_answers(engine: PolicyEngine) -> None:
    questions = [
        changed(CHANGE, {"attestation.stale": True, "attestation.age_ms": age}) for age in range(200)
    ]
    verdicts = await asyncio.gather(*(engine.decide(question) for question in questions))
    assert [verdict.reasons[0].values["age_ms"] for verdict in verdicts] == list(range(200))


async def test_a_closed_engine_refuses(engine: PolicyEngine) -> None:
    await engine.close()
    assert await outcome(engine, CHANGE) is Reason.POLICY_UNAVAILABLE


async def test_the_engines_agree_on_generated_questions(server: OpaServer) -> None:
    await server.ready()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(batch=st.lists(documents() | mutilated_documents(), min_size=10, max_size=20))
    def agree(batch: list[dict[str, Any]]) -> None:
        assert asyncio.run(_answers(server, batch, "opa server")) == asyncio.run(
            _answers(server, batch, "wasm")
        )

    await asyncio.to_thread(agree)


async def _answers(server: OpaServer, batch: list[dict[str, Any]], name: str) -> list[Verdict | Reason]:
    bundle = bundle_at(DEFAULT_BUNDLE)
    engine: PolicyEngine
    if name == "wasm":
        engine = WasmEngine(bundle, deadline_ms=PATIENT_MS)
    else:
        engine = await OpaServerEngine.open(
            host="127.0.0.1", port=server.port, revision=bundle.revision, deadline_s=PATIENT_MS / 1000
        )
    try:
        return [await outcome(engine, deepcopy(document)) for document in batch]
    finally:
        await engine.close()


async def test_the_faulty_policy_works_when_nothing_is_asked_of_it(faulty: PolicyEngine) -> None:
    assert (await faulty.decide({})).allow


@pytest.mark.holds("policy-editor", "opa-failures")
@pytest.mark.parametrize("fault", UNUSABLE)
async def test_an_unusable_answer_refuses(faulty: PolicyEngine, fault: str) -> None:
    assert await outcome(faulty, {"fault": fault}) is Reason.POLICY_UNDEFINED
    assert (await faulty.decide({})).allow


@pytest.mark.holds("policy-editor", "opa-failures")
async def test_an_error_in_the_policy_refuses_and_harms_no_later_question(faulty: PolicyEngine) -> None:
    for _ in range(5):
        assert await outcome(faulty, {"fault": "conflict"}) is Reason.POLICY_UNAVAILABLE
        assert (await faulty.decide({})).allow


@pytest.mark.holds("policy-editor")
async def test_a_bare_no_is_given_a_reason(faulty: PolicyEngine) -> None:
    assert (await faulty.decide({"fault": "bare no"})).reasons == (
        RuleReason(Reason.POLICY_DENIED, "vigil.command.decision", {}),
    )


async def test_an_unknown_reason_becomes_policy_denied_with_its_rule(faulty: PolicyEngine) -> None:
    assert (await faulty.decide({"fault": "reason unknown"})).reasons == (
        RuleReason(Reason.POLICY_DENIED, "vigil.command.planets", {"reason": "MERCURY_RETROGRADE"}),
    )
    assert (await faulty.decide({"fault": "reason of another kind"})).reasons == (
        RuleReason(Reason.POLICY_DENIED, "vigil.command.inside", {"reason": "INTERNAL"}),
    )


@pytest.mark.holds("policy-editor", "opa-failures")
async def test_a_late_policy_in_the_process_is_interrupted(fault_bundle: Path) -> None:
    engine = WasmEngine(bundle_at(fault_bundle), deadline_ms=LATE_MS)
    with pytest.raises(Refused, match="longer than its deadline") as refusal:
        await engine.decide({"fault": "late without memory"})
    assert refusal.value.reason is Reason.POLICY_UNAVAILABLE
    assert (await engine.decide({})).allow
    await engine.close()


@pytest.mark.holds("policy-editor", "opa-failures")
async def test_a_policy_in_the_process_cannot_take_all_memory(fault_bundle: Path) -> None:
    engine = WasmEngine(bundle_at(fault_bundle), deadline_ms=PATIENT_MS)
    with pytest.raises(Refused, match="the evaluation failed") as refusal:
        await engine.decide({"fault": "late"})
    assert refusal.value.reason is Reason.POLICY_UNAVAILABLE
    assert (await engine.decide({})).allow
    await engine.close()


@pytest.mark.holds("opa-failures")
async def test_a_late_policy_at_the_server_is_given_up(fault_bundle: Path, fault_server: OpaServer) -> None:
    await fault_server.ready()
    revision = bundle_at(fault_bundle).revision
    engine = await OpaServerEngine.open(
        host="127.0.0.1", port=fault_server.port, revision=revision, deadline_s=LATE_MS / 1000
    )
    with pytest.raises(Refused, match="longer than its deadline") as refusal:
        await engine.decide({"fault": "late"})
    assert refusal.value.reason is Reason.POLICY_UNAVAILABLE
    await engine.close()


@pytest.mark.holds("opa-failures")
async def test_a_stopped_server_refuses_and_works_again_afterwards() -> None:
    revision = bundle_at(DEFAULT_BUNDLE).revision
    with OpaServer(DEFAULT_BUNDLE) as server:
        await server.ready()
        engine = await OpaServerEngine.open(
            host="127.0.0.1", port=server.port, revision=revision, deadline_s=LATE_MS / 1000
        )
        server.pause()
        with pytest.raises(Refused, match="longer than its deadline") as refusal:
            await engine.decide(CHANGE)
        assert refusal.value.reason is Reason.POLICY_UNAVAILABLE
        await engine.close()
        server.resume()
        engine = await OpaServerEngine.open(
            host="127.0.0.1", port=server.port, revision=revision, deadline_s=PATIENT_MS / 1000
        )
        assert (await engine.decide(CHANGE)).allow
        server.kill()
        assert await outcome(engine, CHANGE) is Reason.POLICY_UNAVAILABLE
        await engine.close()


@pytest.mark.holds("opa-failures")
async def test_an_absent_server_refuses() -> None:
    engine = await OpaServerEngine.open(host="127.0.0.1", port=free_port(), revision="0" * 64)
    assert await outcome(engine, CHANGE) is Reason.POLICY_UNAVAILABLE
    await engine.close()


@pytest.mark.holds("policy-editor", "opa-failures")
async def test_a_server_with_another_bundle_refuses(server: OpaServer) -> None:
    await server.ready()
    engine = await OpaServerEngine.open(
        host="127.0.0.1", port=server.port, revision="0" * 64, deadline_s=PATIENT_MS / 1000
    )
    with pytest.raises(Refused, match="bundle of our revision") as refusal:
        await engine.decide(CHANGE)
    assert refusal.value.reason is Reason.POLICY_UNAVAILABLE
    await engine.close()


async def test_a_proxy_in_the_environment_is_not_used(
    server: OpaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.ready()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    revision = bundle_at(DEFAULT_BUNDLE).revision
    engine = await OpaServerEngine.open(
        host="127.0.0.1", port=server.port, revision=revision, deadline_s=PATIENT_MS / 1000
    )
    assert (await engine.decide(CHANGE)).allow
    await engine.close()


GOOD = {
    "provenance": {"bundles": {"b": {"revision": "0" * 64}}},
    "result": {"allow": True, "reasons": [], "obligations": []},
}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({**GOOD, "provenance": {}}, Reason.POLICY_UNAVAILABLE),
        ({**GOOD, "provenance": {"bundles": {"b": {"revision": 7}}}}, Reason.POLICY_UNAVAILABLE),
        ({"result": GOOD["result"]}, Reason.POLICY_UNAVAILABLE),
        ({"provenance": GOOD["provenance"]}, Reason.POLICY_UNDEFINED),
        ({}, Reason.POLICY_UNAVAILABLE),
        ([], Reason.POLICY_UNDEFINED),
        (None, Reason.POLICY_UNDEFINED),
        ({**GOOD, "padding": "x" * 70_000}, Reason.POLICY_UNDEFINED),
    ],
)
@pytest.mark.holds("opa-failures")
async def test_a_server_that_answers_wrongly_refuses(answer: Any, reason: Reason) -> None:
    asked: list[str] = []

    async def decision(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path_qs}")
        return web.json_response(answer)

    async with _serving(decision) as engine:
        assert await outcome(engine, CHANGE) is reason
    assert asked == ["POST /v1/data/vigil/command/decision?provenance=true"]


async def test_the_answer_that_the_wrong_ones_differ_from_is_taken() -> None:
    async def decision(_: web.Request) -> web.Response:
        return web.json_response(GOOD)

    async with _serving(decision) as engine:
        assert (await engine.decide(CHANGE)).allow


@pytest.mark.parametrize("status", [301, 307, 308, 400, 404, 500, 502, 503, 504])
@pytest.mark.holds("opa-failures")
async def test_any_other_status_refuses_and_is_not_tried_again(status: int) -> None:
    asked: list[str] = []

    async def decision(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path.endswith("/elsewhere"):
            return web.json_response(GOOD)
        return web.json_response(GOOD, status=status, headers={"Location": "/elsewhere"})

    async with _serving(decision) as engine:
        assert await outcome(engine, CHANGE) is Reason.POLICY_UNAVAILABLE
    assert len(asked) == 1


@pytest.mark.holds("opa-failures")
async def test_an_answer_that_is_no_json_refuses() -> None:
    async def decision(_: web.Request) -> web.Response:
        return web.Response(body=b"{", content_type="application/json")

    async with _serving(decision) as engine:
        assert await outcome(engine, CHANGE) is Reason.POLICY_UNDEFINED


class _serving:  # noqa: N801 - reads as a verb where it is used
    """An HTTP server in the place of OPA, and an engine that asks it."""

    def __init__(self, handler: Any) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handler)
        self._runner = web.AppRunner(application)

    async def __aenter__(self) -> OpaServerEngine:
        await self._runner.setup()
        port = free_port()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self._engine = await OpaServerEngine.open(
            host="127.0.0.1", port=port, revision="0" * 64, deadline_s=PATIENT_MS / 1000
        )
        return self._engine

    async def __aexit__(self, *_: object) -> None:
        await self._engine.close()
        await self._runner.cleanup()
