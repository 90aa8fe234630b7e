"""Run one simulated pump or a fleet of them, or make one: the only wiring of the device's side.

python -m vigil.device --data DIR --gateway HOST:PORT --gateway-id ID
python -m vigil.device --fleet DIR [--gateway …] [--control SOCKET]
python -m vigil.device make DIR --udi … --model … --manufacturer … --firmware FILE --version … --sbom FILE
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop

from vigil.core.clock import SystemClock
from vigil.core.digest import sha256
from vigil.device.config import DeviceConfig, read_config
from vigil.device.factory import FirstBuild, make_pump
from vigil.device.fleet import Control, Fleet
from vigil.errors import Refused
from vigil.rpc.service_main import EXIT_CONFIG, PARENT_FD, die_with_parent, raise_file_limit, watch_parent


def main() -> None:
    """Parse, wire, run; exit 0 in order, 78 for a configuration that cannot be used."""
    os.umask(0o077)
    try:
        if sys.argv[1:2] == ["make"]:
            _make(_maker().parse_args(sys.argv[2:]))
            return
        arguments = _parser().parse_args()
        config = read_config(
            arguments.config,
            data=arguments.data,
            fleet=arguments.fleet,
            gateway=arguments.gateway,
            gateway_id=arguments.gateway_id,
            control=arguments.control,
        )
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_CONFIG)
    logging.basicConfig(
        level=arguments.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    raise_file_limit()
    parent = os.environ.get(PARENT_FD, "")
    if parent:
        die_with_parent()
    uvloop.run(_run(config, int(parent) if parent else None))


async def _run(config: DeviceConfig, parent: int | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if parent is not None:
        watch_parent(parent, stopping.set)
    fleet = Fleet(
        folders=config.pumps,
        gateway=config.dialled,
        clock=SystemClock(),
        entropy=os.urandom,
        set_clock=config.set_clock,
    )
    control = Control(fleet, config.control_socket)
    await fleet.start()
    await control.start()
    sys.stdout.write(
        json.dumps({"ready": True, "pumps": len(fleet.pumps), "control": str(config.control_socket)}) + "\n"
    )
    sys.stdout.flush()
    await stopping.wait()
    await control.stop()
    await fleet.stop()


def _make(arguments: argparse.Namespace) -> None:
    made = make_pump(
        arguments.folder,
        udi=arguments.udi,
        model=arguments.model,
        manufacturer=arguments.manufacturer,
        firmware=FirstBuild(
            image=arguments.firmware.read_bytes(),
            version=arguments.version,
            security_version=arguments.security_version,
            sbom=sha256(arguments.sbom.read_bytes()),
        ),
        settings=json.loads(arguments.settings),
        clock=SystemClock(),
        entropy=os.urandom,
    )
    value = {"folder": str(made.folder), "udi": made.udi, "model": made.model}
    sys.stdout.write(json.dumps({**value, "identity_key": made.identity_key.hex()}) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vigil-device", description="Simulated infusion pumps.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML with the settings below")
    parser.add_argument("--data", type=Path, metavar="DIR", help="one pump's folder")
    parser.add_argument("--fleet", type=Path, metavar="DIR", help="a folder whose subfolders are pumps")
    parser.add_argument("--gateway", metavar="HOST:PORT", help="the gateway that they dial")
    parser.add_argument("--gateway-id", metavar="ID", help="who must answer there")
    parser.add_argument("--control", type=Path, metavar="SOCKET", help="the local control socket")
    parser.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="default: info"
    )
    return parser


def _maker() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vigil-device make", description="Make a simulated pump.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--udi", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--manufacturer", required=True, help="the organization whose root signs for it")
    parser.add_argument("--firmware", type=Path, required=True, metavar="FILE")
    parser.add_argument("--version", required=True)
    parser.add_argument("--security-version", type=int, default=1)
    parser.add_argument("--sbom", type=Path, required=True, metavar="FILE")
    parser.add_argument("--settings", default="{}", help="a JSON object")
    return parser


if __name__ == "__main__":
    main()
