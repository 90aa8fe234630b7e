"""Whom to believe, as it changes at run time."""

from vigil.core.certificates import ChainVerifier
from vigil.rpc.tls import TlsWatcher


class CurrentVerifier:
    """Answers the verifier for the newest trust bundle; a new one begins when the file changes."""

    def __init__(self, *, watcher: TlsWatcher) -> None:
        self._watcher = watcher
        self._verifier = ChainVerifier(watcher.current().bundle)

    def __call__(self) -> ChainVerifier:
        bundle = self._watcher.current().bundle
        if bundle is not self._verifier.bundle:
            self._verifier = ChainVerifier(bundle)
        return self._verifier
