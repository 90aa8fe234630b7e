"""Doing what was admitted: journal and 'about to execute' leaf on disk, then the effect, then the receipt.

Device check 8: the request's row and its leaf are durable before anything is done. 9: execute or stage. 10: the
receipt, with the effect's own leaf, durable in one transaction and only then sent. A crash between 8 and 10 gives
'interrupted' after the restart, never a silent repeat. A reading's only effect is that its receipt leaves, so its 8 to
10 are one transaction (docs/decisions/0010-a-reading-is-one-commit.md).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from vigil.core.statements.bodies import (
    Effect,
    Outcome,
    ParameterType,
    Receipt,
)
from vigil.core.statements.envelope import Statement
from vigil.core.statements.schema import Scalar
from vigil.device import domain
from vigil.device.facts import Admission, Parties, ReadBundle, View
from vigil.device.hardware import Hardware
from vigil.device.journal import Journal, Row, State
from vigil.device.measurement_log import Leaf, LeafKind, MeasurementLog
from vigil.device.slots import Build, Started
from vigil.device.state import DeviceState
from vigil.device.timekeeping import DeviceTime
from vigil.errors import Reason, Refused, refused

_LOG = logging.getLogger(__name__)

_UNATTESTED = frozenset({Effect.DIAGNOSE, Effect.ALERT})
"""Effects that leave everything attested as it was; their leaves travel with the next evidence that is due."""

Sign = Callable[[Any], Statement[Any]]
"""Signs a body in the device's name."""


