"""The engine in this process: its guards, and what holds of the policy that comes with Vigil."""

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
import wasmtime
from hypothesis import given, settings

from tests.support.opa import POLICIES
from tests.support.policy_documents import (
    ALLOWED,
    CHANGE,
    Document,
    changed,
    documents,
    holder_of,
    mutilated_documents,
    paths,
    without,
)
from vigil.errors import Reason, Refused
from vigil.policy.engine import wasm
from vigil.policy.engine.bundle import DEFAULT_BUNDLE, Bundle, read_bundle
from vigil.policy.engine.port import Verdict, decode_answer
from vigil.policy.engine.wasm import WasmEngine

PATIENT_MS = 60_000


def default_bundle() -> Bundle:
    return read_bundle(DEFAULT_BUNDLE.read_bytes())


@pytest.fixture(scope="module")
def policy() -> Iterator[WasmEngine]:
    made = WasmEngine(default_bundle(), deadline_ms=PATIENT_MS)
    yield made
    made._stop()


def is_allowed(engine: WasmEngine, document: Document) -> bool:
    try:
        return engine.decide_now(document).allow
    except Refused:
        return False


@settings(deadline=None)
@given(document=documents())
def test_allowed_means_no_reason_and_each_refusal_names_its_own(
    policy: WasmEngine, document: Document
) -> None:
    verdict = policy.decide_now(document)
    assert verdict.allow is not bool(verdict.reasons)
    assert all(reason.rule != "vigil.command.decision" for reason in verdict.reasons)


@settings(deadline=None)
@given(document=documents())
def test_generated_questions_are_of_the_schema(document: Document) -> None:
    schema = decode_answer((POLICIES / "schemas" / "command.json").read_bytes())
    jsonschema.Draft7Validator(schema).validate(document)


@pytest.mark.holds("policy-editor")
@settings(deadline=None)
@given(document=documents())
def test_taking_a_fact_away_never_allows(policy: WasmEngine, document: Document) -> None:
    if is_allowed(policy, document):
        return
    for path in list(paths(document)):
        if isinstance(holder_of(document, path), dict) and path != ("break_glass",):
            assert not is_allowed(policy, without(document, path)), path


@settings(deadline=None)
@given(document=mutilated_documents())
def test_a_mutilated_question_is_answered_or_refused(policy: WasmEngine, document: Document) -> None:
    assert (
        isinstance(_answer(policy, document), Verdict) or _answer(policy, document) is Reason.POLICY_UNDEFINED
    )


def test_s1_is_refused_for_that_alone(policy: WasmEngine) -> None:
    verdict = policy.decide_now(changed(CHANGE, {"action.class": "S1"}))
    assert [(reason.reason, reason.rule) for reason in verdict.reasons] == [
        (Reason.POLICY_DENIED, "vigil.command.class_known")
    ]


def test_answers_do_not_depend_on_what_was_asked_before(policy: WasmEngine) -> None:
    questions = [*ALLOWED.values(), {}, changed(CHANGE, {"device.state": "x" * 20_000})]
    first = [_answer(policy, question) for question in questions]
    for _ in range(2_000):
        assert [_answer(policy, question) for question in questions] == first


def _answer(engine: WasmEngine, document: Document) -> Verdict | Reason:
    try:
        return engine.decide_now(document)
    except Refused as refusal:
        return refusal.reason


def test_threads_can_share_an_engine(policy: WasmEngine) -> None:
    def ask(age: int) -> Any:
        document = changed(CHANGE, {"attestation.stale": True, "attestation.age_ms": age})
        return policy.decide_now(document).reasons[0].values["age_ms"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(500))) == list(range(500))


async def test_a_closed_engine_refuses() -> None:
    engine = WasmEngine(default_bundle(), deadline_ms=PATIENT_MS)
    assert (await engine.decide(CHANGE)).allow
    await engine.close()
    with pytest.raises(Refused) as refusal:
        await engine.decide(CHANGE)
    assert refusal.value.reason is Reason.POLICY_UNAVAILABLE


def test_an_engine_that_is_let_go_ends_its_thread() -> None:
    engine = WasmEngine(default_bundle(), deadline_ms=PATIENT_MS)
    ticker = engine._ticker
    assert ticker.is_alive()
    del engine
    gc.collect()
    ticker.join(timeout=30)
    assert not ticker.is_alive()


MINIMAL = """
(module
  (import "env" "memory" (memory 2))
  (func (export "opa_json_dump") (param i32) (result i32) local.get 0)
  (func (export "builtins") (result i32) i32.const {builtins})
  (func (export "entrypoints") (result i32) i32.const {entrypoints})
  (func (export "opa_malloc") (param i32) (result i32) i32.const 4096)
  (func (export "opa_json_parse") (param i32 i32) (result i32) i32.const {parsed})
  (func (export "opa_heap_ptr_get") (result i32) i32.const 8192)
  (func (export "opa_eval") (param i32 i32 i32 i32 i32 i32 i32) (result i32) {body})
  (global (export "opa_wasm_abi_version") i32 (i32.const {major}))
  (global (export "opa_wasm_abi_minor_version") i32 (i32.const {minor}))
  (data (i32.const 0) "?")
  (data (i32.const 16) "{{}}\\00")
  (data (i32.const 32) "{{\\22vigil/command/decision\\22:0}}\\00")
  (data (i32.const 128) "{{\\22http.send\\22:0}}\\00")
  (data (i32.const 256) "[{{\\22result\\22:{{\\22allow\\22:true,\\22reasons\\22:[],\\22obligations\\22:[]}}}}]\\00"))
"""


