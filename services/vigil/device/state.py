"""The small facts of a device that outlive a restart."""

from vigil.device.store import DeviceStore

MAX_HOLDS = 1024


class DeviceState:
    """Counters and flags in the store; every change inside one of its transactions."""

    def __init__(self, *, store: DeviceStore) -> None:
        self._store = store

    @property
    def boot_count(self) -> int:
        """Starts since manufacture."""
        return int(self._store.get("boot-count", 0))

    def started(self) -> int:
        """Count this start."""
        self._store.put("boot-count", self.boot_count + 1)
        return self.boot_count

    @property
    def applied(self) -> int:
        """Actions applied since enrolment."""
        return int(self._store.get("applied", 0))

    def count_applied(self) -> None:
        """Count one more."""
        self._store.put("applied", self.applied + 1)

    @property
    def quarantined(self) -> bool:
        """Whether the management channel is closed but for S1, R and recovery."""
        return bool(self._store.get("quarantined", False))

    def quarantine(self, *, on: bool) -> None:
        """Enter or leave quarantine."""
        self._store.put("quarantined", on)

    @property
    def holds(self) -> int:
        """Evidence holds in force."""
        return int(self._store.get("holds", 0))

    def hold(self, change: int) -> int:
        """Place (1) or lift (-1) a hold; answer how many are in force."""
        self._store.put("holds", min(MAX_HOLDS, max(0, self.holds + change)))
        return self.holds

    @property
    def alert(self) -> str:
        """What is shown to whoever stands there."""
        return str(self._store.get("alert", ""))

    def show(self, message: str) -> None:
        """Show a message; an empty one shows nothing."""
        self._store.put("alert", message)
