"""How processes on one database see that another one lives."""

from typing import Protocol


class Pulse(Protocol):
    """How processes on one database see that another one lives. Calls block; they raise OSError or SQLAlchemyError."""

    def beat(self) -> None:
        """Show that this process lives."""
        ...

    def of(self, holder: str) -> object | None:
        """What changes while that process lives; None when it is gone for certain."""
        ...

    def close(self) -> None:
        """Be gone."""
        ...
