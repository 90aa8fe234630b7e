"""What a witness is told."""

from pathlib import Path

from pydantic import Field, field_validator

from vigil.core.notes import is_key_name
from vigil.errors import Refused
from vigil.rpc.service_main import ProcessConfig
from vigil.witness.domain import KnownLogs


class WitnessConfig(ProcessConfig):
    """A witness: its name, and the logs that it watches. Its key and its memory lie in ``data_dir``, together."""

    name: str = Field(description="The name under which it cosigns: a URL without its scheme.")
    logs: tuple[str, ...] = Field(
        description="Verifier keys of the logs that it watches (C2SP signed-note); others are answered 404."
    )

    @field_validator("name")
    @classmethod
    def _names_a_key(cls, value: str) -> str:
        if not is_key_name(value):
            raise ValueError("a name is not empty and has neither spaces nor plus signs")
        return value

    @field_validator("logs")
    @classmethod
    def _are_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            KnownLogs(value)
        except Refused as error:
            raise ValueError(error.refusals[0].sentence) from None
        return value

    @property
    def database(self) -> Path:
        """Where its memory lies."""
        return self.data_dir / "witness.db"

    @property
    def witness_key(self) -> Path:
        """Its own Ed25519 key."""
        return self.data_dir / "witness.key"
