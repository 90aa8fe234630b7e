"""Between the contract's messages and the room's values."""

from vigil.api.release.v1 import release_pb2 as pb
from vigil.release.domain import BaselineRecord, BuildRecord, ModelRecord


def model_to(value: ModelRecord) -> pb.Model:
    return pb.Model(
        model=value.model,
        version=value.version,
        organization_id=value.organization_id,
        profile=value.profile,
        create_time_ms=value.create_time,
    )


def build_to(value: BuildRecord) -> pb.Release:
    return pb.Release(
        firmware=value.firmware,
        model=value.model,
        version=value.version,
        security_version=value.security_version,
        size=value.size,
        organization_id=value.organization_id,
        statement=value.statement,
        sbom=value.sbom,
        sbom_attestation=value.sbom_attestation,
        component_count=value.component_count,
        create_time_ms=value.create_time,
    )


def baseline_to(value: BaselineRecord) -> pb.Baseline:
    return pb.Baseline(
        content=value.content,
        kind=value.kind,
        name=value.name,
        site_id=value.site_id,
        organization_id=value.organization_id,
        models=value.models,
        valid_from_ms=value.valid_from,
        valid_to_ms=value.valid_to,
        size=value.size,
        statement=value.statement,
        create_time_ms=value.create_time,
    )
