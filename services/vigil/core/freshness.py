"""How old what witnesses said may be: an old checkpoint may be from before a log began to show two histories."""

import datetime as dt
from collections.abc import Mapping
from typing import Final

from vigil.core.notes import Cosignature
from vigil.core.witness_policy import WitnessPolicy
from vigil.errors import Reason, refused

MAX_AHEAD_MS: Final = 300_000
"""How far a witness's clock may stand ahead of the reader's (Kerberos' tolerance, RFC 4120)."""


def check_fresh(
    cosignatures: Mapping[str, Cosignature], policy: WitnessPolicy, *, now: int, max_age: int
) -> None:
    """Enough witnesses cosigned not longer ago than ``max_age`` (both in ms). Raises NOT_WITNESSED."""
    times = {name: one.time * 1000 for name, one in cosignatures.items()}
    fresh = {name for name, time in times.items() if now - max_age <= time <= now + MAX_AHEAD_MS}
    if policy.satisfied(dict.fromkeys(fresh, "")):
        return
    newest = dt.datetime.fromtimestamp(max(times.values(), default=0) / 1000, dt.UTC)
    raise refused(
        Reason.NOT_WITNESSED,
        f"Of {len(times)} cosignatures {len(fresh)} are as new as asked for; the newest is of "
        f"{newest.isoformat(timespec='seconds').replace('+00:00', 'Z')}.",
        lifted_by="a newer checkpoint; if none comes, ask the witnesses what they saw, and look at this clock",
        who="the log's operator",
        fresh=len(fresh),
    )
