"""What the policy service is told."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from vigil.rpc.service_main import BaseServiceConfig


class PolicyConfig(BaseServiceConfig):
    """The policy service. Its peers: identity, release, attestation, revocation, evidence."""

    signer_certificate: Path = Field(description="PEM: the certificate of the signer of decisions.")
    signer_key: Path = Field(description="PEM: the key of that certificate.")
    engine: Literal["wasm", "opa"] = Field(
        default="wasm", description="wasm: Rego in the process; opa: an OPA server beside it."
    )
    opa_url: str = Field(
        default="http://127.0.0.1:8181",
        description="The OPA server, where the engine is opa.",
        pattern=r"^http://[^/@\s]+:\d{1,5}$",
    )
    bundle: Path | None = Field(
        default=None,
        description="The policy bundle; by default bundle.tar.gz in data_dir, else the one that comes with Vigil.",
    )
    streams: int = Field(default=16, ge=1, le=64, description="Streams to the evidence service.")

    @property
    def opa_address(self) -> tuple[str, int]:
        """Host and port of the OPA server."""
        parts = urlsplit(self.opa_url)
        return parts.hostname or "", parts.port or 0
