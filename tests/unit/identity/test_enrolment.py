"""A device comes in by its voucher, its key and two people, or not at all."""

import asyncio
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.pki import TestPki
from tests.unit.identity.world import Bench, World, complete_request, csr, start_request
from vigil.api.identity.v1 import identity_pb2 as pb
from vigil.core.certificates import Kind
from vigil.core.clock import ManualClock
from vigil.core.keys import key_thumbprint, new_private_key
from vigil.core.statements import bodies
from vigil.core.statements.envelope import read
from vigil.errors import Reason, Refused
from vigil.identity import domain


@pytest.fixture
def bench(world: World) -> Bench:
    return Bench(world.maker, "SN-1")


@pytest.mark.holds("impostor")
async def test_a_device_is_enrolled_pending_and_another_person_makes_it_active(
    world: World, bench: Bench
) -> None:
    begun = await world.begun(bench, tag="PUMP-7")
    assert begun.expire_time_ms - world.clock.now() <= domain.ENROLMENT_LIFE
    made = await world.enroller().call("CompleteEnrolment", complete_request(bench, begun))
    device = made.device
    assert (device.device_id, device.udi, device.serial) == (bench.device_id, bench.udi, "SN-1")
    assert (device.model, device.asset_tag, device.site_id) == ("aria-3000", "PUMP-7", "site-1")
    assert (device.state, device.enrolled_by) == (pb.DEVICE_STATE_PENDING, "p-enroller")
    verifier = world.ports.trust.verifier
    now = world.clock.now()
    tls = verifier.verify(list(made.certificates.tls_chain), at=now, kinds=frozenset({Kind.DEVICE}))
    attestation = verifier.verify(list(made.certificates.attestation_chain), at=now)
    assert (tls.id, tls.organization, tls.sites, tls.statements) == (
        bench.device_id,
        "hospital",
        ("site-1",),
        (),
    )
    assert attestation.statements == ("acknowledgement", "evidence", "receipt")
    assert tls.key_thumbprint == key_thumbprint(bench.tls_key.public_key())
    assert attestation.key_thumbprint == key_thumbprint(bench.attestation_key.public_key())
    assert device.attestation_certificate == attestation.thumbprint
    assert made.certificates.trust_json == world.ports.trust.bundle.to_json()
    active = await world.approver().call(
        "ActivateDevice", pb.ActivateDeviceRequest(device_id=bench.device_id)
    )
    assert (active.state, active.activated_by) == (pb.DEVICE_STATE_ACTIVE, "p-approver")
    site, value = (await world.told("device"))[bench.device_id]
    assert (site, pb.Device.FromString(value)) == ("site-1", active)


async def test_the_voucher_goes_to_the_log_in_the_devices_transaction(world: World, bench: Bench) -> None:
    begun = await world.begun(bench)
    assert not await world.spooled()
    await world.enroller().call("CompleteEnrolment", complete_request(bench, begun))
    (item,) = await world.spooled()
    assert item.statement == bench.voucher
    assert list(item.subjects) == [f"device/{bench.device_id}", "person/p-enroller"]
    assert (item.organization_id, item.site_id) == ("hospital", "site-1")


def foreign_voucher(world: World, bench: Bench) -> bytes:
    stranger = TestPki(world.folder / "elsewhere").manufacturer("stranger")
    return bench.vouched(stranger).data


def tampered(_world: World, bench: Bench) -> bytes:
    forged = bytearray(bench.voucher)
    at = bench.voucher.rindex(read(bench.voucher, bodies.Voucher).sign1.signature)
    forged[at + 10] ^= 1
    return bytes(forged)


def another_kind(world: World, bench: Bench) -> bytes:
    hold = bodies.Hold(device=bench.device_id, action=bodies.HoldAction.PLACE, reason="x")
    return world.enroller().scribe(world.clock).sign(hold, subject="device/x").data


def from_the_future(world: World, bench: Bench) -> bytes:
    return bench.vouched(world.maker, clock=ManualClock(world.clock.now() + 120_000)).data


def of_no_model(world: World, bench: Bench) -> bytes:
    return bench.vouched(world.maker, model="a model").data


