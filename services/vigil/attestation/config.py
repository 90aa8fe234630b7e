"""What the attestation service is told."""

from pathlib import Path

from pydantic import Field

from vigil.rpc.service_main import BaseServiceConfig


class AttestationConfig(BaseServiceConfig):
    """The attestation service. Peers: identity, release, evidence, and revocation."""

    signer_certificate: Path = Field(description="PEM: the certificate of the signer of `result`.")
    signer_key: Path = Field(description="PEM: the key of that certificate.")

    @property
    def database(self) -> Path:
        """Where frontiers and results lie."""
        return self.data_dir / "attestation.db"
