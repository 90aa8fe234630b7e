"""JSON Schemas of what every command writes with ``--output json`` (docs/cli-schemas, docs/cli.md).

Shapes that come from a contract follow its descriptor, so that a field added there shows here and in the docs' test.
"""

from collections.abc import Mapping
from typing import Final

from vigil.api.attestation.v1 import attestation_pb2
from vigil.api.evidence.v1 import evidence_pb2
from vigil.api.gateway.v1 import gateway_pb2
from vigil.api.identity.v1 import identity_pb2
from vigil.api.policy.v1 import policy_pb2
from vigil.api.release.v1 import release_pb2
from vigil.api.revocation.v1 import revocation_pb2
from vigil.cli.proof_schemas import PROOF, PROOF_CHECKED
from vigil.cli.schema_words import (
    ANYTHING,
    COUNTS,
    FLAG,
    HEX,
    INSTANT,
    MAYBE_FLAG,
    MAYBE_NUMBER,
    MAYBE_TEXT,
    NUMBER,
    SCALARS,
    TEXT,
    TEXTS,
    Schema,
    extended,
    items,
    maybe,
    of_message,
    shape,
)

_ORGANIZATION = extended(of_message(identity_pb2.Organization), manufacturer=FLAG)
_SITE = of_message(identity_pb2.Site)
_GATEWAY = of_message(identity_pb2.Gateway)
_PRINCIPAL = of_message(identity_pb2.Principal)
_CREDENTIAL = of_message(identity_pb2.Credential)
_DEVICE = of_message(identity_pb2.Device)
_MODEL = of_message(release_pb2.Model)
_RELEASE = of_message(release_pb2.Release)
_BASELINE = of_message(release_pb2.Baseline)
_LIVE = of_message(gateway_pb2.ConnectedDevice)
_COMMAND = extended(of_message(gateway_pb2.CommandRecord), gateway_id=TEXT)
_INTENT = extended(of_message(gateway_pb2.IntentRecord), gateway_id=TEXT)

