"""Writes cosign-envelope.json anew: python -m tests.unit.release.make_cosign_envelope (from the repository)."""

import json

from cryptography.hazmat.primitives.asymmetric import ec

from tests.unit.release.test_builds import FIXTURE, cosign_envelope

if __name__ == "__main__":
    key = ec.derive_private_key(0x5EED, ec.SECP256R1())
    point = key.public_key().public_numbers()
    value = {"x": f"{point.x:x}", "y": f"{point.y:x}", "envelope": cosign_envelope(key)}
    FIXTURE.write_text(json.dumps(value, indent=2) + "\n")
