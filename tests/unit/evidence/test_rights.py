"""Who sees which records: the table in docs/evidence.md is what the scope says, and the SQL says the same."""

from pathlib import Path

import pytest
from sqlalchemy import select

from tests.unit.evidence.conftest import Log, World, submission
from vigil.core.certificates import Identity
from vigil.evidence import store
from vigil.evidence.domain import scope_of
from vigil.evidence.tables import ENTRY

DOCS = Path(__file__).parents[3] / "docs" / "evidence.md"
OWNERS = {
    "a record of its own site": ("hospital", "ward"),
    "… of another site of its organization": ("hospital", "lab"),
    "… of its organization and no site": ("hospital", ""),
    "… of another organization": ("clinic", "ward"),
    "… of nobody": ("", ""),
}
READERS = {
    "a hospital's technician, approver, safety": (
        "hospital",
        ("ward",),
        ("technician", "approver", "safety"),
    ),
    "a hospital's person for every site": ("hospital", ("*",), ("technician",)),
    "a hospital's auditor, admin, recall": ("hospital", ("ward",), ("auditor", "admin", "recall")),
    "… for every site": ("hospital", ("*",), ("auditor", "admin", "recall")),
    "a manufacturer's anybody": ("maker", ("*",), ("auditor", "publisher", "psirt")),
    "the operator's technician for named sites": ("operator", ("ward",), ("technician",)),
    "the operator's auditor, admin, recall": ("operator", ("*",), ("auditor", "admin", "recall")),
}


def documented() -> dict[str, list[str]]:
    """The table's rows, without its head."""
    section = DOCS.read_text().partition("## Who reads which records")[2]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[: len(READERS) + 2]]
    assert cells[0][1:] == list(OWNERS)
    return {row[0]: row[1:] for row in cells[2:]}


def readers(world: World, name: str) -> list[Identity]:
    organization, sites, roles = READERS[name]
    return [
        world.pki.person(f"p-{role}", role, organization=organization, sites=sites).identity for role in roles
    ]


def test_every_reader_stands_in_the_table() -> None:
    assert list(documented()) == list(READERS)


@pytest.mark.parametrize("name", READERS)
async def test_the_table_is_what_the_scope_and_the_database_say(world: World, log: Log, name: str) -> None:
    log.start()
    for organization, site in OWNERS.values():
        await log.sequencer.append(submission(world.writer().hold(), organization=organization, site=site))
    for reader in readers(world, name):
        scope = scope_of(reader)
        said = ["yes" if scope.covers(*owner) else "no" for owner in OWNERS.values()]
        assert said == documented()[name], reader.roles
        found = await log.database.read(
            lambda connection, scope=scope: set(
                connection.execute(select(ENTRY.c.idx).where(store.visible(scope))).scalars()
            )
        )
        assert found == {index for index, word in enumerate(said) if word == "yes"}
