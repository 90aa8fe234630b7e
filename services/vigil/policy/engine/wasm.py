"""OPA compiled to WebAssembly, called in the process.

The module is called through wasmtime's C API, one call of `opa_eval` a decision (OPA's WASM ABI 1.2 and later):
the wrappers above it cost several times the evaluation. What guards a call:

* a deadline, by epoch interruption: a thread counts epochs, and a call that outlives its ticks traps;
* a memory cap, in the memory's own type and in the store's limits;
* no function of the host: `opa_abort` and the five built-in entries trap inside WebAssembly, and a module that
  needs a built-in function from the host is not loaded;
* an instance that trapped is dropped with its store, and the next call builds a new one;
* every call starts from the same heap, the one after the data was loaded;
* a question and an answer are bounded, and no read leaves the instance's memory.
"""

import ctypes
import json
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import wasmtime
from wasmtime import _ffi as ffi  # the C API itself: the public wrapper triples the cost of a decision

from vigil.policy.engine.bundle import Bundle
from vigil.policy.engine.port import (
    ANSWER_LIMIT,
    DOCUMENT_LIMIT,
    ENTRYPOINT,
    Verdict,
    decode_answer,
    encode_document,
    read_verdict,
    unavailable,
    undefined,
)

DEADLINE_MS: Final = 50
"""How long one evaluation may take; it takes about 40 microseconds."""

TICK_MS: Final = 10
"""How often the epoch advances: the deadline is kept to this much."""

MEMORY_LIMIT: Final = 16 * 1024 * 1024
"""Bytes that one instance may use. One decision uses about 200 KiB."""

POOL_SIZE: Final = 4
"""Instances that are kept. One event loop needs one; a replay in threads needs a few."""

_PAGE: Final = 65_536
_FIRST_PAGES: Final = 32
_ABI_MAJOR: Final = 1
_ABI_MINOR: Final = 2  # the first with `opa_eval`
_FORMAT_JSON: Final = 0
_FIRST_READ: Final = 2_048
_LOADING_TICKS: Final = 500

_Kind = TypeVar("_Kind")

_HOST: Final = f"""
(module
  (memory (export "memory") {_FIRST_PAGES} {MEMORY_LIMIT // _PAGE})
  (func (export "opa_abort") (param i32) unreachable)
  (func (export "opa_builtin0") (param i32 i32) (result i32) unreachable)
  (func (export "opa_builtin1") (param i32 i32 i32) (result i32) unreachable)
  (func (export "opa_builtin2") (param i32 i32 i32 i32) (result i32) unreachable)
  (func (export "opa_builtin3") (param i32 i32 i32 i32 i32) (result i32) unreachable)
  (func (export "opa_builtin4") (param i32 i32 i32 i32 i32 i32) (result i32) unreachable)
)
"""
"""All that the policy can reach outside itself: a bounded memory, and traps."""


class _Trapped(Exception):  # noqa: N818 - WebAssembly's word
    """A call did not return. `late` says that it was the deadline."""

    def __init__(self, *, late: bool) -> None:
        super().__init__("deadline" if late else "trap")
        self.late = late


