"""What the revocation service and its edges are told."""

from pathlib import Path

from pydantic import Field, model_validator

from vigil.rpc.service_main import BaseServiceConfig


class RevocationConfig(BaseServiceConfig):
    """The revocation service. ``peers`` names ``evidence``, ``identity`` and ``release``."""

    signer_certificate: Path = Field(description="PEM: the certificate of the signer of heads.")
    signer_key: Path = Field(description="PEM: the key of that certificate.")
    spare_signer_certificate: Path | None = Field(
        default=None,
        description="PEM: a second signer of heads, used when the first one's certificate ended.",
    )
    spare_signer_key: Path | None = Field(default=None, description="PEM: the key of that certificate.")
    redis_url: str = Field(default="", description="The bus (unix:///…/redis.sock); empty: edges only poll.")
    edges: tuple[str, ...] = Field(
        default=(), description="host:port of the edges that are asked at a start what the database lacks."
    )
    instance: str = Field(
        default="revocation",
        description="Who holds the lease of the head; each of several processes on one database has its own.",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
    )

    @model_validator(mode="after")
    def _whole_spare(self) -> "RevocationConfig":
        if (self.spare_signer_certificate is None) != (self.spare_signer_key is None):
            raise ValueError("spare_signer_certificate and spare_signer_key belong together")
        return self

    @property
    def database(self) -> Path:
        """Where the chain lies."""
        return self.data_dir / "revocation.db"

    @property
    def root_statements(self) -> Path:
        """Where what the offline root and two people signed is looked for at a start."""
        return self.data_dir / "root-statements"


class EdgeConfig(BaseServiceConfig):
    """An edge. ``peers.revocation`` is where heads come from."""

    redis_url: str = Field(default="", description="The bus (unix:///…/redis.sock); empty: only poll.")
    edge_id: str = Field(default="edge", description="How coverage names this edge.", min_length=1)

    @property
    def database(self) -> Path:
        """Where the entries that this edge verified lie."""
        return self.data_dir / "edge.db"
