"""What the identity service is told."""

from pathlib import Path

from pydantic import Field

from vigil.rpc.service_main import BaseServiceConfig


class IdentityConfig(BaseServiceConfig):
    """Besides what every service is told. Peers: ``evidence``; ``revocation`` too where it is followed."""

    pki_dir: Path = Field(
        description="The folder `pki` of the first start: intermediates' keys, and the trust.json kept here."
    )
    sweep_seconds: float = Field(
        default=5.0, gt=0, le=3600, description="How often holds and enrolments that are over are ended."
    )
