"""The owner's side: changes are written in the transaction of the facts that they tell."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from vigil.core.ordered import OrderedSet
from vigil.feed.change import START, next_mark
from vigil.feed.tables import TABLES
from vigil.storage import Database, after_commit, at_commit, delete_keys, insert_rows, put_rows

MAX_VALUE = 256 * 1024
"""Bytes of one resource: two fit into a gRPC message of 1 MiB with room to spare."""
RETAINED = 100_000
"""Changes that stay in the tail; a reader further behind takes a snapshot."""
_KEYS_A_QUERY = 400

_counter, _outbox, _state = TABLES.counter, TABLES.outbox, TABLES.state
_CURRENT_SITES = select(_state.c.key, _state.c.scope_site).where(
    _state.c.kind == bindparam("kind"), _state.c.key.in_(bindparam("keys", expanding=True))
)
# Built once, as the others: to build a statement costs several times its execution.
_COUNTED = select(_counter.c.sequence, _counter.c.mark, _counter.c.floor)
_COUNT = update(_counter)


@dataclass(frozen=True, slots=True)
class _Put:
    kind: str
    key: str
    site: str
    value: bytes
    deleted: bool


class Outbox:
    """Takes an owner's changes. One for each database, made where the database is opened."""

    def __init__(self, database: Database, *, retained: int = RETAINED) -> None:
        self.database = database
        self._retained = retained
        self._listeners: OrderedSet[Callable[[], None]] = OrderedSet()

    def put(self, connection: Connection, kind: str, key: str, value: bytes, site: str = "") -> None:
        """Inside a write function: tell readers of this value. An empty site concerns everybody."""
        if not kind or not key:
            raise ValueError("a change names a kind and a key")
        if len(value) > MAX_VALUE:
            raise ValueError(f"a resource in a feed has at most {MAX_VALUE} bytes, not {len(value)}")
        self._keep(connection, _Put(kind, key, site, value, deleted=False))

    def delete(self, connection: Connection, kind: str, key: str, site: str = "") -> None:
        """Inside a write function: tell readers that it is gone; nothing if they never heard of it."""
        self._keep(connection, _Put(kind, key, site, b"", deleted=True))

    def committed(self) -> None:
        """Wake the watchers; every commit that carries a change does so by itself."""
        for listener in tuple(self._listeners):
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called, on the event loop, after each commit that carries a change."""
        self._listeners.add(listener)

    def ignore(self, listener: Callable[[], None]) -> None:
        """Undo ``listen``."""
        self._listeners.discard(listener)

    def _keep(self, connection: Connection, put: _Put) -> None:
        # Numbered just before the commit, all changes of a commit at once: the counter's row is in the same
        # transaction as the facts, so no number is skipped or seen before its neighbours.
        at_commit(connection, self._flush, put)
        after_commit(connection, self.committed)

    def _flush(self, connection: Connection, puts: list[_Put]) -> None:
        stored = connection.execute(_COUNTED).one_or_none()
        sequence, mark, floor = stored or (START.sequence, START.mark, 0)
        sites = _current_sites(connection, puts)
        tail: list[dict[str, Any]] = []
        final: dict[tuple[str, str], dict[str, Any]] = {}
        for put in puts:
            name = (put.kind, put.key)
            before = sites.get(name)
            if put.deleted and before is None:
                continue
            site = (put.site or before or "") if put.deleted else put.site
            sequence += 1
            mark = next_mark(
                mark,
                sequence=sequence,
                kind=put.kind,
                key=put.key,
                site=site,
                value=put.value,
                deleted=put.deleted,
            )
            tail.append(
                {
                    "sequence": sequence,
                    "kind": put.kind,
                    "key": put.key,
                    "scope_site": site,
                    "previous_site": before if before != site else None,
                    "value": put.value,
                    "deleted": put.deleted,
                    "mark": mark,
                }
            )
            sites[name] = None if put.deleted else site
            final[name] = tail[-1]
        if not tail:
            return
        insert_rows(connection, _outbox, [tuple(row.values()) for row in tail])
        _store_state(connection, final)
        if sequence - floor > self._retained + self._retained // 100:
            floor = sequence - self._retained
            connection.execute(delete(_outbox).where(_outbox.c.sequence <= floor))
        values = {"sequence": sequence, "mark": mark, "floor": floor}
        if stored is None:
            connection.execute(insert(_counter).values(id=1, **values))
        else:
            connection.execute(_COUNT, values)


def _current_sites(connection: Connection, puts: list[_Put]) -> dict[tuple[str, str], str | None]:
    """Where each resource that is about to change belongs now; absent when nobody heard of it."""
    wanted: dict[str, dict[str, None]] = {}
    for put in puts:
        wanted.setdefault(put.kind, {})[put.key] = None
    found: dict[tuple[str, str], str | None] = {}
    for kind, names in wanted.items():
        keys = list(names)
        for start in range(0, len(keys), _KEYS_A_QUERY):
            some = {"kind": kind, "keys": keys[start : start + _KEYS_A_QUERY]}
            for key, site in connection.execute(_CURRENT_SITES, some):
                found[kind, key] = site
    return found


def _store_state(connection: Connection, final: dict[tuple[str, str], dict[str, Any]]) -> None:
    columns = ("kind", "key", "scope_site", "value", "sequence")
    kept = [tuple(row[name] for name in columns) for row in final.values() if not row["deleted"]]
    delete_keys(connection, _state, [name for name, row in final.items() if row["deleted"]])
    put_rows(connection, _state, kept)
