"""What each stolen key or captured service can do alone: the real keys, hostile code, a real pump and real services.

Every attacker is given a captured gateway besides, so that what it makes reaches the pump. The fault is seen to
have happened each time: the pump answered the forged thing, or the gateway says what it kept back.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace

import pytest
import pytest_asyncio
from google.rpc import status_pb2  # type: ignore[import-untyped]

from tests.faults import acts
from tests.reliability import report
from tests.support.captured import GATEWAY, SITE, Captured, promise, scribe_of
from tests.support.stack import PRESSURE, eventually
from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.policy.v1 import policy_pb2
from vigil.api.revocation.v1 import revocation_pb2
from vigil.cli.records import approve_intent
from vigil.core.certificates import Kind
from vigil.core.clock import SystemClock
from vigil.core.revocations import EMPTY_CHAIN, chain_hash
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Scribe, Statement, read
from vigil.core.statements.schema import Scalar
from vigil.demo.places import HOSPITALS
from vigil.errors import Reason, Refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

Injected = Callable[[int], None]

SIGNERS = ("decision", "recorded", "result", "head")
SERVICES = ("policy", "evidence", "attestation", "revocation", "identity", "release", "edge")
MAKERS = ("voucher", "profile", "release")
PEOPLE = ("sam", "cleo", "rita", "otto", "admin", "ada")
"""A safety officer and a technician of another site, an approver, the recall team, an auditor, an administrator."""
STOLEN = (
    *(f"signer/{name}" for name in SIGNERS),
    *(f"service/{name}" for name in SERVICES),
    *(f"maker/{name}" for name in MAKERS),
    *(f"person/{name}" for name in PEOPLE),
    "gateway",
)
OWN_PART = {"signer/decision": "decision", "signer/recorded": "recorded"}
"""Which part of a bundle a key is right for."""
TRIED: list[dict[str, str | int]] = []
"""What came of each, for the page."""
FORGED = {
    *(Reason.SIGNATURE_INVALID, Reason.NOT_RECORDED, Reason.CERTIFICATE_INVALID, Reason.SIGNER_NOT_CALLER),
    *(Reason.ROLE_NOT_PERMITTED, Reason.NOT_IN_SCOPE),
}
"""What the pump may call what another key signed."""
REPLAYED = {*FORGED, Reason.NONCE_UNKNOWN, Reason.NONCE_USED, Reason.NOT_IN_TARGET}
"""And what was said before, or put together from two."""
NOT_THE_PUMPS = {Reason.SIGNATURE_INVALID, Reason.CERTIFICATE_INVALID, Reason.OUTCOME_UNKNOWN}
"""What the client may call a receipt that is none."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def captured(request: pytest.FixtureRequest) -> AsyncIterator[Captured]:
    running = await Captured.start()
    yield running
    await running.stop()
    if request.config.getoption("--reliability") and len(TRIED) == len(STOLEN):
        report.record(
            "captured",
            title="Stolen keys",
            command="make faults",
            words=(
                f"Each of {len(STOLEN)} real keys signed, over real mutual TLS and through a captured gateway, every "
                "part of a command that is not its own, and then all of them. The same with all the right keys moves "
                "the pump; what else each holder can and cannot do stands in the [threat model](threat-model.md)."
            ),
            table=TRIED,
        )


def key_of(captured: Captured, name: str) -> Scribe:
    """A stolen key by its name in these tests."""
    kind, _, which = name.partition("/")
    match kind:
        case "signer":
            return captured.signer(which)
        case "service":
            return captured.service(which)
        case "maker":
            return captured.maker_signer(which)
        case "gateway":
            return captured.gateway()
    return captured.person(which)


# --- the matrix


