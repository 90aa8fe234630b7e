"""A copy of the log, held against what the log signed and what its witnesses hold, before anybody goes on with it.

``python -m vigil.evidence.copied --database FILE [--log KEY] [--policy FILE] [--checkpoint FILE]`` writes one JSON
object. A log that goes on from an older copy signs a second history: with the same key, and other entries at the
indexes that were given away.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, func, select

from vigil.core.merkle import Frontier, leaf_hash
from vigil.core.notes import (
    Checkpoint,
    find_cosignature,
    open_note,
    parse_checkpoint_text,
    parse_note,
    parse_signatures,
)
from vigil.core.witness_policy import NONE, WitnessPolicy, parse_witness_policy
from vigil.errors import Reason, Refused, VigilError, refused
from vigil.evidence import store
from vigil.evidence.sequencer import LogDamagedError, check_log
from vigil.evidence.tables import COSIGNATURE, ENTRY, METADATA
from vigil.evidence.witness_client import WitnessClient, WitnessUnreachableError
from vigil.evidence.witnessing import SIZE_TYPE, request_body
from vigil.storage import Database, open_database

PAGE: Final = 4096
MAX_NOTE_FILE: Final = 131_072


@dataclass(frozen=True, slots=True)
class Answered:
    """What one witness says of the copy: same, older, ahead, contradiction, refused or unreachable."""

    name: str
    answer: str
    size: int | None


def check_copy(connection: Connection, key: str) -> tuple[Frontier, Checkpoint]:
    """Hash every entry up to the newest checkpoint, and hold it against that. Raises LogDamagedError.

    Answers the whole log's frontier, and the checkpoint with the lines of its witnesses.
    """
    check_log(connection)
    newest = store.load_checkpoint(connection)
    if newest is None:
        raise LogDamagedError("the copy holds no checkpoint: there is nothing to hold it against")
    try:
        open_note(newest.note, key)
    except Refused as error:
        raise LogDamagedError(f"its newest checkpoint: {error.refusals[0].sentence}") from error
    size = connection.execute(select(func.count()).select_from(ENTRY)).scalar_one()
    frontier = Frontier.empty()
    for first in range(0, size, PAGE):
        end = min(size, first + PAGE)
        for part in (min(end, max(first, newest.size)), end):
            if part > frontier.size:
                leaves = store.load_leaves(connection, frontier.size, part - frontier.size)
                frontier = frontier.extend(leaf_hash(leaf) for leaf in leaves)
            if frontier.size == newest.size and frontier.root() != newest.root:
                raise LogDamagedError(f"its {newest.size} entries do not lead to the root that it signed")
    return frontier, newest


def check_known(connection: Connection, note: str, key: str, size: int) -> None:
    """The copy holds everything that a checkpoint from elsewhere signs. Raises STATE_CONFLICT, LogDamagedError."""
    _, known, root = parse_checkpoint_text(open_note(note, key))
    if known > size:
        raise _older(f"the checkpoint given covers {known} records", size)
    frontier = Frontier.empty()
    for first in range(0, known, PAGE):
        leaves = store.load_leaves(connection, first, min(PAGE, known - first))
        frontier = frontier.extend(leaf_hash(leaf) for leaf in leaves)
    if frontier.root() != root:
        raise LogDamagedError(
            f"its first {known} records are not those of the checkpoint given: another history"
        )


async def ask_witnesses(policy: WitnessPolicy, checkpoint: Checkpoint) -> list[Answered]:
    """Ask every witness that has a URL what it holds: it says so when it is not what it is asked about.

    A checkpoint is durable before any witness sees it, so a copy that lacks one is older.
    """
    async with WitnessClient() as client:

        async def ask(name: str) -> Answered:
            witness = policy.witnesses[name]
            url = f"{witness.url.rstrip('/')}/add-checkpoint"
            try:
                answer = await client.post(url, request_body(checkpoint.size, (), checkpoint.note))
            except WitnessUnreachableError:
                return Answered(name, "unreachable", None)
            if answer.status == 200:
                return Answered(name, _same(checkpoint, answer.body, witness.key), checkpoint.size)
            told = answer.body.strip()
            if (
                answer.status == 409
                and answer.content_type == SIZE_TYPE
                and told.isdecimal()
                and len(told) < 20
            ):
                size = int(told)
                if size == checkpoint.size:
                    return Answered(name, "contradiction", size)
                return Answered(name, "ahead" if size > checkpoint.size else "older", size)
            return Answered(name, "contradiction" if answer.status in (409, 422) else "refused", None)

        return list(await asyncio.gather(*(ask(name) for name, one in policy.witnesses.items() if one.url)))


def _same(checkpoint: Checkpoint, body: str, key: str) -> str:
    """A witness is believed for its signature alone."""
    try:
        found = find_cosignature(parse_note(checkpoint.note).text, parse_signatures(body), key)
    except Refused:
        return "refused"
    return "refused" if found is None else "same"


def judge(policy: WitnessPolicy, answers: list[Answered], size: int) -> None:
    """Raises STATE_CONFLICT when a witness holds more or something else, NOT_WITNESSED when too few said a thing."""
    for one in answers:
        if one.answer == "ahead":
            raise _older(f"the witness {one.name} holds {one.size}", size)
        if one.answer == "contradiction":
            raise refused(
                Reason.STATE_CONFLICT,
                f"The witness {one.name} holds another history of this log than this copy.",
                lifted_by="the copy of the log that the witness has seen",
                who="the operator",
            )
    said = {one.name: "" for one in answers if one.answer in ("same", "older")}
    if policy.quorum == NONE or not policy.satisfied(said):
        raise refused(
            Reason.NOT_WITNESSED,
            f"{len(said)} of {len(policy.witnesses)} witnesses say that they hold no more than this copy; "
            "that is not enough by the policy.",
            lifted_by="witnesses that answer, or a checkpoint from elsewhere (--checkpoint)",
            who="the operator",
        )


def _older(what: str, size: int) -> Refused:
    return refused(
        Reason.STATE_CONFLICT,
        f"This copy holds {size} records, and {what}: going on from it would sign a second history.",
        lifted_by="a newer copy; or everything else restored beside a new log (--new-log)",
        who="the operator",
    )


def noted(connection: Connection, checkpoint: Checkpoint) -> str:
    """A checkpoint's note with the lines of the witnesses that the log kept."""
    lines = connection.execute(
        select(COSIGNATURE.c.line)
        .where(COSIGNATURE.c.size == checkpoint.size)
        .order_by(COSIGNATURE.c.witness)
    ).scalars()
    return checkpoint.note + "".join(lines)


