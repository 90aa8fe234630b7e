"""The registry's rules by themselves."""

import base64
import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil.core.certificates import Identity, Kind
from vigil.core.keys import new_private_key
from vigil.errors import Reason, Refused
from vigil.identity import domain
from vigil.identity.domain import Device, DeviceState, Hold
from vigil.rpc.paging import MAX_PAGE, after_of, page_size, token_after

DEVICE = Device(
    device_id="dev-aaaaaaaaaaaaaaaa",
    udi="(01)09504000059118(21)SN-1",
    udi_issuer="GS1",
    udi_di="09504000059118",
    serial="SN-1",
    asset_tag="",
    model="aria-3000",
    organization_id="hospital",
    site_id="site-1",
    observed_gateway_id="",
    state=DeviceState.ACTIVE,
    resumes=DeviceState.PENDING,
    holds=0,
    identity_key=bytes(32),
    attestation_key=bytes(32),
    attestation_certificate=bytes(32),
    attestation_chain=(),
    enrolled_by="p-a",
    activated_by="p-b",
    quarantine_log=0,
    lift_log=0,
    renewed_at=0,
    create_time=0,
    update_time=0,
)


def test_a_device_is_named_after_its_key() -> None:
    key = bytes(range(32))
    expected = base64.b32encode(hashlib.sha256(key).digest()[:10]).decode().lower()
    assert domain.device_id(key) == f"dev-{expected}"
    assert len(domain.device_id(key)) == 20


def test_the_message_of_possession_is_the_contracts() -> None:
    tls, attestation = "TLS", "ATTESTATION"
    expected = (
        b"vigil device possession v1\x01\x02"
        + hashlib.sha256(b"TLS").digest()
        + hashlib.sha256(b"ATTESTATION").digest()
    )
    assert domain.possession_message(b"\x01\x02", tls, attestation) == expected
    assert domain.possession_message(b"\x01\x02", attestation, tls) != expected


@given(at=st.integers(0, 2**63 - 1))
@settings(max_examples=50)
def test_a_renewals_nonce_carries_its_time(at: int) -> None:
    nonce = domain.renewal_nonce(DEVICE.device_id, at)
    if at == 0:
        with pytest.raises(Refused) as caught:
            domain.check_renewal_nonce(nonce, DEVICE, now=at)
        assert caught.value.reason is Reason.NONCE_USED
    else:
        assert domain.check_renewal_nonce(nonce, DEVICE, now=at) == at
        assert domain.check_renewal_nonce(nonce, DEVICE, now=at + domain.RENEWAL_FRESHNESS) == at
        with pytest.raises(Refused) as caught:
            domain.check_renewal_nonce(nonce, DEVICE, now=at + domain.RENEWAL_FRESHNESS + 1)
        assert caught.value.reason is Reason.NONCE_EXPIRED


@given(nonce=st.binary(max_size=64))
@settings(max_examples=100)
def test_any_other_nonce_is_unknown(nonce: bytes) -> None:
    with pytest.raises(Refused) as caught:
        domain.check_renewal_nonce(nonce, DEVICE, now=1_000)
    assert caught.value.reason is Reason.NONCE_UNKNOWN


@pytest.mark.parametrize("state", list(DeviceState))
def test_quarantine_leads_back_to_where_it_came_from(state: DeviceState) -> None:
    entered = domain.quarantined(replace(DEVICE, state=state))
    if state in {DeviceState.QUARANTINED, DeviceState.BANNED, DeviceState.RETIRED}:
        assert entered is None
        return
    assert entered == (DeviceState.QUARANTINED, state)
    left = domain.released(replace(DEVICE, state=entered[0], resumes=entered[1]))
    assert left is not None
    assert left[0] is state
    assert domain.released(replace(DEVICE, state=state)) is None


@pytest.mark.parametrize(
    ("expires", "lifted_at", "now", "counted"),
    [(0, 0, 10, 1), (11, 0, 10, 1), (10, 0, 10, 0), (0, 5, 10, 0), (11, 5, 10, 0)],
)
def test_a_hold_counts_while_it_is_in_force(expires: int, lifted_at: int, now: int, counted: int) -> None:
    hold = Hold(
        digest=b"",
        device_id=DEVICE.device_id,
        placed_by="p-a",
        issued_at=0,
        expires=expires,
        lifted_at=lifted_at,
        log_size=0,
    )
    assert domain.count_holds([hold, hold], now=now) == 2 * counted


@given(key=st.text(min_size=1, max_size=63), asked=st.lists(st.text(max_size=10), max_size=3))
@settings(max_examples=100)
def test_a_token_carries_the_last_key_of_its_own_list(key: str, asked: list[str]) -> None:
    token = token_after(key, *asked)
    assert after_of(token, *asked) == key
    with pytest.raises(Refused):
        after_of(token, *asked, "more")


@given(token=st.text(min_size=1, max_size=100))
@settings(max_examples=100)
def test_a_token_that_nobody_wrote_is_refused(token: str) -> None:
    with pytest.raises(Refused) as caught:
        after_of(token, "List")
    assert caught.value.reason is Reason.FIELD_INVALID


def test_no_page_comes_after_the_last() -> None:
    assert token_after("", "List") == ""
    assert after_of("", "List") == ""


def test_a_page_is_bounded() -> None:
    assert (page_size(0), page_size(7), page_size(10**6)) == (100, 7, MAX_PAGE)


def test_empty_scope_covers_nothing() -> None:
    assert not domain.covers_sites(_caller(sites=()), "hospital", ("site-1",))
    assert not domain.covers_sites(_caller(sites=("site-1",)), "hospital", ("*",))
    assert domain.covers_sites(_caller(sites=("*",)), "hospital", ("*",))
    assert not domain.covers_sites(_caller(sites=("*",)), "clinic", ("clinic-1",))


def _caller(*, sites: tuple[str, ...]) -> Identity:
    return Identity(
        kind=Kind.PERSON,
        id="p-a",
        organization="hospital",
        sites=sites,
        roles=("admin",),
        statements=(),
        thumbprint=b"",
        key_thumbprint=b"",
        not_before=0,
        not_after=0,
        operational_until=0,
        authenticated="",
        public_key=new_private_key().public_key(),
        spiffe_id="",
    )
