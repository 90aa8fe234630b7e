"""A contract without a usable admission rule never starts."""

import pytest

from tests.unit.rpc.probe import METHODS, SERVICE, Rule, add_contract
from vigil.rpc.access import VERIFIED_CALLER_METHODS, ContractError, access_of
from vigil.rpc.builtin import Health, health_handlers, reflection_handlers


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([], "does not say who may call it"),
        ([("unspecified", "none", (), "")], "no kind"),
        ([("person", "unspecified", (), "")], "no scope rule"),
        ([("person", "none", (), ""), ("gateway", "caller", (), "")], "names no field"),
        ([("person", "site", (), "place_id")], "does not have"),
        ([("person", "site", (), "owner")], "not a text"),
        ([("person", "site", (), "count")], "not a text"),
        ([("person", "site", (), "site_id.more")], "does not have"),
    ],
)
def test_what_stops_a_start(rules: list[Rule], words: str) -> None:
    pool = add_contract("vigil.refused.v1", {"Ask": (False, False, rules)})
    with pytest.raises(ContractError, match=words):
        access_of("vigil.refused.v1.ProbeService", pool=pool)


def test_a_service_nobody_knows_stops_a_start() -> None:
    with pytest.raises(ContractError, match="no contract"):
        access_of("vigil.absent.v1.AbsentService")


def test_every_method_has_its_rule() -> None:
    assert set(access_of(SERVICE)) == {f"/{SERVICE}/{name}" for name in METHODS}


def test_the_fixed_table_is_health_and_reflection_and_nothing_else() -> None:
    handlers = {**health_handlers(Health()), **reflection_handlers(())}
    served = {f"/{service}/{method}" for service, methods in handlers.items() for method in methods}
    assert served <= VERIFIED_CALLER_METHODS
    assert {method.split("/")[1] for method in VERIFIED_CALLER_METHODS} == set(handlers)
    assert len(VERIFIED_CALLER_METHODS) == 5
