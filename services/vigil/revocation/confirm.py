"""Two people confirm a clock that heads are withheld for: ``python -m vigil.revocation.confirm``.

No ratchet without a way out. A confirmation is an era statement of the era in force, whose floor is the time confirmed.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vigil.core.certificates import ChainVerifier, TrustBundle, load_pair
from vigil.core.clock import SystemClock
from vigil.core.statements.bodies import Era
from vigil.core.statements.envelope import Scribe


def main(argv: Sequence[str] | None = None) -> None:
    """Sign one confirmation to standard output."""
    parser = argparse.ArgumentParser(
        prog="vigil-revocation-confirm", description="Confirm a clock, as one of two people."
    )
    parser.add_argument("--certificate", type=Path, required=True, help="your certificate, PEM")
    parser.add_argument("--key", type=Path, required=True, help="its key, PEM")
    parser.add_argument("--trust", type=Path, required=True, help="trust.json")
    parser.add_argument(
        "--time", type=int, required=True, help="the time, ms since 1970; the same for both of you"
    )
    parser.add_argument("--era", type=int, default=0, help="the era in force")
    parser.add_argument("--reason", required=True, help="why; the same words for both of you")
    arguments = parser.parse_args(argv)
    pair = load_pair(arguments.certificate, arguments.key)
    bundle = TrustBundle.from_json(arguments.trust.read_text(encoding="utf-8"))
    person = ChainVerifier(bundle).remember(pair.chain_der)
    scribe = Scribe(
        signer=pair.signer,
        issuer=f"{person.kind}/{person.id}",
        clock=SystemClock(),
        entropy=os.urandom,
        numbered=False,
    )
    body = Era(era=arguments.era, floor=arguments.time, epoch=0, reason=arguments.reason)
    sys.stdout.buffer.write(scribe.sign(body, subject="revocation/clock").data)


if __name__ == "__main__":
    main()
