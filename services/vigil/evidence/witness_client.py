"""One POST to a witness: bounded in time and size, without redirects, proxies or cookies."""

from dataclasses import dataclass
from typing import Final, Self

import aiohttp

from vigil.errors import VigilError

POST_SECONDS: Final = 10.0
MAX_ANSWER_BYTES: Final = 16_384
"""A cosignature has about 150 bytes; a witness may answer with several."""


class WitnessUnreachableError(VigilError):
    """A witness does not answer, or not with HTTP that is worth reading."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a witness answered: HTTP status, content type, body."""

    status: int
    content_type: str
    body: str


class WitnessClient:
    """Posts to witnesses. Made inside the event loop; `close` it."""

    def __init__(self, *, seconds: float = POST_SECONDS) -> None:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def post(self, url: str, body: bytes) -> Answer:
        """Post a body. Raises WitnessUnreachableError."""
        try:
            async with self._session.post(url, data=body, allow_redirects=False) as response:
                text = bytearray()
                async for chunk in response.content.iter_any():
                    text += chunk
                    if len(text) > MAX_ANSWER_BYTES:
                        raise WitnessUnreachableError(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
                return Answer(response.status, response.content_type, text.decode())
        except TimeoutError:
            raise WitnessUnreachableError("it does not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WitnessUnreachableError(f"it cannot be asked: {type(error).__name__}") from error

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
