"""The open streams of a server, so that they can be cut at once: by a revocation, by expiry, by a stop."""

from collections.abc import Callable, Iterable
from typing import Protocol

from vigil.core.certificates import Identity
from vigil.errors import Reason, Refused, refused
from vigil.rpc.admission import revoked


class OpenStream(Protocol):
    """One open stream as the registry sees it."""

    @property
    def caller(self) -> Identity: ...

    @property
    def drains(self) -> bool:
        """Whether the handler ends the stream by itself when told to."""
        ...

    def check(self) -> None:
        """Judge the caller as of now; raises Refused."""
        ...

    def cut(self, refusal: Refused) -> None:
        """End the stream with this refusal; once is enough."""
        ...

    def drain(self) -> None:
        """Tell the handler to take nothing more and to end."""
        ...

    def sending_for(self) -> float:
        """Seconds for which the newest message has waited for its reader; 0 when none waits."""
        ...


class StreamRegistry:
    """Open streams by the thumbprint of the certificate that opened them. For one event loop."""

    def __init__(
        self, *, stall_seconds: float = float("inf"), on_cut: Callable[[str], None] | None = None
    ) -> None:
        self._streams: dict[bytes, set[OpenStream]] = {}
        self._stall = stall_seconds
        self._on_cut = on_cut

    def __len__(self) -> int:
        return sum(len(streams) for streams in self._streams.values())

    def add(self, stream: OpenStream) -> None:
        """Register an admitted stream."""
        self._streams.setdefault(stream.caller.thumbprint, set()).add(stream)

    def discard(self, stream: OpenStream) -> None:
        """Forget a stream that ended."""
        streams = self._streams.get(stream.caller.thumbprint)
        if streams is not None:
            streams.discard(stream)
            if not streams:
                del self._streams[stream.caller.thumbprint]

    def cut(self, predicate: Callable[[Identity], bool], reason: Reason | Refused) -> int:
        """Cut every stream whose caller satisfies the predicate; answers how many."""
        return self._end(
            (
                stream
                for streams in list(self._streams.values())
                for stream in list(streams)
                if predicate(stream.caller)
            ),
            reason,
        )

    def cut_credential(self, thumbprint: bytes, reason: Reason | Refused = Reason.CREDENTIAL_REVOKED) -> int:
        """Cut the streams opened with one certificate (raw SHA-256 of its DER)."""
        return self._end(tuple(self._streams.get(thumbprint, ())), reason)

    def cut_subject(self, subject_id: str, reason: Reason | Refused = Reason.CREDENTIAL_REVOKED) -> int:
        """Cut the streams of one person, gateway, device or service, whatever certificate opened them."""
        return self.cut(lambda caller: caller.id == subject_id, reason)

    def sweep(self) -> int:
        """Judge every open stream's caller as of now and cut those that no longer stand; answers how many.

        A stream whose reader takes nothing is cut too: what it holds it would hold for ever.
        """
        count = 0
        for streams in list(self._streams.values()):
            for stream in list(streams):
                try:
                    stream.check()
                except Refused as refusal:
                    count += self._end((stream,), refusal)
                    continue
                if stream.sending_for() > self._stall:
                    count += self._end((stream,), stalled())
        return count

    def drain(self) -> None:
        """End all streams: those that drain when their calls are answered, the others now."""
        for streams in list(self._streams.values()):
            for stream in list(streams):
                if stream.drains:
                    stream.drain()
                else:
                    stream.cut(stopping())

    def _end(self, streams: Iterable[OpenStream], reason: Reason | Refused) -> int:
        refusal = reason if isinstance(reason, Refused) else revoked(reason)
        count = 0
        for stream in streams:
            stream.cut(refusal)
            count += 1
            if self._on_cut is not None:
                self._on_cut(refusal.reason.value)
        return count


def stalled() -> Refused:
    """Refuse a reader that does not read."""
    return refused(
        Reason.SERVICE_UNAVAILABLE,
        "What was sent on this stream was not taken.",
        lifted_by="opening it again, and reading from it",
        who="you",
    )


def stopping() -> Refused:
    """Refuse what a server that stops cannot finish."""
    return refused(
        Reason.SERVICE_UNAVAILABLE,
        "The service is stopping.",
        lifted_by="calling again in a moment: the service, or another replica, will answer",
        who="the operator",
    )