@pytest.mark.holds("stolen-signers", "captured-policy", "malicious-gateway")
@pytest.mark.parametrize("name", STOLEN)
async def test_one_stolen_key_moves_nothing(captured: Captured, name: str, injected: Injected) -> None:
    """Whatever part of a bundle it signs in another's place, and when it signs all of them: the pump refuses."""
    before, stolen = await captured.applied(), key_of(captured, name)
    right = captured.right_keys()
    attempts = [{**right, part: stolen} for part in right if part != OWN_PART.get(name)]
    attempts.append(dict.fromkeys(right, stolen))
    reasons = set()
    for keys in attempts:
        answer = await captured.send(await captured.forge(**keys))
        assert answer.outcome in ("", "refused"), name
        assert answer.reason in FORGED, answer
        reasons.add(answer.reason)
    injected(len(attempts))
    moved = await captured.applied() - before
    TRIED.append(
        {"key": name, "forged": len(attempts), "refused as": ", ".join(sorted(reasons)), "executed": moved}
    )
    assert moved == 0


@pytest.mark.holds("stolen-signers")
async def test_three_keys_together_do_and_the_record_shows_it(captured: Captured) -> None:
    """The matrix's counter-proof: with all keys right it moves the pump. That it was not on record shows."""
    before = await captured.applied()
    bundle = await captured.forge(**captured.right_keys(), parameters={"occlusion_pressure": 222})
    assert (await captured.send(bundle)).outcome == "applied"
    assert await captured.applied() == before + 1
    permit = read(bundle.permit, b.Decision).digest

    async def receipt() -> b.Receipt | None:
        receipts = [read(one.statement, b.Receipt).body for one in await captured.history("receipt")]
        return next((one for one in receipts if one.permit == permit), None)

    # The pump's own receipt names a permit, and promises of a record, that no log holds.
    assert await eventually(receipt, what="the pump's receipt is on record")
    assert permit not in {one.digest for one in await captured.history("decision")}


# --- policy


@pytest.mark.holds("captured-policy")
async def test_policy_alone_permits_what_rego_refuses_but_on_record(captured: Captured) -> None:
    """With a technician's own signature under it. The decision stands in the log for everybody to see."""
    hal = captured.hand()
    honest = hal.intent(captured.at, PRESSURE, {"occlusion_pressure": 240}, work_order="")
    with pytest.raises(Refused) as refused:
        await hal.finish(captured.at, honest)
    assert refused.value.reason is Reason.WORK_ORDER_MISSING
    bundle = await captured.permitted(parameters={"occlusion_pressure": 240})
    assert (await captured.send(bundle)).outcome == "applied"
    permit = read(bundle.permit, b.Decision).digest
    assert permit in {one.digest for one in await captured.history("decision")}


@pytest.mark.holds("captured-policy")
@pytest.mark.parametrize(
    "lie", ["silence", "no record", "its own record", "another command", "refused and allowed"]
)
async def test_an_honest_gateway_and_pump_take_no_half_permit(
    captured: Captured, lie: str, injected: Injected
) -> None:
    """The decision service that the gateway asks is captured: with its TLS key, and the decision signer's."""
    decision, before = captured.signer("decision"), await captured.applied()

    async def answer(item: policy_pb2.DecideItem) -> policy_pb2.Decided | None:
        intent, command = read(item.intent, b.Intent), read(item.command, b.Command)
        permit = await captured.permit(decision, intent, command)
        match lie:
            case "silence":
                return None
            case "no record":
                return policy_pb2.Decided(decision=permit.data)
            case "its own record":
                own = promise(decision, intent, permit)
                return policy_pb2.Decided(
                    decision=permit.data, recorded=own[-1], statements_recorded=[own[0]]
                )
            case "another command":
                other = (await captured.passed()).permit
                kept = await captured.keep(other)
                return policy_pb2.Decided(decision=other, recorded=kept[0])
        kept = await captured.keep(permit.data)
        refusal = status_pb2.Status(code=7, message="no")
        return policy_pb2.Decided(decision=permit.data, recorded=kept[0], refusal=refusal)

    captured.policy.lie, captured.policy.lied = answer, 0
    try:
        done = await captured.hand().send(captured.at, PRESSURE, {"occlusion_pressure": 245})
        reason = done.reason if done.outcome is b.Outcome.REFUSED else ""
    except Refused as error:
        reason = error.reason
    finally:
        captured.policy.lie = None
    assert reason in {Reason.POLICY_UNAVAILABLE, *FORGED}, (lie, reason)
    assert captured.policy.lied == 1
    injected(1)
    assert await captured.applied() == before
    await captured.works(246)