_PROOF = shape(what=TEXT, holds=FLAG, sentence=TEXT)
_SIGNED_INTENT = shape(
    intent_id=HEX,
    requester=TEXT,
    action=TEXT,
    parameters=SCALARS,
    request_id=HEX,
    mode=TEXT,
    work_order=TEXT,
    target_count=NUMBER,
    not_before=INSTANT,
    expires=INSTANT,
)
_RECEIPT = shape(
    digest=HEX,
    number=NUMBER,
    outcome=TEXT,
    reason=TEXT,
    device_id=TEXT,
    udi=TEXT,
    action=TEXT,
    performed_by=TEXT,
    work_order=TEXT,
    device_time=INSTANT,
    boot_count=NUMBER,
    log_size=NUMBER,
    log_root=HEX,
    applied=NUMBER,
    data=SCALARS,
)
_DECISION = shape(
    answer=TEXT,
    action_class=TEXT,
    policy_revision=TEXT,
    decided=INSTANT,
    reasons=items(shape(reason=TEXT, rule=TEXT, values=SCALARS)),
    obligations=items(shape(kind=TEXT, values=SCALARS)),
    apply_not_after=INSTANT,
)
_ENTRY = shape(
    index=NUMBER,
    kind=TEXT,
    log_time=INSTANT,
    digest=HEX,
    subjects=TEXTS,
    signed_by=TEXT,
    verified=MAYBE_FLAG,
    says={"type": ["object", "null"]},
    erased=maybe(
        shape(what=TEXT, reason=TEXT, reference=TEXT, time=INSTANT, people=TEXTS, records=items(NUMBER))
    ),
)
_ERASURE = shape(what=TEXT, reason=TEXT, reference=TEXT, file=TEXT, records=items(NUMBER), complete=FLAG)
_FINDINGS = items(shape(property=TEXT, holds=MAYBE_FLAG, sentence=TEXT))
_MEASUREMENT = shape(
    result=NUMBER,
    evidence=MAYBE_NUMBER,
    device_time=INSTANT,
    appraised=INSTANT,
    log_time=INSTANT,
    stale=INSTANT,
    status=TEXT,
    boot_count=NUMBER,
    log_size=NUMBER,
    firmware=HEX,
    configuration=HEX,
)
_NEIGHBOUR = shape(number=NUMBER, index=NUMBER, kind=TEXT, log_time=INSTANT)
_MOMENT = shape(
    device_id=TEXT,
    time=INSTANT,
    evidence=FLAG,
    holds=FLAG,
    facts=items(
        shape(
            name=TEXT,
            value=TEXT,
            record=MAYBE_NUMBER,
            at=INSTANT,
            clock=TEXT,
            sure=TEXT,
            note=TEXT,
            more=ANYTHING,
        )
    ),
    before=maybe(_MEASUREMENT),
    after=maybe(_MEASUREMENT),
    between=shape(
        boots=MAYBE_NUMBER,
        log_grew=MAYBE_NUMBER,
        records=COUNTS,
        receipts=items(
            shape(record=NUMBER, action=TEXT, outcome=TEXT, device_time=INSTANT, performed_by=TEXT)
        ),
        complete=MAYBE_FLAG,
    ),
    quiet=shape(before=maybe(_NEIGHBOUR), after=maybe(_NEIGHBOUR), proved=FLAG, sentence=TEXT),
    considered=NUMBER,
    newest_number=NUMBER,
    truncated=FLAG,
    checkpoint=shape(size=NUMBER, root=HEX, time=INSTANT, witnesses=items(shape(name=TEXT, time=INSTANT))),
    records=items(extended(_ENTRY, roles=TEXTS, withheld=FLAG, findings=_FINDINGS)),
    findings=_FINDINGS,
)
_REVOCATION = shape(
    epoch=NUMBER,
    create_time=INSTANT,
    chain=HEX,
    kind=TEXT,
    scope=TEXT,
    ids=TEXTS,
    effect=TEXT,
    reason=TEXT,
    expires=INSTANT,
    signed_by=TEXTS,
    verified=FLAG,
)
_REFUSAL = shape(
    status=TEXT,
    reason=TEXT,
    sentence=TEXT,
    lifted_by=TEXT,
    who=TEXT,
    values={"type": "object", "additionalProperties": TEXT},
)
_CONTEXT = shape(
    name=TEXT,
    current=FLAG,
    principal=TEXT,
    certificate=TEXT,
    key=TEXT,
    trust=TEXT,
    trust_domain=TEXT,
    endpoints={"type": "object", "additionalProperties": TEXT},
    gateways={"type": "object", "additionalProperties": shape(address=TEXT, site=TEXT)},
)
_PROCESS = shape(name=TEXT, kind=TEXT, endpoint=TEXT, healthy=FLAG, version=MAYBE_TEXT, sentence=TEXT)
_SHOWN_CONTEXT = {
    **_CONTEXT,
    "properties": {
        **_CONTEXT["properties"],
        "organization": TEXT,
        "roles": TEXTS,
        "sites": TEXTS,
        "operational_until": INSTANT,
        "not_after": INSTANT,
    },
}
_MADE = shape(name=TEXT, certificate=TEXT, operational_until=INSTANT)
_ATTESTATION = extended(of_message(attestation_pb2.DeviceTrust), stale=FLAG, verified=FLAG)

