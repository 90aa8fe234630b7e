"""Which evidence holds stand: one person places one, two together lift them all (EU MDR Art. 89(1))."""

from collections.abc import Iterable
from typing import Final

from vigil.core.statements.bodies import Hold, HoldAction
from vigil.core.statements.envelope import Statement

LIFTERS: Final = 2


def standing(said: Iterable[Statement[Hold]], *, at: int) -> list[Statement[Hold]]:
    """The holds of one device that stand at a time (ms), of what people said of it in the order of the log.

    The registry records both statements of a lift side by side; a hold placed between two is not lifted by them.
    """
    placed: list[Statement[Hold]] = []
    lifters: set[str] = set()
    for hold in said:
        if hold.body.action is HoldAction.PLACE:
            placed.append(hold)
            lifters.clear()
            continue
        lifters.add(hold.issuer)
        if len(lifters) == LIFTERS:
            placed.clear()
            lifters.clear()
    return [hold for hold in placed if hold.body.expires is None or hold.body.expires > at]
