"""What there is at one hospital, and the requests of strangers for it: one table over all methods."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.support.stack import PRESSURE, Issued
from vigil.api.identity.v1 import identity_pb2
from vigil.cli.signing import sign_approval, sign_command, sign_hold, sign_intent
from vigil.core.certificates import load_pair, make_request
from vigil.core.clock import SystemClock
from vigil.core.keys import new_private_key
from vigil.core.statements.bodies import (
    HoldAction,
    Intent,
    Mode,
    Reinstatement,
    Revocation,
    RevocationEffect,
    RevocationReason,
    Scope,
)
from vigil.core.statements.envelope import Scribe, Statement
from vigil.core.statements.log_bodies import Erasure, ErasureReason, ErasureWhat

CSR: Final = make_request(new_private_key()).decode()
NO_DEVICE: Final = "dev-aaaaaaaaaaaaaaaa"
MALLORY: Final = "p-mallory"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What there is at the first hospital, by the names that a stranger would use."""

    organization: str
    site: str
    gateway: str
    device: str
    principal: str
    credential: str
    enrolment: str
    command: str
    intent: str
    request: bytes
    epoch: int
    record: bytes
    profile: bytes
    release: bytes
    baseline: bytes
    revocation: bytes
    revoked: str


ABSENT: Final = {
    "organization": "no-such-organization",
    "site": "no-such-site",
    "gateway": "no-such-gateway",
    "device": NO_DEVICE,
    "principal": "p-nobody",
    "credential": "0" * 64,
    "enrolment": "enr-aaaaaaaaaaaaaaaa",
    "command": "0" * 64,
    "intent": "0" * 64,
    "epoch": 2**40,
    "record": bytes(32),
}


@dataclass(frozen=True)
class Stranger:
    """Who asks, with a pen."""

    credential: Issued

    @property
    def scribe(self) -> Scribe:
        files = self.credential.tls_files
        return Scribe(
            signer=load_pair(files.certificate, files.key).signer,
            issuer=f"person/{self.credential.id}",
            clock=SystemClock(),
            entropy=os.urandom,
            numbered=False,
        )

    def intent(self, device_id: str) -> Statement[Intent]:
        now = SystemClock().now()
        return sign_intent(
            self.scribe,
            device_ids=[device_id],
            action=PRESSURE,
            parameters={"occlusion_pressure": 300},
            request_id=os.urandom(16),
            mode=Mode.NOW,
            not_before=now,
            expires=now + 60_000,
            work_order="WO-1",
        )

    def command(self, device_id: str) -> dict[str, bytes]:
        intent = self.intent(device_id)
        command = sign_command(
            self.scribe, intent=intent, device_ids=[device_id], device_id=device_id, nonce=os.urandom(16)
        )
        return {"intent": intent.data, "command": command.data}

    def approval(self, known: Known) -> bytes:
        return sign_approval(self.scribe, self.intent(known.device), meaning="approval").data

    def revocation(self, name: str) -> bytes:
        body = Revocation(
            scope=Scope.CREDENTIAL,
            ids=(name,),
            effect=RevocationEffect.DENY,
            reason=RevocationReason.COMPROMISE,
        )
        return self.scribe.sign(body, subject=f"credential/{name}").data

    def erasure(self, known: Known) -> bytes:
        body = Erasure(records=(known.record,), what=ErasureWhat.STATEMENTS, reason=ErasureReason.MISTAKE)
        return self.scribe.sign(body, subject=f"device/{known.device}").data

    def reinstatement(self, known: Known) -> bytes:
        body = Reinstatement(
            revocation=known.revocation, scope=Scope.CREDENTIAL, ids=(known.revoked,), reason="a mistake"
        )
        return self.scribe.sign(body, subject=f"credential/{known.revoked}").data


@dataclass(frozen=True)
class Case:
    """One method that names something: the request's fields, and what a stranger may not be.

    ``same_words``: what does not exist is refused in the same words. ``own_site``: who belongs to another site of the
    organization is a stranger too.
    """

    fields: Callable[[Known, Stranger], Mapping[str, Any]]
    own_site: bool = True
    same_words: bool = True