SHAPES: Final[Mapping[str, Schema]] = {
    "error": shape(error=extended(_REFUSAL, all=items(_REFUSAL))),
    "version": shape(version=TEXT),
    "ready": shape(
        ready=FLAG, data=TEXT, services=items(shape(name=TEXT, endpoint=TEXT, pid=NUMBER)), tiles=TEXT
    ),
    "status": shape(
        ready=FLAG,
        context=TEXT,
        principal=TEXT,
        services=items(_PROCESS),
        policy_revision=MAYBE_TEXT,
        policy_engine=MAYBE_TEXT,
        feed_lag_ms=COUNTS,
        revocation_epoch=MAYBE_NUMBER,
        policy_revocation_epoch=MAYBE_NUMBER,
        log_size=MAYBE_NUMBER,
        witnessed_size=MAYBE_NUMBER,
        log=maybe(of_message(evidence_pb2.LogStatus)),
        devices=shape(by_state=COUNTS, by_trust=COUNTS),
        expiring=items(shape(context=TEXT, principal=TEXT, operational_until=INSTANT, ended=FLAG)),
    ),
    "policy": of_message(policy_pb2.PolicyStatus),
    "context": _SHOWN_CONTEXT,
    "contexts": shape(
        contexts=items(shape(name=TEXT, current=FLAG, principal=TEXT, trust_domain=TEXT, identity=TEXT)),
        current=TEXT,
    ),
    "organization": _ORGANIZATION,
    "organizations": shape(organizations=items(_ORGANIZATION)),
    "site": _SITE,
    "sites": shape(sites=items(_SITE)),
    "gateway": extended(_GATEWAY, live=maybe(of_message(gateway_pb2.GatewayStatus))),
    "gateway-created": extended(_GATEWAY, config=TEXT),
    "gateways": shape(gateways=items(_GATEWAY)),
    "principal": _PRINCIPAL,
    "principals": shape(principals=items(_PRINCIPAL)),
    "credential": _CREDENTIAL,
    "credential-issued": extended(_CREDENTIAL, context=TEXT, certificate=TEXT, key=TEXT),
    "credential-renewed": extended(_CREDENTIAL, context=TEXT),
    "credential-requested": shape(key=TEXT, request=TEXT),
    "credentials": shape(credentials=items(_CREDENTIAL)),
    "manufacturer": shape(organization=TEXT, root=TEXT, signers=TEXT),
    "signers": shape(signers=items(_MADE)),
    "admin-renewed": _MADE,
    "voucher": shape(device_id=TEXT, udi=TEXT, model=TEXT, identity_key=HEX, voucher=TEXT, digest=HEX),
    "model": extended(_MODEL, digest=HEX, profile=ANYTHING),
    "model-published": extended(_MODEL, digest=HEX),
    "models": shape(models=items(_MODEL)),
    "release": extended(_RELEASE, digest=HEX, signed_by=TEXT),
    "release-published": _RELEASE,
    "releases": shape(releases=items(_RELEASE)),
    "baseline": _BASELINE,
    "baselines": shape(baselines=items(_BASELINE)),
    "device": extended(
        _DEVICE, attestation=maybe(_ATTESTATION), live=maybe(extended(_LIVE, gateway_id=TEXT))
    ),
    "device-activated": _DEVICE,
    "device-enrolled": extended(_DEVICE, dials=TEXT, folder=TEXT),
    "devices": shape(devices=items(extended(_DEVICE, trust=TEXT, software_version=TEXT))),
    "device-report": of_message(gateway_pb2.FollowDeviceResponse),
    "command-done": shape(
        outcome=TEXT,
        reason=TEXT,
        device_id=TEXT,
        udi=TEXT,
        gateway_id=TEXT,
        action=TEXT,
        request_id=HEX,
        intent_id=HEX,
        command_id=HEX,
        receipt=_RECEIPT,
        decision=maybe(_DECISION),
        proofs=items(_PROOF),
    ),
    "command-preview": shape(
        allowed=FLAG, device_id=TEXT, action=TEXT, obligations=TEXTS, policy_revision=TEXT
    ),
    "command": extended(
        _COMMAND,
        intent=_SIGNED_INTENT,
        decision=maybe(_DECISION),
        receipts=items(_RECEIPT),
        proofs=items(_PROOF),
    ),
    "commands": shape(commands=items(_COMMAND)),
    "intent": extended(_INTENT, intent=_SIGNED_INTENT, proofs=items(_PROOF)),
    "intent-approved": extended(_INTENT, approval=HEX, signed=_SIGNED_INTENT),
    "intent-cancelled": _INTENT,
    "intents": shape(intents=items(_INTENT)),
    "records": shape(
        records=items(extended(_ENTRY, number=NUMBER, happened=INSTANT, words=TEXT, gap_s=MAYBE_NUMBER)),
        subject=TEXT,
        next=TEXT,
    ),
    "record": _ENTRY,
    "proof": PROOF,
    "proof-checked": PROOF_CHECKED,
    "records-found": shape(
        records=items(extended(_ENTRY, happened=INSTANT, words=TEXT)), covered=NUMBER, next=TEXT
    ),
    "moment": _MOMENT,
    "reindexed": shape(covered=NUMBER),
    "index-checked": shape(
        holds=FLAG,
        covered=NUMBER,
        size=NUMBER,
        erased=NUMBER,
        log=shape(rows=NUMBER, digest=HEX),
        index=shape(rows=NUMBER, digest=HEX),
        differing=NUMBER,
        missing=TEXTS,
        extra=TEXTS,
    ),
    "checkpoint": shape(
        size=NUMBER,
        root=HEX,
        time=INSTANT,
        verifier_key=TEXT,
        note=TEXT,
        cosignatures=NUMBER,
        witnesses=items(shape(name=TEXT, time=INSTANT)),
        consistent=MAYBE_FLAG,
        sentence=TEXT,
    ),
    "revocation": _REVOCATION,
    "revocations": shape(revocations=items(_REVOCATION), epoch=NUMBER),
    "revocation-preview": shape(dry_run=FLAG, scope=TEXT, ids=TEXTS, effect=TEXT, reason=TEXT, hits=COUNTS),
    "reinstatement": extended(_REVOCATION, complete=FLAG),
    "reinstatement-begun": shape(epoch=NUMBER, ids=TEXTS, file=TEXT, complete=FLAG),
    "coverage": of_message(revocation_pb2.Coverage),
    "erasure-begun": _ERASURE,
    "erasure": extended(_ERASURE, people=TEXTS, time=INSTANT, recorded=items(NUMBER), scrubbed=FLAG),
    "monitor": shape(
        right=FLAG,
        size=MAYBE_NUMBER,
        root=maybe(HEX),
        new=MAYBE_NUMBER,
        newest_record=INSTANT,
        subjects=MAYBE_NUMBER,
        missing_numbers=MAYBE_NUMBER,
        witnesses=items(shape(name=TEXT, time=INSTANT)),
        wrong=maybe(shape(what=TEXT, sentence=TEXT, file=TEXT)),
    ),
    "backup": shape(
        archive=TEXT,
        size=NUMBER,
        databases=NUMBER,
        files=NUMBER,
        log_size=MAYBE_NUMBER,
        left_out=TEXTS,
        elsewhere=TEXTS,
    ),
    "restored": shape(
        data=TEXT,
        log_size=MAYBE_NUMBER,
        checked_against=TEXT,
        witnesses=items(shape(name=TEXT, answer=TEXT, size=MAYBE_NUMBER)),
        missing=TEXTS,
        new_log=FLAG,
    ),
    "witness": shape(name=TEXT, verifier_key=TEXT, listen=TEXT, config=TEXT),
}
"""By name of the file under docs/cli-schemas."""

