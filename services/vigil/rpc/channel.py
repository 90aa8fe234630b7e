"""Channels to other services, which present the newest certificate and bind the server's name and kind.

A stub is made once and kept: every call goes out on the channel of the newest certificate, and a channel whose
certificate was replaced is closed when its last call has ended.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import grpc

from vigil.core.certificates import Kind
from vigil.core.clock import Clock
from vigil.rpc import deadline
from vigil.rpc.network import GRPC, Network
from vigil.rpc.tls import TlsFiles, TlsMaterial, TlsWatcher


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens (``host:port``) and the DNS name that its certificate must carry."""

    address: str
    server_name: str

    @classmethod
    def service(cls, address: str, *, role: str, trust_domain: str) -> Self:
        """Name a service by its role."""
        return cls(address, f"{role}.{trust_domain}")

    @classmethod
    def gateway(cls, address: str, *, gateway_id: str, trust_domain: str) -> Self:
        """Name a gateway by its id."""
        return cls(address, f"{gateway_id}.{Kind.GATEWAY}.{trust_domain}")


class Channels:
    """All channels of one process; raises TlsFilesError when made."""

    def __init__(self, *, tls: TlsFiles, trust_domain: str, clock: Clock, network: Network = GRPC) -> None:
        self._watcher = TlsWatcher(files=tls, clock=clock)
        self._network = network
        self._trust_domain = trust_domain
        self._channels: dict[Target, Channel] = {}

    def to(self, target: str | Target, server_name: str = "") -> "Channel":
        """Give the channel to a server, the same for the same target and name. It connects when it is used."""
        wanted = target if isinstance(target, Target) else Target(target, server_name)
        if not wanted.server_name.endswith(f".{self._trust_domain}"):
            raise ValueError(f"{wanted.server_name!r} is no server of {self._trust_domain}")
        channel = self._channels.get(wanted)
        if channel is None:
            kind = _kind_of(wanted.server_name, self._trust_domain)
            channel = Channel(target=wanted, kind=kind, watcher=self._watcher, network=self._network)
            self._channels[wanted] = channel
        return channel

    def service(self, address: str, role: str) -> "Channel":
        """Give the channel to a service by its role."""
        return self.to(Target.service(address, role=role, trust_domain=self._trust_domain))

    def gateway(self, address: str, gateway_id: str) -> "Channel":
        """Give the channel to a gateway by its id."""
        return self.to(Target.gateway(address, gateway_id=gateway_id, trust_domain=self._trust_domain))

    def refresh(self) -> None:
        """Look at the certificate files at once, after a renewal."""
        self._watcher.current(now=True)

    async def close(self) -> None:
        """Close every channel; calls still open are cancelled."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()


class _Generation:
    """One certificate's channel and how many calls it still carries."""

    def __init__(self, *, material: TlsMaterial, target: Target, kind: Kind, network: Network) -> None:
        self.material = material
        self.channel = network.channel(
            address=target.address, server_name=target.server_name, kind=kind, material=material
        )
        self.calls = 0
        self.retired = False
        self._multicallables: dict[tuple[str, object], Any] = {}

    def multicallable(self, kind: str, method: str, coders: tuple[Any, Any]) -> Any:
        known = self._multicallables.get((method, coders))
        if known is None:
            known = getattr(self.channel, kind)(
                method,
                request_serializer=coders[0],
                response_deserializer=coders[1],
                _registered_method=True,
            )
            self._multicallables[method, coders] = known
        return known

    def entered(self, call: grpc.aio.Call, on_idle: Callable[["_Generation"], None]) -> None:
        self.calls += 1

        def left(_call: object) -> None:
            self.calls -= 1
            if self.retired and not self.calls:
                on_idle(self)

        call.add_done_callback(left)


class Channel(grpc.aio.Channel):
    """A channel that outlives its certificate. For one event loop."""

    def __init__(self, *, target: Target, kind: Kind, watcher: TlsWatcher, network: Network = GRPC) -> None:
        self.target = target
        self._network = network
        self._kind = kind
        self._watcher = watcher
        self._generation: _Generation | None = None
        self._retired: set[_Generation] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def generation(self) -> object:
        """A token that changes when the certificate does; long-lived streams then move to a new call."""
        return self._current()

    def _current(self) -> _Generation:
        if self._closed:
            raise grpc.aio.UsageError("the channel is closed")
        material = self._watcher.current()
        generation = self._generation
        if generation is None or generation.material is not material:
            if generation is not None:
                self._retire(generation)
            generation = _Generation(
                material=material, target=self.target, kind=self._kind, network=self._network
            )
            self._generation = generation
        return generation

    def _retire(self, generation: _Generation) -> None:
        generation.retired = True
        self._retired.add(generation)
        if not generation.calls:
            self._end(generation)

    def _end(self, generation: _Generation) -> None:
        self._retired.discard(generation)
        task = asyncio.get_running_loop().create_task(generation.channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def start(self, kind: str, method: str, coders: tuple[Any, Any], arguments: dict[str, Any]) -> Any:
        """Start a call on the newest certificate's channel, bounded by the call being served."""
        generation = self._current()
        multicallable = generation.multicallable(kind, method, coders)
        arguments["timeout"] = deadline.bounded(arguments.get("timeout"))
        call = multicallable(**arguments)
        generation.entered(call, self._end)
        return call

    def unary_unary(self, method: str, *coders: Any, **named: Any) -> Any:
        return _Multicallable(self, "unary_unary", method, _coders(coders, named))

    def unary_stream(self, method: str, *coders: Any, **named: Any) -> Any:
        return _Multicallable(self, "unary_stream", method, _coders(coders, named))

    def stream_unary(self, method: str, *coders: Any, **named: Any) -> Any:
        return _Multicallable(self, "stream_unary", method, _coders(coders, named))

    def stream_stream(self, method: str, *coders: Any, **named: Any) -> Any:
        return _Multicallable(self, "stream_stream", method, _coders(coders, named))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._current().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._current().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._current().channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        self._closed = True
        generations = [*self._retired, *([self._generation] if self._generation else [])]
        self._retired.clear()
        self._generation = None
        for generation in generations:
            await generation.channel.close(grace)
        if self._closing:
            await asyncio.gather(*self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()


class _Multicallable:
    """What a stub holds for one method."""

    __slots__ = ("_channel", "_coders", "_kind", "_method")

    def __init__(self, channel: Channel, kind: str, method: str, coders: tuple[Any, Any]) -> None:
        self._channel = channel
        self._kind = kind
        self._method = method
        self._coders = coders

    def __call__(self, request: Any = None, **arguments: Any) -> Any:
        if request is not None:
            name = "request" if self._kind.startswith("unary") else "request_iterator"
            arguments[name] = request
        return self._channel.start(self._kind, self._method, self._coders, arguments)


def _coders(positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    both = (*positional, None, None)
    return (
        named.get("request_serializer") or both[0],
        named.get("response_deserializer") or both[1],
    )


def _kind_of(server_name: str, trust_domain: str) -> Kind:
    label = server_name.removesuffix(f".{trust_domain}").rpartition(".")[2]
    return Kind.GATEWAY if label == Kind.GATEWAY else Kind.SERVICE
