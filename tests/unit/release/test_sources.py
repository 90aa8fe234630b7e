"""The files that people edit: profiles and baselines as JSON."""

import json
from typing import Any

import pytest

from tests.unit.release.support import DATA, pump
from vigil.core import cbor
from vigil.core.baselines import baseline_from_json, check_content, content_of_settings
from vigil.core.profiles import default_attestation_lifetime_s, profile_from_json, profile_to_json
from vigil.core.statements.bodies import RiskClass
from vigil.errors import Reason, Refused
from vigil.storage import assert_migrations_match

SOURCE = json.loads((DATA / "pump-profile.json").read_text())
BASELINE = {"name": "n", "models": ["m"], "settings": {"a": 1}}


def test_the_pumps_profile_reads_back() -> None:
    profile = pump()
    assert profile_from_json(profile_to_json(profile)) == profile
    rate = next(one for one in profile.actions if one.name == "set-rate").parameters[0]
    assert (rate.minimum, rate.maximum, rate.scale) == (1, 12_000, 1)


def test_the_higher_the_risk_the_shorter_the_lifetime() -> None:
    source = {name: value for name, value in SOURCE.items() if name != "attestation_lifetime_s"}
    assert profile_from_json(json.dumps(source)).attestation_lifetime_s == 600
    assert [default_attestation_lifetime_s(one) for one in RiskClass] == [3600, 1800, 600, 300]


def action(**values: Any) -> dict[str, Any]:
    return {**SOURCE, "actions": [{**SOURCE["actions"][0], **values}]}


def parameter(**values: Any) -> dict[str, Any]:
    return action(parameters=[{**SOURCE["actions"][0]["parameters"][0], **values}])


@pytest.mark.parametrize(
    "source",
    [
        [],
        {},
        {**SOURCE, "more": 1},
        {**SOURCE, "version": "1"},
        {**SOURCE, "version": True},
        {**SOURCE, "version": 0},
        {**SOURCE, "risk_class": "IV"},
        {**SOURCE, "therapy_lifetime_s": 10**9},
        {**SOURCE, "model": "x" * 200},
        {**SOURCE, "actions": [1]},
        action(states=["asleep"]),
        action(states="any"),
        action(approvals=99),
        parameter(minimum="50"),
        parameter(minimum=50.5),
        parameter(minimum=1e300),
        parameter(maximum=10**30),
        parameter(scale=99),
        parameter(minimum=True),
        parameter(choices=[1]),
        parameter(unit="x" * 99),
    ],
)
def test_a_source_with_a_fault_is_refused_with_a_sentence(source: Any) -> None:
    with pytest.raises(Refused) as caught:
        profile_from_json(json.dumps(source))
    assert caught.value.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize("text", ["", "{", '{"model": NaN}', "\ud800", '{"a":1,"a":2}', "[" * 9999])
def test_what_is_no_json_is_refused(text: str) -> None:
    for reader in (profile_from_json, baseline_from_json):
        with pytest.raises(Refused) as caught:
            reader(text)
        assert caught.value.reason is Reason.FIELD_INVALID


def test_settings_become_the_bytes_that_a_pump_measures() -> None:
    content = content_of_settings(json.dumps({**BASELINE, "settings": {"b": True, "a": 7, "c": "x"}}))
    assert content == cbor.encode({"a": 7, "b": True, "c": "x"})


def test_limits_of_a_library_are_scaled() -> None:
    source = baseline_from_json((DATA / "drug-library.json").read_text())
    entry = next(
        one
        for one in check_content(source.kind, source.content)["entries"]
        if one["drug"] == "Norepinephrine"
    )
    assert (entry["soft_min"], entry["soft_max"], entry["hard_max"]) == (1, 50, 200)


@pytest.mark.parametrize(
    "source",
    [
        {},
        {**BASELINE, "more": 1},
        {**BASELINE, "name": ""},
        {**BASELINE, "models": []},
        {**BASELINE, "entries": []},
        {**BASELINE, "kind": "drug-library"},
        {**BASELINE, "settings": []},
        {**BASELINE, "settings": {}},
        {**BASELINE, "settings": {"a": 1.5}},
        {**BASELINE, "settings": {"a": None}},
        {**BASELINE, "settings": {"a": 2**63}},
        {"name": "n", "models": ["m"], "entries": [{"drug": 1.5, "unit": "u", "hard_max": 1}]},
        {"name": "n", "models": ["m"], "entries": [{"drug": "d", "unit": "u", "hard_max": 1.5}]},
        {"name": "n", "models": ["m"], "entries": [{"drug": "d", "unit": "u", "scale": "1", "hard_max": 1}]},
        {"name": "n", "models": ["m"], "entries": [1]},
        {"name": "n", "models": ["m"], "entries": {}},
    ],
)
def test_a_baselines_file_with_a_fault_is_refused(source: Any) -> None:
    with pytest.raises(Refused) as caught:
        baseline_from_json(json.dumps(source))
    assert caught.value.reason is Reason.FIELD_INVALID


def test_migrations_make_the_tables_that_the_code_expects() -> None:
    from vigil.release.store import METADATA, MIGRATIONS

    assert_migrations_match(metadata=METADATA, migrations=MIGRATIONS)
