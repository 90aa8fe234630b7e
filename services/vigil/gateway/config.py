"""What a gateway is told: one site, its peers, the edges that bring revocations."""

from pydantic import BaseModel, ConfigDict, Field

from vigil.gateway.quotas import Limits
from vigil.rpc.service_main import BaseServiceConfig

SLUG = r"^[a-z0-9][a-z0-9-]{0,62}$"
ADDRESS = r"^\S+:\d{1,5}$"

_DEFAULT = Limits()


class QuotaConfig(BaseModel):
    """What one credential may ask for; a benchmark or a very large site raises it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commands: int = Field(default=_DEFAULT.commands, ge=1, description="Commands a minute.")
    safety: int = Field(default=_DEFAULT.safety, ge=1, description="Class S1 commands a minute, apart.")
    degraded: int = Field(
        default=_DEFAULT.degraded, ge=1, description="Class R commands a minute without a lease."
    )
    previews: int = Field(default=_DEFAULT.previews, ge=1, description="Previews a minute.")
    reads: int = Field(default=_DEFAULT.reads, ge=1, description="Reads a minute.")
    intents: int = Field(default=_DEFAULT.intents, ge=1, description="Intents and approvals a minute.")
    nonces: int = Field(default=_DEFAULT.nonces, ge=1, description="Nonces outstanding.")
    concurrent: int = Field(default=_DEFAULT.concurrent, ge=1, description="Commands under way at once.")
    streams: int = Field(default=_DEFAULT.streams, ge=1, description="Devices followed at once.")

    @property
    def limits(self) -> Limits:
        """As the quotas take them."""
        return Limits(**self.model_dump())


class GatewayConfig(BaseServiceConfig):
    """One gateway, which serves one site. Peers: identity, release, attestation, policy, evidence."""

    gateway_id: str = Field(description="The gateway's id, as its certificate names it.", pattern=SLUG)
    site_id: str = Field(description="The site that it serves.", pattern=SLUG)
    organization_id: str = Field(description="The organization that the site belongs to.", pattern=SLUG)
    edges: tuple[str, ...] = Field(
        description="host:port of the revocation edges, any number; one is followed at a time.", min_length=1
    )
    quotas: QuotaConfig = Field(default=QuotaConfig(), description="What one credential may ask for.")