@pytest.mark.holds("captured-policy")
@pytest.mark.parametrize(
    ("action", "action_class", "parameters", "reason"),
    [
        (PRESSURE, "C", {"occlusion_pressure": 5_000}, Reason.PARAMETER_OUT_OF_RANGE),
        ("set-rate", "T", {"rate": 10}, Reason.THERAPY_NOT_ENABLED),
        ("factory-reset", "D", {}, Reason.APPROVALS_MISSING),
        ("release-quarantine", "C", {}, Reason.APPROVALS_MISSING),
        ("update-firmware", "U", {"firmware": bytes(32)}, Reason.SIGNATURE_INVALID),
        ("install-configuration", "C", {"baseline": bytes(32)}, Reason.SIGNATURE_INVALID),
    ],
)
async def test_the_pump_keeps_its_limits_whatever_is_permitted(
    captured: Captured,
    injected: Injected,
    *,
    action: str,
    action_class: str,
    parameters: Mapping[str, Scalar],
    reason: Reason,
) -> None:
    before = await captured.applied()
    bundle = await captured.permitted(action=action, action_class=action_class, parameters=parameters)
    answer = await captured.send(bundle)
    assert answer.reason == reason, answer
    injected(1)
    assert await captured.applied() == before


@pytest.mark.holds("captured-policy", "stolen-technician")
async def test_no_permit_helps_a_technician_who_is_revoked(captured: Captured, injected: Injected) -> None:
    await captured.appoint("tom", "technician")
    await captured.enforced(await acts.revoke_credential(captured.stack, "tom"))
    before = await captured.applied()
    answer = await captured.send(await captured.permitted(requester=captured.person("tom")))
    assert answer.reason == Reason.CREDENTIAL_REVOKED
    injected(1)
    assert await captured.applied() == before


# --- the gateway


@pytest.mark.holds("malicious-gateway")
async def test_a_gateway_replays_and_alters_in_vain(captured: Captured, injected: Injected) -> None:
    await captured.works(260)
    honest, before, own = await captured.passed(), await captured.applied(), captured.gateway()
    other = await captured.forge(requester=captured.person("hal"), decision=own, recorded=own)
    twisted: dict[str, dict[str, bytes]] = {
        "replayed": {},
        "with another command": {"command": other.command},
        "with another intent": {"intent": other.intent},
        "a fresh command with a permit of before": {"intent": other.intent, "command": other.command},
        "without its permit": {"permit": b""},
    }
    for what, change in twisted.items():
        bundle = gateway_pb2.Bundle()
        bundle.CopyFrom(honest)
        for name, value in change.items():
            setattr(bundle, name, value)
        answer = await captured.send(bundle)
        assert answer.outcome in ("", "refused"), what
        assert answer.reason in REPLAYED, (what, answer)
    injected(len(twisted))
    assert await captured.applied() == before
    await captured.works(261)


@pytest.mark.thorough
@pytest.mark.holds("malicious-gateway", "stolen-technician")
async def test_a_hidden_revocation_applies_no_staged_command(captured: Captured, injected: Injected) -> None:
    """A staged command needs a head that answers the pump's own challenge within 10 s: hiding it only delays."""
    pump = captured.at
    await captured.appoint("tess", "technician")
    await pump.fleet.do("start-therapy", pump.name, rate_ml_per_h=50)
    done = await captured.hand("tess").send(pump, PRESSURE, {"occlusion_pressure": 270}, mode=b.Mode.IDLE)
    assert done.outcome is b.Outcome.STAGED
    before = await captured.applied()
    await captured.tap.do("withhold", kinds=["revocations"])
    await acts.revoke_credential(captured.stack, "tess")
    await asyncio.sleep(11)  # until no head that the pump has is younger than 10 s
    await pump.fleet.do("stop-therapy", pump.name)
    await pump.fleet.do("bedside-release", pump.name)
    await asyncio.sleep(5)
    assert await captured.applied() == before
    hidden = (await captured.tap.do("withhold", kinds=[]))["counted"]["revocations"]
    assert hidden > 0
    injected(hidden)

    async def abandoned() -> bool:
        return int((await captured.stack.status(pump))["staged_commands"]) == 0

    await eventually(abandoned, what="the pump has heard of it and abandoned the command")
    assert await captured.applied() == before
    await captured.works(262)


