"""Pumps that lose their power: the process of a fleet ends by SIGKILL, and is switched on again.

before = fleet_pid(stack)                 # of the one process that holds the four pumps
with shim.kill(Op.SYNC, path=f"/{pump.name}/", nth=2) as cut: …
await switched_on(stack)                  # whatever is dead comes back, dials, and nobody hangs on it
"""

from tests.support.stack import Stack, alive, eventually
from vigil.demo.fleet import FleetProcess


def pid_of(fleet: FleetProcess) -> int:
    """The process that holds a fleet's pumps."""
    process = fleet._child.process
    assert process is not None
    return process.pid


def fleet_pid(stack: Stack) -> int:
    """The process that holds every pump of an installation."""
    [fleet] = stack.world.fleets
    return pid_of(fleet)


async def switched_off(stack: Stack) -> None:
    """Wait until the process of the pumps is gone."""
    pid = fleet_pid(stack)
    await eventually(lambda: not alive(pid), what="the pumps are off", pause=0.01)


async def switched_on(stack: Stack) -> None:
    """Start the dead process of the pumps again; each dials its gateway, and somebody looks at each."""
    [fleet] = stack.world.fleets
    await switched_off(stack)
    await fleet.stop()
    with stack.besides_ours():
        await fleet.start()
    endpoints = stack.folder.read_endpoints()
    for pump in stack.pumps():
        gateway_id = stack.world.gateways[pump.site]
        await fleet.do("dial", pump.name, address=endpoints[gateway_id], gateway_id=gateway_id)
        await fleet.do("bedside-release", pump.name)
