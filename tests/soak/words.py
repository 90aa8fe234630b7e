"""What the load run found, as the section "load" of docs/reliability.md."""

from collections import Counter
from pathlib import Path
from typing import Any, Final

from tests.reliability import report
from tests.soak.load import SITES, Found
from tests.soak.probes import SAFETY_S
from tests.soak.sampler import Verdict

UNITS: Final = {"memory": " MiB", "descriptors": " files", "threads": " threads", "tasks": " tasks"}

MEMORY: Final = (
    "memory is what a process holds for itself (RssAnon): the median of the middle and of the last third of the "
    "working minutes, then by how much more it held at the worst moment of the flood"
)


def record(found: Found, docs: Path = report.DOCS) -> None:
    """Write the section."""
    size = found.size
    report.record(
        "load",
        title="Load, overload, slow readers",
        command=f"make soak MINUTES={size.minutes:g} TECHNICIANS={size.technicians} PUMPS={size.pumps}",
        words=_words(found),
        table=[*_latencies(found), *_sizes(found)],
        notes=_notes(found),
        docs=docs,
    )


def _words(found: Found) -> str:
    size, held = found.size, found.held
    sent, seconds = sum(one.sent for one in found.floods), max(found.flood_seconds, 1.0)
    recorded = (
        "" if held is None else f"{held.executions:,} executions are on record, {held.permits:,} permits; "
    )
    end = (
        f"**{len(found.wrong)} things did not hold.**"
        if found.wrong
        else "nothing acknowledged is missing, nothing ran twice, unasked or without its permit."
    )
    return (
        f"{size.technicians} technicians and {size.pumps:,} pumps at {len(SITES)} sites worked for "
        f"{size.minutes:g} minutes ({found.steady.applied:,} commands applied), then valid credentials sent "
        f"{sent:,} calls in {seconds:.0f} s, {sent / seconds:.0f} a second, and "
        f"{sum(len(one.acknowledged) for one in found.floods):,} commands of theirs were applied. "
        + recorded
        + end
    )


def _notes(found: Found) -> list[str]:
    answered: Counter[str] = Counter()
    for one in found.floods:
        answered += one.answered
    told = ", ".join(f"{reason} {count:,}" for reason, count in answered.most_common())
    cut = ", ".join(f"{name} after {seconds:.0f} s" for name, seconds in found.cut.items())
    allowed, seconds = max(found.last_allowed_s, 0.0), found.seconds
    left_out = sum(one.left_out for one in found.floods)
    return [
        f"answers while flooded: {told}; {left_out:,} more calls were due and not sent, for the clients were busy too",
        "safety actions go to a pump of each site that has a process to itself, as a pump has a processor",
        "the flood goes to all others",
        f"last command let through for a credential that was revoked in the flood: {allowed:.2f} s after the commit",
        f"every site worked again {found.recovered_s:.1f} s after the flood",
        f"readers that take nothing were cut: {cut}; what they missed came when they read again",
        MEMORY,
        f"{seconds.get('to set up', 0.0):.0f} s to enrol and attest all, {seconds.get('in all', 0.0):.0f} s in all",
        *found.wrong,
    ]


def _latencies(found: Found) -> list[dict[str, str]]:
    rows = []
    for place, what in enumerate(("safety action, to the pump's receipt", "revocation, to every gateway")):
        quiet, loud = found.quiet[place], found.loud[place]
        rows.append(
            {
                "what": what,
                "before": f"p50 {quiet.ms(0.5):.0f} ms, p99 {quiet.ms(0.99):.0f} ms",
                "then": f"flooded: p50 {loud.ms(0.5):.0f} ms, p99 {loud.ms(0.99):.0f} ms of {len(loud.seconds)}",
                "bound": f"{SAFETY_S:.0f} s",
            }
        )
    return rows


def _sizes(found: Found) -> list[dict[str, str]]:
    rows: dict[str, dict[str, Verdict]] = {}
    for one in found.verdicts:
        rows.setdefault(one.process, {})[one.measure] = one
    return [
        {
            "what": name,
            "before": _shown(measures, "middle"),
            "then": _shown(measures, "last"),
            "bound": _judged(measures, found.swelling.get(name, 0.0)),
        }
        for name, measures in rows.items()
    ]


def _shown(measures: dict[str, Verdict], part: str) -> str:
    values: dict[str, Any] = {measure: getattr(one, part) for measure, one in measures.items()}
    return ", ".join(f"{value:.0f}{UNITS[measure]}" for measure, value in values.items())


def _judged(measures: dict[str, Verdict], more: float) -> str:
    flat = all(one.flat for one in measures.values())
    return f"{'flat' if flat else '**grows**'}; flooded +{max(more, 0.0):.0f} MiB"
