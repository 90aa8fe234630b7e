"""What the evidence service is told."""

from pathlib import Path

from pydantic import Field, field_validator

from vigil.errors import Refused
from vigil.rpc.service_main import BaseServiceConfig
from vigil.storage import database_url


class EvidenceConfig(BaseServiceConfig):
    """The evidence service. ``peers.revocation``, where named, tells which callers are revoked."""

    signer_certificate: Path = Field(description="PEM: the certificate of the signer of `recorded`.")
    signer_key: Path = Field(description="PEM: the key of that certificate.")
    database_url: str = Field(
        default="",
        description="postgresql://…: where the log lies instead of a SQLite file in `data_dir`. A password belongs"
        " into libpq's `passfile` or `service` file.",
    )
    witness_policy: Path | None = Field(
        default=None,
        description="A C2SP tlog-policy: the witnesses that checkpoints are sent to, and how many are enough.",
    )
    census_seconds: float = Field(
        default=60.0,
        ge=1.0,
        le=86_400.0,
        description="How often a census of all subjects is taken while there is news; never more than a twentieth of "
        "the time.",
    )
    tiles_listen: str = Field(
        default="",
        description="host:port for the log's tiles (C2SP tlog-tiles), read by anybody; empty serves none.",
        pattern=r"^(\S+:\d{1,5})?$",
    )
    tiles_tls: bool = Field(
        default=False, description="Serve the tiles over HTTPS with the service's certificate."
    )

    audit_entries_per_second: float = Field(
        default=50.0,
        gt=0,
        le=100_000,
        description="How fast the log is read again and checked in the background: 50 take a few per cent of a core.",
    )

    @field_validator("database_url", mode="after")
    @classmethod
    def _readable(cls, value: str) -> str:
        if value:
            try:
                database_url(value)
            except Refused as refusal:
                raise ValueError(refusal.refusals[0].sentence) from None
        return value

    @property
    def database(self) -> Path | str:
        """Where the log lies."""
        return self.database_url or self.data_dir / "evidence.db"

    @property
    def log_key(self) -> Path:
        """The log's own key, which signs checkpoints; made at the first start."""
        return self.data_dir / "log.key"