OUTPUT_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "backup": ("backup",),
    "baseline list": ("baselines",),
    "baseline publish": ("baseline",),
    "command approve": ("intent-approved",),
    "command cancel": ("intent-cancelled",),
    "command list": ("commands",),
    "command pending": ("intents",),
    "command receipt": ("command-done",),
    "command send": ("command-done", "command-preview"),
    "command show": ("command", "intent"),
    "context import": ("context",),
    "context list": ("contexts",),
    "context show": ("context",),
    "context use": ("context",),
    "credential issue": ("credential-issued",),
    "credential list": ("credentials",),
    "credential renew": ("credential-renewed",),
    "credential request": ("credential-requested",),
    "credential show": ("credential",),
    "demo": (),
    "device activate": ("device-activated",),
    "device ban": ("revocation",),
    "device enrol": ("device-enrolled",),
    "device follow": ("device-report",),
    "device history": ("records",),
    "device hold": ("command-done",),
    "device lift": ("command-done",),
    "device list": ("devices",),
    "device quarantine": ("command-done",),
    "device release": ("command-done",),
    "device show": ("device",),
    "evidence at": ("moment",),
    "evidence check": ("proof-checked",),
    "evidence checkpoint": ("checkpoint",),
    "evidence erase": ("erasure-begun", "erasure"),
    "evidence find": ("records-found",),
    "evidence history": ("records",),
    "evidence monitor": ("monitor",),
    "evidence prove": ("proof",),
    "evidence reindex": ("reindexed", "index-checked"),
    "evidence show": ("record",),
    "gateway create": ("gateway-created",),
    "gateway list": ("gateways",),
    "gateway show": ("gateway",),
    "manufacturer init": ("manufacturer",),
    "model list": ("models",),
    "model publish": ("model-published",),
    "model show": ("model",),
    "organization create": ("organization",),
    "organization list": ("organizations",),
    "organization show": ("organization",),
    "policy show": ("policy",),
    "principal approve": ("principal",),
    "principal create": ("principal",),
    "principal disable": ("principal",),
    "principal list": ("principals",),
    "principal show": ("principal",),
    "reinstate": ("reinstatement", "reinstatement-begun"),
    "release list": ("releases",),
    "release publish": ("release-published",),
    "release show": ("release",),
    "restore": ("restored",),
    "revocation coverage": ("coverage",),
    "revocation list": ("revocations",),
    "revocation show": ("revocation",),
    "revoke baseline": ("revocation", "revocation-preview"),
    "revoke build": ("revocation", "revocation-preview"),
    "revoke credential": ("revocation", "revocation-preview"),
    "revoke device": ("revocation", "revocation-preview"),
    "revoke gateway": ("revocation", "revocation-preview"),
    "revoke signer": ("revocation", "revocation-preview"),
    "site create": ("site",),
    "site list": ("sites",),
    "site show": ("site",),
    "status": ("status",),
    "up": ("ready",),
    "version": ("version",),
    "voucher sign": ("voucher",),
    "ceremony signers": ("signers",),
    "ceremony admin": ("admin-renewed",),
    "witness init": ("witness",),
    "witness run": (),
}
"""Which shape each command writes; any of them may write `error` instead."""


def document(name: str) -> Schema:
    """One schema as it stands in docs/cli-schemas."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name, **SHAPES[name]}
