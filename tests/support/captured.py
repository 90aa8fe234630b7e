"""An installation with a third site whose gateway is captured, and every key an attacker may have stolen.

captured = await Captured.start()
forged = await captured.forge(decision=captured.signer("result"))     # one part signed by the wrong key
answer = await captured.send(forged)                                   # what the pump says to it

Whoever captured something else is given this gateway as well, so that whatever they make does reach the pump: what
they cannot do with it, they cannot do without it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.faults import acts
from tests.support.captured_gateway import TAP
from tests.support.captured_policy import CapturedPolicy
from tests.support.small_world import manufactured
from tests.support.stack import FOR_NOW, PRESSURE, Stack, eventually
from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.api.revocation.v1 import revocation_pb2
from vigil.cli.signing import sign_command
from vigil.core import merkle
from vigil.core.baselines import content_of_settings
from vigil.core.certificates import load_pair, make_request
from vigil.core.clock import SystemClock
from vigil.core.commands import record_leaf, target_root
from vigil.core.keys import new_private_key
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Scribe, Statement, read
from vigil.core.statements.schema import Scalar
from vigil.demo.fleet import ControlLine
from vigil.demo.people import Cast, appoint
from vigil.demo.places import HOSPITALS
from vigil.demo.processes import Child
from vigil.demo.publishing import demo_file, publish_baseline
from vigil.demo.technician import Hand
from vigil.demo.world import PumpAt, enrol_pump
from vigil.feed.evidence import EvidenceAppender, Record
from vigil.rpc.status import from_status
from vigil.rpc.tls import TlsFiles
from vigil.run.gateways import choose_address, write_gateway
from vigil.run.layout import DataFolder

SITE: Final = "hospital-03"
GATEWAY: Final = f"gw-{SITE}"
START_S: Final = 60.0
NEVER: Final = 2**62


@dataclass(frozen=True, slots=True)
class Answer:
    """What the pump said: the outcome of its receipt, or why it refused; both empty for silence."""

    outcome: str
    reason: str


@dataclass
class Captured:
    """See above. For one event loop."""

    stack: Stack
    process: Child
    tap: ControlLine
    home: Path
    policy: CapturedPolicy
    pump: PumpAt | None = None

    @classmethod
    async def start(cls) -> "Captured":
        stack = await Stack.start()
        try:
            folder = DataFolder(stack.home / "captured")
            folder.path.mkdir(mode=0o700)
            home = folder.gateway(GATEWAY)
            keys = TlsFiles(home / "tls.pem", home / "tls.key", home / "trust.json")
            policy = CapturedPolicy(onward=lambda: stack.channel(keys, "policy"))
            await policy.start(service_files(stack, "policy"))
            await _open_site(stack, folder, policy=policy.address)
            socket = stack.world.sockets / "tap.sock"
            arguments = ["tests.support.captured_gateway", "--config", str(home / "gateway.toml")]
            process = Child(arguments, stack.home / "captured.log", {TAP: str(socket)})
            captured = cls(stack, process, ControlLine(socket), home, policy)
            stack.world.hostile, stack.world.tap = process, captured.tap
            await process.start()
            await process.line(seconds=START_S)
            await captured.tap.open()
            await captured._people_and_pump()
        except BaseException:
            await stack.stop()
            raise
        return captured

    async def stop(self) -> None:
        await self.stack.stop()
        await self.policy.stop()

    async def _people_and_pump(self) -> None:
        world = self.stack.world
        await self.appoint("hal", "technician")
        await self.appoint("sue", "safety")
        content = content_of_settings(demo_file("baseline-configuration.json").decode())
        await publish_baseline(world.people["bea"], content, site=SITE, name="general-ward")
        self.pump = (await self.another_pump(33)).pump

    async def another_pump(self, number: int) -> "Captured":
        """The same with another pump of the site, commanded once by somebody honest."""
        world = self.stack.world
        made = manufactured(world, number)
        fleet = world.fleets[0]
        await fleet.do("rescan", "")
        pump = await enrol_pump(world, self.maker_signer("voucher"), made, site=SITE, fleet=fleet)
        other = replace(self, pump=pump)
        await other.works(200)
        return other

    async def appoint(self, name: str, *roles: str) -> None:
        """Somebody at the third site."""
        people = self.stack.world.people
        cast = Cast(name=name, display_name=name, organization=HOSPITALS, roles=roles, sites=(SITE,))
        people[name] = await appoint(
            self.stack.folder,
            cast,
            admin=people["admin"],
            second=people["admin-2"],
            trust_domain=self.stack.installation.trust_domain,
        )

    async def newest_revocation(self) -> revocation_pb2.RevocationEntry:
        """The last step of the chain; where there is none yet, one that matters to nobody is made."""
        rita = self.stack.world.people["rita"]
        request = revocation_pb2.ListRevocationsRequest()
        entries = await rita.every("revocation", rita.revocations.ListRevocations, request, "entries")
        if not entries:
            await self.enforced(await acts.revoke_credential(self.stack, await acts.newcomer(self.stack)))
            return await self.newest_revocation()
        return entries[-1]

    # --- stolen keys

    def signer(self, statement: str) -> Scribe:
        """The operator's signer for one kind of statement, with the real key."""
        folder = self.stack.folder.path / "pki" / "signers"
        return scribe_of(folder / f"{statement}.pem", folder / f"{statement}.key", f"signer/{statement}")

    def maker_signer(self, statement: str) -> Scribe:
        folder = self.stack.world.home / "manufacturer" / "signers"
        return scribe_of(folder / f"{statement}.pem", folder / f"{statement}.key", f"signer/{statement}")

    def service(self, name: str) -> Scribe:
        """A service's TLS key, put to signing."""
        files = service_files(self.stack, name)
        return scribe_of(files.certificate, files.key, f"service/{name}")

    def gateway(self) -> Scribe:
        """The captured gateway's own key."""
        return scribe_of(self.home / "tls.pem", self.home / "tls.key", f"gateway/{GATEWAY}")

    def person(self, name: str) -> Scribe:
        return self.stack.world.people[name].scribe

    def right_keys(self) -> dict[str, Scribe]:
        """Whose key each part of a bundle takes."""
        return {
            "requester": self.person("hal"),
            "decision": self.signer("decision"),
            "recorded": self.signer("recorded"),
        }

    def hand(self, name: str = "hal") -> Hand:
        return self.stack.hand(name, SITE)

    # --- on the wire to the pump

    @property
    def at(self) -> PumpAt:
        """The pump."""
        assert self.pump is not None
        return self.pump

    @property
    def device(self) -> str:
        return self.at.device_id

    async def applied(self) -> int:
        return await self.stack.applied(self.at)

    async def tell(self, message: gateway_pb2.ConnectResponse) -> gateway_pb2.ConnectRequest:
        """Send anything to the pump; its reply, if that kind has one."""
        said = await self.tap.do("send", device=self.device, message=message.SerializeToString().hex())
        return gateway_pb2.ConnectRequest.FromString(bytes.fromhex(said["message"]))

    async def nonce(self, scribe: Scribe) -> bytes:
        """A nonce for whoever signs with this key: the pump gives one for any credential's thumbprint."""
        request = gateway_pb2.NonceRequest(credential=scribe.thumbprint)
        reply = await self.tell(gateway_pb2.ConnectResponse(nonce=request))
        assert reply.nonce.nonce, reply
        return reply.nonce.nonce

    async def passed(self) -> gateway_pb2.Bundle:
        """The newest bundle that the gateway sent for somebody honest."""
        said = await self.tap.do("passed", device=self.device)
        return gateway_pb2.Bundle.FromString(bytes.fromhex(said["message"]))

    async def send(self, bundle: gateway_pb2.Bundle) -> Answer:
        """Have the pump judge a bundle."""
        reply = await self.tell(gateway_pb2.ConnectResponse(bundle=bundle))
        if reply.receipt.HasField("error"):
            return Answer("", str(from_status(reply.receipt.error).reason))
        if not reply.receipt.receipts:
            return Answer("", "")
        body = read(reply.receipt.receipts[-1], b.Receipt).body
        return Answer(str(body.outcome), body.reason or "")

    async def forge(
        self,
        *,
        requester: Scribe,
        decision: Scribe,
        recorded: Scribe,
        executor: Scribe | None = None,
        action: str = PRESSURE,
        action_class: str = "C",
        parameters: Mapping[str, Scalar] | None = None,
        keep: bool = False,
    ) -> gateway_pb2.Bundle:
        """A bundle about this moment, each part signed with the key that is given for it.

        The permit says what an honest one for the same pump said. With ``keep`` the log really has it all.
        """
        finisher = executor or requester
        intent = self.intent(
            requester, action, {"occlusion_pressure": 333} if parameters is None else parameters
        )
        command = sign_command(
            finisher,
            intent=intent,
            device_ids=[self.device],
            device_id=self.device,
            nonce=await self.nonce(finisher),
        )
        permit = await self.permit(decision, intent, command, action_class=action_class)
        proofs = (
            await self.keep(intent.data, command.data, permit.data)
            if keep
            else promise(recorded, intent, permit)
        )
        return gateway_pb2.Bundle(
            intent=intent.data,
            command=command.data,
            permit=permit.data,
            statements_recorded=[proofs[0]],
            permit_recorded=proofs[-1],
        )

    async def permit(
        self,
        decision: Scribe,
        intent: Statement[b.Intent],
        command: Statement[b.Command],
        *,
        action_class: str = "C",
    ) -> Statement[b.Decision]:
        """An allow for this command that says otherwise what an honest one for the same pump said."""
        pattern = read((await self.passed()).permit, b.Decision).body
        body = replace(
            pattern,
            command=command.digest,
            intent=intent.digest,
            nonce=command.body.nonce,
            decided_at=SystemClock().now(),
            action_class=b.ActionClass(action_class),
            log_size=NEVER,
            epoch=NEVER,
            apply_not_after=intent.body.expires,
        )
        return decision.sign(body, subject=f"device/{self.device}")

    async def permitted(self, *, requester: Scribe | None = None, **how: Any) -> gateway_pb2.Bundle:
        """What a captured policy permits, really on record."""
        keys = self.right_keys()
        if requester is not None:
            keys["requester"] = requester
        return await self.forge(**keys, keep=True, **how)

    def intent(self, requester: Scribe, action: str, parameters: Mapping[str, Scalar]) -> Statement[b.Intent]:
        now = SystemClock().now()
        body = b.Intent(
            target_root=target_root([self.device]),
            target_count=1,
            action=action,
            parameters=dict(parameters),
            request_id=os.urandom(16),
            mode=b.Mode.NOW,
            not_before=now,
            expires=now + 600_000,
        )
        return requester.sign(body, subject=f"device/{self.device}")

    async def keep(self, *statements: bytes, service: str = "policy") -> list[evidence_pb2.RecordedItem]:
        """Have the real log record statements, with the stolen key of a service that may."""
        channel = self.stack.channel(service_files(self.stack, service), "evidence")
        async with EvidenceAppender(channel=channel, entropy=os.urandom, streams=1) as appender:
            return await appender.append_all(
                Record(
                    statement=data,
                    subjects=(f"device/{self.device}",),
                    organization_id=HOSPITALS,
                    site_id=SITE,
                )
                for data in statements
            )

    async def history(self, kind: str) -> list[evidence_pb2.Entry]:
        """The pump's records of one kind, as the auditor sees them."""
        return await self.stack.history(self.at, kind)

    async def enforced(self, epoch: int) -> None:
        """Wait until the pump enforces what was revoked up to this epoch."""

        async def heard() -> bool:
            end = self.stack.world.gateway_end("hal", SITE)
            request = gateway_pb2.GetConnectedDeviceRequest(device_id=self.device)
            hal = self.stack.world.people["hal"]
            answer = await hal.call(end.whom, end.devices.GetConnectedDevice, request)
            return int(answer.revocation_epoch) >= epoch

        await eventually(heard, what=f"the pump enforces epoch {epoch}")

    async def works(self, pressure: int) -> None:
        """The honest way still goes: nobody was stranded. Waits for what a wait lifts, such as an attestation."""

        async def goes() -> bool:
            done = await self.hand().send(self.at, PRESSURE, {"occlusion_pressure": pressure})
            if done.reason in FOR_NOW:
                return False
            assert done.outcome is b.Outcome.APPLIED, done.reason
            return True

        await eventually(goes, what="the honest way goes", pause=0.5)