# --- a gateway that lies to people


@pytest.mark.holds("lying-relay", "malicious-gateway")
async def test_done_is_believed_from_the_pump_alone(captured: Captured, injected: Injected) -> None:
    """An old receipt, one of another pump, one that the gateway signed, none at all: the client takes none."""
    pump, hal = captured.at, captured.hand()
    done = await hal.send(pump, PRESSURE, {"occlusion_pressure": 263})
    elsewhere = await acts.set_pressure(captured.stack, captured.stack.pumps(captured.stack.first)[0], 199)
    body = replace(done.receipt.body, request_id=os.urandom(16))
    invented = captured.gateway().sign(body, subject=f"device/{pump.device_id}")
    before = await captured.applied()
    lies = {"old": done.receipt.data, "elsewhere": elsewhere.receipt.data, "own": invented.data, "none": b""}
    for lie, data in lies.items():
        response = gateway_pb2.SubmitCommandResponse(receipts=[data] if data else [])
        await captured.tap.do("answer", method="SubmitCommand", response=response.SerializeToString().hex())
        with pytest.raises(Refused) as refused:
            await hal.send(pump, PRESSURE, {"occlusion_pressure": 264})
        assert refused.value.reason in NOT_THE_PUMPS, lie
    injected(len(lies))
    assert await captured.applied() == before


@pytest.mark.holds("lying-relay")
async def test_nobody_signs_for_another_intent_than_is_shown(captured: Captured, injected: Injected) -> None:
    """`vigil command approve` at a gateway that shows another intent, other devices, or an intent nobody signed."""
    hal, cleo = captured.hand(), captured.stack.world.people["cleo"]
    wanted = hal.intent(captured.at, "release-quarantine", {})
    record = await hal.create_intent(captured.at, wanted)
    other = hal.intent(captured.at, "factory-reset", {})
    forged = captured.intent(captured.gateway(), "factory-reset", {})
    here, elsewhere = [captured.device], ["dev-aaaaaaaaaaaaaaaa"]
    for asked, shown, devices in ((wanted, other, here), (wanted, wanted, elsewhere), (forged, forged, here)):
        lie = gateway_pb2.IntentRecord(intent_id=asked.digest.hex(), intent=shown.data, device_ids=devices)
        await captured.tap.do("answer", method="GetIntent", response=lie.SerializeToString().hex())
        with pytest.raises(Refused) as refused:
            await approve_intent(cleo, asked.digest.hex(), GATEWAY, meaning="approval", yes=True)
        assert refused.value.reason is Reason.SIGNATURE_INVALID
        injected(1)
    assert await approve_intent(cleo, record.intent_id, GATEWAY, meaning="approval", yes=True) == 0


# --- revocation


def confirmed(
    captured: Captured, before: revocation_pb2.RevocationEntry, *statements: Statement[object]
) -> gateway_pb2.ConnectResponse:
    """The next step of the chain, under a head with the real key."""
    epoch = before.epoch + 1
    chain = chain_hash(before.chain, epoch, [one.digest for one in statements])
    step = revocation_pb2.RevocationEntry(
        epoch=epoch,
        statements=[one.data for one in statements],
        chain=chain,
        create_time_ms=SystemClock().now(),
    )
    return told(captured, b.Head(epoch=epoch, chain=chain, era=0, issued=SystemClock().now()), step)


def told(
    captured: Captured, body: b.Head, *entries: revocation_pb2.RevocationEntry
) -> gateway_pb2.ConnectResponse:
    """What a gateway tells its pumps, under a head with the real key."""
    head = captured.signer("head").sign(body, subject="revocation/head")
    revocations = gateway_pb2.Revocations(
        entries=entries,
        head=revocation_pb2.AnsweredHead(head=head.data),
        gateway_time_ms=SystemClock().now(),
    )
    return gateway_pb2.ConnectResponse(revocations=revocations)


