"""Profiles: who signs them, what they must hold to, and that their version only rises."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.support.statements import SET_PRESSURE
from tests.unit.release.support import World, pump
from vigil.core.statements.bodies import ActionClass, ActionSpec, Effect, Profile, TherapyState
from vigil.errors import Reason, Refused


async def refused_with(reason: Reason, awaitable: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await awaitable
    assert caught.value.reason is reason, caught.value
    return caught.value


def feed(connection: Connection) -> list[tuple[str, str, str]]:
    return [tuple(row) for row in connection.execute(text("SELECT kind, key, scope_site FROM feed_outbox"))]


@pytest.mark.holds("stolen-signers")
async def test_a_profile_is_published_told_and_recorded(world: World) -> None:
    data = world.profile()
    model = await world.service.publish_model(world.publisher, data)
    assert (model.model, model.version, model.organization_id) == ("aria-3000", 1, "maker")
    assert await world.database.read(feed) == [("model", "aria-3000", "")]
    assert world.spool.items == [(data, ("model/aria-3000",), "maker", "")]
    assert await world.service.get_model("aria-3000") == model
    assert await world.service.list_models(size=0, token="") == ([model], "")


async def test_the_same_bytes_again_answer_the_same_and_change_nothing(world: World) -> None:
    data = world.profile()
    first = await world.service.publish_model(world.publisher, data)
    world.clock.advance(5)  # type: ignore[attr-defined]
    assert await world.service.publish_model(world.publisher, data) == first
    assert len(world.spool.items) == 1
    assert len(await world.database.read(feed)) == 1


@pytest.mark.holds("rollback-and-mix")
async def test_the_version_only_rises(world: World) -> None:
    await world.service.publish_model(world.publisher, world.profile(3))
    for version in (2, 3):
        error = await refused_with(
            Reason.STATE_CONFLICT,
            world.service.publish_model(world.publisher, world.profile(version, attestation_lifetime_s=300)),
        )
        assert error.refusals[0].values["version"] == "3"
    assert (await world.service.publish_model(world.publisher, world.profile(4))).version == 4
    assert (await world.service.get_model("aria-3000")).version == 4


@pytest.mark.holds("stolen-signers")
async def test_only_the_manufacturers_profile_signer_signs(world: World) -> None:
    for signer in (world.maker.credential("release"), world.nurse):
        with pytest.raises(Refused) as caught:
            await world.service.publish_model(world.publisher, world.profile(signer=signer))
        assert caught.value.reason in (Reason.SIGNATURE_INVALID, Reason.CERTIFICATE_INVALID)
    data = bytearray(world.profile())
    data[-1] ^= 1
    await refused_with(Reason.SIGNATURE_INVALID, world.service.publish_model(world.publisher, bytes(data)))
    await refused_with(Reason.STATEMENT_MALFORMED, world.service.publish_model(world.publisher, b"\x00"))
    await refused_with(
        Reason.STATEMENT_MALFORMED, world.service.publish_model(world.publisher, world.release())
    )
    assert world.spool.items == []


async def test_a_person_publishes_for_its_own_organization_alone(world: World) -> None:
    stranger = world.pki.person("p-other", "publisher", organization="hospital").identity
    await refused_with(Reason.NOT_IN_SCOPE, world.service.publish_model(stranger, world.profile()))


@pytest.mark.holds("stolen-signers")
async def test_a_revoked_signer_counts_no_more(world: World) -> None:
    world.revoked[world.maker.credential("profile").identity.thumbprint] = Reason.SIGNER_REVOKED
    await refused_with(Reason.SIGNER_REVOKED, world.service.publish_model(world.publisher, world.profile()))


async def test_a_statement_stands_in_its_own_models_history(world: World) -> None:
    data = world.sign(world.maker.credential("profile"), pump(), "model/other")
    await refused_with(Reason.STATEMENT_MALFORMED, world.service.publish_model(world.publisher, data))


def clear(**values: Any) -> ActionSpec:
    action = ActionSpec("reset", ActionClass.D, Effect.CLEAR, (), 2, (TherapyState.IDLE,))
    return replace(action, **values)


@pytest.mark.parametrize(
    "actions",
    [
        (),
        (SET_PRESSURE, SET_PRESSURE),
        (replace(SET_PRESSURE, action_class=ActionClass.R),),
        (replace(SET_PRESSURE, states=()),),
        (replace(SET_PRESSURE, parameters=()),),
        (replace(SET_PRESSURE, recovery=True),),
        (replace(SET_PRESSURE, therapy_enabled=True),),
        (replace(SET_PRESSURE, parameters=(replace(SET_PRESSURE.parameters[0], minimum=601),)),),
        (replace(SET_PRESSURE, parameters=(replace(SET_PRESSURE.parameters[0], maximum=None),)),),
        (replace(SET_PRESSURE, parameters=SET_PRESSURE.parameters * 2),),
        (clear(approvals=1),),
        (clear(states=(TherapyState.DELIVERING,)),),
        (clear(effect=Effect.QUARANTINE, action_class=ActionClass.S1, approvals=1),),
        (clear(effect=Effect.LIFT_HOLD, action_class=ActionClass.C, approvals=1),),
        (clear(effect=Effect.LIFT_HOLD, action_class=ActionClass.C, approvals=0, recovery=True),),
        (clear(effect=Effect.UPDATE, action_class=ActionClass.U, approvals=1),),
        (clear(effect=Effect.THERAPY, action_class=ActionClass.C),),
        (clear(name="Reset All"),),
    ],
)
async def test_a_profile_with_a_fault_is_refused(world: World, actions: tuple[ActionSpec, ...]) -> None:
    await refused_with(
        Reason.FIELD_INVALID, world.service.publish_model(world.publisher, world.profile(actions=actions))
    )
    assert world.spool.items == []


async def test_every_fault_is_named_at_once(world: World) -> None:
    actions = (clear(approvals=0), replace(SET_PRESSURE, action_class=ActionClass.S1))
    error = await refused_with(
        Reason.FIELD_INVALID, world.service.publish_model(world.publisher, world.profile(actions=actions))
    )
    assert {one.values["field"] for one in error.refusals} == {"reset", "set-occlusion-pressure"}


@pytest.mark.holds("stolen-signers")
async def test_another_manufacturer_cannot_take_a_models_name(world: World) -> None:
    body: Profile = pump()
    from vigil.release.domain import ModelRecord
    from vigil.release.store import put

    theirs = ModelRecord(
        model=body.model, version=1, organization_id="rival", profile=b"", digest=b"", create_time=0
    )
    await world.database.write(lambda connection: put(connection, theirs))
    await refused_with(Reason.NOT_IN_SCOPE, world.service.publish_model(world.publisher, world.profile(9)))


async def test_nobody_published_it(world: World) -> None:
    await refused_with(Reason.RESOURCE_NOT_FOUND, world.service.get_model("none"))


async def test_pages_follow_each_other(world: World) -> None:
    for number in range(5):
        await world.service.publish_model(world.publisher, world.profile(model=f"model-{number}"))
    seen, token = [], ""
    while True:
        rows, token = await world.service.list_models(size=2, token=token)
        seen += [row.model for row in rows]
        if not token:
            break
    assert seen == [f"model-{number}" for number in range(5)]
    for bad in ("AAAA", "!", "x" * 2000):
        await refused_with(Reason.FIELD_INVALID, world.service.list_models(size=2, token=bad))
    await refused_with(Reason.FIELD_INVALID, world.service.list_models(size=-1, token=""))
