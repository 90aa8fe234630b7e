"""A small HTTP server for what needs no caller's certificate: bounded connections, lines, bodies and time; one port.

On aiohttp's low-level server, without its router: a path is judged as it was sent. What is served here proves itself:
witnesses' answers are signed, and so is what a log publishes.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from aiohttp import web

from vigil.rpc.network import ListenError

MAX_CONNECTIONS: Final = 256
"""At once; one more is closed as it comes. A descriptor each: a quarter of what a process may have at least."""
MAX_LINE_BYTES: Final = 1024
MAX_HEADERS: Final = 64
BODY_SECONDS: Final = 10.0
"""How long a sender may take for its body."""
IDLE_SECONDS: Final = 75.0
"""How long a connection stays open between two requests (tlog-witness asks for keep-alive)."""
STOP_SECONDS: Final = 1.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Route = tuple[str, str, Handler]
"""Method, path, handler."""


class BoundedHttp:
    """Gives every request to one handler. ``what`` is served, for words; ``idle``: seconds until a request is whole."""

    def __init__(
        self,
        handler: Handler,
        *,
        listen: str,
        what: str,
        tls: ssl.SSLContext | None = None,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self._handler = handler
        self._host, _, self._port = listen.rpartition(":")
        self._what = what
        self._tls = tls
        self._idle = idle
        self._http: web.Server | None = None
        self._listener: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen; answers the port. Raises ListenError."""
        http = web.Server(
            self._handler,
            access_log=None,
            # What strangers send is no news: it would fill the disk. Our own failures are told by the handlers.
            logger=logging.Logger(self._what, logging.CRITICAL),  # noqa: LOG001 - heard by nobody, on purpose
            keepalive_timeout=self._idle,
            lingering_time=0,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
        )

        def connected() -> asyncio.Protocol:
            return http() if len(http.connections) < MAX_CONNECTIONS else _Full()

        try:
            self._listener = await asyncio.get_running_loop().create_server(
                connected, self._host.strip("[]"), int(self._port), ssl=self._tls
            )
        except (OSError, OverflowError) as error:
            where = f"{self._host}:{self._port}"
            raise ListenError(f"{self._what} cannot be served on {where}: {error}") from error
        self._http = http
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the port and every connection; what is being answered may end first, for a second."""
        if self._listener is not None:
            self._listener.close()
        if self._http is not None:
            await self._http.shutdown(STOP_SECONDS)


class PlainHttpServer:
    """Serves these routes on ``host:port``."""

    def __init__(self, *, listen: str, routes: Sequence[Route], what: str) -> None:
        self._routes: dict[str, dict[str, Handler]] = {}
        for method, path, handler in routes:
            self._routes.setdefault(path, {})[method] = handler
        self._server = BoundedHttp(self._handle, listen=listen, what=what)

    async def start(self) -> int:
        """Serve; answers the port. Raises ListenError."""
        return await self._server.start()

    async def stop(self) -> None:
        """Finish what is being answered and close."""
        await self._server.stop()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        methods: Mapping[str, Handler] | None = self._routes.get(request.raw_path)
        if methods is None:
            response: web.StreamResponse = _plain(HTTPStatus.NOT_FOUND, "There is nothing here.")
        elif request.method not in methods:
            response = _plain(HTTPStatus.METHOD_NOT_ALLOWED, "Not with this method.")
            response.headers["Allow"] = ", ".join(sorted(methods))
        else:
            try:
                response = await methods[request.method](request)
            except web.HTTPException as refusal:
                response = _plain(HTTPStatus(refusal.status), refusal.reason)
                response.force_close()
        response.headers["Server"] = "vigil"  # strangers are not told what serves here, in which version
        return response


async def read_body(request: web.BaseRequest, limit: int) -> bytes:
    """The whole body. Raises HTTPRequestEntityTooLarge, and HTTPRequestTimeout for one that does not come."""
    if (request.content_length or 0) > limit:
        raise web.HTTPRequestEntityTooLarge(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise web.HTTPRequestEntityTooLarge(limit)
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    return bytes(body)


class _Full(asyncio.Protocol):
    """Closes a connection past the most that are held."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _plain(status: HTTPStatus, sentence: str) -> web.Response:
    return web.Response(status=status, text=f"{sentence}\n")