def scribe_of(certificate: Path, key: Path, issuer: str) -> Scribe:
    """Signs with a key that lies somewhere."""
    return Scribe(
        signer=load_pair(certificate, key).signer,
        issuer=issuer,
        clock=SystemClock(),
        entropy=os.urandom,
        numbered=not issuer.startswith("person/"),
    )


def service_files(stack: Stack, name: str) -> TlsFiles:
    """A service's own key and certificate."""
    folder = stack.folder.path / "pki" / "services" / name
    return TlsFiles(folder / "tls.pem", folder / "tls.key", stack.folder.trust)


def promise(
    recorded: Scribe, intent: Statement[b.Intent], permit: Statement[b.Decision]
) -> list[evidence_pb2.RecordedItem]:
    """`recorded` over statements that no log has."""
    digests, first = (intent.digest, permit.digest), 10_000
    leaves = [record_leaf(first + place, digest) for place, digest in enumerate(digests)]
    body = b.Recorded(root=merkle.tree_root(leaves), first=first, count=len(leaves), time=SystemClock().now())
    signed = recorded.sign(body, subject="log/evidence").data
    return [
        evidence_pb2.RecordedItem(
            recorded=signed, index=first + place, path=merkle.inclusion_path(leaves, place)
        )
        for place in range(len(leaves))
    ]


