"""What a device's life leaves in the log: evidence, results, decisions, receipts, holds, steps of the revocations."""

from dataclasses import dataclass, field, replace

from tests.support.pki import DEVICE, ORGANIZATION, SITE, TestPki
from tests.support.statements import EXAMPLES
from vigil.core import cbor
from vigil.core.clock import Clock
from vigil.core.digest import sha256
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Scribe, Statement
from vigil.evidence.intake import Submission

LIFETIME_MS = 600_000


def firmware(name: str) -> bytes:
    return sha256(name.encode())


@dataclass
class Story:
    """One device of a `TestPki`; every method answers submissions in the order in which the log gets them."""

    pki: TestPki
    clock: Clock
    device: str = DEVICE
    version: str = "1.6.3"
    configuration: bytes = field(default_factory=lambda: firmware("configuration"))
    boots: int = 1
    log_size: int = 7
    epoch: int = 0
    lasts_until: int = 0
    """The end of its certificate (ms), where it is not to have the usual life."""

    def __post_init__(self) -> None:
        self.subject = f"device/{self.device}"
        self.attester = self.pki.attester(self.device, operational_until=self.lasts_until)
        self._people: dict[str, Scribe] = {}
        self._own = self.attester.scribe(self.clock, numbered=True)
        self._results = self.pki.signer_credential("result").scribe(self.clock, numbered=True)
        self._decisions = self.pki.signer_credential("decision").scribe(self.clock, numbered=True)

    @property
    def measurements(self) -> b.Measurements:
        return b.Measurements(
            firmware=firmware(self.version),
            configuration=self.configuration,
            library=firmware("library"),
            sbom=firmware(f"sbom of {self.version}"),
        )

    def measured(self) -> list[Submission]:
        """Evidence that the device signs, and the result that attestation makes of it."""
        self.log_size += 1
        log = replace(EXAMPLES[b.Evidence].log, size=self.log_size)
        evidence = self._own.sign(
            replace(
                EXAMPLES[b.Evidence],
                swversion=(self.version,),
                bootcount=self.boots,
                measurements=self.measurements,
                log=log,
            ),
            subject=self.subject,
        )
        now = self.clock.now()
        result = self._results.sign(
            replace(
                EXAMPLES[b.Result],
                device=self.device,
                evidence=evidence.digest,
                boot_count=self.boots,
                log_size=self.log_size,
                measurements=self.measurements,
                appraised_at=now,
                stale_at=now + LIFETIME_MS,
                therapy_stale_at=now + LIFETIME_MS // 10,
            ),
            subject=self.subject,
        )
        return [self.submission(evidence), self.submission(result)]

    def decided(self, bundle: str = "r1", **values: object) -> Submission:
        body = replace(
            EXAMPLES[b.Decision],
            device=self.device,
            bundle=bundle,
            decided_at=self.clock.now(),
            epoch=self.epoch,
            **values,  # type: ignore[arg-type]
        )
        return self.submission(self._decisions.sign(body, subject=self.subject))

    def done(self, action: str = "update-firmware", outcome: b.Outcome = b.Outcome.APPLIED) -> Submission:
        """A receipt of the device."""
        self.log_size += 1
        body = replace(
            EXAMPLES[b.Receipt],
            device=self.device,
            action=action,
            outcome=outcome,
            device_time=self.clock.now(),
            boot_count=self.boots,
        )
        return self.submission(self._own.sign(body, subject=self.subject))

    def hold(self, action: b.HoldAction = b.HoldAction.PLACE, *, person: str = "p-safety") -> Submission:
        body = b.Hold(device=self.device, action=action, reason="incident 7")
        return self.submission(self._person(person, "safety").sign(body, subject=self.subject))

    def revoked(
        self, scope: b.Scope, name: str, *, person: str = "p-recall", step: bool = True
    ) -> Submission:
        """A step of the chain of revocations; without ``step`` the first word of two, which counts for nothing yet."""
        body = b.Revocation(
            scope=scope,
            ids=(name,),
            effect=b.RevocationEffect.CORRECTIVE_ONLY,
            reason=b.RevocationReason.RECALL,
        )
        return self._step(self._person(person, "recall").sign(body, subject=f"{scope}/{name}"), step=step)

    def _step(self, statement: Statement[b.Revocation], *, step: bool) -> Submission:
        if not step:
            return self.submission(statement)
        self.epoch += 1
        value = {"chain": bytes(32), "epoch": self.epoch, "time": self.clock.now()}
        return self.submission(
            statement, subjects=("revocation/log", statement.subject), bodies=(cbor.encode(value),), site=""
        )

    def _person(self, name: str, role: str) -> Scribe:
        if name not in self._people:
            values = {"operational_until": self.lasts_until} if self.lasts_until else {}
            self._people[name] = self.pki.person(name, role, **values).scribe(self.clock)
        return self._people[name]

    def submission(self, statement: Statement[object], **values: object) -> Submission:
        given = {"organization": ORGANIZATION, "site": SITE, "subjects": (self.subject,), **values}
        return Submission(statement=statement.data, **given)  # type: ignore[arg-type]
