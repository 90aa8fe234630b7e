"""A simulated infusion pump: what stands at the bedside, and is not Vigil's.

Physical inputs come from the hands of a nurse or a simulator. Nothing that the management plane does starts, stops or
changes a therapy, except `set_rate` where the manufacturer's profile enables class T and somebody confirmed it here.
Whether a patient is connected follows from the infusion (profile: ``infusion-state``): connected from any start until
a bedside release, unknown after the power came on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vigil.core.clock import Clock
from vigil.core.statements.bodies import PatientState, TherapyState
from vigil.errors import Reason, refused

CONFIRMATION_S: Final = 60.0
"""How long a press of the confirm key counts."""
MAX_RATE_TENTHS: Final = 12_000
"""1,200 mL/h, the top of common volumetric pumps; in tenths of mL/h."""
SELF_TEST_FAILS: Final = b"VIGIL-SELF-TEST-FAILS"
"""A simulated build that carries these bytes fails its self-test."""
OCCLUSION_MMHG: Final = 517
"""10 psi, a usual occlusion limit."""
_RUNNING_MMHG = 42


@dataclass(frozen=True, slots=True)
class Reading:
    """One moment of the pump; values as text, the unit in the name."""

    values: dict[str, str]


class SimulatedPump:
    """Idle, delivering or alarm. ``on_change`` is called after each change of therapy or patient state."""

    def __init__(self, *, clock: Clock, on_change: Callable[[], None] | None = None) -> None:
        """The power has just come on: nothing is delivered, and nobody knows about the patient."""
        self._clock = clock
        self.on_change: Callable[[], None] = on_change or _nothing
        self._state = TherapyState.IDLE
        self._patient = PatientState.UNKNOWN
        self._rate = 0  # tenths of mL/h
        self._infused = 0.0  # mL, up to `_since`
        self._since = clock.monotonic()
        self._confirmed: float | None = None
        self.on_mains = True
        self.battery_percent = 100
        self.alarm = ""

    @property
    def therapy(self) -> TherapyState:
        """Idle, delivering or alarm."""
        return self._state

    @property
    def patient(self) -> PatientState:
        """Connected, disconnected or unknown."""
        return self._patient

    @property
    def rate_tenths(self) -> int:
        """What is being delivered, in tenths of mL/h."""
        return self._rate if self._state is TherapyState.DELIVERING else 0

    @property
    def bedside_confirmed(self) -> bool:
        """Somebody pressed the confirm key within the last minute."""
        return self._confirmed is not None and self._clock.monotonic() - self._confirmed <= CONFIRMATION_S

    def start_therapy(self, rate_tenths: int = 1_000) -> None:
        """A nurse starts an infusion; this cancels any bedside release. Raises FIELD_INVALID, STATE_CONFLICT."""
        _check_rate(rate_tenths)
        if self._state is TherapyState.ALARM:
            raise refused(
                Reason.STATE_CONFLICT, "the alarm must be cleared first", who="somebody at the bedside"
            )
        self._account()
        self._rate = rate_tenths
        self._state = TherapyState.DELIVERING
        self._patient = PatientState.CONNECTED
        self.on_change()

    def stop_therapy(self) -> None:
        """A nurse stops the infusion; the patient stays connected until a bedside release."""
        if self._state is TherapyState.DELIVERING:
            self._account()
            self._state = TherapyState.IDLE
            self.on_change()

    def occlusion(self) -> None:
        """The line is blocked: delivery stops with an alarm. Raises STATE_CONFLICT when nothing is delivered."""
        if self._state is not TherapyState.DELIVERING:
            raise refused(Reason.STATE_CONFLICT, "nothing is being delivered")
        self._account()
        self._state = TherapyState.ALARM
        self.alarm = "occlusion"
        self.on_change()

    def clear_alarm(self) -> None:
        """A nurse clears the alarm; delivery must be started anew."""
        if self._state is TherapyState.ALARM:
            self._account()
            self._state = TherapyState.IDLE
            self.alarm = ""
            self.on_change()

    def bedside_release(self) -> None:
        """Somebody at the bedside says that no patient is connected. Raises STATE_CONFLICT during a therapy."""
        if self._state is not TherapyState.IDLE:
            raise refused(
                Reason.STATE_CONFLICT,
                f"a pump that is {self._state} cannot be released",
                lifted_by="stopping the therapy",
                who="somebody at the bedside",
            )
        self._patient = PatientState.DISCONNECTED
        self.on_change()

    def confirm(self) -> None:
        """Somebody at the bedside presses confirm."""
        self._confirmed = self._clock.monotonic()

    def set_rate(self, rate_tenths: int) -> None:
        """Change a running infusion's rate; uses the confirmation up. Raises what stands against it."""
        _check_rate(rate_tenths)
        if not self.bedside_confirmed:
            raise refused(Reason.BEDSIDE_CONFIRMATION_MISSING, "nobody has confirmed this at the pump")
        self._confirmed = None
        if self._state is not TherapyState.DELIVERING:
            raise refused(Reason.STATE_CONFLICT, "nothing is being delivered")
        self._account()
        self._rate = rate_tenths
        self.on_change()

    def readings(self) -> Reading:
        """What the sensors say now."""
        self._account()
        pressure = {TherapyState.DELIVERING: _RUNNING_MMHG, TherapyState.ALARM: OCCLUSION_MMHG}
        values = {
            "battery_percent": str(self.battery_percent),
            "mains": "yes" if self.on_mains else "no",
            "pressure_mmhg": str(pressure.get(self._state, 0)),
            "rate_ml_per_h": _tenths(self.rate_tenths),
            "volume_infused_ml": f"{self._infused:.1f}",
        }
        if self.alarm:
            values["alarm"] = self.alarm
        return Reading(values)

    def _account(self) -> None:
        now = self._clock.monotonic()
        if self._state is TherapyState.DELIVERING:
            self._infused += self._rate / 10 * (now - self._since) / 3600
        self._since = now


def self_test(image: bytes) -> bool:
    """What a build does after its first start, before it is kept."""
    return SELF_TEST_FAILS not in image


def _tenths(value: int) -> str:
    return f"{value // 10}.{value % 10}"


def _check_rate(rate_tenths: int) -> None:
    if not 0 < rate_tenths <= MAX_RATE_TENTHS:
        raise refused(
            Reason.FIELD_INVALID,
            f"a rate lies above 0 and at {_tenths(MAX_RATE_TENTHS)} mL/h at most",
            field="rate",
        )


def _nothing() -> None:
    pass