def _possession() -> identity_pb2.DevicePossession:
    return identity_pb2.DevicePossession(nonce=bytes(32), tls_csr_pem=CSR, attestation_csr_pem=CSR)


LOOKED_UP: Final[dict[str, Case]] = {
    "RegistryService/CreateOrganization": Case(
        lambda _k, _s: {
            "organization": identity_pb2.Organization(organization_id="new-one", display_name="New")
        },
        same_words=False,
    ),
    "RegistryService/GetSite": Case(lambda k, _: {"site_id": k.site}),
    "RegistryService/GetGateway": Case(lambda k, _: {"gateway_id": k.gateway}),
    "RegistryService/ApprovePrincipal": Case(lambda k, _: {"principal_id": k.principal}),
    "RegistryService/GetPrincipal": Case(lambda k, _: {"principal_id": k.principal}, own_site=False),
    "RegistryService/DisablePrincipal": Case(lambda k, _: {"principal_id": k.principal}),
    "CertificateService/IssueCredential": Case(lambda k, _: {"principal_id": k.principal, "csr_pem": CSR}),
    "CertificateService/GetCredential": Case(lambda k, _: {"thumbprint": k.credential}, own_site=False),
    "CertificateService/RenewDeviceCertificates": Case(
        lambda k, _: {"device_id": k.device, "possession": _possession()}
    ),
    "EnrolmentService/StartEnrolment": Case(
        lambda k, _: {"voucher": b"", "organization_id": k.organization, "site_id": k.site}
    ),
    "EnrolmentService/CompleteEnrolment": Case(
        lambda k, _: {"enrolment_id": k.enrolment, "possession": _possession()}
    ),
    "EnrolmentService/ActivateDevice": Case(lambda k, _: {"device_id": k.device}),
    "DeviceService/GetDevice": Case(lambda k, _: {"device_id": k.device}),
    "DeviceService/PlaceHold": Case(
        lambda k, s: {
            "device_id": k.device,
            "hold": sign_hold(s.scribe, k.device, action=HoldAction.PLACE, reason="an incident").data,
        }
    ),
    "DeviceService/LiftHold": Case(
        lambda k, s: {
            "device_id": k.device,
            "lifts": [sign_hold(s.scribe, k.device, action=HoldAction.LIFT, reason="over").data] * 2,
        }
    ),
    "ReleaseService/PublishModel": Case(
        lambda k, _: {"profile": k.profile}, own_site=False, same_words=False
    ),
    "ReleaseService/PublishRelease": Case(
        lambda k, _: {"release": k.release, "sbom_attestation": b"{}", "sbom": b"{}"},
        own_site=False,
        same_words=False,
    ),
    "ReleaseService/PublishBaseline": Case(
        lambda k, _: {"baseline": k.baseline, "content": b"{}"}, same_words=False
    ),
    "AttestationService/GetResult": Case(lambda k, _: {"device_id": k.device}),
    "RevocationService/Revoke": Case(lambda k, s: {"revocation": s.revocation(k.credential)}),
    "RevocationService/GetRevocation": Case(lambda k, _: {"epoch": k.epoch}, own_site=False),
    "EvidenceReadService/GetEntry": Case(lambda k, _: {"digest": k.record}),
    "EvidenceReadService/ListHistory": Case(lambda k, _: {"subject": f"device/{k.device}"}),
    "EvidenceReadService/GetSubjectProof": Case(lambda k, _: {"subject": f"device/{k.device}"}),
    "EvidenceReadService/GetStateAt": Case(
        lambda k, _: {"device_id": k.device, "time_ms": 1_790_000_000_000}
    ),
    "CommandService/PrepareCommand": Case(lambda k, _: {"device_id": k.device, "action": PRESSURE}),
    "CommandService/SubmitCommand": Case(lambda k, s: {"device_id": k.device, **s.command(k.device)}),
    "CommandService/PreviewCommand": Case(
        lambda k, s: {"device_id": k.device, "intent": s.intent(k.device).data}
    ),
    "CommandService/GetReceipt": Case(lambda k, _: {"device_id": k.device, "request_id": k.request}),
    "CommandService/GetCommand": Case(lambda k, _: {"command_id": k.command}),
    "IntentService/CreateIntent": Case(
        lambda k, s: {"device_ids": [k.device], "intent": s.intent(k.device).data}
    ),
    "IntentService/GetIntent": Case(lambda k, _: {"intent_id": k.intent}),
    "IntentService/ApproveIntent": Case(lambda k, s: {"intent_id": k.intent, "approval": s.approval(k)}),
    "IntentService/CancelIntent": Case(lambda k, _: {"intent_id": k.intent}),
    "GatewayDeviceService/GetConnectedDevice": Case(lambda k, _: {"device_id": k.device}),
    "GatewayDeviceService/FollowDevice": Case(lambda k, _: {"device_id": k.device}),
}

