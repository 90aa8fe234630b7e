"""The way into the evidence log: `EvidenceAppender` waits for the record, `EvidenceSpool` sends it afterwards."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Self

import grpc
import structlog
from google.protobuf.message import DecodeError
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    func,
    select,
    update,
)

from vigil.api.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from vigil.api.evidence.v1.evidence_pb2 import AppendItem, AppendOutcome, AppendResponse, RecordedItem
from vigil.core.clock import Entropy
from vigil.errors import Reason, Refused, refused
from vigil.rpc.streams import Exchange
from vigil.storage import Database, after_commit, at_commit, delete_keys, insert_rows, news

LARGE: Final = 48 * 1024
"""Bytes of an item that travels on a stream of its own: 64 smaller ones fit into one message of 4 MiB."""
MAX_LARGE_BATCH: Final = 4
"""Large items in one message: a statement and eight bodies of 64 KiB each are 576 KiB."""
PAGE: Final = 64
"""Spooled records under way at once."""
GATHER_S: Final = 0.05
"""What is put meanwhile leaves together: one read, one message, one commit at either end."""
FIRST_PAUSE: Final = 0.2
LAST_PAUSE: Final = 10.0

_UNKNOWN_OUTCOME = frozenset(
    {
        Reason.SERVICE_UNAVAILABLE,
        Reason.DEADLINE_EXCEEDED,
        Reason.STORAGE_UNAVAILABLE,
        Reason.EVIDENCE_UNAVAILABLE,
        Reason.INTERNAL,
    }
)
"""Refusals after which the statement may be on record or not: sending it again is safe, and answers which."""
_ABOUT_US = frozenset(
    {
        Reason.TLS_VERSION,
        Reason.CERTIFICATE_EXPIRED,
        Reason.CERTIFICATE_INVALID,
        Reason.ROLE_NOT_PERMITTED,
        Reason.CREDENTIAL_REVOKED,
        Reason.GATEWAY_REVOKED,
        Reason.SIGNER_REVOKED,
    }
)
"""What is wrong with the sender's own credential, never with a statement: it passes with a new one."""
SIGNATURE_ATTEMPTS: Final = 8
"""How often, over about half a minute, a signer may be unknown to the log: trust in a new root spreads in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One statement for the log, with what it is about, what is kept beside it, and who owns it."""

    statement: bytes
    subjects: Sequence[str] = ()
    bodies: Sequence[bytes] = ()
    organization_id: str = ""
    site_id: str = ""

    def item(self) -> AppendItem:
        """The record as the contract encodes it."""
        return AppendItem(
            statement=self.statement,
            subjects=self.subjects,
            bodies=self.bodies,
            organization_id=self.organization_id,
            site_id=self.site_id,
        )


class EvidenceAppender:
    """Appends statements and answers when they are durable. For one event loop; use it as a context manager.

    Items keep their order on the way as long as there is one stream (``streams=1``) and none is large.
    """

    def __init__(self, *, channel: grpc.aio.Channel, entropy: Entropy, streams: int = 4) -> None:
        stub = evidence_pb2_grpc.EvidenceLogServiceStub(channel)
        generation: Callable[[], object] = lambda: getattr(channel, "generation", None)  # noqa: E731

        def exchange(streams: int, max_batch: int) -> Exchange[AppendItem, AppendOutcome]:
            return Exchange(
                name="evidence",
                open_stream=stub.Append,
                pack=lambda items: evidence_pb2.AppendRequest(items=items),
                unpack=outcomes,
                entropy=entropy,
                streams=streams,
                max_batch=max_batch,
                generation=generation,
            )

        self._small = exchange(streams, 64)
        self._large = exchange(1, MAX_LARGE_BATCH)

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    def start(self) -> None:
        """Connect ahead of the first call."""
        self._small.start()

    async def close(self) -> None:
        """Close the streams; calls under way fail with EVIDENCE_UNAVAILABLE."""
        await self._small.close()
        await self._large.close()

    async def append(
        self,
        statement: bytes,
        *,
        subjects: Sequence[str] = (),
        bodies: Sequence[bytes] = (),
        organization_id: str = "",
        site_id: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - bounds one item of a shared stream
    ) -> RecordedItem:
        """Record one statement. The same statement again answers the same record.

        Raises EVIDENCE_UNAVAILABLE when it is not known to be recorded, and what the log refuses it for.
        """
        record = Record(
            statement=statement,
            subjects=subjects,
            bodies=bodies,
            organization_id=organization_id,
            site_id=site_id,
        )
        return await self.send(record.item(), timeout=timeout)

    async def append_all(
        self,
        records: Iterable[Record],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as in append
    ) -> list[RecordedItem]:
        """Record several statements together; raises the first one's failure after all have ended."""
        sent = (self.send(record.item(), timeout=timeout) for record in records)
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        recorded = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            recorded.append(outcome)
        return recorded

    async def send(
        self,
        item: AppendItem,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as in append
    ) -> RecordedItem:
        """Record an encoded item. Raises as ``append``."""
        exchange = self._large if is_large(item) else self._small
        try:
            outcome = await exchange.call(item, timeout=timeout)
        except Refused as refusal:
            if refusal.reason in _UNKNOWN_OUTCOME:
                raise _unavailable(refusal) from refusal
            raise
        return outcome.recorded


