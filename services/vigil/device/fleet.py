"""Many pumps in one process, and the local socket through which a nurse, an attacker or a station reaches them.

The socket speaks one JSON object a line (Unix, in a folder that only the owner enters). It stands for hands at the
bedside and at the bench: nothing of it is reachable from a network, and no person's command takes this way.

    {"do": "list"}
    {"do": "status", "pump": "pump-1"}        a folder's name or a device id
    {"do": "start-therapy", "pump": …, "rate_ml_per_h": 100}
    {"do": "stop-therapy" | "bedside-release" | "occlusion" | "clear-alarm" | "confirm", "pump": …}
    {"do": "mains", "pump": …, "on": false}
    {"do": "plug", "pump": …, "on": false}    the network cable
    {"do": "power-cycle", "pump": …}
    {"do": "tamper", "pump": …, "hex": "…"}   writes the flash
    {"do": "possession", "pump": …, "nonce": "<hex>"}
    {"do": "install", "pump": …, "tls_chain": ["<hex DER>"], "attestation_chain": […], "trust_json": "…"}
    {"do": "dial", "pump": …, "address": "host:port", "gateway_id": "…"}
    {"do": "rescan"}                          new folders join

Every answer is ``{"ok": true, …}`` or ``{"ok": false, "reason": …, "sentence": …}``.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from vigil.core.clock import Clock, Entropy
from vigil.device import messages
from vigil.device.convert import chains_of
from vigil.device.hardware import DEVICE_FILE
from vigil.device.link import Gateway
from vigil.device.pump import SimulatedPump
from vigil.device.runner import PumpRunner
from vigil.device.trust import SharedTrust
from vigil.errors import Reason, Refused, refused

MAX_LINE: Final = 4 << 20
"""A line carries an image to tamper with, or chains and a trust bundle."""
MAX_SOCKET_PATH: Final = 107
"""sockaddr_un holds 108 bytes with the end."""
START_WAIT_S: Final = 30.0

_LOG = logging.getLogger(__name__)

_AT_BEDSIDE: Final[dict[str, Callable[[SimulatedPump], None]]] = {
    "stop-therapy": SimulatedPump.stop_therapy,
    "bedside-release": SimulatedPump.bedside_release,
    "occlusion": SimulatedPump.occlusion,
    "clear-alarm": SimulatedPump.clear_alarm,
    "confirm": SimulatedPump.confirm,
}


class Fleet:
    """Runs the pumps of some folders. For one event loop."""

    def __init__(
        self,
        *,
        folders: Callable[[], list[Path]],
        gateway: Gateway | None,
        clock: Clock,
        entropy: Entropy,
        set_clock: Sequence[str] = (),
    ) -> None:
        self._set_clock = set_clock
        self._folders = folders
        self._gateway = gateway
        self._clock = clock
        self._entropy = entropy
        self._shared = SharedTrust()
        self.pumps: dict[str, PumpRunner] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Switch on every pump that is not on yet, one after the other."""
        for folder in self._folders():
            if folder.name in self.pumps or not (folder / DEVICE_FILE).exists():
                continue
            runner = PumpRunner(
                folder,
                gateway=self._gateway,
                shared=self._shared,
                clock=self._clock,
                entropy=self._entropy,
                set_clock=self._set_clock,
            )
            self.pumps[folder.name] = runner
            task = asyncio.create_task(runner.run(), name=f"pump {folder.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Switch all of them off."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def find(self, name: str) -> PumpRunner:
        """A pump by its folder's name or its device id. Raises RESOURCE_NOT_FOUND."""
        runner = self.pumps.get(name)
        if runner is None:
            by_id = [one for one in self.pumps.values() if one.agent and one.agent.device_id == name]
            runner = by_id[0] if by_id else None
        if runner is None:
            raise refused(Reason.RESOURCE_NOT_FOUND, f"there is no pump {name!r} here")
        return runner


class Control:
    """Serves the control socket of a fleet."""

    def __init__(self, fleet: Fleet, path: Path) -> None:
        """Raises FIELD_INVALID for a path that no socket can have."""
        if len(str(path).encode()) > MAX_SOCKET_PATH:
            raise refused(
                Reason.FIELD_INVALID, f"a socket's path has at most {MAX_SOCKET_PATH} bytes: {path}"
            )
        self._fleet = fleet
        self._path = path
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_LINE)
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return {"ok": True, **await self._do(dict(json.loads(line)))}
        except Refused as error:
            return {"ok": False, "reason": str(error.reason), "sentence": error.refusals[0].sentence}
        except (ValueError, KeyError, TypeError) as error:
            return {"ok": False, "reason": str(Reason.FIELD_INVALID), "sentence": f"not understood: {error}"}

    async def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        action = str(request["do"])
        if action == "list":
            return {"pumps": [_line(runner) for runner in self._fleet.pumps.values()]}
        if action == "rescan":
            await self._fleet.start()
            return {"pumps": sorted(self._fleet.pumps)}
        runner = self._fleet.find(str(request["pump"]))
        async with asyncio.timeout(START_WAIT_S):
            await runner.started()
        return _act(runner, action, request)


def _act(runner: PumpRunner, action: str, request: dict[str, Any]) -> dict[str, Any]:
    match action:
        case "status":
            return {"status": _line(runner), **_status(runner)}
        case "start-therapy":
            rate = round(float(request.get("rate_ml_per_h", 100)) * 10)
            runner.at_bedside(lambda pump: pump.start_therapy(rate))
        case "mains":
            runner.at_bedside(lambda pump: setattr(pump, "on_mains", bool(request["on"])))
        case "plug":
            runner.plug(on=bool(request["on"]))
        case "power-cycle":
            runner.power_cycle()
        case "tamper":
            runner.tamper(bytes.fromhex(request["hex"]))
        case "possession":
            proof = runner.possession(bytes.fromhex(request["nonce"]))
            return {
                "nonce": proof.nonce.hex(),
                "identity_public_key": proof.identity_public_key.hex(),
                "tls_csr_pem": proof.tls_csr_pem,
                "attestation_csr_pem": proof.attestation_csr_pem,
                "signature": proof.signature.hex(),
            }
        case "install":
            identity = runner.install(
                messages.Certificates(
                    chains_of(request["tls_chain"]),
                    chains_of(request["attestation_chain"]),
                    str(request["trust_json"]),
                )
            )
            return {"device_id": identity.id, "organization": identity.organization, "sites": identity.sites}
        case "dial":
            runner.dial(Gateway(str(request["address"]), str(request["gateway_id"])))
        case _ if action in _AT_BEDSIDE:
            runner.at_bedside(_AT_BEDSIDE[action])
        case _:
            raise refused(Reason.ACTION_UNKNOWN, f"nobody can do {action!r} to a pump")
    return _status(runner)


def _line(runner: PumpRunner) -> dict[str, Any]:
    agent, gateway = runner.agent, runner.gateway
    return {
        "pump": runner.name,
        "device_id": agent.device_id if agent else None,
        "enrolled": agent is not None,
        "online": agent.online if agent else False,
        "gateway_id": gateway.gateway_id if gateway else None,
    }


def _status(runner: PumpRunner) -> dict[str, Any]:
    if runner.agent is None:
        return {"therapy_state": str(runner.pump.therapy), "patient_state": str(runner.pump.patient)}
    return dataclasses.asdict(runner.agent.status())
