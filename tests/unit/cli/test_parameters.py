import pytest

from vigil.cli.durations import milliseconds, seconds
from vigil.cli.options import UsageError
from vigil.cli.output import exit_code, printable
from vigil.cli.parameters import shown, split, typed
from vigil.core.statements import bodies as b
from vigil.errors import Reason, refused

ACTION = b.ActionSpec(
    name="set",
    action_class=b.ActionClass.C,
    effect=b.Effect.SET,
    parameters=(
        b.ParameterSpec(
            name="rate",
            type=b.ParameterType.INTEGER,
            required=True,
            unit="mL/h",
            scale=1,
            minimum=1,
            maximum=12000,
        ),
        b.ParameterSpec(name="firmware", type=b.ParameterType.DIGEST, required=False),
        b.ParameterSpec(name="mode", type=b.ParameterType.CHOICE, required=False, choices=("a", "b")),
    ),
    approvals=0,
    states=(b.TherapyState.IDLE,),
)
LOOKED_UP = bytes(range(32))


async def find(_action: b.ActionSpec, _spec: b.ParameterSpec, text: str) -> bytes:
    assert text == "aria@1.8.0"
    return LOOKED_UP


@pytest.mark.parametrize(
    ("text", "value"),
    [("12.5", 125), ("12", 120), ("0.1", 1), ("12.5 mL/h", 125), ("-1", -10), ("1200.0", 12000)],
)
async def test_numbers_are_scaled_as_the_profile_says(text: str, value: int) -> None:
    assert await typed(ACTION, {"rate": text}, find=find) == {"rate": value}


@pytest.mark.parametrize("text", ["12.55", "abc", "", "nan", "inf", "1e400", "99999999999999999999"])
async def test_what_is_no_such_number_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        await typed(ACTION, {"rate": text}, find=find)


@pytest.mark.parametrize("text", ["ab" * 32, "0x" + "ab" * 32, "sha256:" + "AB" * 32])
async def test_digests_are_read_or_looked_up(text: str) -> None:
    assert await typed(ACTION, {"firmware": text}, find=find) == {"firmware": b"\xab" * 32}
    assert await typed(ACTION, {"firmware": "aria@1.8.0"}, find=find) == {"firmware": LOOKED_UP}


async def test_an_unknown_name_goes_on_so_that_it_is_refused_on_the_record() -> None:
    assert await typed(ACTION, {"nope": "1", "mode": "c"}, find=find) == {"nope": "1", "mode": "c"}


def test_parameters_are_shown_with_their_units() -> None:
    assert shown(ACTION, {"rate": 125, "firmware": b"\x01" * 32}) == {
        "rate": "12.5 mL/h",
        "firmware": "01" * 32,
    }


@pytest.mark.parametrize("pairs", [["a"], ["=1"], ["a=1", "a=2"]])
def test_pairs_are_read_strictly(pairs: list[str]) -> None:
    with pytest.raises(UsageError):
        split(pairs)


def test_a_value_may_hold_an_equals_sign() -> None:
    assert split(["a=b=c", "d="]) == {"a": "b=c", "d": ""}


def test_durations() -> None:
    assert (seconds("90s"), seconds("10m"), seconds("8h"), milliseconds("2d")) == (
        90,
        600,
        28_800,
        172_800_000,
    )
    for text in ("", "10", "0m", "-1h", "1w", "1.5h"):
        with pytest.raises(UsageError):
            seconds(text)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.PATIENT_CONNECTED, 3),
        (Reason.NOT_IN_SCOPE, 3),
        (Reason.POLICY_UNAVAILABLE, 3),
        (Reason.OUTCOME_UNKNOWN, 4),
        (Reason.SERVICE_UNAVAILABLE, 1),
        (Reason.DEADLINE_EXCEEDED, 1),
        (Reason.INTERNAL, 1),
    ],
)
def test_exit_codes(reason: Reason, code: int) -> None:
    assert exit_code(refused(reason, "…")) == code


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    assert printable("a\x1b[31mb\u202ec\nd") == "a�[31mb�c�d"
