"""What the client believes: made by a real pump, spoilt one thing at a time."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.pumps import PumpSite, TestPump
from vigil.api.evidence.v1 import evidence_pb2
from vigil.cli import proofs
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Statement, read
from vigil.device.facts import Bundle
from vigil.errors import Reason, Refused


class Commanded:
    """One command that a pump applied, with everything that came with it."""

    def __init__(self, site: PumpSite) -> None:
        self.site = site
        self.pump: TestPump = site.pump()
        self.pump.release()
        self.bundle: Bundle = self.make()
        self.intent = read(self.bundle.intent, b.Intent)
        self.command = read(self.bundle.command, b.Command)
        (self.receipt,) = self.pump.send(self.bundle).receipts[-1:]

    def make(self) -> Bundle:
        nonce = self.pump.nonce(self.site.technician)
        return self.site.bundle(self.pump, "set-occlusion-pressure", {"occlusion_pressure": 300}, nonce=nonce)

    def believe(self, **spoilt: object) -> Statement[b.Receipt]:
        values: dict[str, object] = {
            "intent": self.intent,
            "device_id": self.pump.device_id,
            "commands": (self.command.digest,),
            "attestation_chain": (),
            "at": self.site.clock.now(),
            **spoilt,
        }
        data = values.pop("data", self.receipt)
        return proofs.signed_receipt(data, self.site.pki.verifier, **values)  # type: ignore[arg-type]


@pytest.fixture
def commanded(tmp_path: Path) -> Commanded:
    return Commanded(PumpSite(tmp_path))


def test_a_pumps_own_receipt_is_believed(commanded: Commanded) -> None:
    receipt = commanded.believe()
    assert receipt.body.outcome is b.Outcome.APPLIED
    assert commanded.believe(commands=()).digest == receipt.digest
    value = proofs.receipt_value(receipt)
    assert (value["outcome"], value["performed_by"]) == ("applied", "p-technician")


@pytest.mark.holds("lying-relay")
def test_a_receipt_of_something_else_is_not(commanded: Commanded) -> None:
    other = read(commanded.make().intent, b.Intent)
    for spoilt in (
        {"intent": other},
        {"device_id": "dev-cccccccccccccccc"},
        {"commands": (bytes(32),)},
        {"intent": replace(commanded.intent, body=replace(commanded.intent.body, request_id=bytes(16)))},
    ):
        with pytest.raises(Refused) as caught:
            commanded.believe(**spoilt)
        assert caught.value.reason is Reason.SIGNATURE_INVALID


@pytest.mark.holds("lying-relay")
def test_a_receipt_that_a_person_or_another_device_signed_is_not(commanded: Commanded) -> None:
    body = commanded.believe().body
    site = commanded.site
    forged = site.sign(site.technician, body)
    with pytest.raises(Refused):
        commanded.believe(data=forged.data)
    stranger = site.pki.attester("dev-bbbbbbbbbbbbbbbb")
    with pytest.raises(Refused):
        commanded.believe(data=site.sign(stranger, body).data)


@pytest.mark.holds("lying-relay")
def test_a_changed_receipt_is_not(commanded: Commanded) -> None:
    changed = bytearray(commanded.receipt)
    place = commanded.receipt.index(b"applied")
    changed[place : place + 7] = b"refused"
    with pytest.raises(Refused):
        commanded.believe(data=bytes(changed))


@pytest.mark.holds("lying-relay")
def test_the_newest_receipt_speaks_and_a_refusal_last(commanded: Commanded) -> None:
    applied = commanded.believe()
    refusal = replace(applied, body=replace(applied.body, outcome=b.Outcome.REFUSED, number=9))
    assert proofs.newest([refusal, applied]) is applied
    assert proofs.newest([refusal]) is refusal
    assert proofs.newest([]) is None


@pytest.mark.holds("lying-relay")
def test_a_decision_is_proved_with_its_record(commanded: Commanded) -> None:
    bundle = commanded.bundle
    assert bundle.permit_recorded is not None
    recorded = evidence_pb2.RecordedItem(
        recorded=bundle.permit_recorded.recorded,
        index=bundle.permit_recorded.index,
        path=bundle.permit_recorded.path,
    )

    def prove(
        item: evidence_pb2.RecordedItem | None, command: bytes = commanded.command.digest, device: str = ""
    ) -> list[bool]:
        found = proofs.prove_decision(
            bundle.permit,
            item,
            intent=commanded.intent,
            command=command,
            device_id=device or commanded.pump.device_id,
            verifier=commanded.site.pki.verifier,
        )
        return [one.holds for one in found]

    assert prove(recorded) == [True, True]
    assert prove(None) == [True, False]
    assert prove(recorded, command=bytes(32)) == [False]
    assert prove(recorded, device="dev-cccccccccccccccc") == [False]
    elsewhere = evidence_pb2.RecordedItem()
    elsewhere.CopyFrom(recorded)
    elsewhere.index += 1
    assert prove(elsewhere) == [True, False]


@pytest.mark.holds("lying-relay")
def test_intent_approval_and_command_are_proved(commanded: Commanded) -> None:
    site, verifier = commanded.site, commanded.site.pki.verifier
    assert proofs.prove_intent(commanded.intent.data, verifier).holds
    approval = site.approval(commanded.intent, site.approver)
    assert proofs.prove_approval(approval.data, commanded.intent, verifier).holds
    own = site.approval(commanded.intent, site.technician)
    assert not proofs.prove_approval(own.data, commanded.intent, verifier).holds
    other = read(commanded.make().intent, b.Intent)
    assert not proofs.prove_approval(approval.data, other, verifier).holds
    assert proofs.prove_command(
        commanded.command.data, commanded.intent, commanded.pump.device_id, verifier
    ).holds
    assert not proofs.prove_command(commanded.command.data, other, commanded.pump.device_id, verifier).holds
    assert not proofs.prove_intent(commanded.intent.data[:-1] + b"\x00", verifier).holds


@pytest.mark.holds("lying-relay")
def test_a_profile_is_the_manufacturers(commanded: Commanded) -> None:
    site = commanded.site
    assert proofs.signed_profile(site.profile.data, site.pki.verifier).body.model == site.profile.body.model
    with pytest.raises(Refused):
        proofs.signed_profile(commanded.receipt, site.pki.verifier)
