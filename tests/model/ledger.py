"""What really happened, seen from outside: disks after each commit, messages as they leave, effects as they are done.

Nothing here asks a service what it believes. Each property is judged at the moment at which it could be broken; what
is found is kept with the virtual time.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.model.disk import Disk
from tests.model.loop import START_S
from tests.model.world import GATEWAYS, PUMPS, World
from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.policy.v1 import policy_pb2
from vigil.api.revocation.v1 import revocation_pb2
from vigil.core.classes import LEASE_S
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import read
from vigil.device.executor import Executor
from vigil.device.journal import Journal, State
from vigil.gateway.safety import Safety

BOUND_S: Final = {"C": 8.0, "U": 8.0, "T": 8.0, "D": 8.0, "R": 65.0}
"""After a revocation's commit, until which a device may accept (COMMANDS, "How long a revocation can take")."""
STAGED_BOUND_S: Final = 10.0
"""A staged command is applied under a head that answers a challenge of at most this age."""

PROPERTIES: Final = {
    "recorded": "no execution without a recorded decision",
    "once": "one execution for one request id",
    "bound": "no command accepted later than its class's bound after a revocation was committed",
    "durable": "acknowledged means durable",
    "safety": "S1 always possible where promised",
    "converges": "everything converges",
    "sound": "no process fails by itself, no log loses or changes an entry",
}

APPEND = "/vigil.api.evidence.v1.EvidenceLogService/Append"
DECIDE = "/vigil.api.policy.v1.DecisionService/Decide"
SUBMIT = "/vigil.api.gateway.v1.CommandService/SubmitCommand"
REVOKE = "/vigil.api.revocation.v1.RevocationService/Revoke"
FOLLOW = "/vigil.api.revocation.v1.EdgeService/Follow"
CONNECT = "/vigil.api.gateway.v1.DeviceLinkService/Connect"
CREATE_INTENT = "/vigil.api.gateway.v1.IntentService/CreateIntent"
APPROVE_INTENT = "/vigil.api.gateway.v1.IntentService/ApproveIntent"


@dataclass
class Accepted:
    """A command as a pump took it."""

    pump: str
    action_class: str
    credentials: tuple[bytes, ...]
    staged: bool
    effects: int = 0


