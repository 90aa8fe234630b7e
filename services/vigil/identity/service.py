"""The room's use cases, put together over one set of ports."""

from vigil.identity.certificates import Certificates
from vigil.identity.devices import Devices
from vigil.identity.enrolment import Enrolments
from vigil.identity.ports import Ports
from vigil.identity.registry import Registry
from vigil.identity.reports import Reports


class IdentityService:
    """Who and what there is, and who vouches for it."""

    def __init__(self, ports: Ports) -> None:
        self.ports = ports
        self.registry = Registry(ports)
        self.certificates = Certificates(ports)
        self.enrolments = Enrolments(ports)
        self.devices = Devices(ports)
        self.reports = Reports(ports)

    async def sweep(self) -> None:
        """End what is over: holds with an end, enrolments that nobody completed."""
        await self.devices.sweep_holds()
        await self.enrolments.forget_expired()
