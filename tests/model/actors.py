"""The people of a schedule: technicians, safety staff, an approver and the recall team, each on a machine of their own.

Everybody uses the real contracts with a real credential. What is not answered is asked again, sometimes with the very
same bytes, sometimes twice at once: nothing that a person may do makes a pump act twice.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from tests.model.ledger import Ledger
from tests.model.loop import Node
from tests.model.world import DIALS, GATEWAYS, PUMPS, World
from tests.support.pki import Credential
from vigil.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from vigil.api.revocation.v1 import revocation_pb2, revocation_pb2_grpc
from vigil.core.commands import target_path, target_root
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Scribe, Statement, read
from vigil.errors import Reason, Refused
from vigil.rpc.status import translated

HOUR_MS: Final = 3_600_000
PREPARE_S: Final = 6.0
SUBMIT_S: Final = 8.0
AGAIN: Final = frozenset(
    {Reason.OUTCOME_UNKNOWN, Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXCEEDED, Reason.STORAGE_UNAVAILABLE}
)
"""Refusals after which nobody knows what happened."""

Standing = Callable[[str, str, str], int | None]
"""``(person, gateway, pump)``: None while something between them is disturbed, else how often something was."""


@dataclass(frozen=True)
class Order:
    """What somebody wants of a pump."""

    pump: str
    action: str
    parameters: dict[str, Any]
    mode: b.Mode = b.Mode.NOW
    approved: bool = False


class Person:
    """Somebody with a credential, acting on one thing at a time."""

    def __init__(
        self,
        name: str,
        credential: Credential,
        *,
        world: World,
        ledger: Ledger,
        devices: dict[str, str],
        random: Random,
    ) -> None:
        self.name = name
        self.credential = credential
        self.world = world
        self.ledger = ledger
        self.devices = devices
        self.random = random
        world.host(name)
        self.node = world.nodes[name] = Node(name)
        self._stubs: dict[tuple[type, str], Any] = {}

    def stub(self, cls: Any, host: str) -> Any:
        known = self._stubs.get((cls, host))
        if known is None:
            known = self._stubs[cls, host] = cls(self.world.channel(self.node, self.credential, host))
        return known

    def sign(self, body: Any, subject: str) -> Statement[Any]:
        scribe = Scribe(
            signer=self.credential.signer,
            issuer=self.credential.issuer_name,
            clock=self.world.clocks[self.name],
            entropy=self.random.randbytes,
            numbered=False,
        )
        return scribe.sign(body, subject=subject)

    def intent(self, order: Order) -> Statement[b.Intent]:
        device, now = self.devices[order.pump], self.world.clocks[self.name].now()
        body = b.Intent(
            target_root=target_root([device]),
            target_count=1,
            action=order.action,
            parameters=order.parameters,
            request_id=self.random.randbytes(16),
            mode=order.mode,
            not_before=now,
            expires=now + HOUR_MS,
            work_order="WO-1",
        )
        return self.sign(body, f"device/{device}")

    # --- commands

    async def command(self, order: Order, gateway: str, *, intent: Statement[b.Intent] | None = None) -> str:
        """Prepare, sign, submit, and ask again while nobody knows; answers how it ended."""
        intent = intent or self.intent(order)
        ended = "given up"
        for attempt in range(3):
            self.ledger.counts["attempts"] += 1
            try:
                ended = await self._attempt(order, gateway, intent)
            except Refused as refusal:
                ended = str(refusal.reason)
                self.ledger.say(f"{self.name}: {order.action} on {order.pump}: {refusal.reason}")
                if refusal.reason in AGAIN or self.random.random() < 0.2:
                    await asyncio.sleep(self.random.random() * 2)
                    continue
                return ended
            if attempt == 0 and self.random.random() < 0.15:
                # The same request once more, with a new nonce: the stored receipt is its answer.
                self.ledger.counts["repeats"] += 1
                continue
            return ended
        return ended

    async def _attempt(self, order: Order, gateway: str, intent: Statement[b.Intent]) -> str:
        device = self.devices[order.pump]
        commands = self.stub(gateway_pb2_grpc.CommandServiceStub, gateway)
        asked = gateway_pb2.PrepareCommandRequest(device_id=device, action=order.action)
        prepared = await translated(commands.PrepareCommand(asked, timeout=PREPARE_S))
        index, path = target_path([device], device)
        body = b.Command(intent=intent.digest, device=device, index=index, path=path, nonce=prepared.nonce)
        request = gateway_pb2.SubmitCommandRequest(
            device_id=device, intent=intent.data, command=self.sign(body, f"device/{device}").data
        )
        if self.random.random() < 0.1:
            self.ledger.counts["duplicates"] += 1
            answers = await asyncio.gather(
                *(translated(commands.SubmitCommand(request, timeout=SUBMIT_S)) for _ in range(2)),
                return_exceptions=True,
            )
            good = [one for one in answers if not isinstance(one, BaseException)]
            if not good:
                raise next(one for one in answers if isinstance(one, BaseException))
            answer = good[0]
        else:
            answer = await self._submit(commands, request)
        outcome = str(read(answer.receipts[-1], b.Receipt).body.outcome)
        self.ledger.say(f"{self.name}: {order.action} on {order.pump}: {outcome}")
        return outcome

    async def _submit(self, commands: Any, request: gateway_pb2.SubmitCommandRequest) -> Any:
        """Send it; when the answer is lost, sometimes the very same bytes go once more."""
        try:
            return await translated(commands.SubmitCommand(request, timeout=SUBMIT_S))
        except Refused as refusal:
            if refusal.reason not in AGAIN or self.random.random() < 0.5:
                raise
            self.ledger.counts["duplicates"] += 1
            await asyncio.sleep(self.random.random())
            return await translated(commands.SubmitCommand(request, timeout=SUBMIT_S))

    async def approved(self, order: Order, gateway: str, approver: "Person") -> str:
        """Have somebody else approve it first, then command it."""
        intent = self.intent(order)
        create = gateway_pb2.CreateIntentRequest(device_ids=[self.devices[order.pump]], intent=intent.data)
        intents = self.stub(gateway_pb2_grpc.IntentServiceStub, gateway)
        theirs = approver.stub(gateway_pb2_grpc.IntentServiceStub, gateway)
        try:
            record = await translated(intents.CreateIntent(create, timeout=SUBMIT_S))
            body = b.Approval(intent=intent.digest, meaning="approval", expires=intent.body.expires)
            approval = approver.sign(body, f"device/{self.devices[order.pump]}")
            approve = gateway_pb2.ApproveIntentRequest(intent_id=record.intent_id, approval=approval.data)
            await translated(theirs.ApproveIntent(approve, timeout=SUBMIT_S))
        except Refused as refusal:
            self.ledger.say(f"{self.name}: approval of {order.action}: {refusal.reason}")
            return str(refusal.reason)
        return await self.command(order, gateway, intent=intent)

    async def safety(self, order: Order, gateway: str, standing: Standing) -> None:
        """A safety action: where nothing between hand and pump is disturbed, it must be done."""
        before = standing(self.name, gateway, order.pump)
        try:
            ended = await self._attempt(order, gateway, self.intent(order))
        except Refused as refusal:
            ended = str(refusal.reason)
            self.ledger.say(f"{self.name}: {order.action} on {order.pump}: {refusal.reason}")
        undisturbed = before is not None and before == standing(self.name, gateway, order.pump)
        self.ledger.counts["safety actions"] += 1
        if undisturbed and self.credential.identity.thumbprint not in self.ledger.ever_revoked:
            self.ledger.counts["safety actions undisturbed"] += 1
            if ended != "applied":
                self.ledger.found("safety", f"{order.action} on {order.pump} at {gateway}: {ended}")

    # --- revocations

    async def revoke(self, credential: Credential) -> Statement[b.Revocation] | None:
        """The recall team revokes somebody, and asks again until it knows that it is done; else None."""
        body = b.Revocation(
            scope=b.Scope.CREDENTIAL,
            ids=(credential.identity.thumbprint.hex(),),
            effect=b.RevocationEffect.DENY,
            reason=b.RevocationReason.COMPROMISE,
        )
        statement = self.sign(body, f"person/{credential.identity.id}")
        request = revocation_pb2.RevokeRequest(revocation=statement.data)
        stub = self.stub(revocation_pb2_grpc.RevocationServiceStub, "revocation")
        what = f"revocation of {credential.identity.id}"
        done = await self._until_known(what, lambda: stub.Revoke(request, timeout=4))
        return statement if done else None

    async def reinstate(self, revocation: Statement[b.Revocation], other: "Person") -> bool:
        """Two people of the recall team give back what was revoked; whether they know that it is done."""
        body = b.Reinstatement(
            revocation=revocation.digest,
            scope=revocation.body.scope,
            ids=revocation.body.ids,
            reason="a mistake",
        )
        signed = [one.sign(body, revocation.subject).data for one in (self, other)]
        request = revocation_pb2.ReinstateRequest(reinstatements=signed)
        stub = self.stub(revocation_pb2_grpc.RevocationServiceStub, "revocation")
        return await self._until_known("reinstatement", lambda: stub.Reinstate(request, timeout=4))

    async def _until_known(self, what: str, call: Callable[[], Any]) -> bool:
        for _ in range(20):
            try:
                entry = await translated(call())
            except Refused as refusal:
                self.ledger.say(f"{self.name}: {what}: {refusal.reason}")
                await asyncio.sleep(1)
            else:
                self.ledger.say(f"{self.name}: {what}: epoch {entry.epoch}")
                return True
        return False


def orders(random: Random) -> Order:
    """Something that a technician may want."""
    pump = random.choice(PUMPS)
    drawn = random.random()
    if drawn < 0.3:
        return Order(pump, "read-diagnostics", {})
    if drawn < 0.4:
        return Order(pump, "lift-hold", {}, approved=True)
    if drawn < 0.5:
        return Order(pump, "release-quarantine", {}, approved=True)
    order = Order(pump, "set-occlusion-pressure", {"occlusion_pressure": random.randrange(50, 525)})
    return replace(order, mode=b.Mode.IDLE) if drawn < 0.75 else order


def safety_orders(random: Random) -> Order:
    """Something that safety staff may want."""
    pump = random.choice(PUMPS)
    action = random.choice(("local-alert", "local-alert", "hold", "quarantine"))
    return Order(pump, action, {"message": "look here"} if action == "local-alert" else {})


def gateway_of(order: Order, random: Random) -> str:
    """Mostly the pump's own gateway."""
    return DIALS[order.pump] if random.random() < 0.95 else random.choice(GATEWAYS)