class _Instance:
    """One instance of the policy with its own store and memory; used by one thread at a time."""

    def __init__(
        self, engine: wasmtime.Engine, host: wasmtime.Module, module: wasmtime.Module, data: bytes
    ) -> None:
        self._store = wasmtime.Store(engine)
        self._store.set_limits(memory_size=MEMORY_LIMIT, instances=2, memories=1, tables=1)
        self._store.set_epoch_deadline(_LOADING_TICKS)
        linker = wasmtime.Linker(engine)
        surroundings = linker.instantiate(self._store, host)
        linker.define_instance(self._store, "env", surroundings)
        self._exports = linker.instantiate(self._store, module).exports(self._store)
        self._memory = _export(surroundings.exports(self._store), "memory", wasmtime.Memory)
        self._check_module()
        self._data = self._load(data)
        self._heap = self._call("opa_heap_ptr_get")
        self._reserve(self._heap + DOCUMENT_LIMIT)
        self._prepare_call()

    def _check_module(self) -> None:
        major = _export(self._exports, "opa_wasm_abi_version", wasmtime.Global).value(self._store)
        minor = _export(self._exports, "opa_wasm_abi_minor_version", wasmtime.Global).value(self._store)
        if major != _ABI_MAJOR or minor < _ABI_MINOR:
            raise undefined(
                f"the module speaks OPA's ABI {major}.{minor}, not {_ABI_MAJOR}.{_ABI_MINOR} or later"
            )
        needed = json.loads(self._text(self._call("opa_json_dump", self._call("builtins"))))
        if needed:
            raise undefined(f"the module needs functions of the host: {', '.join(sorted(needed))}")
        entrypoints = json.loads(self._text(self._call("opa_json_dump", self._call("entrypoints"))))
        if ENTRYPOINT not in entrypoints:
            raise undefined(f"the module has no entrypoint {ENTRYPOINT}")
        self._entrypoint = int(entrypoints[ENTRYPOINT])

    def _load(self, data: bytes) -> int:
        address = self._call("opa_malloc", len(data))
        self._memory.write(self._store, data, address)
        parsed = self._call("opa_json_parse", address, len(data))
        if parsed == 0:
            raise undefined("the bundle's data is not JSON")
        return parsed

    def _call(self, name: str, *arguments: int) -> int:
        return int(_export(self._exports, name, wasmtime.Func)(self._store, *arguments))

    def _text(self, address: int) -> bytes:
        return bytes(self._memory.read(self._store, address, address + ANSWER_LIMIT)).partition(b"\0")[0]

    def _reserve(self, end: int) -> None:
        missing = end - self._memory.data_len(self._store)
        if missing > 0:
            self._memory.grow(self._store, -(-missing // _PAGE))

    def _prepare_call(self) -> None:
        """Lay out the parameters of `opa_eval` once; four of the seven change from call to call."""
        self._context = self._store._context()  # noqa: SLF001 - the C API's handle of the store
        function = _export(self._exports, "opa_eval", wasmtime.Func)
        self._function = ctypes.byref(function._func)  # noqa: SLF001 - as above, of the function
        self._memory_handle = ctypes.byref(self._memory._memory)  # noqa: SLF001 - as above, of the memory
        self._parameters = (ffi.wasmtime_val_t * 7)()
        for parameter in self._parameters:
            parameter.kind = ffi.WASMTIME_I32
            parameter.of.i32 = 0
        self._parameters[1].of.i32 = self._entrypoint
        self._parameters[2].of.i32 = self._data
        self._parameters[3].of.i32 = self._heap
        self._parameters[6].of.i32 = _FORMAT_JSON
        self._input_length = self._parameters[4].of
        self._heap_start = self._parameters[5].of
        self._results = (ffi.wasmtime_val_t * 1)()

    def evaluate(self, document: bytes, ticks: int) -> bytes:
        """The result set of ENTRYPOINT for this question (at most DOCUMENT_LIMIT bytes), as JSON."""
        length = len(document)
        ctypes.memmove(self._base() + self._heap, document, length)
        self._input_length.i32 = length
        self._heap_start.i32 = self._heap + length
        trap = ctypes.POINTER(ffi.wasm_trap_t)()
        ffi.wasmtime_context_set_epoch_deadline(self._context, ticks)
        error = ffi.wasmtime_func_call(
            self._context, self._function, self._parameters, 7, self._results, 1, ctypes.byref(trap)
        )
        if error:
            ffi.wasmtime_error_delete(error)
            raise _Trapped(late=False)
        if trap:
            late = _is_interrupt(trap)
            ffi.wasm_trap_delete(trap)
            raise _Trapped(late=late)
        return self._answer(self._results[0].of.i32)

    def _base(self) -> int:
        return ctypes.addressof(ffi.wasmtime_memory_data(self._context, self._memory_handle).contents)

    def _answer(self, address: int) -> bytes:
        """The string at this address of the instance's memory, ended by NUL inside ANSWER_LIMIT."""
        available = ffi.wasmtime_memory_data_size(self._context, self._memory_handle) - address
        if address <= 0 or available <= 0:
            raise _Trapped(late=False)
        start = self._base() + address
        for bound in (_FIRST_READ, ANSWER_LIMIT + 1):
            text, ended, _ = ctypes.string_at(start, min(bound, available)).partition(b"\0")
            if ended:
                return text
        raise undefined(f"the answer is larger than {ANSWER_LIMIT} bytes")


def _export(exports: Any, name: str, kind: type[_Kind]) -> _Kind:
    found = exports.get(name)
    if not isinstance(found, kind):
        raise undefined(f"the module is not one that OPA compiled: {name} is missing")
    return found


def _is_interrupt(trap: Any) -> bool:
    code = ctypes.c_uint8()
    coded = ffi.wasmtime_trap_code(trap, ctypes.byref(code))
    return bool(coded) and code.value == wasmtime.TrapCode.INTERRUPT.value


def _count_epochs(engine: wasmtime.Engine, called: threading.Event, stop: threading.Event) -> None:
    """Advance the epoch for as long as a call that has begun may last; rest while nothing is asked."""
    while not stop.is_set():
        called.wait()
        called.clear()
        for _ in range(_LOADING_TICKS):
            if stop.wait(TICK_MS / 1000):
                return
            engine.increment_epoch()


def _end(called: threading.Event, stop: threading.Event) -> None:
    stop.set()
    called.set()


class WasmEngine:
    """The policy of one bundle, in this process."""

    def __init__(self, bundle: Bundle, *, deadline_ms: int = DEADLINE_MS) -> None:
        self._revision = bundle.revision
        self._data = bundle.data
        self._ticks = -(-deadline_ms // TICK_MS) + 1
        config = wasmtime.Config()
        config.epoch_interruption = True
        engine = wasmtime.Engine(config)
        self._engine = engine
        self._pool: deque[_Instance] = deque(maxlen=POOL_SIZE)
        self._called, stop = threading.Event(), threading.Event()
        self._ticker = threading.Thread(
            target=_count_epochs, args=(engine, self._called, stop), name="policy-deadline", daemon=True
        )
        self._stop = weakref.finalize(self, _end, self._called, stop)
        self._ticker.start()
        try:
            self._host = wasmtime.Module(engine, _HOST)
            self._module = wasmtime.Module(engine, bundle.module)
            self._pool.append(self._build())
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            self._stop()
            raise undefined("the bundle's module is not one that OPA compiled") from error
        except BaseException:
            self._stop()
            raise

    @property
    def revision(self) -> str:
        """The revision of the bundle: the digest of its sources, lowercase hex."""
        return self._revision

    async def decide(self, document: Mapping[str, Any]) -> Verdict:
        """Answer one question; see `PolicyEngine`."""
        return self.decide_now(document)

    def decide_now(self, document: Mapping[str, Any]) -> Verdict:
        """The same from any thread, without an event loop, as a replay needs it."""
        if not self._ticker.is_alive():
            raise unavailable("the engine is closed, and without its clock no deadline holds")
        encoded = encode_document(document)
        instance = self._borrow()
        self._called.set()
        try:
            answer = instance.evaluate(encoded, self._ticks)
        except _Trapped as trapped:
            # The instance is poisoned: it goes with this frame and never returns to the pool.
            detail = "it took longer than its deadline" if trapped.late else "the evaluation failed"
            raise unavailable(detail) from None
        self._pool.append(instance)
        return _read_result_set(decode_answer(answer))

    async def close(self) -> None:
        """Stop the deadline's clock; afterwards every question is refused."""
        self._stop()
        self._ticker.join()
        self._pool.clear()

    def _borrow(self) -> _Instance:
        try:
            return self._pool.pop()
        except IndexError:
            pass
        try:
            return self._build()
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            raise unavailable("no new instance of the policy could be made") from error

    def _build(self) -> _Instance:
        self._called.set()
        return _Instance(self._engine, self._host, self._module, self._data)


def _read_result_set(results: Any) -> Verdict:
    """Read OPA's result set: no result is undefined, one is the decision."""
    if results == []:
        raise undefined("the decision is undefined")
    if not isinstance(results, list) or len(results) != 1 or not isinstance(results[0], dict):
        raise undefined("the result set does not hold one result")
    if results[0].keys() != {"result"}:
        raise undefined("the result set does not hold one result")
    return read_verdict(results[0]["result"])
