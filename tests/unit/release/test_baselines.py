"""Baselines: signed in person by somebody of the site, true to their bytes, inside the hard limits."""

from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.unit.release.support import DATA, FIRMWARE, SETTINGS, World
from tests.unit.release.test_models import refused_with
from vigil.core import cbor
from vigil.core.baselines import LIBRARY_FORMAT, baseline_from_json
from vigil.core.digest import sha256
from vigil.core.statements.bodies import BaselineKind
from vigil.errors import Reason

ENTRY = {"drug": "d", "care_area": "", "concentration": "", "unit": "mL/h", "scale": 0, "hard_max": 9}


def library(*entries: Any, **values: Any) -> bytes:
    return cbor.encode({"format": LIBRARY_FORMAT, "name": "l", "entries": list(entries), **values})


async def test_a_configuration_is_published_told_to_its_site_and_recorded(world: World) -> None:
    await world.with_model()
    baseline = await world.approve()
    content = cbor.encode(SETTINGS)
    assert (baseline.content, baseline.size, baseline.site_id) == (sha256(content), len(content), "site-1")
    assert world.artifacts.read(baseline.content, length=1000) == content
    assert world.spool.items[-1][1:] == (("site/site-1",), "hospital", "site-1")

    def rows(connection: Connection) -> Any:
        return connection.execute(
            text("SELECT key, scope_site FROM feed_outbox WHERE kind = 'baseline'")
        ).all()

    assert await world.database.read(rows) == [(f"{sha256(content).hex()}@site-1", "site-1")]


async def test_the_demonstrations_library_and_configuration_are_published(world: World) -> None:
    await world.with_model()
    for name, kind in (
        ("baseline-configuration", BaselineKind.CONFIGURATION),
        ("drug-library", BaselineKind.DRUG_LIBRARY),
    ):
        source = baseline_from_json((DATA / f"{name}.json").read_text())
        assert source.kind is kind
        baseline = await world.approve(
            source.content, baseline_kind=kind, name=source.name, models=source.models
        )
        assert baseline.kind == str(kind)


async def test_the_same_statement_again_answers_the_same(world: World) -> None:
    await world.with_model()
    data, content = world.baseline(), cbor.encode(SETTINGS)
    first = await world.service.publish_baseline(world.nurse.identity, data, content)
    assert await world.service.publish_baseline(world.nurse.identity, data, content) == first
    assert len(world.spool.items) == 2


async def test_several_are_valid_and_a_renewal_leaves_no_gap(world: World) -> None:
    await world.with_model()
    first = await world.approve()
    now = first.valid_from
    await world.approve(cbor.encode({"lock_keypad": False}), name="other")
    await refused_with(Reason.STATE_CONFLICT, world.approve(valid_from=now + 1000))
    renewed = await world.approve(valid_to=now + 10 * 86_400_000)
    rows, _ = await world.service.list_baselines(world.nurse.identity, site="", size=0, token="")
    assert {row.digest for row in rows} >= {first.digest, renewed.digest}
    assert len(rows) == 3


async def test_another_site_sees_nothing_of_it(world: World) -> None:
    await world.with_model()
    baseline = await world.approve()
    reader = world.pki.person("p-reader", "technician", sites=("site-2",)).identity
    assert (await world.service.list_baselines(reader, site="", size=0, token=""))[0] == []
    assert (await world.service.list_baselines(reader, site="site-1", size=0, token=""))[0] == []
    stranger = world.pki.person("p-stranger", "technician", organization="clinic", sites=("*",)).identity
    assert (await world.service.list_baselines(stranger, site="", size=0, token=""))[0] == []
    own, other = world.pki.gateway(), world.pki.gateway("gateway-2", sites=("site-2",))
    assert await world.service.may_fetch(own.identity, baseline.content)
    assert not await world.service.may_fetch(other.identity, baseline.content)


async def test_gateways_fetch_what_is_published(world: World) -> None:
    await world.with_model()
    digest = world.upload()
    gateway = world.pki.gateway().identity
    assert not await world.service.may_fetch(gateway, digest)
    build = await world.publish()
    assert await world.service.may_fetch(gateway, digest)
    assert not await world.service.may_fetch(gateway, build.sbom)
    assert sha256(FIRMWARE) == digest


