"""A pump at the enrolment station, and a device as registry, attestation and gateway see it."""

import json
from pathlib import Path
from typing import Any

from vigil.api.attestation.v1 import attestation_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.identity.v1 import identity_pb2 as pb
from vigil.cli.messages import plain
from vigil.cli.places import gateway_of
from vigil.cli.pumps import VOUCHER_FILE, install, open_pump, possession_to
from vigil.cli.session import Session
from vigil.core.certificates import Kind, replace_file
from vigil.core.statements.bodies import Result
from vigil.core.statements.envelope import check, read
from vigil.device import enrol
from vigil.errors import Refused

LINK_FILE = "link.json"
"""Where a pump's folder names the gateway that it dials."""


async def enrol_pump(
    session: Session, folder: Path, *, site_id: str, voucher: Path | None, asset_tag: str
) -> dict[str, Any]:
    """Present the voucher, let the pump prove its key, bring it its certificates and its gateway's address."""
    site = await session.call("identity", session.registry.GetSite, pb.GetSiteRequest(site_id=site_id))
    request = pb.StartEnrolmentRequest(
        voucher=(voucher or folder / VOUCHER_FILE).read_bytes(),
        organization_id=site.organization_id,
        site_id=site_id,
        asset_tag=asset_tag,
    )
    hardware = open_pump(folder)
    try:
        begun = await session.call("identity", session.enrolment.StartEnrolment, request)
        proof = possession_to(enrol.possession(hardware, begun.nonce))
        made = await session.call(
            "identity",
            session.enrolment.CompleteEnrolment,
            pb.CompleteEnrolmentRequest(enrolment_id=begun.enrolment_id, possession=proof),
        )
        install(hardware, made.certificates)
    finally:
        hardware.power_off()
    gateways = await session.every(
        "identity", session.registry.ListGateways, pb.ListGatewaysRequest(site_id=site_id), "gateways"
    )
    dialled = ""
    if gateways:
        dialled = gateways[0].gateway_id
        link = {"address": gateways[0].address, "gateway_id": dialled}
        replace_file(folder / LINK_FILE, (json.dumps(link) + "\n").encode())
    return {**plain(made.device), "dials": dialled, "folder": str(folder)}


async def list_devices(
    session: Session, *, site: str, state: str, model: str, limit: int
) -> list[dict[str, Any]]:
    """Devices as JSON, joined with their newest attestation; without it when attestation does not answer."""
    wanted = pb.DeviceState.Value(f"DEVICE_STATE_{state.upper()}") if state else pb.DEVICE_STATE_UNSPECIFIED
    request = pb.ListDevicesRequest(site_id=site, state=wanted, model=model)
    found = await session.every("identity", session.devices.ListDevices, request, "devices", limit=limit)
    trust: dict[str, attestation_pb2.DeviceTrust] = {}
    try:
        asked = attestation_pb2.ListResultsRequest(site_id=site)
        results = await session.every("attestation", session.attestation.ListResults, asked, "results")
        trust = {one.device_id: one for one in results}
    except Refused as error:
        session.output.say(f"without attestation: {error.refusals[0].sentence}")
    now = session.clock.now()
    return [{**plain(one), **_trust_value(trust.get(one.device_id), now)} for one in found]


async def device_view(session: Session, name: str, gateway: str) -> dict[str, Any]:
    """Everything known of one device, as JSON."""
    found = await session.call("identity", session.devices.GetDevice, pb.GetDeviceRequest(device_id=name))
    return {
        **plain(found),
        "attestation": await _attestation(session, found.device_id),
        "live": await _live(session, found.device_id, gateway),
    }


async def _attestation(session: Session, device_id: str) -> dict[str, Any] | None:
    request = attestation_pb2.GetResultRequest(device_id=device_id)
    try:
        found = await session.call("attestation", session.attestation.GetResult, request)
    except Refused as error:
        session.output.say(f"attestation: {error.refusals[0].sentence}")
        return None
    value = {**plain(found), "stale": found.stale_time_ms <= session.clock.now(), "verified": False}
    if found.result:
        try:
            statement = read(found.result, Result)
            signer = session.verifier.verify(
                statement.chain, at=statement.body.appraised_at, kinds=frozenset({Kind.SIGNER}), grace=True
            )
            check(statement, signer)
        except Refused as error:
            session.output.say(f"attestation: NOT VERIFIED: {error.refusals[0].sentence}")
            return value
        same = statement.body.device == device_id and str(statement.body.status) == found.status
        value["verified"] = same
    return value


async def _live(session: Session, device_id: str, gateway: str) -> dict[str, Any] | None:
    try:
        end, seen = await gateway_of(session, device_id, gateway)
    except Refused as error:
        session.output.say(f"gateway: {error.refusals[0].sentence}")
        return None
    return live_value(seen, end.gateway_id)


def live_value(seen: gateway_pb2.ConnectedDevice, gateway_id: str) -> dict[str, Any]:
    """A device as its gateway sees it: unsigned."""
    return {**plain(seen), "gateway_id": gateway_id}


def _trust_value(found: attestation_pb2.DeviceTrust | None, now: int) -> dict[str, Any]:
    if found is None:
        return {"trust": "unknown", "software_version": ""}
    stale = found.stale_time_ms <= now
    return {
        "trust": f"{found.status} (stale)" if stale else found.status,
        "software_version": found.software_version,
    }