def handmade(**parts: Any) -> Bundle:
    """A bundle around a module that speaks OPA's ABI, with some parts made otherwise."""
    chosen = {"builtins": 16, "entrypoints": 32, "parsed": 1, "body": "i32.const 256", "major": 1, "minor": 2}
    text = MINIMAL.format(**{**chosen, **parts})
    return Bundle(revision="0" * 64, module=bytes(wasmtime.wat2wasm(text)), data=b"{}")


def test_a_handmade_module_is_run() -> None:
    assert WasmEngine(handmade(), deadline_ms=PATIENT_MS).decide_now({}).allow


@pytest.mark.holds("policy-editor")
@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"major": 2}, "ABI 2.2"),
        ({"minor": 1}, "ABI 1.1"),
        ({"builtins": 128}, "needs functions of the host: http.send"),
        ({"entrypoints": 16}, "no entrypoint"),
        ({"parsed": 0}, "data is not JSON"),
    ],
)
def test_a_module_that_is_not_ours_to_run_is_not_loaded(parts: dict[str, Any], sentence: str) -> None:
    before = threading.active_count()
    with pytest.raises(Refused, match=sentence) as refusal:
        WasmEngine(handmade(**parts))
    assert refusal.value.reason is Reason.POLICY_UNDEFINED
    assert threading.active_count() <= before + 1  # its clock has been told to stop


@pytest.mark.holds("policy-editor")
@pytest.mark.parametrize(
    "module",
    [
        b"",
        b"\0asm",
        bytes(wasmtime.wat2wasm("(module)")),
        bytes(wasmtime.wat2wasm('(module (import "wasi_snapshot_preview1" "fd_write" (func)))')),
        bytes(wasmtime.wat2wasm('(module (import "env" "memory" (memory 257)))')),
        bytes(wasmtime.wat2wasm("(module (func $f unreachable) (start $f))")),
    ],
    ids=["empty", "truncated", "nothing in it", "wants files", "wants more memory", "fails at start"],
)
def test_what_is_no_policy_is_not_loaded(module: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        WasmEngine(Bundle(revision="0" * 64, module=module, data=b"{}"))
    assert refusal.value.reason is Reason.POLICY_UNDEFINED


@pytest.mark.parametrize(
    "body",
    [
        "unreachable",
        "i32.const 0",
        "i32.const -1",
        "i32.const 2147483647",
        "(i32.load (i32.const -4))",
        "(i32.div_u (i32.const 1) (i32.const 0))",
    ],
)
def test_a_call_that_goes_wrong_is_unavailable(body: str) -> None:
    engine = WasmEngine(handmade(body=body), deadline_ms=PATIENT_MS)
    for _ in range(3):
        with pytest.raises(Refused) as refusal:
            engine.decide_now({})
        assert refusal.value.reason is Reason.POLICY_UNAVAILABLE


@pytest.mark.holds("policy-editor")
def test_a_call_without_end_is_interrupted() -> None:
    engine = WasmEngine(handmade(body="(loop $again (br $again)) i32.const 0"))
    with pytest.raises(Refused, match="longer than its deadline") as refusal:
        engine.decide_now({})
    assert refusal.value.reason is Reason.POLICY_UNAVAILABLE


@pytest.mark.holds("policy-editor")
def test_a_call_without_end_is_interrupted_when_nothing_was_asked_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wasm, "_LOADING_TICKS", 10)
    engine = WasmEngine(handmade(body="(loop $again (br $again)) i32.const 0"))
    time.sleep(0.3)  # its clock rests by now
    for _ in range(2):
        with pytest.raises(Refused, match="longer than its deadline"):
            engine.decide_now({})


@pytest.mark.holds("policy-editor")
def test_an_answer_without_end_is_undefined() -> None:
    body = "(memory.fill (i32.const 256) (i32.const 65) (i32.const 100000)) i32.const 256"
    with pytest.raises(Refused, match="larger than") as refusal:
        WasmEngine(handmade(body=body), deadline_ms=PATIENT_MS).decide_now({})
    assert refusal.value.reason is Reason.POLICY_UNDEFINED


@pytest.mark.parametrize("body", ["i32.const 16", "i32.const 4000"], ids=["an object", "an empty answer"])
def test_an_answer_that_is_no_result_set_is_undefined(body: str) -> None:
    with pytest.raises(Refused) as refusal:
        WasmEngine(handmade(body=body), deadline_ms=PATIENT_MS).decide_now({})
    assert refusal.value.reason is Reason.POLICY_UNDEFINED


def test_a_poisoned_instance_is_not_used_again() -> None:
    """The module marks its memory and traps when it finds the mark: only a new instance can answer."""
    body = """
      (if (i32.load8_u (i32.const 0x8000)) (then unreachable))
      (i32.store8 (i32.const 0x8000) (i32.const 1))
      i32.const 256
    """
    engine = WasmEngine(handmade(body=body), deadline_ms=PATIENT_MS)
    assert engine.decide_now({}).allow
    with pytest.raises(Refused):
        engine.decide_now({})
    assert engine.decide_now({}).allow
