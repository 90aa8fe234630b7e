"""Takes checkpoints: checks, remembers, and only then cosigns."""

import logging
from collections.abc import Callable

from sqlalchemy import Connection

from vigil.core.clock import Clock
from vigil.storage import Database
from vigil.witness import store
from vigil.witness.domain import KnownLogs, Rejected, Request, SignedHead, check_follows, parse_request
from vigil.witness.founding import WitnessKey
from vigil.witness.store import Known

_log = logging.getLogger(__name__)


class Witness:
    """One witness with its key and its memory."""

    def __init__(self, *, key: WitnessKey, logs: KnownLogs, database: Database, clock: Clock) -> None:
        self._key = key
        self._logs = logs
        self._database = database
        self._clock = clock

    async def add_checkpoint(self, body: bytes) -> str:
        """Cosign the checkpoint of a request: answers the signature line. Raises Rejected, STORAGE_UNAVAILABLE.

        The check against what is known and the memory of it are one transaction, durable before the line is made:
        of two requests at once the later one is held against the earlier, and what was answered is never forgotten.
        """
        request = parse_request(body)
        signed = self._logs.open(request.note)
        now = self._clock.now() // 1000
        try:
            time = await self._database.write(_remember(request, signed, now))
        except Rejected as rejected:
            if rejected.signed:
                await self._contradicted(body.decode(), signed, rejected, now)
            raise
        return self._key.cosign(signed.text, time=time)

    async def _contradicted(self, request: str, signed: SignedHead, why: Rejected, now: int) -> None:
        """Keep what the log itself signed against what it had signed before: it proves what was tried."""
        origin = signed.head.origin
        _log.error("the log %s contradicts itself at size %d: %s", origin, signed.head.size, why.sentence)

        def keep(connection: Connection) -> None:
            known = store.load_known(connection, origin)
            store.put_contradiction(
                connection,
                origin,
                time=now,
                why=why.sentence,
                request=request,
                known="" if known is None else known.note,
            )

        await self._database.write(keep)


def _remember(request: Request, signed: SignedHead, now: int) -> Callable[[Connection], int]:
    """The one step from what is known to what is cosigned; answers the cosignature's time (s)."""

    def run(connection: Connection) -> int:
        known = store.load_known(connection, signed.head.origin)
        check_follows(request, signed.head, None if known is None else known.head)
        time = now if known is None else max(now, known.time)
        store.put_known(connection, Known(signed.head, time, request.note))
        return time

    return run