def outcomes(response: AppendResponse) -> Iterable[AppendOutcome]:
    """The outcomes of a response, each with the `recorded` of its commit; without, where the response has none."""
    commits = response.commits
    for outcome in response.items:
        if outcome.HasField("recorded") and outcome.commit < len(commits):
            outcome.recorded.recorded = commits[outcome.commit]
        yield outcome


def is_large(item: AppendItem) -> bool:
    """Whether an item is too large to share a message with 63 like it."""
    return len(item.statement) + sum(map(len, item.bodies)) > LARGE


def _unavailable(cause: Refused) -> Refused:
    return refused(
        Reason.EVIDENCE_UNAVAILABLE,
        "It could not be confirmed that the statement is on record.",
        lifted_by="the same request again once the evidence service answers",
        who="the operator",
        cause=cause.reason,
    )


# --- the spool

_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")


def spool_table(metadata: MetaData) -> Table:
    """Add the spool's table to an owner's metadata; its migrations create it with the owner's own."""
    return Table(
        "evidence_spool",
        metadata,
        Column("sequence", _SEQUENCE, primary_key=True),
        Column("item", LargeBinary, nullable=False),  # AppendItem
        Column("refused", String(64), nullable=False),  # why the log will never take it; empty while it waits
    )


_SPOOL = spool_table(MetaData())
# Built once: to build a statement costs several times its execution.
_OLDEST = (
    select(_SPOOL.c.sequence, _SPOOL.c.item)
    .where(_SPOOL.c.refused == "")
    .order_by(_SPOOL.c.sequence)
    .limit(PAGE)
)

OnRecorded = Callable[[Connection, bytes, RecordedItem], None]
"""``(connection, statement, recorded)``: runs in the transaction that takes the statement off the spool."""