@pytest.mark.holds("impostor")
@pytest.mark.parametrize("spoil", [foreign_voucher, tampered, another_kind, from_the_future, of_no_model])
async def test_a_voucher_that_is_not_the_manufacturers_is_refused(
    world: World, bench: Bench, spoil: Any
) -> None:
    request = start_request(bench, voucher=spoil(world, bench))
    assert await world.enroller().reason("StartEnrolment", request) is Reason.VOUCHER_INVALID


@pytest.mark.holds("impostor")
@pytest.mark.parametrize("voucher", [b"\x00", b"\xff" * 100, b"{}"])
async def test_a_malformed_voucher_is_refused(world: World, bench: Bench, voucher: bytes) -> None:
    request = start_request(bench, voucher=voucher)
    assert await world.enroller().reason("StartEnrolment", request) is Reason.VOUCHER_INVALID


async def test_a_wrong_check_digit_is_refused(world: World, bench: Bench) -> None:
    voucher = bench.vouched(world.maker, udi="(01)09504000059119(21)SN-1").data
    request = start_request(bench, voucher=voucher)
    assert await world.enroller().reason("StartEnrolment", request) is Reason.UDI_INVALID


async def test_the_site_is_the_enrollers_and_the_organization_the_sites(world: World, bench: Bench) -> None:
    enroller = world.enroller()
    elsewhere = await enroller.refusal("StartEnrolment", start_request(bench, site="site-2"))
    nowhere = await enroller.refusal("StartEnrolment", start_request(bench, site="site-9"))
    assert elsewhere.reason is Reason.NOT_IN_SCOPE
    assert elsewhere.refusals == nowhere.refusals
    wrong = start_request(bench, organization="clinic")
    assert await enroller.reason("StartEnrolment", wrong) is Reason.FIELD_INVALID
    tagged = start_request(bench, tag="x" * 65)
    assert await enroller.reason("StartEnrolment", tagged) is Reason.FIELD_INVALID


@pytest.mark.holds("cloned-device")
async def test_what_is_enrolled_is_not_enrolled_again(world: World) -> None:
    first = await world.enrolled("SN-1")
    same_udi = Bench(world.maker, "SN-1")
    refusal = await world.enroller().refusal("StartEnrolment", start_request(same_udi))
    assert refusal.reason is Reason.DEVICE_ALREADY_ENROLLED
    assert first.device_id in refusal.refusals[0].sentence
    same_key = Bench(world.maker, "SN-2", identity_key=first.identity_key)
    assert await world.enroller().reason("StartEnrolment", start_request(same_key)) is (
        Reason.KEY_ALREADY_ENROLLED
    )
    elsewhere = world.person("p-other", "enroller", organization="clinic", sites=("clinic-1",))
    request = start_request(same_udi, site="clinic-1", organization="clinic")
    refusal = await elsewhere.refusal("StartEnrolment", request)
    assert refusal.reason is Reason.DEVICE_ALREADY_ENROLLED
    assert first.device_id not in str(refusal.refusals[0])


Spoil = dict[str, Any]


@pytest.mark.holds("impostor")
@pytest.mark.parametrize(
    "spoil",
    [
        {"signature": b"\x01" * 64},
        {"signature": b""},
        {"nonce": b"\x00" * 32},
        {"signing": new_private_key()},
        {"identity_public_key": b"\x04" + b"\x01" * 64},
        {"identity_public_key": b""},
        {"tls_csr_pem": csr()},
        {"attestation_csr_pem": csr()},
    ],
    ids="-".join,
)
async def test_possession_that_is_not_proved_uses_the_nonce_up(
    world: World, bench: Bench, spoil: Spoil
) -> None:
    begun = await world.begun(bench)
    nonce = begun.nonce
    request = pb.CompleteEnrolmentRequest(
        enrolment_id=begun.enrolment_id, possession=bench.possession(nonce, **spoil)
    )
    assert await world.enroller().reason("CompleteEnrolment", request) is Reason.POSSESSION_NOT_PROVED
    assert await world.enroller().reason("CompleteEnrolment", complete_request(bench, begun)) is (
        Reason.NONCE_USED
    )
    assert not await world.told("device")
    assert not await world.spooled()


@pytest.mark.holds("impostor")
async def test_a_request_whose_key_was_not_proved_is_refused(world: World, bench: Bench) -> None:
    begun = await world.begun(bench)
    request = x509.load_pem_x509_csr(csr().encode())
    forged = bytearray(request.public_bytes(Encoding.DER))
    forged[-5] ^= 1
    pem = x509.load_der_x509_csr(bytes(forged)).public_bytes(Encoding.PEM).decode()
    assert await world.enroller().reason("CompleteEnrolment", complete_request(bench, begun, tls=pem)) is (
        Reason.POSSESSION_NOT_PROVED
    )


