"""What a benchmark hands back: figures, each beside its floor of the same run and the target it is held to."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Progress = Callable[[float], None]
"""Told the part that is done, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound on a row's figure, or on its ratio to the floor."""

    bound: float
    at_least: bool
    of_ratio: bool


def at_least(bound: float) -> Target:
    """The figure reaches this."""
    return Target(bound=bound, at_least=True, of_ratio=False)


def under(bound: float) -> Target:
    """The figure stays under this."""
    return Target(bound=bound, at_least=False, of_ratio=False)


def ratio_at_least(bound: float) -> Target:
    """The figure reaches this part of the floor."""
    return Target(bound=bound, at_least=True, of_ratio=True)


def ratio_under(bound: float) -> Target:
    """The figure stays under so many times the floor."""
    return Target(bound=bound, at_least=False, of_ratio=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure. ``floor`` is in the figure's unit, measured in the same run; ``floor_is`` says what it is."""

    work: str
    figure: float
    unit: str
    floor: float | None = None
    floor_is: str = ""
    target: Target | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return None if not self.floor else self.figure / self.floor

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        value = self.ratio if self.target.of_ratio else self.figure
        if value is None:
            return None
        return value >= self.target.bound if self.target.at_least else value < self.target.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The same work, small and with so many times more of one thing, both measured in the same run."""

    what: str
    """What grows, and from how much to how much."""
    small: float
    large: float
    unit: str
    reading: str
    """One line: what the ratio says."""

    @property
    def ratio(self) -> float:
        """Of the large to the small; infinite when the small measured nothing."""
        return self.large / self.small if self.small else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Rows in the order in which they are shown, where the time goes, from measured parts, and how the cost grows."""

    rows: tuple[Row, ...]
    parts: tuple[str, ...] = ()
    growth: tuple[Growth, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, with what follows from them."""
        rows = [{**asdict(row), "ratio": row.ratio, "met": row.met} for row in self.rows]
        growth = [{**asdict(one), "ratio": one.ratio} for one in self.growth]
        return {"rows": rows, "parts": list(self.parts), "growth": growth}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Result":
        rows = []
        for given in value["rows"]:
            fields = {name: given[name] for name in given if name not in ("ratio", "met")}
            if fields["target"] is not None:
                fields["target"] = Target(**fields["target"])
            rows.append(Row(**fields))
        growth = tuple(
            Growth(**{name: given[name] for name in given if name != "ratio"})
            for given in value.get("growth", ())
        )
        return cls(rows=tuple(rows), parts=tuple(value["parts"]), growth=growth)


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part (0 to 1) of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def split(progress: Progress, begin: float, end: float) -> Progress:
    """A progress of a part of the work."""
    return lambda part: progress(begin + (end - begin) * part)
