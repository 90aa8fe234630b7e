"""Keeps a log that goes on from an older copy of itself from signing a second history.

A checkpoint is durable before a witness sees it. So a witness that holds more than the newest one here has seen what
this copy lost. Each is asked once before anything new is signed; while enough of them by the policy hold more,
nothing is. One that lies, or too few, stop nothing: whether they are believed is the policy's to say.
"""

import logging

from vigil.core.witness_policy import NONE, WitnessPolicy
from vigil.errors import Reason, Refused, refused

_log = logging.getLogger(__name__)


class HistoryGuard:
    """Whether new checkpoints may be signed. ``begun``: the log has signed some before this start."""

    def __init__(self, policy: WitnessPolicy, *, begun: bool) -> None:
        self._policy = policy
        asked = {name for name, one in policy.witnesses.items() if one.url} if begun else set()
        self._silent = asked
        self._ahead: set[str] = set()
        self.witnesses: dict[str, tuple[int, str]] = dict.fromkeys(policy.witnesses, (0, ""))
        """What each is known to hold, and what is wrong with it; empty where nothing is."""

    def heard(self, name: str, *, ahead: bool, size: int | None = None, trouble: str = "") -> None:
        """A witness answered, or did not in its time: how much it holds now, or what is wrong."""
        held = self.witnesses.get(name, (0, ""))[0] if size is None else size
        self.witnesses[name] = held, trouble
        if name in self._silent:
            self._silent.discard(name)
            if not self._silent:
                _log.info("every witness was asked what it holds")
        (self._ahead.add if ahead else self._ahead.discard)(name)

    @property
    def older(self) -> bool:
        """Whether enough witnesses hold more than this log."""
        return self._policy.quorum != NONE and self._policy.satisfied(dict.fromkeys(self._ahead, ""))

    def check(self) -> None:
        """Raises EVIDENCE_UNAVAILABLE while nothing new may be signed."""
        if self.older:
            raise refused(
                Reason.EVIDENCE_UNAVAILABLE,
                f"{', '.join(sorted(self._ahead))} hold more of this log than is here: an older copy was put back, and "
                "signing on would make a second history.",
                lifted_by="the log as its witnesses have seen it, or a new one beside it (docs/evidence.md)",
                who="the operator",
            )
        if self._silent:
            raise _not_asked(self._silent)


def _not_asked(names: set[str]) -> Refused:
    return refused(
        Reason.EVIDENCE_UNAVAILABLE,
        f"Whether {', '.join(sorted(names))} hold more of this log than is here is being asked.",
        lifted_by="a few seconds",
        who="the witnesses",
    )
