"""Serves the log's tiles over HTTP/1.1, GET and HEAD, to anybody who reaches the port.

On aiohttp, which is here for the OPA server already: its low-level server alone, no router, so that a path is judged
as it was sent. A connection that does not ask, or does not read, ends; there are only so many at once.
"""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, Protocol

from aiohttp import HttpVersion10, web

from vigil.errors import Refused, Status
from vigil.evidence.metrics import TileMetrics
from vigil.evidence.tiles import TEXT, Resource
from vigil.rpc.plain_http import BoundedHttp
from vigil.rpc.tls import TlsFiles, TlsWatcher

IDLE_S: Final = 15.0
"""Until a request is whole, from the connection's start or from the answer before."""
ANSWER_S: Final = 30.0
"""Until an answer is with its reader: 30 kB/s carry a bundle of the longest leaves that were ever seen."""

_HTTP_OF: Final[Mapping[Status, HTTPStatus]] = {
    Status.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Status.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Status.RESOURCE_EXHAUSTED: HTTPStatus.SERVICE_UNAVAILABLE,
    Status.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}
_COMMON: Final = {"X-Content-Type-Options": "nosniff", "Server": "vigil"}

_log = logging.getLogger(__name__)


class Reader(Protocol):
    """Where the resources come from."""

    async def read(self, path: str) -> Resource:
        """See ``TileReader.read``."""
        ...


class ServerTls:
    """The service's certificate for readers without one of their own; a replaced one is used from the next handshake.

    Raises TlsFilesError when made of files that cannot be used.
    """

    def __init__(self, *, files: TlsFiles, watcher: TlsWatcher) -> None:
        self._files = files
        self._watcher = watcher
        self._used = watcher.current()
        self.context = self._load()
        self.context.sni_callback = self._renew
        self._newest = self.context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._files.certificate, self._files.key)
        return context

    def _renew(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str, _first: ssl.SSLContext) -> None:
        material = self._watcher.current()
        if material is not self._used:
            try:
                self._newest = self._load()
                self._used = material
            except (OSError, ssl.SSLError) as error:  # replaced again in this moment: the former serves on
                _log.warning("keeping the former certificate: %s", error)
        connection.context = self._newest


class TileServer:
    """Answers requests for the log's resources; ``listen`` is host:port, port 0 takes a free one."""

    def __init__(self, *, reader: Reader, listen: str, tls: ServerTls | None, metrics: TileMetrics) -> None:
        self._reader = reader
        self._metrics = metrics
        self._server = BoundedHttp(
            self._handle, listen=listen, what="tiles", tls=None if tls is None else tls.context, idle=IDLE_S
        )

    async def start(self) -> int:
        """Listen; answers the port. Raises ListenError."""
        return await self._server.start()

    async def stop(self) -> None:
        """Close the port and every connection."""
        await self._server.stop()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        response = await self._answer(request)
        self._metrics.answered(request.raw_path, response.status)
        try:
            async with asyncio.timeout(ANSWER_S):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # gone before the answer was
        return response

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if request.version < HttpVersion10:
            return _failure(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "The log is read over HTTP/1.1.")
        if request.method not in ("GET", "HEAD"):
            return _failure(
                HTTPStatus.METHOD_NOT_ALLOWED, "The log is read with GET and HEAD.", Allow="GET, HEAD"
            )
        try:
            resource = await self._reader.read(request.raw_path)
        except Refused as refusal:
            status = _HTTP_OF.get(refusal.status, HTTPStatus.INTERNAL_SERVER_ERROR)
            return _failure(status, refusal.refusals[0].sentence)
        except Exception:  # noqa: BLE001 - the outer edge of a request: a log with a hole says so, and serves on
            _log.exception("a tile could not be read")
            return _failure(HTTPStatus.INTERNAL_SERVER_ERROR, "This part of the log cannot be read.")
        headers = {**_COMMON, "Content-Type": resource.content_type, "Cache-Control": resource.caching}
        response = web.Response(body=resource.content, headers=headers)
        if resource.compressible:
            response.headers["Vary"] = "Accept-Encoding"
            if _takes_gzip(request.headers.get("Accept-Encoding", "")):
                response.enable_compression(web.ContentCoding.gzip)
        return response


def _takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding names gzip and does not forbid it (RFC 9110 section 12.5.3)."""
    for item in accepted.split(","):
        coding, _, weight = item.replace(" ", "").lower().partition(";")
        if coding == "gzip":
            return weight.removeprefix("q=").rstrip("0.") != "" or not weight
    return False


def _failure(status: HTTPStatus, sentence: str, **headers: str) -> web.Response:
    """An answer that no cache keeps: what is not there yet may be there a second later."""
    retry = {"Retry-After": "1"} if status is HTTPStatus.SERVICE_UNAVAILABLE else {}
    return web.Response(
        status=status,
        text=f"{sentence}\n",
        headers={**_COMMON, "Content-Type": TEXT, "Cache-Control": "no-store", **retry, **headers},
    )
