"""One pump in an event loop: power, agent, link, and the hands that reach for it."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from vigil.core.certificates import Identity
from vigil.core.clock import Clock, Entropy
from vigil.device import enrol, messages
from vigil.device.agent import DeviceAgent
from vigil.device.hardware import Hardware, power_on
from vigil.device.link import Gateway, Link
from vigil.device.machine_clock import MachineClock
from vigil.device.pump import SimulatedPump
from vigil.device.slots import tamper_firmware
from vigil.device.store import DeviceStore
from vigil.device.trust import SharedTrust
from vigil.errors import Reason, Refused, refused
from vigil.rpc.network import GRPC, Network
from vigil.rpc.tls import TlsFiles

LINK_FILE: Final = "link.json"
"""In a pump's folder: its own gateway, before the one that its process was told."""
WATCHDOG_S: Final = 1.0
"""The pause before a pump whose agent failed is started again."""
REFUSED_PAUSE_S: Final = 1.0
"""The pause before what a failing flash refused is tried again."""

_LOG = logging.getLogger(__name__)


class PumpRunner:
    """Runs one folder's pump; the methods below are what is done to it from outside, at the bedside or the bench."""

    def __init__(
        self,
        folder: Path,
        *,
        gateway: Gateway | None,
        shared: SharedTrust,
        clock: Clock,
        entropy: Entropy,
        network: Network = GRPC,
        open_store: Callable[[Path], DeviceStore] = DeviceStore,
        set_clock: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.name = folder.name
        self._gateway = gateway
        self._shared = shared
        self._clock = clock
        self._entropy = entropy
        self._network = network
        self._open_store = open_store
        self._machine_clock = MachineClock(clock, set_clock)
        self._hardware: Hardware | None = None
        self._agent: DeviceAgent | None = None
        self._wake = asyncio.Event()
        self._cycle = asyncio.Event()
        self._started = asyncio.Event()
        self._plugged = True
        self._sleeps_until = 0.0

    # --- life

    async def run(self) -> None:
        """Power on, run, and start again whenever the power is cycled; until cancelled."""
        while True:
            try:
                await self._one_start()
            except Exception:  # noqa: BLE001 - logged in full
                # The outermost edge of one pump among thousands: its watchdog starts it again, the others go on.
                _LOG.exception("%s: the agent failed and is started again", self.name)
                await asyncio.sleep(WATCHDOG_S)

    async def started(self) -> None:
        """Wait until the power is on."""
        await self._started.wait()

    async def _one_start(self) -> None:
        self._cycle.clear()
        self._hardware = power_on(
            self.folder, clock=self._clock, entropy=self._entropy, open_store=self._open_store
        )
        try:
            if self._hardware.enrolled:
                self._agent = DeviceAgent(
                    hardware=self._hardware, shared=self._shared, clock=self._clock, entropy=self._entropy
                )
                await self._machine_clock.raise_to(self._agent.trust.time.floor)
            if not self._cycle.is_set():
                self._started.set()
            await self._serve(self._hardware)
        finally:
            self._started.clear()
            self._agent = None
            self._hardware.power_off()
            self._hardware = None

    async def _serve(self, hardware: Hardware) -> None:
        """Until the power is cycled: the link when there is a gateway and a cable, and ticks when they are due."""
        agent = self._agent
        if agent is None:
            await self._cycle.wait()
            return
        link = Link(
            agent=agent,
            tls=TlsFiles(
                hardware.secure_element.certificate, hardware.secure_element.key, hardware.trust_file
            ),
            trust_domain=agent.trust.verifier.bundle.trust_domain,
            clock=self._clock,
            entropy=self._entropy,
            heard=lambda: self._heard(agent),
            network=self._network,
        )
        task: asyncio.Task[None] | None = None
        try:
            while not self._cycle.is_set():
                if task is None and self._plugged and (gateway := self.gateway) is not None:
                    task = asyncio.create_task(link.run(gateway))
                elif task is not None and not self._plugged:
                    await _cancelled(task)
                    task = None
                if task is not None and task.done():
                    task.result()
                self._wake.clear()
                ticked = self._tick(agent, link)
                if agent.restart_wanted:
                    return
                # What a failing flash refused is due still, and is not tried without a pause.
                soonest = 0.0 if ticked else self._clock.monotonic() + REFUSED_PAUSE_S
                self._sleeps_until = max(soonest, agent.next_due())
                delay = max(0.0, self._sleeps_until - self._clock.monotonic())
                # Not wait_for: before Python 3.12 it may swallow a cancellation that comes with the wake.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._wake.wait()
        finally:
            if task is not None:
                await _cancelled(task)

    def _heard(self, agent: DeviceAgent) -> None:
        """A message was handled: look at what is due only when it made something due sooner."""
        if agent.restart_wanted or agent.next_due() < self._sleeps_until:
            self._wake.set()

    def _tick(self, agent: DeviceAgent, link: Link) -> bool:
        """Do what is due; whether it could be done."""
        try:
            link.send(agent.tick())
        except Refused as error:
            _LOG.warning("%s: %s", self.name, error)
            return False
        return True

    # --- what is done to it

    @property
    def gateway(self) -> Gateway | None:
        """The gateway that it dials."""
        path = self.folder / LINK_FILE
        if path.exists():
            return Gateway(**json.loads(path.read_text()))
        return self._gateway

    @property
    def pump(self) -> SimulatedPump:
        """The pump at the bedside; the nurse's keys. Raises STATE_CONFLICT while the power is off."""
        return self._on().pump

    @property
    def agent(self) -> DeviceAgent | None:
        """The agent, when the pump is enrolled and on."""
        return self._agent

    def at_bedside(self, action: Callable[[SimulatedPump], None]) -> None:
        """A hand on the pump's keys."""
        action(self.pump)
        self._wake.set()

    def power_cycle(self) -> None:
        """Pull the plug and the battery, and put them back; from now on it is off, however long that takes."""
        self._started.clear()
        self._cycle.set()
        self._wake.set()

    def plug(self, *, on: bool) -> None:
        """The network cable."""
        self._plugged = on
        self._wake.set()

    def tamper(self, data: bytes) -> None:
        """An attacker with a programmer writes to the flash of the running slot."""
        tamper_firmware(self._on().slots.image, data)
        self._wake.set()

    def possession(self, nonce: bytes) -> messages.Possession:
        """The enrolment station asks for proof of the identity key."""
        return enrol.possession(self._on(), nonce)

    def install(self, certificates: messages.Certificates) -> Identity:
        """The enrolment station brings certificates and roots; the pump starts again with them."""
        identity = enrol.install(self._on(), certificates)
        self.power_cycle()
        return identity

    def dial(self, gateway: Gateway) -> None:
        """Tell the pump which gateway is its own; it starts again."""
        value = {"address": gateway.address, "gateway_id": gateway.gateway_id}
        (self.folder / LINK_FILE).write_text(json.dumps(value) + "\n")
        self.power_cycle()

    def _on(self) -> Hardware:
        if self._hardware is None:
            raise refused(Reason.STATE_CONFLICT, "the pump is switched off", lifted_by="a moment's patience")
        return self._hardware


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
