"""Bodies of every kind with believable content, for tests that need any one of them."""

from typing import Any

from vigil.core.statements import bodies as b
from vigil.core.statements import log_bodies as log

DIGEST = bytes(range(32))
OTHER = bytes(range(1, 33))
NOW = 1_790_000_000_000
UDI = "(01)09504000059118(21)SN-0001"

SET_PRESSURE = b.ActionSpec(
    name="set-occlusion-pressure",
    action_class=b.ActionClass.C,
    effect=b.Effect.SET,
    parameters=(
        b.ParameterSpec(
            name="occlusion_pressure",
            type=b.ParameterType.INTEGER,
            required=True,
            unit="mm[Hg]",
            minimum=50,
            maximum=600,
        ),
    ),
    approvals=0,
    states=(b.TherapyState.IDLE,),
)
LOG = b.LogHead(size=7, root=DIGEST, counter=9)
THERAPY = b.Therapy(state=b.TherapyState.IDLE, patient=b.PatientState.DISCONNECTED, at=NOW)
MEASUREMENTS = b.Measurements(firmware=DIGEST, configuration=OTHER, library=DIGEST, sbom=OTHER)

EXAMPLES: dict[type, Any] = {
    b.Voucher: b.Voucher(udi=UDI, model="aria-3000", identity_key=DIGEST),
    b.Profile: b.Profile(
        model="aria-3000",
        version=1,
        risk_class=b.RiskClass.IIB,
        attestation_lifetime_s=600,
        therapy_lifetime_s=60,
        patient_state_source="infusion-state",
        actions=(SET_PRESSURE,),
    ),
    b.Release: b.Release(
        model="aria-3000",
        version="1.6.3",
        firmware=DIGEST,
        size=1024,
        security_version=3,
        sbom=OTHER,
        udi_di="09504000059118",
    ),
    b.Downgrade: b.Downgrade(
        firmware=DIGEST,
        security_version=2,
        population_root=OTHER,
        population_count=1,
        reason="the newer build stalls",
    ),
    b.Baseline: b.Baseline(
        baseline_kind=b.BaselineKind.CONFIGURATION,
        name="ward",
        site="site-1",
        organization="hospital",
        content=DIGEST,
        size=10,
        models=("aria-3000",),
        valid_from=NOW,
        valid_to=NOW + 1,
    ),
    b.Evidence: b.Evidence(
        eat_nonce=DIGEST,
        ueid=b"\x01" + DIGEST,
        oemid=b"\x01\x02\x03",
        hwmodel=b"aria-3000",
        oemboot=True,
        dbgstat=3,
        eat_profile="tag:vigil,2026:pump",
        bootcount=2,
        swname="pump-firmware",
        swversion=("1.6.3",),
        measurements=MEASUREMENTS,
        log=LOG,
        therapy=THERAPY,
        security_version=3,
        uptime=100,
        quarantined=False,
        holds=0,
        applied=4,
    ),
    b.Result: b.Result(
        device="dev-aaaaaaaaaaaaaaaa",
        evidence=DIGEST,
        status=b.TrustTier.AFFIRMING,
        vector={"instance-identity": 2, "executables": 3},
        reasons=(),
        basis=b.EvidenceBasis.ATTESTED,
        boot_count=2,
        log_size=7,
        measurements=MEASUREMENTS,
        security_version=3,
        therapy=THERAPY,
        quarantined=False,
        holds=0,
        appraised_at=NOW,
        stale_at=NOW + 600_000,
        therapy_stale_at=NOW + 60_000,
    ),
    b.Intent: b.Intent(
        target_root=DIGEST,
        target_count=1,
        action="set-occlusion-pressure",
        parameters={"occlusion_pressure": 300},
        request_id=bytes(16),
        mode=b.Mode.NOW,
        not_before=NOW,
        expires=NOW + 60_000,
        work_order="WO-1",
    ),
    b.Approval: b.Approval(intent=DIGEST, meaning="approval", expires=NOW + 60_000),
    b.Command: b.Command(intent=DIGEST, device="dev-aaaaaaaaaaaaaaaa", index=0, path=(), nonce=bytes(16)),
    b.Decision: b.Decision(
        command=DIGEST,
        intent=OTHER,
        device="dev-aaaaaaaaaaaaaaaa",
        answer=b.Answer.ALLOW,
        input=DIGEST,
        bundle="r1",
        decided_at=NOW,
        action_class=b.ActionClass.C,
        nonce=bytes(16),
        profile=DIGEST,
        boot_count=2,
        log_size=7,
        epoch=0,
        era=0,
        obligations=(b.Obligation(kind="stage", values={"until": "idle"}),),
        mode="online",
        apply_not_after=NOW + 60_000,
    ),
    b.Recorded: b.Recorded(root=DIGEST, first=0, count=1, time=NOW),
    b.Receipt: b.Receipt(
        intent=DIGEST,
        command=OTHER,
        request_id=bytes(16),
        number=1,
        outcome=b.Outcome.APPLIED,
        device="dev-aaaaaaaaaaaaaaaa",
        udi=UDI,
        action="set-occlusion-pressure",
        performed_by="p-ada",
        log=LOG,
        boot_count=2,
        device_time=NOW,
        applied=5,
    ),
    b.Revocation: b.Revocation(
        scope=b.Scope.BUILD,
        ids=(DIGEST.hex(),),
        effect=b.RevocationEffect.CORRECTIVE_ONLY,
        reason=b.RevocationReason.RECALL,
    ),
    b.Reinstatement: b.Reinstatement(
        revocation=DIGEST, scope=b.Scope.BUILD, ids=(DIGEST.hex(),), reason="the defect was elsewhere"
    ),
    b.Hold: b.Hold(device="dev-aaaaaaaaaaaaaaaa", action=b.HoldAction.PLACE, reason="incident 7"),
    b.BedsideRelease: b.BedsideRelease(device="dev-aaaaaaaaaaaaaaaa", expires=NOW),
    b.Head: b.Head(epoch=1, chain=DIGEST, era=0, issued=NOW, challenges=OTHER),
    b.Acknowledgement: b.Acknowledgement(epoch=1, chain=DIGEST, era=0, enforced_at=NOW),
    b.Refusals: b.Refusals(credential=DIGEST, count=140, since=NOW, until=NOW + 60_000),
    b.Era: b.Era(era=1, floor=NOW, epoch=0, reason="restored"),
    b.RootList: b.RootList(version=1, signers=(DIGEST,)),
    log.Erasure: log.Erasure(
        records=(DIGEST, OTHER),
        what=log.ErasureWhat.STATEMENTS,
        reason=log.ErasureReason.REQUEST,
        reference="case-7",
    ),
    log.Query: log.Query(
        reader="p-otto",
        organization="operator",
        credential=DIGEST,
        reads=(
            log.Read(
                method="history", subject="device/dev-aaaaaaaaaaaaaaaa", at=NOW, count=2, first=3, last=9
            ),
        ),
    ),
    b.Census: b.Census(
        root=DIGEST, subjects=3, size=7, time=NOW, log="vigil.example/evidence+5d6a3b0e+AVZ1YQ=="
    ),
}
