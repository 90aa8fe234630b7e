"""A decision when the policy itself fails: Rego of a real OPA that is undefined, erring, late or out of shape."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.support.opa import opa
from tests.support.policy_room import PolicyRoom
from vigil.core.clock import SystemClock
from vigil.errors import Reason, Refusal
from vigil.feed.evidence import EvidenceAppender
from vigil.policy.engine.build import build
from vigil.policy.engine.bundle import read_bundle
from vigil.policy.engine.wasm import WasmEngine
from vigil.policy.metrics import PolicyMetrics
from vigil.policy.service import Decisions
from vigil.rpc.channel import Channels

HEAD = "package vigil.command\n\n"

UNDEFINED = HEAD + 'decision := {"allow": true, "reasons": [], "obligations": []} if input.mode == "never"\n'
FAILING = (
    HEAD + 'decision := {"allow": net.cidr_contains("bad", "10.0.0.1"), "reasons": [], "obligations": []}\n'
)
CONFLICTING = (
    HEAD
    + 'decision := {"allow": true, "reasons": [], "obligations": []} if input.mode == "now"\n\n'
    + 'decision := {"allow": false, "reasons": [], "obligations": []} if input.work_order\n'
)
LATE = (
    HEAD
    + 'decision := {"allow": true, "reasons": [], "obligations": []} if '
    + "count([x | some x in numbers.range(1, 3000); some y in numbers.range(1, 3000); x == y]) > 0\n"
)
TRUTHY = HEAD + 'decision := {"allow": "true", "reasons": [], "obligations": []}\n'
BARE_NO = HEAD + 'decision := {"allow": false, "reasons": [], "obligations": []}\n'
INVENTED = (
    HEAD
    + 'decision := {"allow": false, "obligations": [], '
    + '"reasons": [{"reason": "FULL_MOON", "rule": "vigil.command.moon", "values": {}}]}\n'
)
OBLIGING = (
    HEAD + 'decision := {"allow": true, "reasons": [], "obligations": [{"kind": "dance", "values": {}}]}\n'
)


class Asked:
    """A room, and what a policy says to a command that everything else allows."""

    def __init__(self, room: PolicyRoom, appender: EvidenceAppender) -> None:
        self.room = room
        self._appender = appender

    async def refusals(self, rego: str, folder: Path) -> tuple[Refusal, ...]:
        package = folder / "policies" / "vigil" / "command"
        package.mkdir(parents=True)
        (package / "decision.rego").write_text(rego)
        engine = WasmEngine(read_bundle(build(folder / "policies", opa())))
        decisions = Decisions(
            facts=self.room,
            engine=engine,
            scribe=self.room.scribe(),
            appender=self._appender,
            clock=self.room.clock,
            metrics=PolicyMetrics(CollectorRegistry()),
        )
        try:
            preview = await decisions.preview(self.room.gateway.identity, self.room.item())
        finally:
            await engine.close()
        return () if preview.refusal is None else preview.refusal.refusals


@pytest.fixture
async def asked(tmp_path: Path) -> AsyncIterator[Asked]:
    room = PolicyRoom(tmp_path)
    channels = Channels(
        tls=room.pki.service("policy").tls_files, trust_domain=room.pki.trust_domain, clock=SystemClock()
    )
    async with EvidenceAppender(
        channel=channels.service("127.0.0.1:9", "evidence"), entropy=bytes, streams=1
    ) as appender:
        yield Asked(room, appender)
    await channels.close()


@pytest.mark.holds("policy-editor", "opa-failures")
@pytest.mark.parametrize(
    ("rego", "reason"),
    [
        (UNDEFINED, Reason.POLICY_UNDEFINED),
        (FAILING, Reason.POLICY_UNDEFINED),
        (TRUTHY, Reason.POLICY_UNDEFINED),
        (OBLIGING, Reason.POLICY_UNDEFINED),
        (CONFLICTING, Reason.POLICY_UNAVAILABLE),
        (LATE, Reason.POLICY_UNAVAILABLE),
        (BARE_NO, Reason.POLICY_DENIED),
        (INVENTED, Reason.POLICY_DENIED),
    ],
    ids=["undefined", "failing", "truthy", "obliging", "conflicting", "late", "bare-no", "invented"],
)
async def test_whatever_is_not_an_answer_refuses(
    asked: Asked, tmp_path: Path, rego: str, reason: Reason
) -> None:
    (refusal,) = await asked.refusals(rego, tmp_path / "built")
    assert refusal.reason is reason
    assert refusal.sentence


async def test_the_rule_that_said_no_is_named(asked: Asked, tmp_path: Path) -> None:
    (refusal,) = await asked.refusals(INVENTED, tmp_path / "built")
    assert "vigil.command.moon" in refusal.sentence
    assert refusal.values["reason"] == "FULL_MOON"
