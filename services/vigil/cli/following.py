"""A device followed live: a table that redraws itself for people, one JSON object a line for machines."""

import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

from vigil.api.gateway.v1 import gateway_pb2 as pb
from vigil.cli.messages import plain
from vigil.cli.output import table_of
from vigil.cli.places import gateway_of
from vigil.cli.session import Session
from vigil.errors import Refused
from vigil.rpc.status import translated_stream

DAY_S: Final = 86_400.0


async def follow_device(session: Session, name: str, gateway: str, *, count: int) -> int:
    """Show reports until ``count`` of them came (0: for ever). Raises what cut the stream."""
    end, seen = await gateway_of(session, name, gateway)
    request = pb.FollowDeviceRequest(device_id=seen.device_id)
    reports = translated_stream(end.devices.FollowDevice(request, timeout=DAY_S))
    try:
        if session.output.json or not sys.stdout.isatty():
            await _lines(session, reports, count)
        else:
            await _live(reports, seen, count)
    except Refused as error:
        raise session.named(end.whom, error) from error
    return 0


def report_value(report: pb.FollowDeviceResponse) -> dict[str, Any]:
    """One report as JSON."""
    return plain(report)


async def _lines(session: Session, reports: AsyncIterator[pb.FollowDeviceResponse], count: int) -> None:
    shown = 0
    async with contextlib.aclosing(reports) as each:  # type: ignore[type-var]
        async for report in each:
            value = report_value(report)
            if session.output.json:
                session.output.line(value)
            else:
                status = value["status"]
                print(
                    status["device_time"],
                    status["therapy_state"],
                    f"patient {status['patient_state']}",
                    f"trust {value['trust_status']}",
                    " ".join(f"{name}={reading}" for name, reading in status["readings"].items()),
                    flush=True,
                )
            shown += 1
            if shown == count:
                return


async def _live(
    reports: AsyncIterator[pb.FollowDeviceResponse], seen: pb.ConnectedDevice, count: int
) -> None:
    from rich.live import Live

    shown = 0
    with Live(auto_refresh=False) as live:
        async with contextlib.aclosing(reports) as each:  # type: ignore[type-var]
            async for report in each:
                live.update(table_of([seen.device_id, seen.udi], _rows(report_value(report))), refresh=True)
                shown += 1
                if shown == count:
                    return


def _rows(value: dict[str, Any]) -> list[tuple[str, object]]:
    status = value["status"]
    rows: list[tuple[str, object]] = [("trust", value["trust_status"])]
    if value["degraded"]:
        rows.append(("service", "degraded: the gateway's lease has run out"))
    rows += [
        (name.replace("_", " "), item)
        for name, item in status.items()
        if name not in ("readings", "settings") and item not in ("", None)
    ]
    rows += list(status["readings"].items())
    rows += [(f"setting {name}", item) for name, item in status["settings"].items()]
    return rows