@dataclass
class Ledger:
    """Observes one world."""

    world: World
    devices: dict[str, str]
    findings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list)
    revoked_at: dict[bytes, float] = field(default_factory=dict)
    """Credentials that are revoked now, each with the loop time of the commit."""
    ever_revoked: set[bytes] = field(default_factory=set)
    accepted: dict[tuple[str, bytes], Accepted] = field(default_factory=dict)
    told: set[bytes] = field(default_factory=set)
    """Receipts that some gateway told a person of."""
    _applied: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    _recorded: dict[bytes, int] = field(default_factory=dict)
    _size: int = 0
    _epoch: int = 0
    _unspy: list[Callable[[], None]] = field(default_factory=list)

    # --- words

    @property
    def now(self) -> float:
        return self.world.loop.time() - START_S

    def say(self, words: str) -> None:
        self.trace.append(f"{self.now:9.3f}  {words}")

    def found(self, name: str, words: str) -> None:
        """A property does not hold."""
        finding = f"{name}: {words}"
        self.say(f"!! {finding}")
        if finding not in self.findings:
            self.findings.append(finding)

    # --- beginning

    def attach(self) -> None:
        disks, taps = self.world.disks, self.world.net.taps
        self._log_grew(quiet=True)
        self._chain_grew(quiet=True)
        disks["evidence"].after.append(self._log_grew)
        disks["revocation"].after.append(self._chain_grew)
        taps.setdefault(APPEND, []).append(self._append)
        taps.setdefault(DECIDE, []).append(self._decide)
        taps.setdefault(SUBMIT, []).append(self._submit)
        taps.setdefault(REVOKE, []).append(self._revoke)
        taps.setdefault(FOLLOW, []).append(self._follow)
        taps.setdefault(CONNECT, []).append(self._connect)
        taps.setdefault(CREATE_INTENT, []).append(self._intent)
        taps.setdefault(APPROVE_INTENT, []).append(self._intent)
        self._spy(Executor, "_effect", self._on_effect)
        self._spy(Journal, "begin", self._on_begin)
        self._spy(Journal, "move", self._on_move)
        self._spy_after(Safety, "check", self._on_safety)

    def _spy(self, cls: type, name: str, look: Callable[..., None]) -> None:
        """Look at the arguments of a method before it runs."""
        original = getattr(cls, name)

        def spied(this: Any, *args: Any, **named: Any) -> Any:
            self._look(look, this, *args, **named)
            return original(this, *args, **named)

        setattr(cls, name, spied)
        self._unspy.append(lambda: setattr(cls, name, original))

    def _look(self, look: Callable[..., None], *args: Any, **named: Any) -> None:
        """An observer that fails is a finding, and no trouble of the observed."""
        try:
            look(*args, **named)
        except Exception:  # noqa: BLE001 - as said
            self.found("sound", f"an observer failed: {traceback.format_exc()}")

    def _spy_after(self, cls: type, name: str, look: Callable[..., None]) -> None:
        original = getattr(cls, name)

        def spied(this: Any, *args: Any, **named: Any) -> Any:
            result = original(this, *args, **named)
            self._look(look, this, *args, **named)
            return result

        setattr(cls, name, spied)
        self._unspy.append(lambda: setattr(cls, name, original))

    # --- disks

    def _log_grew(self, *, quiet: bool = False) -> None:
        disk = self.world.disks["evidence"]
        rows = disk.rows("SELECT idx, digest FROM entry WHERE idx >= ? ORDER BY idx", (self._size,))
        for index, digest in rows:
            if index != self._size:
                self.found("sound", f"the log's entry {index} follows {self._size - 1}")
            self._recorded[digest] = index
            self._size = index + 1
        if rows and not quiet:
            self.counts["statements recorded"] += len(rows)
        ((count,),) = disk.rows("SELECT count(*) FROM entry")
        if count != self._size:
            self.found("sound", f"the log has {count} entries and had {self._size}")

    def _chain_grew(self, *, quiet: bool = False) -> None:
        disk = self.world.disks["revocation"]
        rows = disk.rows(
            "SELECT epoch, value FROM revocation_entry WHERE epoch > ? ORDER BY epoch", (self._epoch,)
        )
        for epoch, value in rows:
            if epoch != self._epoch + 1:
                self.found("sound", f"epoch {epoch} follows {self._epoch}")
            self._epoch = epoch
            if quiet:
                continue
            entry = revocation_pb2.RevocationEntry.FromString(value)
            self._step(entry.statements)
            self.say(f"revocation: epoch {epoch} is committed")
        ((count,),) = disk.rows("SELECT count(*) FROM revocation_entry")
        if count != self._epoch:
            self.found("sound", f"the chain has {count} entries and had {self._epoch}")

    def _step(self, statements: Sequence[bytes]) -> None:
        """A revocation, or a reinstatement signed by two people."""
        if len(statements) == 1:
            self.counts["revocations"] += 1
            for name in read(statements[0], b.Revocation).body.ids:
                self.revoked_at[bytes.fromhex(name)] = self.world.loop.time()
                self.ever_revoked.add(bytes.fromhex(name))
            return
        self.counts["reinstatements"] += 1
        for name in read(statements[0], b.Reinstatement).body.ids:
            del self.revoked_at[bytes.fromhex(name)]

    def recorded(self, digest: bytes) -> bool:
        """Whether a statement is durably on record now."""
        return digest in self._recorded

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def log_size(self) -> int:
        return self._size

    # --- effects

    def _pump_of(self, device_id: str) -> str:
        return next(pump for pump, device in self.devices.items() if device == device_id)

    def _on_begin(self, journal: Any, admission: Any, *_state: Any) -> None:
        """A pump takes a command: what is signed by somebody revoked has its bound."""
        pump = next(name for name in PUMPS if self.world.disks[name].connection is journal._store._connection)
        intent, parties = admission.intent, admission.parties
        people = (parties.requester, parties.executor, *(person for _, person, _ in parties.approvals))
        action_class = str(admission.action.action_class)
        taken = Accepted(
            pump, action_class, tuple(dict.fromkeys(one.thumbprint for one in people)), admission.staged
        )
        self.accepted[pump, intent.request_id] = taken
        self.counts["commands accepted"] += 1
        self.say(f"{pump}: accepts {intent.action} ({action_class}{', staged' if admission.staged else ''})")
        late = self._since_revoked(taken)
        bound = BOUND_S.get(action_class)
        if late is not None and bound is not None and late > bound:
            self.found("bound", f"{pump} accepts class {action_class} {late:.2f} s after a revocation")

    def _on_move(self, journal: Any, request_id: bytes, state: State) -> None:
        """A staged command is applied."""
        if state is not State.EXECUTING:
            return
        pump = next(name for name in PUMPS if self.world.disks[name].connection is journal._store._connection)
        taken = self.accepted.get((pump, request_id))
        late = self._since_revoked(taken) if taken else None
        if late is not None and late > STAGED_BOUND_S:
            self.found("bound", f"{pump} applies a staged command {late:.2f} s after a revocation")

    def _since_revoked(self, taken: Accepted) -> float | None:
        since = [
            self.world.loop.time() - self.revoked_at[one]
            for one in taken.credentials
            if one in self.revoked_at
        ]
        return max(since, default=None)

    def _on_effect(self, executor: Any, row: Any, admission: Any, _view: Any) -> None:
        """A pump does something: its decision is on record, and it never did it before."""
        pump = self._pump_of(executor._device_id)
        self.counts["effects"] += 1
        self.say(f"{pump}: does {row.action}")
        if admission.action.action_class is not b.ActionClass.S1 and (
            row.permit is None or not self.recorded(row.permit)
        ):
            self.found("recorded", f"{pump} does {row.action} without a recorded decision")
        taken = self.accepted.get((pump, row.request_id))
        if taken is None:
            self.found("sound", f"{pump} does {row.action}, which nobody saw it accept")
            return
        if admission.action.effect is b.Effect.DIAGNOSE:
            return  # a reading's only effect is that its receipt leaves: judged there
        taken.effects += 1
        if taken.effects > 1:
            self.found("once", f"{pump} does {row.action} {taken.effects} times for one request")

    def _on_safety(self, safety: Any, caller: Any, _target: Any, submitted: Any) -> None:
        """A gateway lets S1 through: with a lease, revocations reach it in ten seconds."""
        age = safety._revocations.lease_age()
        people = {caller.thumbprint, submitted.intent.signer}
        for one in people & self.revoked_at.keys():
            late = self.world.loop.time() - self.revoked_at[one]
            if age <= LEASE_S and late > LEASE_S:
                self.found("bound", f"a gateway with a lease lets S1 through {late:.2f} s after a revocation")

    # --- acknowledgements

    def _append(self, _sender: str, _receiver: str, request: bool, data: bytes) -> None:
        if request:
            return
        for outcome in evidence_pb2.AppendResponse.FromString(data).items:
            if outcome.HasField("recorded") and outcome.recorded.index >= self._size:
                self.found("durable", f"evidence answers with entry {outcome.recorded.index} of {self._size}")

    def _decide(self, _sender: str, _receiver: str, request: bool, data: bytes) -> None:
        if request:
            return
        for outcome in policy_pb2.DecideResponse.FromString(data).items:
            if outcome.WhichOneof("message") == "decided":
                decision = read(outcome.decided.decision, b.Decision)
                self.counts["decisions"] += 1
                if not self.recorded(decision.digest) and decision.body.answer is b.Answer.ALLOW:
                    self.found("durable", "policy gives a permit away that is not on record")

    def _submit(self, sender: str, _receiver: str, request: bool, data: bytes) -> None:
        if request:
            self.counts["commands submitted"] += 1
            return
        answer = gateway_pb2.SubmitCommandResponse.FromString(data)
        known = self.world.disks[sender].rows(
            "SELECT outcome FROM command WHERE digest = ?", (bytes.fromhex(answer.command_id),)
        )
        receipts = [read(receipt, b.Receipt) for receipt in answer.receipts]
        # A safety action, which has no permit, is answered with the pump's own word though the disk fails.
        if not known and not (receipts and all(one.body.permit is None for one in receipts)):
            self.found("durable", f"{sender} answers a command that its disk does not know")
        self.told.update(one.digest for one in receipts)

    def _intent(self, sender: str, _receiver: str, request: bool, data: bytes) -> None:
        if request:
            return
        record = gateway_pb2.IntentRecord.FromString(data)
        digest = read(record.intent, b.Intent).digest
        if not self.world.disks[sender].rows("SELECT 1 FROM intent WHERE digest = ?", (digest,)):
            self.found("durable", f"{sender} answers with an intent that its disk does not know")
        if not self.recorded(digest):
            self.found("durable", f"{sender} answers with an intent that is not on record")

    def _revoke(self, _sender: str, _receiver: str, request: bool, data: bytes) -> None:
        if not request and revocation_pb2.RevocationEntry.FromString(data).epoch > self._epoch:
            self.found("durable", "a revocation is acknowledged that is not committed")

    def _follow(self, sender: str, _receiver: str, request: bool, data: bytes) -> None:
        if not request:
            return
        message = revocation_pb2.FollowRequest.FromString(data)
        if message.WhichOneof("message") == "acknowledgement":
            body = read(message.acknowledgement, b.Acknowledgement)
            if body.issuer.startswith("gateway/"):
                self._enforced(sender, body.body.epoch, "revocation_head")

    def _connect(self, sender: str, _receiver: str, request: bool, data: bytes) -> None:
        if not request:
            return
        message = gateway_pb2.ConnectRequest.FromString(data)
        match message.WhichOneof("message"):
            case "acknowledgement":
                epoch = read(message.acknowledgement, b.Acknowledgement).body.epoch
                self._enforced(sender, epoch, "entries")
            case "receipt":
                self._receipts(sender, message.receipt)
            case _:
                pass

    def _receipts(self, pump: str, message: gateway_pb2.DeviceReceipt) -> None:
        for data in message.receipts:
            receipt = read(data, b.Receipt)
            if receipt.body.outcome is b.Outcome.REFUSED:
                self.counts["refused by a pump"] += 1
                continue
            if receipt.body.outcome is b.Outcome.APPLIED:
                applied = self._applied.setdefault((pump, receipt.body.request_id), receipt.digest)
                if applied != receipt.digest:
                    self.found("once", f"{pump} has applied {receipt.body.action} twice for one request")
            if not self.world.disks[pump].rows("SELECT 1 FROM receipts WHERE data = ?", (data,)):
                self.found("durable", f"{pump} sends a receipt that its flash does not hold")

    def _enforced(self, host: str, epoch: int, table: str) -> None:
        disk: Disk = self.world.disks[host]
        ((kept,),) = disk.rows(f"SELECT coalesce(max(epoch), 0) FROM {table}")
        if kept < epoch:
            self.found("durable", f"{host} acknowledges epoch {epoch} and has {kept} on its disk")

    # --- the end

    def unconverged(self) -> list[str]:
        """What is not yet as it must become once nothing fails any more."""
        world, lacking = self.world, []
        lacking += [f"{host} is not up" for host in (*world.disks, "policy") if host not in world.up]
        for host, query in (
            *((gateway, "SELECT coalesce(max(epoch), 0) FROM revocation_head") for gateway in GATEWAYS),
            *((edge, "SELECT coalesce(max(epoch), 0) FROM edge_entry") for edge in ("edge-1", "edge-2")),
            *((pump, "SELECT coalesce(max(epoch), 0) FROM entries") for pump in PUMPS),
        ):
            ((epoch,),) = world.disks[host].rows(query)
            if epoch != self._epoch:
                lacking.append(f"{host} is at epoch {epoch} of {self._epoch}")
        for host in ("identity", "release", "revocation", "attestation", *GATEWAYS):
            waiting = world.disks[host].rows("SELECT refused, count(*) FROM evidence_spool GROUP BY refused")
            lacking += [
                f"{host} has {count} statements not on record {refused}" for refused, count in waiting
            ]
        for pump in PUMPS:
            lacking += self._pump_lacks(pump)
        return lacking

    def _pump_lacks(self, pump: str) -> list[str]:
        runner, disk = self.world.runners.get(pump), self.world.disks[pump]
        lacking = []
        if runner is None or runner.agent is None or not runner.agent.online:
            lacking.append(f"{pump} is not connected")
        ((open_,),) = disk.rows("SELECT count(*) FROM journal WHERE state <> 'final'")
        if open_ and not self._withheld(pump):
            lacking.append(f"{pump} has {open_} commands that are not final")
        for request_id, data in disk.rows(
            "SELECT request_id, data FROM receipts ORDER BY request_id, number"
        ):
            receipt = read(data, b.Receipt)
            if not self.recorded(receipt.digest):
                lacking.append(
                    f"{pump}'s receipt {receipt.body.action} {receipt.body.outcome} is not on record"
                )
            lacking += self._records_differ(pump, request_id, receipt)
        return lacking

    def _withheld(self, pump: str) -> bool:
        """Whether the pump shows what keeps its staged commands waiting, by design."""
        runner = self.world.runners.get(pump)
        if runner is None or runner.agent is None:
            return False
        status = runner.agent.status()
        return bool(status.holds or status.quarantined)

    def _records_differ(self, pump: str, request_id: bytes, receipt: Any) -> list[str]:
        """What gateways say of a command whose device has spoken its last word."""
        if receipt.body.outcome in (b.Outcome.ACCEPTED, b.Outcome.STAGED):
            return []
        out = []
        for gateway in GATEWAYS:
            rows = self.world.disks[gateway].rows(
                "SELECT outcome FROM command WHERE request_id = ? AND digest = ? AND device = ?",
                (request_id, receipt.body.command, self.devices[pump]),
            )
            out += [
                f"{gateway} says {outcome} of a command that {pump} calls {receipt.body.outcome}"
                for (outcome,) in rows
                if outcome in ("unknown", "forwarded", "staged", "accepted")
            ]
        return out
