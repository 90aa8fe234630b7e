"""An OPA server beside the decision replica, asked through opa-python-client.

What the client alone would let through, and how it is held here:

* the path asked is fixed and never made from a question (the client puts paths unquoted into URLs);
* it retries 500s and lost connections by default: zero retries, an answer later than the deadline is none;
* its timeout starts again with each attempt and does not count the wait for a connection: one outer deadline;
* it follows redirects: an answer from elsewhere is none;
* it reads answers of any size: ANSWER_LIMIT;
* undefined comes back as an answer without `result`: POLICY_UNDEFINED;
* proxies named in the environment are not used;
* the server names the revision of the bundle that answered, and it must be the one we published: a server that
  lags behind, or answers without a bundle, refuses.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Self

import aiohttp
from aiohttp.client_middlewares import ClientHandlerType
from opa_client import AsyncOpaClient  # type: ignore[import-untyped] # the library carries no types

from vigil.policy.engine.port import (
    ANSWER_LIMIT,
    ENTRYPOINT,
    Verdict,
    decode_answer,
    encode_document,
    read_verdict,
    unavailable,
    undefined,
)

DEADLINE_S: Final = 0.5
"""How long one question may take, the wait for a connection included."""

CONNECTIONS: Final = 64
"""Connections to the server; more callers than that wait for one, inside the deadline."""

_PROVENANCE: Final = {"provenance": "true"}


class _BoundedResponse(aiohttp.ClientResponse):
    """A response whose JSON is read up to ANSWER_LIMIT, whatever type and length the server claims."""

    async def json(self, **_: Any) -> Any:
        body = bytearray()
        async for chunk in self.content.iter_any():
            body += chunk
            if len(body) > ANSWER_LIMIT:
                raise undefined(f"the answer is larger than {ANSWER_LIMIT} bytes")
        return decode_answer(bytes(body))


async def _stay(request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
    """Take a redirect for the failure that it is."""
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise unavailable("the server sends us elsewhere")
    return response


def _write(body: Any) -> str:
    """Write the client's request body around the question, which `encode_document` has already written."""
    return f'{{"input":{body["input"]}}}'


class _Client(AsyncOpaClient):  # type: ignore[misc] # the library carries no types
    """The client with a session of ours: bounded, without proxies, cookies or redirects."""

    async def _init_session(self) -> None:
        self._connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            json_serialize=_write,
            middlewares=(_stay,),
            response_class=_BoundedResponse,
            trust_env=False,
        )


class OpaServerEngine:
    """The policy as an OPA server on this machine answers it. Made by `open`, inside the event loop."""

    def __init__(self, *, client: AsyncOpaClient, revision: str, deadline_s: float) -> None:
        self._client = client
        self._revision = revision
        self._deadline_s = deadline_s
        self._closed = False

    @classmethod
    async def open(cls, *, host: str, port: int, revision: str, deadline_s: float = DEADLINE_S) -> Self:
        """Connect lazily to the server at host and port that is expected to answer with this revision."""
        client = _Client(host=host, port=port, retries=0, timeout=deadline_s)
        await client.__aenter__()
        return cls(client=client, revision=revision, deadline_s=deadline_s)

    @property
    def revision(self) -> str:
        """The revision that the server must answer with."""
        return self._revision

    async def decide(self, document: Mapping[str, Any]) -> Verdict:
        """Answer one question; see `PolicyEngine`."""
        if self._closed:
            raise unavailable("the engine is closed")
        question = encode_document(document).decode()
        try:
            async with asyncio.timeout(self._deadline_s):
                answer = await self._client.query_rule(question, ENTRYPOINT, query_params=_PROVENANCE)
        except TimeoutError as error:
            raise unavailable("the server took longer than its deadline") from error
        except aiohttp.ClientResponseError as error:
            raise unavailable(f"the server answered with status {error.status}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise unavailable("the server cannot be reached") from error
        return self._read(answer)

    async def close(self) -> None:
        """Close the connections; afterwards every question is refused."""
        self._closed = True
        await self._client.close_connection()

    def _read(self, answer: Any) -> Verdict:
        if not isinstance(answer, dict):
            raise undefined("the answer is not an object")
        if self._revision not in _revisions(answer.get("provenance")):
            raise unavailable("the server does not answer with the bundle of our revision")
        if "result" not in answer:
            raise undefined("the decision is undefined")
        return read_verdict(answer["result"])


def _revisions(provenance: Any) -> set[str]:
    """The revisions of the bundles that the server holds, as it states them beside the answer."""
    bundles = provenance.get("bundles") if isinstance(provenance, dict) else None
    if not isinstance(bundles, dict):
        return set()
    stated = (bundle.get("revision") for bundle in bundles.values() if isinstance(bundle, dict))
    return {revision for revision in stated if isinstance(revision, str)}
