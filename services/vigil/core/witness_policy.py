"""Which witnesses must hold a checkpoint: a C2SP tlog-policy file. Pure.

    log <verifier key> [<url>]
    witness <name> <verifier key> [<url>]
    group <name> <k>|all|any <name> …
    quorum <name>|none

One file serves everybody: the log sends to the witnesses that have a URL, a reader holds a checkpoint against the
quorum, and other projects' tools read it too. What is not the format is refused, never passed over.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vigil.core.notes import (
    Cosignature,
    find_cosignature,
    open_note,
    parse_cosigner_key,
    parse_note,
    parse_verifier_key,
)
from vigil.errors import Reason, Refused, refused

MAX_POLICY_LETTERS: Final = 65_536
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
"""Control characters but the tab, and lone surrogates, which no UTF-8 holds."""
MAX_MEMBERS: Final = 64
"""Logs, witnesses and groups, each: twice what C2SP tlog-policy wants read."""
NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class KnownWitness:
    """A witness: its key as C2SP writes it, and where it takes checkpoints ("" where nobody need know)."""

    key: str
    url: str


@dataclass(frozen=True, slots=True)
class WitnessPolicy:
    """Logs by their keys, witnesses by their names in the file, groups of at least k of their members."""

    logs: tuple[str, ...] = ()
    witnesses: Mapping[str, KnownWitness] = field(default_factory=dict)
    groups: Mapping[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    quorum: str = NONE

    def knows_log(self, key: str) -> bool:
        """Whether a log's key is one of the file's; a file that names no log leaves that to others."""
        return not self.logs or key in self.logs

    def cosignatures(self, note: str) -> dict[str, Cosignature]:
        """What known witnesses say under a note, by their names in the file.

        Raises SIGNATURE_INVALID when one that claims a known key does not verify, STATEMENT_MALFORMED.
        """
        read = parse_note(note)
        found = {
            name: find_cosignature(read.text, read.signatures, one.key)
            for name, one in self.witnesses.items()
        }
        return {name: one for name, one in found.items() if one is not None}

    def satisfied(self, held_by: Mapping[str, object]) -> bool:
        """Whether these witnesses are enough. ``quorum none`` is satisfied by nobody's word."""
        return self.quorum == NONE or self._holds(self.quorum, held_by)

    def _holds(self, name: str, held_by: Mapping[str, object]) -> bool:
        if name in self.witnesses:
            return name in held_by
        least, members = self.groups[name]
        return sum(self._holds(member, held_by) for member in members) >= least


def check_witnessed(note: str, policy: WitnessPolicy, *, log_key: str) -> dict[str, Cosignature]:
    """A checkpoint of a log that the policy knows, held by enough of its witnesses; answers what they said.

    Raises NOT_WITNESSED, SIGNATURE_INVALID, STATEMENT_MALFORMED.
    """
    if not policy.knows_log(log_key):
        raise _not_witnessed("The policy does not know the log that signed this checkpoint.")
    open_note(note, log_key)
    found = policy.cosignatures(note)
    if not policy.satisfied(found):
        raise _not_witnessed(
            f"This checkpoint is cosigned by {len(found)} of {len(policy.witnesses)} witnesses: "
            f"{', '.join(sorted(found)) or 'none'}. The policy asks for more.",
        )
    return found


def parse_witness_policy(text: str) -> WitnessPolicy:
    """Read a policy. Raises FIELD_INVALID with the line that is wrong."""
    if len(text) > MAX_POLICY_LETTERS:
        raise _wrong(0, f"a policy has at most {MAX_POLICY_LETTERS} letters")
    reader = _Reader()
    for number, line in enumerate(text.split("\n"), 1):
        try:
            reader.line(line)
        except ValueError as error:
            raise _wrong(number, str(error)) from None
        except Refused as error:
            raise _wrong(number, error.refusals[0].sentence) from None
    if reader.quorum is None:
        raise _wrong(0, "there is no quorum line")
    return WitnessPolicy(tuple(reader.logs), reader.witnesses, reader.groups, reader.quorum)


class _Reader:
    """What was read so far; every name must be known before it is used, and is used in one group at most."""

    def __init__(self) -> None:
        self.logs: dict[str, bytes] = {}
        self.witnesses: dict[str, KnownWitness] = {}
        self.groups: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.quorum: str | None = None
        self._keys: set[bytes] = set()
        self._members: set[str] = set()

    def line(self, line: str) -> None:
        """Take one line. Raises ValueError or Refused."""
        if _FORBIDDEN.search(line):
            raise ValueError("a control character")
        words = [word for word in line.replace("\t", " ").split(" ") if word]
        match words:
            case []:
                return
            case [first, *_] if first.startswith("#"):
                return
            case ["log", key] | ["log", key, _]:
                self._log(key)
            case ["witness", name, key]:
                self._witness(name, key, "")
            case ["witness", name, key, url]:
                self._witness(name, key, url)
            case ["group", name, least, *members]:
                self._group(name, least, members)
            case ["quorum", name]:
                self._quorum(name)
            case _:
                raise ValueError("it is no log, witness, group or quorum line")
        if max(len(self.logs), len(self.witnesses), len(self.groups)) > MAX_MEMBERS:
            raise ValueError(f"more than {MAX_MEMBERS} logs, witnesses or groups")

    def _log(self, key: str) -> None:
        _, public = parse_verifier_key(key)
        if public in self.logs.values():
            raise ValueError("the same log a second time")
        self.logs[key] = public

    def _witness(self, name: str, key: str, url: str) -> None:
        self._new(name)
        _, public = parse_cosigner_key(key)
        if public in self._keys:
            raise ValueError("the same witness a second time")
        self._keys.add(public)
        self.witnesses[name] = KnownWitness(key, url)

    def _group(self, name: str, least: str, members: list[str]) -> None:
        self._new(name)
        for member in members:
            self._known(member)
            if member in self._members or members.count(member) > 1:
                raise ValueError(f"{member} counts in a group already")
        count = {"all": len(members), "any": 1}.get(least)
        if count is None:
            count = int(least) if least.isascii() and least.isdecimal() and len(least) <= 4 else 0
        if not 1 <= count <= len(members):
            raise ValueError("a group needs at least one of its members, and not more than it has")
        self._members.update(members)
        self.groups[name] = count, tuple(members)

    def _quorum(self, name: str) -> None:
        if self.quorum is not None:
            raise ValueError("a second quorum line")
        if name != NONE:
            self._known(name)
        self.quorum = name

    def _new(self, name: str) -> None:
        if name == NONE or name in self.witnesses or name in self.groups:
            raise ValueError(f"the name {name} is taken")

    def _known(self, name: str) -> None:
        if name not in self.witnesses and name not in self.groups:
            raise ValueError(f"no line before names {name}")


def _wrong(line: int, sentence: str) -> Refused:
    place = f"line {line}: " if line else ""
    return refused(
        Reason.FIELD_INVALID,
        f"This is no witness policy (C2SP tlog-policy): {place}{sentence}",
        lifted_by="a policy of that form",
        who="its author",
        field="witness_policy",
    )


def _not_witnessed(sentence: str) -> Refused:
    return refused(
        Reason.NOT_WITNESSED,
        sentence,
        lifted_by="a checkpoint that enough witnesses have seen; if it never comes, ask the witnesses what they saw",
        who="the log's operator",
    )
