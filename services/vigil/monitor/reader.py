"""Reads a log's resources over HTTP: bounded in time and size, without redirects, proxies, cookies or compression."""

import ssl
from pathlib import Path
from typing import Final, Self

import aiohttp

from vigil.core.notes import MAX_NOTE_BYTES
from vigil.core.tiles import CHECKPOINT_PATH
from vigil.errors import VigilError
from vigil.monitor.domain import MAX_BUNDLE_BYTES

SECONDS: Final = 30.0


class UnreadableError(VigilError):
    """The log, or one of its resources, does not answer with what can be read."""


class TileClient:
    """Reads below one address. Made inside the event loop; a context manager."""

    def __init__(self, url: str, *, authority: Path | None = None, seconds: float = SECONDS) -> None:
        self._url = url.rstrip("/")
        context = None if authority is None else ssl.create_default_context(cafile=str(authority))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=True if context is None else context),
            timeout=aiohttp.ClientTimeout(total=seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
        )

    async def checkpoint(self) -> str:
        """The newest note. Raises UnreadableError."""
        data = await self.read(CHECKPOINT_PATH, MAX_NOTE_BYTES)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise UnreadableError(f"{self._url}{CHECKPOINT_PATH} is no text in UTF-8") from None

    async def read(self, path: str, limit: int = MAX_BUNDLE_BYTES) -> bytes:
        """One resource. Raises UnreadableError."""
        where = f"{self._url}{path}"
        try:
            async with self._session.get(where, allow_redirects=False) as response:
                if response.status != 200 or "Content-Encoding" in response.headers:
                    raise UnreadableError(f"{where} answers {response.status}")
                data = bytearray()
                async for chunk in response.content.iter_any():
                    data += chunk
                    if len(data) > limit:
                        raise UnreadableError(f"{where} is longer than {limit} bytes")
                return bytes(data)
        except TimeoutError:
            raise UnreadableError(f"{where} does not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UnreadableError(f"{where} cannot be read: {type(error).__name__}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