class Executor:
    """One per start of the device. ``on_change`` is called when something that is attested has changed."""

    def __init__(
        self,
        *,
        hardware: Hardware,
        state: DeviceState,
        log: MeasurementLog,
        journal: Journal,
        time: DeviceTime,
        sign: Sign,
        device_id: str,
        on_change: Callable[[], None],
    ) -> None:
        self._hardware = hardware
        self._store = hardware.store
        self._state = state
        self._log = log
        self._journal = journal
        self._time = time
        self._sign = sign
        self._device_id = device_id
        self._on_change = on_change
        self.staged: dict[bytes, tuple[Row, Admission]] = {}
        self.restart_wanted = False
        self._unsettled = False  # the flash did not take something to the end since
        self.news = True  # receipts that no link has carried may lie there from before the start

    def run(self, admission: Admission) -> tuple[bytes, ...]:
        """Execute or stage; answers the receipts. Raises STORAGE_UNAVAILABLE, and then nothing was confirmed."""
        try:
            return self._run(admission)
        except Refused:
            self._unsettled = True
            raise

    def _run(self, admission: Admission) -> tuple[bytes, ...]:
        if admission.action.effect is Effect.DIAGNOSE and not admission.staged:
            return (self._read_out(admission),)
        # Device check 8: journal and 'about to execute' leaf, on disk, before anything else.
        with self._store.transaction():
            row = self._journal.begin(admission, State.STAGED if admission.staged else State.EXECUTING)
            self._about_to_execute(row)
            if admission.staged:
                if admission.target is not None:
                    self._hardware.artifacts.want(admission.target.digest, admission.target.size)
                self._receipt(row, Outcome.STAGED, answered=True)
        if admission.staged:
            self.staged[row.request_id] = (row, admission)
        else:
            self._perform(row, admission, view=None)
        return self._journal.receipts(row.request_id)

    def _read_out(self, admission: Admission) -> bytes:
        """Device checks 8 to 10 of a reading, in one transaction that is durable before its receipt leaves."""
        with self._store.transaction():
            row = self._journal.begin(admission, State.FINAL)
            self._about_to_execute(row)
            data = self._effect(row, admission, None)
            self._state.count_applied()
            return self._receipt(row, Outcome.APPLIED, data=data, answered=True, number=1)

    def refusal(self, read_one: ReadBundle, parties: Parties, error: Refused) -> bytes:
        """A signed word about a refusal; not journaled, since the same request may be admitted another time."""
        intent = read_one.intent.body
        row = Row(
            request_id=intent.request_id,
            intent=read_one.intent.digest,
            command=read_one.command.digest,
            permit=read_one.permit.digest if read_one.permit is not None else None,
            state=State.FINAL,
            action=intent.action,
            performed_by=parties.executor.id,
            work_order=intent.work_order,
        )
        return self._sign(self._body(row, 1, Outcome.REFUSED, error.reason, {})).data

    def restore(self, view: View) -> None:
        """Take up what was staged before the restart; what cannot be judged any more is abandoned."""
        for staged in self._journal.staged():
            try:
                admission = domain.restore_admission(
                    domain.read_bundle(staged.bundle),
                    view,
                    times=staged.times,
                    apply_not_after=staged.apply_not_after,
                )
                if admission.target is not None:
                    self._hardware.artifacts.want(admission.target.digest, admission.target.size)
            except Refused as error:
                self.abandon(staged.row, error.reason)
            else:
                self.staged[staged.row.request_id] = (staged.row, admission)
        wanted = [admission.target for _, admission in self.staged.values()]
        self._hardware.artifacts.keep(frozenset(target.digest for target in wanted if target is not None))

    def advance(self, view: View, *, head_age_s: float) -> bool:
        """Apply, abandon or leave each staged command; True when one waits for nothing but a fresh head.

        Raises STORAGE_UNAVAILABLE.
        """
        try:
            return self._advance(view, head_age_s)
        except Refused:
            self._unsettled = True
            raise

    def _advance(self, view: View, head_age_s: float) -> bool:
        head_wanted = False
        for row, admission in list(self.staged.values()):
            if row.request_id not in self.staged or self.restart_wanted:
                continue  # an activation has just abandoned it
            try:
                ready = self._ready(admission)
                waits = domain.judge_staged(admission, view, head_age_s=head_age_s, ready=ready)
            except Refused as error:
                self.abandon(row, error.reason)
                continue
            if waits is None:
                self._apply(row, admission, view)
                return False  # the view is another one now; what else is staged is judged with the next
            head_wanted = head_wanted or waits.reason is Reason.LEASE_EXPIRED
        return head_wanted

    def abandon(self, row: Row, reason: Reason) -> None:
        """End a staged command unapplied."""
        with self._store.transaction():
            self._journal.move(row.request_id, State.FINAL)
            self._receipt(row, Outcome.ABANDONED, reason)
        _, admission = self.staged.pop(row.request_id, (None, None))
        if admission is not None and admission.target is not None:
            self._hardware.artifacts.forget(admission.target.digest)

    def after_start(self, started: Started) -> None:
        """Settle what the start decided: an update's outcome, and whatever was executing is interrupted."""
        with self._store.transaction():
            for row in self._journal.executing():
                outcome, reason = Outcome.INTERRUPTED, None
                if row.request_id == started.request_id and started.outcome is not None:
                    outcome = started.outcome
                    reason = None if outcome is Outcome.APPLIED else Reason.STATE_CONFLICT
                    self._leaf(LeafKind.FIRMWARE, started.digest, row, f"update {outcome}")
                    self._hardware.slots.settle()
                if outcome is Outcome.APPLIED:
                    self._state.count_applied()
                self._journal.move(row.request_id, State.FINAL)
                self._receipt(row, outcome, reason)
            if self._hardware.slots.pending is not None:
                self._hardware.slots.settle()

    def settle(self) -> None:
        """Say of what the flash did not take to the end that it was interrupted, once it takes something again."""
        if not self._unsettled or self._hardware.slots.pending is not None:
            return
        try:
            with self._store.transaction():
                for row in self._journal.executing():
                    self._journal.move(row.request_id, State.FINAL)
                    self._receipt(row, Outcome.INTERRUPTED)
                for staged in self._journal.staged():
                    if staged.row.request_id not in self.staged:
                        self._journal.move(staged.row.request_id, State.FINAL)
                        self._receipt(staged.row, Outcome.ABANDONED, Reason.STORAGE_UNAVAILABLE)
        except Refused as error:
            _LOG.warning("%s: what was interrupted is not settled yet: %s", self._device_id, error)
        else:
            self._unsettled = False
            self.news = True  # a receipt that lies there was perhaps told to nobody

    def _apply(self, row: Row, admission: Admission, view: View) -> None:
        if admission.action.effect is Effect.UPDATE:
            self._activate(row, admission)
            return
        with self._store.transaction():
            self._journal.move(row.request_id, State.EXECUTING)
            self._about_to_execute(row)
        self.staged.pop(row.request_id)
        self._perform(row, admission, view=view)

    def _activate(self, row: Row, admission: Admission) -> None:
        """Write the other slot, journal slot and digest, restart; the other staged commands are abandoned."""
        target = admission.target
        if target is None or target.release is None:
            raise TypeError("an update without a release was admitted")
        build = Build(
            target.digest, target.release.version, target.release.security_version, target.release.sbom
        )
        try:
            self._hardware.slots.write_other(self._hardware.artifacts.read(target.digest), build)
        except Refused as error:
            self.abandon(row, error.reason)
            return
        with self._store.transaction():
            self._journal.move(row.request_id, State.EXECUTING)
            self._about_to_execute(row)
            self._hardware.slots.schedule(row.request_id, build)
            for other, _ in self.staged.values():
                if other.request_id != row.request_id:
                    self._journal.move(other.request_id, State.FINAL)
                    self._receipt(other, Outcome.ABANDONED, Reason.STATE_CONFLICT)
        self.staged.clear()
        self._hardware.artifacts.keep(frozenset())
        self.restart_wanted = True

    def _perform(self, row: Row, admission: Admission, *, view: View | None) -> None:
        """Device checks 9 and 10: effect, its leaf and the receipt, durable together. Raises STORAGE_UNAVAILABLE:
        whether it happened is then for `settle` to say, or for the next start.
        """
        try:
            with self._store.transaction():
                data = self._effect(row, admission, view)
                self._state.count_applied()
                self._journal.move(row.request_id, State.FINAL)
                self._receipt(row, Outcome.APPLIED, data=data, answered=view is None)
        except Refused as error:
            if error.reason is Reason.STORAGE_UNAVAILABLE:
                raise
            with self._store.transaction():
                self._journal.move(row.request_id, State.FINAL)
                self._receipt(row, Outcome.FAILED, error.reason, answered=view is None)
        if admission.action.effect not in _UNATTESTED:
            self._on_change()

    def _effect(self, row: Row, admission: Admission, view: View | None) -> Mapping[str, Scalar]:
        hardware, parameters = self._hardware, admission.intent.parameters
        match admission.action.effect:
            case Effect.SET:
                hardware.configuration.change(parameters)
                self._leaf(LeafKind.CONFIGURATION, hardware.configuration.digest, row)
            case Effect.INSTALL_BASELINE:
                if view is None:
                    raise TypeError("a baseline is applied from its staged artifact")
                artifact = self._artifact(admission)
                hardware.configuration.install_baseline(artifact, view.profile.body)
                self._leaf(LeafKind.CONFIGURATION, hardware.configuration.digest, row)
            case Effect.INSTALL_LIBRARY:
                hardware.configuration.install_library(self._artifact(admission))
                self._leaf(LeafKind.LIBRARY, hardware.configuration.library_digest, row)
            case Effect.DIAGNOSE:
                return {**hardware.pump.readings().values, "log_size": self._log.size}
            case Effect.QUARANTINE | Effect.RELEASE_QUARANTINE as effect:
                on = effect is Effect.QUARANTINE
                self._state.quarantine(on=on)
                self._leaf(LeafKind.QUARANTINE, row.intent, row, "on" if on else "off")
            case Effect.HOLD | Effect.LIFT_HOLD as effect:
                holds = self._state.hold(1 if effect is Effect.HOLD else -1)
                self._leaf(LeafKind.HOLD, row.intent, row, f"{holds} in force")
            case Effect.ALERT:
                texts = [value for value in parameters.values() if isinstance(value, str)]
                self._state.show(texts[0] if texts else admission.action.name)
            case Effect.THERAPY:
                hardware.pump.set_rate(_rate_tenths(admission))
            case Effect.CLEAR:
                hardware.configuration.reset()
                self._state.show("")
                self._leaf(LeafKind.CONFIGURATION, hardware.configuration.digest, row, "cleared")
                self._leaf(LeafKind.LIBRARY, hardware.configuration.library_digest, row, "cleared")
            case Effect.UPDATE:
                raise TypeError("an update is activated, not performed")
        return {}

    def _artifact(self, admission: Admission) -> bytes:
        if admission.target is None:
            raise TypeError("an installation without a target was admitted")
        data = self._hardware.artifacts.read(admission.target.digest)
        self._hardware.artifacts.forget(admission.target.digest)
        return data

    def _ready(self, admission: Admission) -> bool:
        target, artifacts = admission.target, self._hardware.artifacts
        if target is not None and artifacts.hopeless(target.digest):
            raise refused(Reason.ARTIFACT_CORRUPT, "what came to be installed was never what was signed")
        return target is None or artifacts.ready(target.digest)

    def _about_to_execute(self, row: Row) -> None:
        self._leaf(LeafKind.COMMAND, row.permit or row.intent, row, row.action)

    def _leaf(self, kind: LeafKind, digest: bytes, row: Row, detail: str | None = None) -> None:
        self._log.append(
            Leaf(
                kind=kind,
                time=self._time.now(),
                boot=self._state.boot_count,
                digest=digest,
                permit=row.permit,
                detail=detail,
            )
        )

    def _receipt(
        self,
        row: Row,
        outcome: Outcome,
        reason: Reason | None = None,
        data: Mapping[str, Scalar] | None = None,
        *,
        answered: bool = False,
        number: int | None = None,
    ) -> bytes:
        """Device check 10: sign once, keep the bytes; the log holds the receipt's digest.

        ``answered``: it leaves as the answer to the bundle; any other one waits for a link. Either is said again until
        a gateway has kept it. ``number``: where it is known without looking.
        """
        if number is None:
            number = len(self._journal.receipts(row.request_id)) + 1
        receipt = self._sign(self._body(row, number, outcome, reason, data or {}))
        self._journal.add_receipt(row.request_id, number, receipt.data)
        self.news = self.news or not answered
        self._leaf(LeafKind.RECEIPT, receipt.digest, row, str(outcome))
        _LOG.debug("receipt %s %s %s", self._device_id, row.action, outcome)
        return receipt.data

    def _body(
        self, row: Row, number: int, outcome: Outcome, reason: Reason | None, data: Mapping[str, Scalar]
    ) -> Receipt:
        return Receipt(
            intent=row.intent,
            command=row.command,
            request_id=row.request_id,
            number=number,
            outcome=outcome,
            device=self._device_id,
            udi=self._hardware.label.udi,
            action=row.action,
            performed_by=row.performed_by,
            log=self._log.head(),
            boot_count=self._state.boot_count,
            device_time=self._time.now(),
            applied=self._state.applied,
            permit=row.permit,
            work_order=row.work_order,
            reason=None if reason is None else str(reason),
            data=data,
        )


def _rate_tenths(admission: Admission) -> int:
    """The rate that a class T action asks for: its first integer parameter, in mL/h, scaled as the profile says."""
    for spec in admission.action.parameters:
        value = admission.intent.parameters.get(spec.name)
        if spec.type is ParameterType.INTEGER and type(value) is int:
            return int(value * 10 // 10**spec.scale)
    raise refused(Reason.PARAMETER_INVALID, "the action names no rate")