@pytest.mark.holds("cloned-device")
async def test_the_three_keys_are_three(world: World, bench: Bench) -> None:
    begun = await world.begun(bench)
    same = csr()
    request = complete_request(bench, begun, tls=same, attestation=same)
    assert await world.enroller().reason("CompleteEnrolment", request) is Reason.FIELD_INVALID


@pytest.mark.holds("cloned-device")
async def test_two_devices_have_two_attestation_keys(world: World) -> None:
    first = await world.enrolled("SN-1")
    second = Bench(world.maker, "SN-2")
    second.attestation_key = first.attestation_key
    begun = await world.begun(second)
    assert await world.enroller().reason("CompleteEnrolment", complete_request(second, begun)) is (
        Reason.KEY_ALREADY_ENROLLED
    )


@pytest.mark.holds("impostor")
async def test_a_nonce_lives_ten_minutes(world: World, bench: Bench) -> None:
    begun = await world.begun(bench)
    world.clock.ahead = domain.ENROLMENT_LIFE
    assert await world.enroller().reason("CompleteEnrolment", complete_request(bench, begun)) is (
        Reason.NONCE_EXPIRED
    )
    await world.service.sweep()
    refusal = await world.enroller().reason("CompleteEnrolment", complete_request(bench, begun))
    assert refusal is Reason.NOT_IN_SCOPE


@pytest.mark.holds("cloned-device")
async def test_the_same_proof_again_has_the_same_answer(world: World, bench: Bench) -> None:
    begun = await world.begun(bench)
    request = complete_request(bench, begun)
    first = await world.enroller().call("CompleteEnrolment", request)
    world.clock.ahead = domain.ENROLMENT_LIFE
    await world.service.sweep()
    assert await world.enroller().call("CompleteEnrolment", request) == first
    assert len(await world.spooled()) == 1
    other = complete_request(bench, begun)  # ECDSA signs differently each time
    assert await world.enroller().reason("CompleteEnrolment", other) is Reason.NONCE_USED


@pytest.mark.holds("impostor")
async def test_whoever_began_ends_it(world: World, bench: Bench) -> None:
    begun = await world.begun(bench)
    colleague = world.person("p-colleague", "enroller")
    assert await colleague.reason("CompleteEnrolment", complete_request(bench, begun)) is Reason.NOT_IN_SCOPE


@pytest.mark.holds("impostor")
async def test_of_two_that_race_for_one_udi_one_wins(world: World) -> None:
    benches = [Bench(world.maker, "SN-1") for _ in range(4)]
    begun = [await world.begun(bench) for bench in benches]
    requests = [complete_request(*pair) for pair in zip(benches, begun, strict=True)]
    outcomes = await asyncio.gather(
        *(world.enroller().call("CompleteEnrolment", request) for request in requests),
        return_exceptions=True,
    )
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    lost = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert (len(won), len(lost)) == (1, 3)
    assert {refusal.reason for refusal in lost} == {Reason.DEVICE_ALREADY_ENROLLED}
    assert list(await world.told("device")) == [won[0].device.device_id]
    assert len(await world.spooled()) == 1


@pytest.mark.holds("cloned-device")
async def test_of_two_that_race_with_one_nonce_one_wins(world: World, bench: Bench) -> None:
    begun = await world.begun(bench)
    outcomes = await asyncio.gather(
        *(world.enroller().call("CompleteEnrolment", complete_request(bench, begun)) for _ in range(3)),
        return_exceptions=True,
    )
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
    assert {one.reason for one in outcomes if isinstance(one, Refused)} == {Reason.NONCE_USED}


@pytest.mark.holds("impostor")
async def test_the_enroller_does_not_activate(world: World) -> None:
    both = world.person("p-enroller", "enroller", "approver")
    bench = await world.enrolled("SN-1")
    request = pb.ActivateDeviceRequest(device_id=bench.device_id)
    assert await both.reason("ActivateDevice", request) is Reason.SECOND_PERSON_REQUIRED
    await world.approver().call("ActivateDevice", request)
    assert await world.approver().reason("ActivateDevice", request) is Reason.STATE_CONFLICT
