"""One trust domain for the harnesses that need certificates, made when the first of them is prepared."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests.support.pki import Manufacturer, TestPki
from vigil.core.clock import ManualClock


@cache
def folder() -> Path:
    """A folder of this process, gone with it."""
    made = Path(tempfile.mkdtemp(prefix="vigil-fuzz-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@cache
def trust_domain() -> TestPki:
    """A trust domain whose time stands still."""
    home = folder() / "pki"
    home.mkdir()
    return TestPki(home, clock=ManualClock())


@cache
def maker() -> Manufacturer:
    """The manufacturer that it trusts."""
    return trust_domain().manufacturer()


@cache
def live() -> TestPki:
    """Another one, of now, for servers: gRPC looks at the machine's clock."""
    home = folder() / "live"
    home.mkdir()
    return TestPki(home)
