"""A network in memory that keeps what gRPC over TCP promises, and nothing more.

A connection is reliable and ordered until it breaks; it breaks when a process ends, or when nothing came through for
as long as the keepalive waits. What a cut holds back arrives after it, in order, or never. A call is served at most
once. Certificates are presented and the server's name is checked, as TLS would; everything above is the product's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from cryptography import x509

from tests.model.calls import ClientCall, Multicallable, Rpc, ServerContext
from tests.model.loop import Node, SimLoop
from vigil.core.certificates import Kind
from vigil.rpc.network import Current, ListenError
from vigil.rpc.options import Options
from vigil.rpc.tls import TlsMaterial

KEEPALIVE_S: Final = (10.0, 15.0)
"""After so much silence an end gives its connection up (rpc/options.py: 10 s, then 5 s)."""
CONNECT_S: Final = 5.0
FIRST_BACKOFF_S: Final = 0.1
LAST_BACKOFF_S: Final = 3.0

Tap = Callable[[str, str, bool, bytes], None]
"""``(sender, receiver, is_request, message)``, as it leaves."""


@dataclass(slots=True)
class Link:
    """The way between two hosts, both directions."""

    cut: bool = False
    cut_since: float = 0.0
    extra: float = 0.0
    """Seconds that every message takes longer."""


class SimNetwork:
    """All links, servers and connections of one schedule."""

    def __init__(self, loop: SimLoop, *, latency: float = 0.002) -> None:
        self.loop = loop
        self.latency = latency
        self.links: dict[frozenset[str], Link] = {}
        self.listening: dict[str, SimServer] = {}
        self.connections: dict[Connection, None] = {}
        self.taps: dict[str, list[Tap]] = {}
        self.messages = 0
        self.delayed = 0
        self.broken = 0

    def of(self, node: Node) -> "NodeNetwork":
        """The network as one node has it."""
        return NodeNetwork(self, node)

    def link(self, one: str, other: str) -> Link:
        return self.links.setdefault(frozenset((one, other)), Link())

    def cut(self, one: str, other: str) -> None:
        """Nothing gets through any more, and nobody is told."""
        link = self.link(one, other)
        if link.cut:
            return
        link.cut, link.cut_since = True, self.loop.time()
        for connection in list(self.connections):
            if connection.link is link:
                connection.on_cut()

    def heal(self, one: str, other: str) -> None:
        link = self.link(one, other)
        if not link.cut:
            return
        link.cut = False
        for connection in list(self.connections):
            if connection.link is link:
                connection.on_heal()

    def travel(self, link: Link) -> float:
        """How long one message takes now."""
        random = self.loop.random
        seconds = self.latency * (0.2 + random.random())
        if random.random() < 0.01:
            seconds += random.random() * 0.2
            self.delayed += 1
        if link.extra:
            seconds += link.extra * (0.8 + 0.4 * random.random())
            self.delayed += 1
        return seconds

    def tap(self, method: str, sender: str, receiver: str, *, request: bool, data: bytes) -> None:
        for tap in self.taps.get(method, ()):
            tap(sender, receiver, request, data)


class NodeNetwork:
    """`vigil.rpc.network.Network` for one node."""

    def __init__(self, net: SimNetwork, node: Node) -> None:
        self._net = net
        self._node = node

    def server(self, *, options: Options) -> "SimServer":
        assert options
        return SimServer(self._net, self._node)

    def bind(self, server: "SimServer", listen: str, current: Current) -> int:
        return server.bind(listen, current)

    def channel(self, *, address: str, server_name: str, kind: Kind, material: TlsMaterial) -> Any:
        return SimChannel(
            self._net, self._node, address=address, server_name=server_name, kind=kind, material=material
        )


class SimServer:
    """What `grpc.aio.server` gives, as far as `vigil.rpc.server` uses it."""

    def __init__(self, net: SimNetwork, node: Node) -> None:
        self.net = net
        self.node = node
        self.handlers: dict[str, Any] = {}
        self.contexts: dict[ServerContext, None] = {}
        self.address = ""
        self._current: Current | None = None
        node.on_death.append(self._gone)

    def bind(self, listen: str, current: Current) -> int:
        if listen in self.net.listening:
            raise ListenError(f"{listen} cannot be bound")
        self.address, self._current = listen, current
        return int(listen.rpartition(":")[2])

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    def add_generic_rpc_handlers(self, _handlers: Any) -> None:
        """Unknown methods are not called here."""

    async def start(self) -> None:
        self.net.listening[self.address] = self

    async def stop(self, grace: float | None) -> None:
        self._gone()
        until = self.net.loop.time() + (grace or 0.0)
        while self.contexts and self.net.loop.time() < until:
            future = self.net.loop.create_future()
            self.net.loop.call_later(0.01, future.set_result, None)
            await future
        for connection in list(self.net.connections):
            if connection.server is self:
                connection.close(by_server=True)

    def proves(self, server_name: str, kind: Kind) -> bool:
        """Whether this server's certificate carries the name, as the client's TLS would look."""
        assert self._current is not None
        return server_name in _dns_names(self._current().certificate_pem) and kind in Kind

    def _gone(self) -> None:
        if self.net.listening.get(self.address) is self:
            del self.net.listening[self.address]


@lru_cache(maxsize=256)
def _dns_names(pem: bytes) -> tuple[str, ...]:
    leaf = x509.load_pem_x509_certificates(pem)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(names.get_values_for_type(x509.DNSName))


@lru_cache(maxsize=256)
def auth_context(pem: bytes) -> dict[str, list[bytes]]:
    """What gRPC shows a server of its client's certificate."""
    end = b"-----END CERTIFICATE-----\n"
    parts = [part + end for part in pem.split(end) if part.strip()]
    return {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": parts[:1], "x509_pem_cert_chain": parts[1:]}


class Connection:
    """One TCP connection with TLS on it. Each end knows only what reached it."""

    def __init__(self, net: SimNetwork, channel: "SimChannel", server: SimServer) -> None:
        self.net = net
        self.channel = channel
        self.client, self.server_node, self.server = channel.node, server.node, server
        self.link = net.link(channel.node.name, server.node.name)
        self.rpcs: dict[Rpc, None] = {}
        self.client_up = self.server_up = True
        self._last = {True: 0.0, False: 0.0}
        self._held: list[tuple[bool, Callable[[], None]]] = []
        net.connections[self] = None
        self.client.on_death.append(lambda: self.close(by_server=False))
        self.server_node.on_death.append(lambda: self.close(by_server=True))
        self.auth = auth_context(channel.material.certificate_pem)

    def send(self, *, to_server: bool, deliver: Callable[[], None]) -> None:
        """Carry something to the other end, in order."""
        self.net.messages += 1
        if not (self.client_up if to_server else self.server_up):
            return
        if self.link.cut:
            self._held.append((to_server, deliver))
            return
        self._carry(to_server, deliver)

    def _carry(self, to_server: bool, deliver: Callable[[], None]) -> None:
        arrives = max(self._last[to_server], self.net.loop.time() + self.net.travel(self.link))
        self._last[to_server] = arrives
        self.net.loop.on_later(
            self.net.loop.world, arrives - self.net.loop.time(), self._arrive, to_server, deliver
        )

    def _arrive(self, to_server: bool, deliver: Callable[[], None]) -> None:
        if self.link.cut:
            self._held.append((to_server, deliver))
        elif self.server_up if to_server else self.client_up:
            self.net.loop.on(self.server_node if to_server else self.client, deliver)

    # --- its end

    def close(self, *, by_server: bool) -> None:
        """One end closes, or its process has died and the kernel closes for it."""
        self._down(server=by_server)

        def other() -> None:
            self._down(server=not by_server)

        if self.link.cut:
            self._held.append((not by_server, other))
        else:
            self.net.loop.on_later(self.net.loop.world, self.net.travel(self.link), self._tell, other)

    def _tell(self, other: Callable[[], None]) -> None:
        if not self.link.cut:
            other()
        # Behind a cut the other end finds out by its keepalive.

    def _down(self, *, server: bool) -> None:
        if server and self.server_up:
            self.server_up = False
            for rpc in list(self.rpcs):
                self.net.loop.on(self.server_node, rpc.server_lost)
        elif not server and self.client_up:
            self.client_up = False
            self.net.broken += 1
            self.channel.lost(self)
            for rpc in list(self.rpcs):
                self.net.loop.on(self.client, rpc.client_lost)
        if not self.client_up and not self.server_up:
            self.net.connections.pop(self, None)

    def on_cut(self) -> None:
        since = self.link.cut_since
        for server in (True, False):
            wait = self.net.loop.random.uniform(*KEEPALIVE_S)
            self.net.loop.on_later(self.net.loop.world, wait, self._keepalive, server, since)

    def _keepalive(self, server: bool, since: float) -> None:
        if self.link.cut and self.link.cut_since == since:
            self._down(server=server)

    def on_heal(self) -> None:
        if self.client_up and self.server_up:
            held, self._held = self._held, []
            for to_server, deliver in held:
                self._carry(to_server, deliver)
        elif self.client_up or self.server_up:
            # What comes to an end that has gone is answered with a reset.
            self.close(by_server=not self.server_up)


class SimChannel:
    """What `grpc.aio.secure_channel` gives, as far as `vigil.rpc.channel` uses it."""

    def __init__(
        self,
        net: SimNetwork,
        node: Node,
        *,
        address: str,
        server_name: str,
        kind: Kind,
        material: TlsMaterial,
    ) -> None:
        self.net = net
        self.node = node
        self.address = address
        self.server_name = server_name
        self.kind = kind
        self.material = material
        self.connection: Connection | None = None
        self.calls: dict[ClientCall, None] = {}
        self._waiting: list[ClientCall] = []
        self._connecting = False
        self._failures = 0
        self._not_before = 0.0
        self._closed = False

    def __getattr__(self, kind: str) -> Any:
        if kind not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            raise AttributeError(kind)

        def make(
            method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
        ) -> Multicallable:
            return Multicallable(self, kind, method, request_serializer, response_deserializer)

        return make

    async def close(self, _grace: float | None = None) -> None:
        self._closed = True
        for call in list(self.calls):
            call.cancel()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close(by_server=False)

    def begin(self, call: ClientCall) -> None:
        """Put a call on the connection, making one if there is none."""
        self.calls[call] = None
        if self.connection is not None:
            call.go(self.connection)
        elif not self._connecting and self.net.loop.time() < self._not_before and not call.wait_for_ready:
            self.net.loop.call_soon(call.unavailable, "connecting failed just now")
        else:
            self._waiting.append(call)
            self._connect()

    def lost(self, connection: Connection) -> None:
        if self.connection is connection:
            self.connection = None

    def _connect(self) -> None:
        if self._connecting:
            return
        self._connecting = True
        wait = max(0.0, self._not_before - self.net.loop.time())
        self.net.loop.on_later(self.node, wait, self._dial)

    def _dial(self) -> None:
        server = self.net.listening.get(self.address)
        name = server.node.name if server else self.address.partition(":")[0]
        link = self.net.link(self.node.name, name)
        if link.cut:
            self.net.loop.on_later(self.node, CONNECT_S, self._failed, "the connection timed out")
        else:
            self.net.loop.on_later(self.node, 3 * self.net.travel(link), self._established)

    def _established(self) -> None:
        server = self.net.listening.get(self.address)
        if self._closed:
            return
        if server is None:
            self._failed("connection refused")
        elif self.net.link(self.node.name, server.node.name).cut:
            self.net.loop.on_later(self.node, CONNECT_S, self._failed, "the handshake timed out")
        elif not server.proves(self.server_name, self.kind):
            self._failed("the server is somebody else")
        else:
            self._connecting, self._failures, self._not_before = False, 0, 0.0
            self.connection = Connection(self.net, self, server)
            waiting, self._waiting = self._waiting, []
            for call in waiting:
                if not call.done():
                    call.go(self.connection)

    def _failed(self, why: str) -> None:
        self._connecting = False
        pause = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 1.6**self._failures)
        self._failures += 1
        self._not_before = self.net.loop.time() + pause * (0.8 + 0.4 * self.net.loop.random.random())
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            if call.wait_for_ready and not call.done():
                self._waiting.append(call)
            else:
                call.unavailable(why)
        if self._waiting:
            self._connect()
