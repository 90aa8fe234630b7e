"""Where `vigil` begins."""

import sys

from vigil.cli.app import hoisted


def main() -> None:
    """Run one command and exit with its code. Global options may stand anywhere before ``--``."""
    from vigil.cli.app import app

    sys.argv[1:] = hoisted(sys.argv[1:])
    app(prog_name="vigil")


if __name__ == "__main__":
    main()
