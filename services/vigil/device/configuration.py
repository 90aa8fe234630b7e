"""The pump's configuration and drug library, and their digests as attested.

A configuration is a map of settings; its digest is SHA-256 of its deterministic CBOR, which are also the bytes of the
baseline artifact that a site signs: a pump that applied a baseline measures the baseline's own digest.
"""

from collections.abc import Mapping
from typing import Final

from vigil.core import cbor
from vigil.core.commands import check_parameters
from vigil.core.digest import sha256
from vigil.core.statements.bodies import ActionSpec, Effect, Profile
from vigil.core.statements.schema import Scalar
from vigil.device.store import DeviceStore
from vigil.errors import Reason, Refused, refused

MAX_SETTINGS: Final = 512
MAX_LIBRARY_BYTES: Final = 512 << 10
_SETTINGS, _LIBRARY, _FACTORY = "settings", "library", "settings.factory"
_LIBRARY_DIGEST = "library.digest"
_NO_LIBRARY = sha256(b"")
_NO_SETTINGS: Mapping[str, Scalar] = {}


class Configuration:
    """Settings and library in the store; every change inside one of its transactions."""

    def __init__(self, *, store: DeviceStore) -> None:
        self._store = store
        self._digested: tuple[object, bytes] = (None, b"")

    @property
    def settings(self) -> dict[str, Scalar]:
        """The settings in force."""
        return dict(self._store.get(_SETTINGS, {}))

    @property
    def digest(self) -> bytes:
        """SHA-256 of the settings' deterministic CBOR."""
        settings = self._store.get(_SETTINGS, _NO_SETTINGS)
        # The store hands out the same object until another one was put in its place, or taken back.
        if settings is not self._digested[0]:
            self._digested = (settings, sha256(cbor.encode(settings)))
        return self._digested[1]

    @property
    def library_digest(self) -> bytes:
        """SHA-256 of the drug library's bytes."""
        return bytes(self._store.get(_LIBRARY_DIGEST, _NO_LIBRARY))

    def manufacture(self, settings: Mapping[str, Scalar]) -> None:
        """Set what the device leaves the factory with, and returns to."""
        self._store.put(_FACTORY, dict(settings))
        self._store.put(_SETTINGS, dict(settings))

    def change(self, parameters: Mapping[str, Scalar]) -> None:
        """Settings of the same names take the parameters' values."""
        self._store.put(_SETTINGS, {**self.settings, **parameters})

    def install_baseline(self, artifact: bytes, profile: Profile) -> None:
        """Take a whole configuration. Raises ARTIFACT_CORRUPT, PARAMETER_OUT_OF_RANGE and its kin."""
        settings = read_settings(artifact)
        check_limits(settings, profile)
        self._store.put(_SETTINGS, settings)

    def install_library(self, artifact: bytes) -> None:
        """Take a drug library. Raises REQUEST_TOO_LARGE."""
        if len(artifact) > MAX_LIBRARY_BYTES:
            raise refused(
                Reason.REQUEST_TOO_LARGE, "the drug library is larger than the pump's memory for it"
            )
        self._take_library(artifact)

    def reset(self) -> None:
        """Back to what left the factory."""
        self._store.put(_SETTINGS, dict(self._store.get(_FACTORY, {})))
        self._take_library(b"")

    def _take_library(self, artifact: bytes) -> None:
        self._store.put(_LIBRARY, artifact)
        self._store.put(_LIBRARY_DIGEST, sha256(artifact))


def read_settings(artifact: bytes) -> dict[str, Scalar]:
    """Read a configuration baseline's bytes. Raises ARTIFACT_CORRUPT."""
    try:
        value = cbor.decode(artifact)
    except Refused as error:
        raise refused(Reason.ARTIFACT_CORRUPT, "the baseline is not deterministic CBOR") from error
    if (
        not isinstance(value, dict)
        or len(value) > MAX_SETTINGS
        or not all(type(name) is str and type(one) in (int, str, bytes, bool) for name, one in value.items())
    ):
        raise refused(Reason.ARTIFACT_CORRUPT, "the baseline is not a map of settings")
    return {str(name): one for name, one in value.items()}


def check_limits(settings: Mapping[str, Scalar], profile: Profile) -> None:
    """The hard limits hold for a baseline too: whatever a parameter of the profile bounds. Raises its refusals."""
    specs = {
        spec.name: spec
        for action in profile.actions
        if action.effect is Effect.SET
        for spec in action.parameters
    }
    named = {name: value for name, value in settings.items() if name in specs}
    bounds = ActionSpec(
        name="baseline",
        action_class=next(iter(profile.actions)).action_class,
        effect=Effect.INSTALL_BASELINE,
        parameters=tuple(specs[name] for name in named),
        approvals=0,
        states=(),
    )
    refusals = check_parameters(bounds, named) if named else []
    if refusals:
        raise Refused(refusals)
