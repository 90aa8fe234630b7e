"""Keeps a log that goes on from an older copy of itself, or beside another one, from signing a second history.

A checkpoint is durable before a witness sees it. So a witness that holds more than the newest one here, or another root
at a size of it, has seen what this copy lost. Each is asked once before anything new is signed; while enough of them by
the policy hold more or other than this, nothing is. One that lies, or too few, stop nothing: whether they are believed
is the policy's to say.
"""

import logging
from enum import Enum, auto

from vigil.core.witness_policy import NONE, WitnessPolicy
from vigil.errors import Reason, Refused, refused

_log = logging.getLogger(__name__)


class Holds(Enum):
    """What a witness's answer says that it holds of this log."""

    SAME = auto()
    MORE = auto()
    OTHER = auto()
    """Another history: its own does not lead to this one."""
    UNSAID = auto()
    """It did not answer, or not to the point: what it said before stands."""


class HistoryGuard:
    """Whether new checkpoints may be signed. ``begun``: the log has signed some before this start."""

    def __init__(self, policy: WitnessPolicy, *, begun: bool) -> None:
        self._policy = policy
        asked = {name for name, one in policy.witnesses.items() if one.url} if begun else set()
        self._silent = asked
        self._against: dict[str, Holds] = {}
        self.witnesses: dict[str, tuple[int, str]] = dict.fromkeys(policy.witnesses, (0, ""))
        """What each is known to hold, and what is wrong with it; empty where nothing is."""

    def heard(self, name: str, holds: Holds, *, size: int | None = None, trouble: str = "") -> None:
        """A witness answered, or did not in its time: how much it holds now, or what is wrong."""
        held = self.witnesses.get(name, (0, ""))[0] if size is None else size
        self.witnesses[name] = held, trouble
        if name in self._silent:
            self._silent.discard(name)
            if not self._silent:
                _log.info("every witness was asked what it holds")
        if holds is Holds.SAME:
            self._against.pop(name, None)
        elif holds is not Holds.UNSAID:
            self._against[name] = holds

    @property
    def older(self) -> bool:
        """Whether enough witnesses hold more or other than this log."""
        return self._policy.quorum != NONE and self._policy.satisfied(self._against)

    def check(self) -> None:
        """Raises EVIDENCE_UNAVAILABLE while nothing new may be signed."""
        if self.older:
            raise refused(
                Reason.EVIDENCE_UNAVAILABLE,
                f"{self._words()}: this is an older copy or a fork of what they have seen, and signing on would make a "
                "second history.",
                lifted_by="the log as its witnesses have seen it, or a new one beside it (docs/evidence.md)",
                who="the operator",
            )
        if self._silent:
            raise _not_asked(self._silent)

    def _words(self) -> str:
        said = {Holds.MORE: "hold more of this log than is here", Holds.OTHER: "hold another history of it"}
        named = {
            what: ", ".join(sorted(name for name, one in self._against.items() if one is what))
            for what in said
        }
        return "; ".join(f"{names} {said[what]}" for what, names in named.items() if names)


def _not_asked(names: set[str]) -> Refused:
    return refused(
        Reason.EVIDENCE_UNAVAILABLE,
        f"Whether {', '.join(sorted(names))} hold more of this log than is here is being asked.",
        lifted_by="a few seconds",
        who="the witnesses",
    )
