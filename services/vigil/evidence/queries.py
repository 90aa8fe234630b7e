"""Records who was shown what, before the answer leaves.

Reads of one person about records of one owner that come while a record of earlier ones is on its way become one
record together: a reader waits for at most two group commits, and a flood of reads grows the log by a record for
each. What is refused shows nothing and is not recorded; checkpoints, proofs and tiles are public and are not either.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from vigil.core.certificates import Identity, Kind
from vigil.core.clock import Clock
from vigil.core.statements.envelope import Scribe
from vigil.core.statements.log_bodies import MAX_READS, Query, Read
from vigil.evidence.domain import is_subject
from vigil.evidence.intake import Submission
from vigil.evidence.sequencer import Sequencer
from vigil.evidence.store import StoredEntry

PREFIX: Final = "read/"
"""Of the subject under which the reads of a subject are numbered: `read/device/…`."""


@dataclass(slots=True)
class _Line:
    """What waits for one person about one owner's records, and whether a record is on its way."""

    waiting: list[tuple[Read, asyncio.Future[None]]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


Owner = tuple[str, str]
"""Organization and site of the records that were shown."""


class QueryLog:
    """Writes the queries. ``scribes`` opens a series of numbered statements."""

    def __init__(self, *, sequencer: Sequencer, scribes: Callable[[], Scribe], clock: Clock) -> None:
        self._sequencer = sequencer
        self._scribe = scribes()
        self._clock = clock
        self._lines: dict[tuple[bytes, Owner], _Line] = {}

    async def shown(
        self, reader: Identity, *, method: str, subject: str, entries: Sequence[StoredEntry]
    ) -> None:
        """Record that a person was shown these; returns when that is durable. Services are not persons.

        Raises EVIDENCE_UNAVAILABLE, STORAGE_UNAVAILABLE: then nothing may be shown.
        """
        if reader.kind is not Kind.PERSON:
            return
        indexes = [entry.index for entry in entries]
        read = Read(
            method=method,
            subject=subject if len(subject) <= 256 else "",
            at=self._clock.now(),
            count=len(indexes),
            first=min(indexes, default=None),
            last=max(indexes, default=None),
        )
        key = reader.thumbprint, _owner(reader, entries)
        line = self._lines.setdefault(key, _Line())
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting.append((read, done))
        if line.task is None:
            line.task = asyncio.create_task(self._write(reader, key, line), name=f"query-{reader.id}")
        await done

    async def _write(self, reader: Identity, key: tuple[bytes, Owner], line: _Line) -> None:
        """Record what waits, until nothing does."""
        while line.waiting:
            batch, line.waiting = line.waiting[:MAX_READS], line.waiting[MAX_READS:]
            error: Exception | None = None
            try:
                await self._append(reader, key[1], [read for read, _ in batch])
            except Exception as failure:  # noqa: BLE001 - whatever it is, it is each reader's answer
                error = failure
            for _, done in batch:
                if done.done():  # the reader went away
                    continue
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)
        del self._lines[key]

    async def _append(self, reader: Identity, owner: Owner, reads: Sequence[Read]) -> None:
        body = Query(
            reader=reader.id,
            organization=reader.organization,
            credential=reader.thumbprint,
            reads=tuple(reads),
        )
        statement = self._scribe.sign(body, subject=f"person/{reader.id}")
        await self._sequencer.append(
            Submission(
                statement=statement.data,
                subjects=tuple(_subjects(read.subject for read in reads)),
                organization=owner[0],
                site=owner[1],
                sender="log",
                own=True,
            )
        )


def _subjects(names: Iterable[str]) -> Iterable[str]:
    """Where else a query belongs. Reading what was read is the reader's own history alone, or it would never end."""
    unique = dict.fromkeys(f"{PREFIX}{name}" for name in names if name and not name.startswith(PREFIX))
    return [name for name in unique if is_subject(name)]


def _owner(reader: Identity, entries: Sequence[StoredEntry]) -> Owner:
    """Those whose records were shown may see who was shown them; of nothing, the reader's own."""
    if not entries:
        return reader.organization, ""
    newest = max(entries, key=lambda entry: entry.index)
    alike = all((one.organization, one.site) == (newest.organization, newest.site) for one in entries)
    return newest.organization, newest.site if alike else ""
