"""Ordered change feeds: the owner's ``Outbox`` and ``FeedServicer``, the reader's ``Replica``."""

from vigil.feed.change import Change
from vigil.feed.outbox import MAX_VALUE, Outbox
from vigil.feed.replica import Replica
from vigil.feed.servicer import FeedServicer, sites_of_caller
from vigil.feed.tables import FeedTables, tables

__all__ = [
    "MAX_VALUE",
    "Change",
    "FeedServicer",
    "FeedTables",
    "Outbox",
    "Replica",
    "sites_of_caller",
    "tables",
]