TAKES_TWO: Final[dict[str, Callable[[Known, Stranger], dict[str, bytes]]]] = {
    "RevocationService/Reinstate": lambda k, s: {"reinstatements": s.reinstatement(k)},
    "EvidenceErasureService/Erase": lambda k, s: {"erasures": s.erasure(k)},
}
"""What one of two people says, in the field that holds both."""
SEEN_BY_SITE: Final[dict[str, Callable[[Known], str]]] = {
    "identity": lambda known: known.gateway,
    "release": lambda known: known.site,
    "attestation": lambda known: known.site,
    "revocation": lambda known: known.site,
}
"""What besides its devices a feed shows to a site's own gateways alone; people concern them all, with their sites."""

FILTERED: Final[dict[str, bool]] = {
    "RegistryService/ListOrganizations": False,
    "RegistryService/ListSites": True,
    "RegistryService/ListGateways": True,
    "RegistryService/ListPrincipals": False,
    "CertificateService/ListCredentials": False,
    "DeviceService/ListDevices": True,
    "ReleaseService/ListBaselines": True,
    "AttestationService/ListResults": True,
    "RevocationService/ListRevocations": False,
    "RevocationService/GetCoverage": True,
    "CommandService/ListCommands": True,
    "IntentService/ListIntents": True,
    "GatewayDeviceService/ListConnectedDevices": True,
    "FeedService/Watch": True,
    "EvidenceReadService/FindRecords": True,
}
"""Lists, and whether another site of the same organization sees as little as another organization does."""

ASKED: Final[dict[str, dict[str, str]]] = {"EvidenceReadService/FindRecords": {"kind": "receipt"}}
"""What a list that is never of everything is asked for."""

COUNTED: Final = {"DeviceService/CountDevices": "by_state", "AttestationService/CountResults": "by_status"}
"""Counts of what is in scope."""

OPEN: Final[dict[str, str]] = {
    "ReleaseService/GetModel": "a model's profile concerns whoever has one",
    "ReleaseService/ListModels": "as above",
    "ReleaseService/GetRelease": "a build's release concerns whoever runs it",
    "ReleaseService/ListReleases": "as above",
    "ArtifactService/UploadArtifact": "bytes that nobody has published belong to nobody",
    "ArtifactService/GetUpload": "how many of these bytes are there",
    "ArtifactService/FetchArtifact": "published bytes by digest; a gateway's baselines are tested below",
    "PolicyStatusService/GetPolicyStatus": "ages and a revision",
    "HeadService/AnswerChallenges": "for three services",
    "EdgeService/GetEntries": "for the revocation service; what every gateway hears",
    "HeadService/ReportAcknowledgements": "for the edge; acknowledgements are signed",
    "EvidenceLogService/Append": "for services; a gateway's site is tested below",
    "EvidenceReadService/GetInclusionProof": "hashes",
    "EvidenceReadService/GetConsistencyProof": "hashes",
    "EvidenceReadService/GetCheckpoint": "a root, to be published",
    "EvidenceReadService/GetLogStatus": "sizes, witnesses, and indexes of what is damaged",
    "GatewayDeviceService/GetGatewayStatus": "ages and counts of the gateway that was dialled",
}
