"""Finding and running the `opa` command, which builds and checks policies. Decisions never need it."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vigil.errors import VigilError

OPA_VERSION: Final = "1.22.2"
"""The version whose output is committed; another one may compile the same sources to other bytes."""

LOCAL_OPA: Final = Path(".tools/bin/opa")
"""Where the project's set-up installs it, below the folder in which the command runs."""

_TIME_LIMIT_S: Final = 120


class OpaMissing(VigilError):  # noqa: N818 - a state, not a failure of ours
    """The `opa` command is not there; the message says how to install it."""


class OpaFailed(VigilError):  # noqa: N818 - the domain's word
    """`opa` refused; the message is what it said."""


class Opa:
    """The `opa` command at one path."""

    def __init__(self, executable: Path) -> None:
        self._executable = executable.resolve()

    @property
    def executable(self) -> Path:
        """The absolute path of the command."""
        return self._executable

    @classmethod
    def find(cls, explicit: Path | None = None) -> "Opa":
        """The command at `explicit`, on PATH or at LOCAL_OPA; else `OpaMissing`."""
        on_path = shutil.which("opa")
        candidates = [explicit] if explicit else [Path(on_path) if on_path else None, LOCAL_OPA]
        for candidate in candidates:
            if candidate and os.access(candidate, os.X_OK):
                return cls(candidate)
        wanted = explicit or f"on PATH or at {LOCAL_OPA}"
        raise OpaMissing(
            f"The opa command is not there ({wanted}). Install it with "
            f"'GOBIN=$PWD/.tools/bin CGO_ENABLED=0 go install github.com/open-policy-agent/opa@v{OPA_VERSION}', "
            "or take a release from openpolicyagent.org."
        )

    def run(self, arguments: Sequence[str], *, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run it in `folder`; the caller judges the exit code. `OpaFailed` when it does not end."""
        try:
            return subprocess.run(  # noqa: S603 - the executable that was found, arguments as a list, no shell
                [str(self._executable), *arguments],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_TIME_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise OpaFailed(f"opa {arguments[0]} took longer than {_TIME_LIMIT_S} s.") from error

    def output(self, arguments: Sequence[str], *, folder: Path) -> str:
        """Run it in `folder` and return its standard output; `OpaFailed` with its words otherwise."""
        finished = self.run(arguments, folder=folder)
        if finished.returncode != 0:
            raise OpaFailed((finished.stderr or finished.stdout).strip())
        return finished.stdout

    def version(self) -> str:
        """The version that it states."""
        return self.output(["version"], folder=Path.cwd()).partition("\n")[0].removeprefix("Version: ")