async def _open_site(stack: Stack, folder: DataFolder, *, policy: str) -> None:
    """The third site; its gateway's folder lies where `vigil up` does not start it, and takes ``policy`` for policy."""
    world, key = stack.world, new_private_key()
    admin = world.people["admin"]
    site = identity_pb2.Site(
        site_id=SITE, organization_id=HOSPITALS, display_name=SITE, time_zone="Europe/Berlin"
    )
    await admin.call("identity", admin.registry.CreateSite, identity_pb2.CreateSiteRequest(site=site))
    address = choose_address(stack.folder)
    gateway = identity_pb2.Gateway(
        gateway_id=GATEWAY, organization_id=HOSPITALS, site_id=SITE, address=address
    )
    request = identity_pb2.CreateGatewayRequest(gateway=gateway, csr_pem=make_request(key).decode())
    made = await admin.call("identity", admin.registry.CreateGateway, request)
    folder.write_endpoints(stack.folder.read_endpoints())
    write_gateway(
        folder,
        gateway_id=GATEWAY,
        site_id=SITE,
        organization_id=HOSPITALS,
        address=address,
        trust_domain=stack.installation.trust_domain,
        certificate_pem=made.certificate.certificate_pem,
        trust_json=stack.folder.trust.read_text(),
        private_key=key,
        endpoints={**stack.folder.read_endpoints(), "policy": policy},
    )
    stack.folder.write_endpoints({**stack.folder.read_endpoints(), GATEWAY: address})
    world.gateways[SITE] = GATEWAY