def _check(database: Database, arguments: argparse.Namespace) -> dict[str, Any]:
    policy = None
    if arguments.policy is not None:
        policy = parse_witness_policy(arguments.policy.read_text(encoding="utf-8"))
    frontier, newest = database.read_now(lambda connection: check_copy(connection, arguments.log))
    value: dict[str, Any] = {
        "size": frontier.size,
        "checkpoint": database.read_now(lambda connection: noted(connection, newest)),
        "checkpoint_size": newest.size,
        "witnesses": [],
        "checked_against": "",
    }
    if arguments.checkpoint is not None:
        note = _note_of(arguments.checkpoint)
        database.read_now(lambda connection: check_known(connection, note, arguments.log, frontier.size))
        value["checked_against"] = "checkpoint"
    if policy is not None and any(one.url for one in policy.witnesses.values()):
        answers = asyncio.run(ask_witnesses(policy, newest))
        value["witnesses"] = [asdict(one) for one in answers]
        try:
            judge(policy, answers, frontier.size)
            value["checked_against"] = "witnesses"
        except Refused as error:
            # A checkpoint from elsewhere stands in for witnesses that do not answer, never for one that holds more.
            if error.reason is not Reason.NOT_WITNESSED or not value["checked_against"]:
                raise
    return value


def _note_of(path: Path) -> str:
    """A note, or the JSON in which `vigil evidence checkpoint` writes it."""
    text = path.read_bytes()[:MAX_NOTE_FILE].decode()
    if text.lstrip().startswith("{"):
        found: Mapping[str, Any] = json.loads(text)
        text = str(found.get("note", ""))
    return text


def main() -> int:
    """Check one copy; 0 and what was found, or 3 and why not."""
    parser = argparse.ArgumentParser(
        description="Hold a copy of the log against what was signed and witnessed."
    )
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()
    try:
        database = open_database(
            arguments.database, metadata=METADATA, migrations="vigil.evidence.migrations"
        )
        try:
            value = _check(database, arguments)
        finally:
            database.close()
    except Refused as error:
        first = error.refusals[0]
        return _refused(first.reason, first.sentence, first.lifted_by)
    except (VigilError, OSError, ValueError, LookupError) as error:
        return _refused(
            Reason.STATE_CONFLICT, f"The copy of the log cannot be used: {error}.", "another copy"
        )
    sys.stdout.write(json.dumps(value) + "\n")
    return 0


def _refused(reason: Reason, sentence: str, lifted_by: str) -> int:
    value = {"reason": reason, "sentence": sentence, "lifted_by": lifted_by, "who": "the operator"}
    sys.stdout.write(json.dumps({"refused": value}) + "\n")
    return 3


if __name__ == "__main__":
    sys.exit(main())
