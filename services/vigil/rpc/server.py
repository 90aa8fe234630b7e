"""A gRPC server that answers verified callers only, and only what the contract admits them to."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import grpc
from prometheus_client import CollectorRegistry

from vigil.core.clock import Clock, Entropy
from vigil.rpc.access import MethodAccess, access_of
from vigil.rpc.admission import Admission, Authorizer, RevocationCheck
from vigil.rpc.builtin import Collector, Handler, Handlers, Health, health_handlers, reflection_handlers
from vigil.rpc.interceptors import Guard
from vigil.rpc.metrics import RpcMetrics
from vigil.rpc.network import GRPC, ListenError, Network
from vigil.rpc.options import DEFAULT_MESSAGE_BYTES, StreamSettings, server_options
from vigil.rpc.registry import StreamRegistry
from vigil.rpc.tls import TlsFiles, TlsWatcher

Servicer = tuple[Callable[[Any, Any], None], object, str]
"""The generated ``add_…_to_server``, the servicer, and the full name of its service."""

_LOG = logging.getLogger(__name__)


class _UnknownMethods(grpc.GenericRpcHandler):
    """Answers every method that nobody registered."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        return self._guard.unknown(handler_call_details.method)


class GrpcServer:
    """One server. Raises TlsFilesError and ContractError when made, ListenError when started.

    ``revocation_check`` is asked at every call and message and in each sweep, from memory. ``authorizer`` is
    a service's own bar before a method. At ``grace_methods`` (full paths) a caller past its operational end is
    still admitted; elsewhere it is refused, and the handler need not ask. ``precedence``: roles whose calls have a
    share of the server's capacity that nobody else's can use up.
    """

    def __init__(
        self,
        *,
        role: str,
        tls: TlsFiles,
        clock: Clock,
        listen: str,
        servicers: Sequence[Servicer],
        authorizer: Authorizer | None = None,
        revocation_check: RevocationCheck | None = None,
        grace_methods: Collection[str] = (),
        precedence: Collection[str] = (),
        settings: StreamSettings | None = None,
        max_message_bytes: int = DEFAULT_MESSAGE_BYTES,
        metrics: CollectorRegistry | None = None,
        entropy: Entropy = os.urandom,
        network: Network = GRPC,
    ) -> None:
        self.role = role
        self._network = network
        self._listen = listen
        self._settings = settings or StreamSettings()
        self._watcher = TlsWatcher(files=tls, clock=clock)
        rpc_metrics = RpcMetrics(metrics or CollectorRegistry())
        self.streams = StreamRegistry(stall_seconds=self._settings.stall_seconds, on_cut=rpc_metrics.cut)
        self.health = Health()
        guard = Guard(
            admission=Admission(
                tls=self._watcher,
                clock=clock,
                revocation_check=revocation_check,
                authorizer=authorizer,
                grace_methods=grace_methods,
            ),
            registry=self.streams,
            metrics=rpc_metrics,
            clock=clock,
            entropy=entropy,
            max_calls_per_caller=self._settings.max_calls_per_caller,
            max_unary_calls=self._settings.max_unary_calls,
            precedence=precedence,
        )
        self._services = tuple(name for _add, _servicer, name in servicers)
        self._handlers = _wrapped(guard, servicers, self.health)
        self._unknown = _UnknownMethods(guard)
        self._options = server_options(self._settings, max_message_bytes=max_message_bytes)
        self._server: Any = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Bind and serve; answers the port. Raises ListenError."""
        server = self._network.server(options=self._options)
        for service, handlers in self._handlers.items():
            server.add_registered_method_handlers(service, handlers)
        server.add_generic_rpc_handlers((self._unknown,))
        try:
            port = self._network.bind(server, self._listen, self._watcher.current)
        except ListenError:
            await server.stop(None)
            raise
        self._server = server
        await self.health.serving(self._services)
        await server.start()
        self._sweeper = asyncio.create_task(self._sweep())
        return port

    async def stop(self, grace: float = 5.0) -> None:
        """Take no more calls, end the streams in order, wait for the rest at most ``grace`` seconds."""
        await self.health.stopping()
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        if self._server is not None:
            stopped = asyncio.create_task(self._server.stop(grace))
            await asyncio.sleep(0)
            self.streams.drain()
            await stopped

    async def wait(self) -> None:
        """Wait until the server has stopped."""
        if self._server is not None:
            await self._server.wait_for_termination()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_seconds)
            self.streams.sweep()


def _wrapped(guard: Guard, servicers: Sequence[Servicer], health: Health) -> dict[str, Handlers]:
    """Every handler, wrapped; raises ContractError for a method without a usable rule."""
    collector = Collector()
    for add, servicer, name in servicers:
        add(servicer, cast("Any", collector))
        if name not in collector.handlers:
            raise ValueError(f"the servicer for {name} registers another service")
    rules: dict[str, MethodAccess] = {}
    for name in collector.handlers:
        rules.update(access_of(name))
    handlers = dict(collector.handlers)
    builtin = {**health_handlers(health), **reflection_handlers(tuple(handlers))}
    for name, methods in builtin.items():
        for method in methods:
            rules[f"/{name}/{method}"] = access_of(name)[f"/{name}/{method}"]
    return {
        name: {method: guard.wrap(rules[f"/{name}/{method}"], handler) for method, handler in methods.items()}
        for name, methods in {**handlers, **builtin}.items()
    }
