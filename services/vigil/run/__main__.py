"""``python -m vigil.run``: what `vigil up` does, for other programs to start."""

import argparse
import sys
from pathlib import Path

from vigil.errors import Refused
from vigil.run.layout import DEFAULT_TRUST_DOMAIN, default_data
from vigil.run.up import run


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="vigil-run", description="Every service of Vigil on one machine.")
    parser.add_argument("--data", type=Path, default=default_data(), metavar="DIR")
    parser.add_argument("--base-port", type=int, metavar="N")
    parser.add_argument("--trust-domain", default=DEFAULT_TRUST_DOMAIN, metavar="NAME")
    parser.add_argument("--no-gateway", action="store_true", help="start without a first site and gateway")
    parser.add_argument("--metrics", action="store_true", help="serve Prometheus on the loopback interface")
    parser.add_argument("--output", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    try:
        code = run(
            arguments.data,
            base_port=arguments.base_port,
            trust_domain=arguments.trust_domain,
            gateway=not arguments.no_gateway,
            output=arguments.output,
            metrics=arguments.metrics,
        )
    except Refused as error:
        first = error.refusals[0]
        sys.exit(f"{first.sentence} ({first.reason}); {first.lifted_by}")
    sys.exit(code)


if __name__ == "__main__":
    main()
