"""Counts a log's subjects again from its tiles, and holds the censuses of a proof against that.

What the tiles show is first shown to be what the checkpoint signs: the tree over all entries read must have its root.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hmac import compare_digest

from vigil.core.census import Collector, Merger, page_root
from vigil.core.merkle import Frontier, leaf_hash, tree_root
from vigil.core.statements.bodies import Census
from vigil.errors import Reason, Refused, refused
from vigil.monitor.domain import Wrong, bundles, decode, split_bundle
from vigil.verify import SignedTree

Read = Callable[[str], Awaitable[bytes]]
"""Answers the resource at a path below the log's address."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted for one census: it holds, or the count came to something else."""

    index: int
    census: Census
    subjects: int
    root: bytes

    @property
    def holds(self) -> bool:
        """Whether the census says what its log holds."""
        return self.subjects == self.census.subjects and compare_digest(self.root, self.census.root)

    @property
    def sentence(self) -> str:
        """For people."""
        where = (
            f"{self.subjects} subjects in the log's first {self.census.size} entries, counted from the tiles"
        )
        if self.holds:
            return f"{where}, and the census at {self.index} commits to the same."
        return f"{where}: the census at {self.index} commits to something else, with {self.census.subjects} subjects."


async def recount(tree: SignedTree, censuses: Sequence[tuple[int, Census]], read: Read) -> list[Counted]:
    """Read every entry under a checkpoint and count for each census.

    Raises NOT_RECORDED when the tiles do not hold what the checkpoint signs.
    """
    counter, frontier = Collector(), Frontier.empty()
    waiting = sorted(censuses, key=lambda one: one[1].size)
    counted = [_count(index, census, counter) for index, census in waiting if not census.size]
    waiting = [one for one in waiting if one[1].size]
    try:
        for tile in bundles(0, tree.size):
            for entry in split_bundle(await read(tile.path), tile):
                index = frontier.size
                hashed = leaf_hash(entry)
                for link in decode(index, entry)[1].subjects:
                    counter.add(link.subject, number=link.number, previous=link.previous, leaf=hashed)
                frontier = frontier.append(hashed)
                while waiting and waiting[0][1].size == frontier.size:
                    counted.append(_count(*waiting.pop(0), counter))
    except Wrong as wrong:
        raise _other(str(wrong)) from wrong
    if not compare_digest(frontier.root(), tree.root):
        raise _other("they have another root")
    return counted


def _count(index: int, census: Census, counter: Collector) -> Counted:
    merger = Merger(counter.news)
    pages = merger.finish()
    return Counted(index, census, merger.subjects, tree_root([page_root(page) for page in pages]))


def _other(what: str) -> Refused:
    return refused(
        Reason.NOT_RECORDED,
        f"The tiles do not hold what the checkpoint signs: {what}.",
        lifted_by="the tiles of that very log",
        who="whoever serves them",
    )