async def test_it_is_signed_in_person_with_the_role_for_the_own_site(world: World) -> None:
    await world.with_model()
    other = world.pki.person("p-other", "baseline-signer")
    await refused_with(Reason.SIGNER_NOT_CALLER, world.approve(signer=other))
    unfit = world.pki.person("p-unfit", "technician")
    await refused_with(Reason.ROLE_NOT_PERMITTED, world.approve(signer=unfit, caller=unfit.identity))
    await refused_with(Reason.NOT_IN_SCOPE, world.approve(site="site-2"))
    await refused_with(Reason.NOT_IN_SCOPE, world.approve(organization="clinic"))
    await refused_with(Reason.FIELD_INVALID, world.approve(site="Site 1"))
    await refused_with(Reason.STATEMENT_MALFORMED, world.approve(subject="site/site-2"))
    signer = world.maker.credential("release")
    await refused_with(Reason.CERTIFICATE_INVALID, world.approve(signer=signer))
    world.revoked[world.nurse.identity.thumbprint] = Reason.CREDENTIAL_REVOKED
    await refused_with(Reason.CREDENTIAL_REVOKED, world.approve())


async def test_it_is_published_soon_after_it_was_signed(world: World) -> None:
    await world.with_model()
    data, content = world.baseline(), cbor.encode(SETTINGS)
    now = world.clock.now()
    from vigil.core.statements.bodies import Baseline
    from vigil.core.statements.envelope import read
    from vigil.errors import Refused
    from vigil.release.domain import check_signed_lately

    statement = read(data, Baseline)
    assert check_signed_lately(statement, now=now) == now // 1000 * 1000
    for late in (now + 90_000_000, now - 60_000):
        with pytest.raises(Refused):
            check_signed_lately(statement, now=late)
    await world.service.publish_baseline(world.nurse.identity, data, content)


@pytest.mark.holds("rollback-and-mix")
async def test_the_bytes_are_those_that_were_signed(world: World) -> None:
    await world.with_model()
    content = cbor.encode(SETTINGS)
    for sent in (b"", content + b"\x00", cbor.encode({**SETTINGS, "lock_keypad": False})):
        await refused_with(
            Reason.ARTIFACT_CORRUPT,
            world.service.publish_baseline(world.nurse.identity, world.baseline(content), sent),
        )
    await refused_with(Reason.ARTIFACT_CORRUPT, world.approve(content, size=1))


@pytest.mark.parametrize(
    "content",
    [
        b"\xa0",
        b"\x80",
        b"\xff",
        b"\xbf\xff",
        cbor.encode({1: 2}),
        cbor.encode({"a": None}),
        cbor.encode({"a": b"bytes"}),
        cbor.encode({"a": {"b": 1}}),
        cbor.encode({"a": "x" * 2000}),
        cbor.encode({"a" * 200: 1}),
        cbor.encode({f"s{n}": n for n in range(600)}),
    ],
)
async def test_a_configuration_is_a_map_of_settings(world: World, content: bytes) -> None:
    await world.with_model()
    await refused_with(Reason.FIELD_INVALID, world.approve(content))


@pytest.mark.parametrize(
    "content",
    [
        cbor.encode(SETTINGS),
        library(),
        library(ENTRY, ENTRY),
        library(ENTRY, format="other"),
        library(ENTRY, more=1),
        library({**ENTRY, "more": 1}),
        library({**ENTRY, "scale": 10}),
        library({**ENTRY, "soft_max": 10}),
        library({**ENTRY, "hard_max": -1}),
        library({**ENTRY, "hard_max": "9"}),
        library({name: value for name, value in ENTRY.items() if name != "hard_max"}),
        library({**ENTRY, "drug": ""}),
        library(1),
    ],
)
async def test_a_library_is_in_its_format(world: World, content: bytes) -> None:
    await world.with_model()
    await refused_with(Reason.FIELD_INVALID, world.approve(content, baseline_kind=BaselineKind.DRUG_LIBRARY))


async def test_it_holds_no_more_than_a_device_does(world: World) -> None:
    await world.with_model()
    await refused_with(Reason.REQUEST_TOO_LARGE, world.approve(bytes(70_000)))
    await refused_with(
        Reason.REQUEST_TOO_LARGE, world.approve(bytes(600_000), baseline_kind=BaselineKind.DRUG_LIBRARY)
    )


async def test_hard_limits_and_models_hold_for_a_baseline_too(world: World) -> None:
    await refused_with(Reason.RESOURCE_NOT_FOUND, world.approve())
    await world.with_model()
    error = await refused_with(
        Reason.PARAMETER_OUT_OF_RANGE, world.approve(cbor.encode({"occlusion_pressure": 526}))
    )
    assert error.refusals[0].values["maximum"] == "525 mm[Hg]"
    await refused_with(Reason.PARAMETER_INVALID, world.approve(cbor.encode({"occlusion_pressure": "high"})))
    await refused_with(Reason.FIELD_INVALID, world.approve(models=("aria-3000", "aria-3000")))


@pytest.mark.holds("rollback-and-mix")
async def test_its_validity_lies_ahead(world: World) -> None:
    await world.with_model()
    now = world.clock.now()
    for begin, end in ((now, now), (now + 1, now), (now - 10, now - 5)):
        await refused_with(Reason.FIELD_INVALID, world.approve(valid_from=begin, valid_to=end))
