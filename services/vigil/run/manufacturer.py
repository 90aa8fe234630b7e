"""A manufacturer's own root and signers, made on the manufacturer's machine."""

import os
from pathlib import Path

from vigil.core.clock import SystemClock
from vigil.identity import ceremony


def init(directory: Path, *, organization: str, trust_domain: str) -> Path:
    """Make a manufacturer's root and its signers for vouchers, profiles and builds; returns the root's PEM file.

    Raises RESOURCE_EXISTS, FIELD_INVALID, OSError.
    """
    ceremony.make_manufacturer(
        directory,
        organization=organization,
        trust_domain=trust_domain,
        clock=SystemClock(),
        entropy=os.urandom,
    )
    return directory / "root" / "root.pem"
