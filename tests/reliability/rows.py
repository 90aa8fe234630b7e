"""What Vigil must hold against, a row each: faults that happen and attackers who try. Tests name what they show.

A test says ``@pytest.mark.holds("redis-outages")``; `make faults` writes which row is shown by how many tests, and
a row that no test shows fails that run.
"""

from collections.abc import Mapping
from typing import Final

FAULTS: Final[Mapping[str, str]] = {
    "redis-outages": "Redis killed, come back empty, silent, or half-open while PUBLISH still counts a subscriber",
    "slow-subscriber": "A subscriber too slow for Redis, which drops it: it notices, refuses meanwhile, catches up",
    "hostile-bus": "Duplicate, reordered, forged, replayed and fast-forwarded messages on the bus",
    "opa-failures": "OPA down, slow, answering undefined, or holding an old bundle while it says it is healthy",
    "killed-between-steps": "A service killed between any two steps of a command, a revocation, an attestation",
    "storage-failures": "A full disk, a failing fsync or write, a locked database",
    "database-server": "A database server restarted, killed, or cut off in the middle of commits",
    "two-writers": "Two processes of the log: the writer is killed, or stopped, followed, and goes on",
    "clock-steps": "A clock stepped forward, back, or frozen",
    "cut-off": "A gateway cut off from the control plane, a device from its gateway, with a command staged",
    "claimed-epoch": "An acknowledgement or hint that claims epoch 2^63",
    "even-delay": "Redis or an edge that delays everything evenly, by a minute or an hour, so that no gap shows",
    "swallowed-receipt": "A receipt swallowed, the command retried with a new nonce, the gateway's tables wiped",
    "wrong-decade": "A control plane whose clock is ten years ahead",
    "restored-revocations": "A revocation database restored from last week",
    "expired-everywhere": "Identity, CA and gateways cut off for 72 hours, every certificate past its end",
    "drawer": "A pump nine months in a drawer: certificate expired, clock lost",
    "update-power-cut": "The power cut in the middle of an update; a pump taken into use while one is staged",
    "fleet-returns": "All gateways of a fleet connect again at once",
    "certificate-rotation": "A certificate that is replaced, or expires, under load",
}

ATTACKERS: Final[Mapping[str, str]] = {
    "stolen-technician": "A stolen technician's credential, streams that are open already included",
    "malicious-gateway": "A malicious gateway: makes, replays, alters permits, hides a revocation",
    "captured-policy": "A captured decision service",
    "captured-bus": "A captured Redis or edge",
    "stolen-signers": "Each signer's key stolen, each service captured, in turn",
    "impostor": "An impostor who enrols first, with a UDI read off a label",
    "stolen-safety": "A stolen safety credential at a gateway that is cut off",
    "rogue-revoker": "A rogue revoker with many small revocations, or against the last two who could undo them",
    "speaks-as-another": "A certified device that speaks as another; a gateway of one site that acts for another",
    "lying-relay": "A relay that lies to a person: 'done', or another intent to approve",
    "floods-by-credential": "A flood of nonces or of refusals by a valid credential of low privilege",
    "cloned-device": "A cloned device, replayed evidence, a replayed enrolment",
    "rollback-and-mix": "Firmware rolled back or frozen; firmware, configuration and SBOM mixed and matched",
    "policy-editor": "A malicious policy editor: an older, unsigned, altered or undefined policy",
    "insider-evidence": "An insider who deletes or rewrites evidence, or shows two histories",
    "strangers": "Anyone without a certificate, or with another service's",
    "hostile-input": "Oversized, deeply nested, malformed input of every kind, and what takes long to read",
    "floods": "A flood of requests beside revocations and safety actions",
}

ROWS: Final[Mapping[str, str]] = {**FAULTS, **ATTACKERS}
