"""A small HTTP server for what needs no caller's certificate: bounded bodies, bounded time, one port.

What is served here proves itself: witnesses' answers are signed, and so is what a log publishes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiohttp import web

from vigil.rpc.network import ListenError

BODY_SECONDS: Final = 10.0
"""How long a sender may take for its body."""
IDLE_SECONDS: Final = 75.0
"""How long a connection stays open between two requests (tlog-witness asks for keep-alive)."""
STOP_SECONDS: Final = 5.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Route = tuple[str, str, Handler]
"""Method, path, handler."""


class PlainHttpServer:
    """Serves these routes on ``host:port``; bodies longer than ``max_body`` bytes are answered with 413."""

    def __init__(self, *, listen: str, routes: Sequence[Route], max_body: int) -> None:
        self._host, _, port = listen.rpartition(":")
        self._port = int(port)
        app = web.Application(client_max_size=max_body, logger=logging.getLogger(__name__))
        app.add_routes([web.route(method, path, handler) for method, path, handler in routes])
        app.on_response_prepare.append(_nameless)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            shutdown_timeout=STOP_SECONDS,
            handle_signals=False,
        )

    async def start(self) -> int:
        """Serve; answers the port. Raises ListenError."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host.strip("[]"), self._port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ListenError(f"{self._host}:{self._port} cannot be bound: {error.strerror}") from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Finish what is being answered and close."""
        await self._runner.cleanup()


async def read_body(request: web.Request) -> bytes:
    """The whole body. Raises HTTPRequestEntityTooLarge, and HTTPRequestTimeout for one that does not come."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout from None


async def _nameless(_request: web.Request, response: web.StreamResponse) -> None:
    """Do not tell strangers what serves here, in which version."""
    response.headers["Server"] = "vigil"
