"""What witnesses said of this log's checkpoints: kept beside them, and held against the operator's policy."""

from dataclasses import dataclass
from itertools import groupby
from typing import Final

from sqlalchemy import Connection, insert, select

from vigil.core.notes import Cosignature
from vigil.core.witness_policy import WitnessPolicy
from vigil.errors import Reason, Refused, refused
from vigil.evidence.domain import Checkpoint
from vigil.evidence.metrics import LogMetrics
from vigil.evidence.store import load_checkpoint
from vigil.evidence.tables import COSIGNATURE
from vigil.storage import Database

LOOK_BACK: Final = 100_000
"""Cosignatures searched at a start for the newest checkpoint that enough witnesses hold."""


@dataclass(frozen=True, slots=True)
class Held:
    """A checkpoint with what is known of its witnesses. ``note`` carries their lines after the log's own."""

    checkpoint: Checkpoint
    note: str
    witnesses: int
    witnessed: bool


class WitnessBook:
    """Cosignatures by checkpoint. Without a policy (``quorum none`` and no witness) nothing counts as witnessed."""

    def __init__(self, *, database: Database, policy: WitnessPolicy, metrics: LogMetrics) -> None:
        self._database = database
        self._policy = policy
        self._metrics = metrics
        self._names = {one.key: name for name, one in policy.witnesses.items()}
        self._witnessed: int | None = None
        if self._names:
            self._count(database.read_now(self._newest_witnessed))

    @property
    def policy(self) -> WitnessPolicy:
        """The operator's policy."""
        return self._policy

    def newest_of(self, key: str) -> int:
        """The largest size that a witness is known to hold; 0 when none is known."""
        query = select(COSIGNATURE.c.size).where(COSIGNATURE.c.witness == key)
        found = self._database.read_now(
            lambda connection: connection.execute(query.order_by(COSIGNATURE.c.size.desc()).limit(1)).scalar()
        )
        return found or 0

    async def follow(self) -> None:
        """Look what another process, which writes, has heard from the witnesses."""
        if self._names:
            self._count(await self._database.read(self._newest_witnessed))

    async def keep(self, checkpoint: Checkpoint, key: str, cosignature: Cosignature) -> None:
        """Keep a cosignature that was verified, durably. One witness has one line at one size: the first stays."""
        size = checkpoint.size

        def write(connection: Connection) -> bool:
            lines = _lines(connection, size)
            if key not in lines:
                values = {"size": size, "witness": key, "time": cosignature.time, "line": cosignature.line}
                connection.execute(insert(COSIGNATURE), values)
            return self._enough({**lines, key: cosignature.line})

        if await self._database.write(write):
            self._count(size)

    async def held(self, checkpoint: Checkpoint) -> Held:
        """What is known of the witnesses of a checkpoint."""
        if not self._names:
            return Held(checkpoint, checkpoint.note, 0, witnessed=False)
        lines = await self._database.read(lambda connection: _lines(connection, checkpoint.size))
        return self._held(checkpoint, lines)

    @property
    def size(self) -> int:
        """Of the newest checkpoint that enough witnesses hold; 0 where none is."""
        return self._witnessed or 0

    async def newest(self) -> Held:
        """The newest checkpoint that enough witnesses hold. Raises NOT_WITNESSED."""
        size = self._witnessed
        if size is None:
            raise self._none_yet()

        def read(connection: Connection) -> tuple[Checkpoint | None, dict[str, str]]:
            return load_checkpoint(connection, size), _lines(connection, size)

        checkpoint, lines = await self._database.read(read)
        if checkpoint is None:
            raise LookupError(f"the log lacks the checkpoint of {size} that witnesses hold")
        return self._held(checkpoint, lines)

    def _held(self, checkpoint: Checkpoint, lines: dict[str, str]) -> Held:
        known = {key: line for key, line in lines.items() if key in self._names}
        return Held(
            checkpoint, checkpoint.note + "".join(known.values()), len(known), witnessed=self._enough(known)
        )

    def _enough(self, lines: dict[str, str]) -> bool:
        return self._policy.satisfied(
            {self._names[key]: line for key, line in lines.items() if key in self._names}
        )

    def _newest_witnessed(self, connection: Connection) -> int | None:
        rows = connection.execute(
            select(COSIGNATURE.c.size, COSIGNATURE.c.witness)
            .order_by(COSIGNATURE.c.size.desc())
            .limit(LOOK_BACK)
        )
        for size, group in groupby(rows, key=lambda row: row.size):
            if self._enough(dict.fromkeys((row.witness for row in group), "")):
                return int(size)
        return None

    def _count(self, size: int | None) -> None:
        if size is not None and size > (self._witnessed or -1):
            self._witnessed = size
            self._metrics.witnessed(size)

    def _none_yet(self) -> Refused:
        return refused(
            Reason.NOT_WITNESSED,
            f"No checkpoint of this log is held by enough of its {len(self._names)} witnesses yet.",
            lifted_by="a witness policy whose witnesses answer",
            who="the operator",
        )


def _lines(connection: Connection, size: int) -> dict[str, str]:
    """The cosignatures of one checkpoint, by the witness's verifier key, in a stable order."""
    query = select(COSIGNATURE.c.witness, COSIGNATURE.c.line).where(COSIGNATURE.c.size == size)
    return {row.witness: row.line for row in connection.execute(query.order_by(COSIGNATURE.c.witness))}
