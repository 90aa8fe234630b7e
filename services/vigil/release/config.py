"""What the release service is told."""

from pathlib import Path

from vigil.rpc.service_main import BaseServiceConfig


class ReleaseConfig(BaseServiceConfig):
    """The release service. ``peers.evidence`` is needed; ``peers.revocation``, where named, tells who is revoked."""

    @property
    def database(self) -> Path:
        """Where models, builds and baselines lie."""
        return self.data_dir / "release.db"

    @property
    def artifacts(self) -> Path:
        """Where bytes lie by digest."""
        return self.data_dir / "artifacts"
