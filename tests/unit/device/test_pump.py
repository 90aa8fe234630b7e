"""The pump at the bedside, as a state machine under any sequence of hands."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vigil.core.clock import ManualClock
from vigil.core.statements.bodies import PatientState, TherapyState
from vigil.device.pump import CONFIRMATION_S, MAX_RATE_TENTHS, SimulatedPump
from vigil.errors import Reason, Refused


class PumpMachine(RuleBasedStateMachine):
    """A model of what a nurse knows, beside the pump."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.changes = 0
        self.pump = SimulatedPump(clock=self.clock, on_change=self.changed)
        self.released = False
        self.touched = False
        self.infused = 0.0

    def changed(self) -> None:
        self.changes += 1

    @rule(rate=st.integers(1, MAX_RATE_TENTHS))
    @precondition(lambda self: self.pump.therapy is not TherapyState.ALARM)
    def start(self, rate: int) -> None:
        self.pump.start_therapy(rate)
        self.released, self.touched = False, True
        assert self.pump.rate_tenths == rate

    @rule()
    def stop(self) -> None:
        self.pump.stop_therapy()
        assert self.pump.therapy is not TherapyState.DELIVERING

    @rule()
    def occlude(self) -> None:
        if self.pump.therapy is TherapyState.DELIVERING:
            self.pump.occlusion()
            assert self.pump.therapy is TherapyState.ALARM
        else:
            with pytest.raises(Refused):
                self.pump.occlusion()

    @rule()
    @precondition(lambda self: self.pump.therapy is TherapyState.ALARM)
    def start_in_alarm(self) -> None:
        with pytest.raises(Refused):
            self.pump.start_therapy(10)

    @rule()
    def clear(self) -> None:
        self.pump.clear_alarm()
        assert self.pump.therapy is not TherapyState.ALARM

    @rule()
    def release(self) -> None:
        if self.pump.therapy is TherapyState.IDLE:
            self.pump.bedside_release()
            self.released = True
        else:
            with pytest.raises(Refused):
                self.pump.bedside_release()

    @rule()
    def confirm(self) -> None:
        self.pump.confirm()
        assert self.pump.bedside_confirmed

    @rule(seconds=st.floats(0, 600))
    def wait(self, seconds: float) -> None:
        self.infused += self.pump.rate_tenths / 10 * seconds / 3600
        self.clock.advance(seconds)

    @rule(rate=st.integers(1, MAX_RATE_TENTHS))
    def change_rate(self, rate: int) -> None:
        allowed = self.pump.bedside_confirmed and self.pump.therapy is TherapyState.DELIVERING
        before = self.pump.rate_tenths
        if allowed:
            self.pump.set_rate(rate)
            assert not self.pump.bedside_confirmed, "a confirmation serves once"
        else:
            with pytest.raises(Refused):
                self.pump.set_rate(rate)
            assert self.pump.rate_tenths == before

    @invariant()
    def the_patient_is_connected_from_any_start_until_a_release(self) -> None:
        if self.released:
            assert self.pump.patient is PatientState.DISCONNECTED
        else:
            assert self.pump.patient is (PatientState.CONNECTED if self.touched else PatientState.UNKNOWN)

    @invariant()
    def nothing_flows_but_while_delivering(self) -> None:
        assert (self.pump.rate_tenths > 0) == (self.pump.therapy is TherapyState.DELIVERING)
        assert abs(float(self.pump.readings().values["volume_infused_ml"]) - self.infused) < 0.06


TestPumpMachine = PumpMachine.TestCase
TestPumpMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_confirmation_ends_after_a_minute() -> None:
    clock = ManualClock()
    pump = SimulatedPump(clock=clock)
    pump.start_therapy(100)
    pump.confirm()
    clock.advance(CONFIRMATION_S + 1)
    with pytest.raises(Refused) as caught:
        pump.set_rate(200)
    assert caught.value.reason is Reason.BEDSIDE_CONFIRMATION_MISSING


@pytest.mark.parametrize("rate", [0, -1, MAX_RATE_TENTHS + 1])
def test_a_rate_has_bounds(rate: int) -> None:
    with pytest.raises(Refused) as caught:
        SimulatedPump(clock=ManualClock()).start_therapy(rate)
    assert caught.value.reason is Reason.FIELD_INVALID