@pytest.mark.holds("stolen-signers", "captured-bus")
async def test_a_head_key_alone_unrevokes_nobody_and_strands_nobody(
    captured: Captured, injected: Injected
) -> None:
    """Forged reinstatements and eras, rollbacks and epoch 2^63, each under a head with the real key."""
    await captured.appoint("ted", "technician")
    await captured.enforced(await acts.revoke_credential(captured.stack, "ted"))
    newest, rita = await captured.newest_revocation(), captured.person("rita")
    head, now, epoch = captured.signer("head"), SystemClock().now(), newest.epoch
    revoked = read(newest.statements[0], b.Revocation)
    free = b.Reinstatement(
        revocation=revoked.digest, scope=b.Scope.CREDENTIAL, ids=revoked.body.ids, reason="let go"
    )
    era = b.Era(era=1, floor=now, epoch=epoch + 1, reason="again", chain=newest.chain)
    subject = "revocation/any"
    updates = [
        confirmed(captured, newest, *(head.sign(free, subject=subject) for _ in range(2))),
        confirmed(captured, newest, *(rita.sign(free, subject=subject) for _ in range(2))),
        confirmed(captured, newest, *(head.sign(era, subject=subject) for _ in range(3))),
        told(captured, b.Head(epoch=0, chain=EMPTY_CHAIN, era=0, issued=now)),
        told(captured, b.Head(epoch=epoch, chain=bytes(32), era=0, issued=now)),
        told(captured, b.Head(epoch=2**63 - 1, chain=bytes(32), era=0, issued=now)),
        told(captured, b.Head(epoch=epoch, chain=newest.chain, era=2**32, issued=now)),
    ]
    for update in updates:
        await captured.tell(update)
        answer = await captured.send(await captured.permitted(requester=captured.person("ted")))
        assert answer.reason == Reason.CREDENTIAL_REVOKED
    injected(len(updates))
    await captured.works(265)


@pytest.mark.holds("stolen-signers")
async def test_a_head_key_alone_restricts(captured: Captured, injected: Injected) -> None:
    """What restricts is taken on the head and its chain alone: whoever has the key can stop commands at a pump.

    The way out is an era: the offline root and two people (tests/unit/device/test_agent.py).
    """
    spare = await captured.another_pump(34)
    await captured.appoint("tina", "technician")
    deny = b.Revocation(
        scope=b.Scope.CREDENTIAL,
        ids=(captured.person("tina").thumbprint.hex(),),
        effect=b.RevocationEffect.DENY,
        reason=b.RevocationReason.COMPROMISE,
    )
    forged = captured.signer("head").sign(deny, subject="revocation/any")
    await spare.tell(confirmed(captured, await captured.newest_revocation(), forged))
    answer = await spare.send(await spare.permitted(requester=captured.person("tina")))
    assert answer.reason == Reason.CREDENTIAL_REVOKED
    injected(1)
    await captured.works(267)  # nobody else's pump is touched


# --- identity


@pytest.mark.holds("stolen-signers")
async def test_identity_makes_people_but_no_signer(captured: Captured, injected: Injected) -> None:
    """The most powerful part on line: its technician is taken for one, on record. It signs no other's statements."""
    files = captured.stack.issue(
        Kind.PERSON, "p-nobody", organization=HOSPITALS, sites=(SITE,), roles=("technician",)
    ).tls_files
    nobody = scribe_of(files.certificate, files.key, "person/p-nobody")
    bundle = await captured.permitted(requester=nobody, parameters={"occlusion_pressure": 266})
    assert (await captured.send(bundle)).outcome == "applied"
    permit = read(bundle.permit, b.Decision).digest
    assert permit in {one.digest for one in await captured.history("decision")}
    before = await captured.applied()
    for part in ("decision", "recorded"):
        answer = await captured.send(await captured.forge(**{**captured.right_keys(), part: nobody}))
        assert answer.reason in FORGED, answer
        injected(1)
    assert await captured.applied() == before