class EvidenceSpool:
    """Statements that take effect before they are on record: durable beside the facts, forwarded in order.

    What the log refuses for good (its own fault, not a passing one) is set aside, counted and logged; it stays
    in the table for a person to look at and does not hold up what comes after it.
    """

    def __init__(
        self,
        *,
        database: Database,
        appender: EvidenceAppender,
        entropy: Entropy,
        on_recorded: OnRecorded | None = None,
    ) -> None:
        self._database = database
        self._appender = appender
        self._entropy = entropy
        self._on_recorded = on_recorded
        self._wake = asyncio.Event()
        self._unsigned: dict[int, int] = {}
        self._log = structlog.get_logger("vigil.evidence_spool")

    def put(
        self,
        connection: Connection,
        statement: bytes,
        *,
        subjects: Sequence[str] = (),
        bodies: Sequence[bytes] = (),
        organization_id: str = "",
        site_id: str = "",
    ) -> None:
        """Inside a write function: have a statement recorded once this transaction is durable."""
        item = Record(
            statement=statement,
            subjects=subjects,
            bodies=bodies,
            organization_id=organization_id,
            site_id=site_id,
        ).item()
        at_commit(connection, _store, item.SerializeToString())
        after_commit(connection, self._wake.set)

    async def waiting(self) -> int:
        """How many statements are not on record yet."""
        return await self._database.read(lambda connection: _count(connection, refused=False))

    async def set_aside(self) -> int:
        """How many statements the log refused for good."""
        return await self._database.read(lambda connection: _count(connection, refused=True))

    async def run(self) -> None:
        """Forward until cancelled."""
        pause = FIRST_PAUSE
        while True:
            self._wake.clear()
            try:
                moved = await self._forward()
            except Refused as refusal:
                self._log.warning("evidence_spool_waits", reason=refusal.reason, sentence=str(refusal))
                await asyncio.sleep(pause * (0.5 + int.from_bytes(self._entropy(2)) / 0x20000))
                pause = min(LAST_PAUSE, pause * 2)
                continue
            pause = FIRST_PAUSE
            if not moved:
                await news(self._wake)
                await asyncio.sleep(GATHER_S)

    async def _forward(self) -> int:
        """Send the oldest page; answers how many left the queue. Raises the first passing failure."""
        rows = await self._database.read(_oldest)
        done = 0
        # Large items have a stream of their own, so one kind waits for the other: the order stays.
        for _, run in groupby(rows, key=lambda row: is_large(row[1])):
            done += await self._send_run(list(run))
        return done

    async def _send_run(self, rows: Sequence[tuple[int, AppendItem]]) -> int:
        outcomes = await asyncio.gather(
            *(self._appender.send(item) for _, item in rows), return_exceptions=True
        )
        recorded: list[tuple[int, bytes, RecordedItem]] = []
        refusals: list[tuple[int, Reason]] = []
        failure: BaseException | None = None
        for (sequence, item), outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, RecordedItem):
                recorded.append((sequence, item.statement, outcome))
            elif isinstance(outcome, Refused) and self._for_good(sequence, outcome):
                refusals.append((sequence, outcome.reason))
                self._log.error("evidence_spool_refused", sequence=sequence, reason=outcome.reason)
            else:
                failure = failure or outcome
        if recorded or refusals:
            # Vital: on a full disk, what is on record makes room for what is not.
            await self._database.write(
                lambda connection: self._settle(connection, recorded, refusals), vital=True
            )
        if failure is not None:
            raise failure
        return len(rows)

    def _for_good(self, sequence: int, refusal: Refused) -> bool:
        """Whether the log will never take this statement."""
        if refusal.reason in _UNKNOWN_OUTCOME or refusal.reason in _ABOUT_US:
            return False
        if refusal.reason is not Reason.SIGNATURE_INVALID:
            return True
        attempts = self._unsigned.pop(sequence, 0) + 1
        if attempts < SIGNATURE_ATTEMPTS:
            self._unsigned[sequence] = attempts
        return attempts >= SIGNATURE_ATTEMPTS

    def _settle(
        self,
        connection: Connection,
        recorded: Sequence[tuple[int, bytes, RecordedItem]],
        refusals: Sequence[tuple[int, Reason]],
    ) -> None:
        if recorded:
            delete_keys(connection, _SPOOL, [(sequence,) for sequence, _, _ in recorded])
        if self._on_recorded is not None:
            for _, statement, item in recorded:
                self._on_recorded(connection, statement, item)
        for sequence, reason in refusals:
            connection.execute(
                update(_SPOOL).where(_SPOOL.c.sequence == sequence).values(refused=str(reason))
            )


def _store(connection: Connection, items: list[bytes]) -> None:
    """Write what every function of a commit puts, in their order: the table numbers it."""
    insert_rows(connection, _SPOOL, [(item, "") for item in items], columns=2)


def _oldest(connection: Connection) -> list[tuple[int, AppendItem]]:
    return [(sequence, _decoded(item)) for sequence, item in connection.execute(_OLDEST)]


def _decoded(item: bytes) -> AppendItem:
    try:
        return AppendItem.FromString(item)
    except DecodeError as error:
        raise refused(Reason.STORAGE_UNAVAILABLE, "A spooled statement cannot be read.") from error


def _count(connection: Connection, *, refused: bool) -> int:
    condition = _SPOOL.c.refused != "" if refused else _SPOOL.c.refused == ""
    return connection.execute(select(func.count()).select_from(_SPOOL).where(condition)).scalar_one()
