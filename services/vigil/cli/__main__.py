"""Where `vigil` begins."""

import sys


def main() -> None:
    """Run one command and exit with its code. Global options may stand anywhere before ``--``."""
    from vigil.cli.app import app, help_text, hoisted

    arguments = hoisted(sys.argv[1:])
    words = help_text(arguments)
    if words is not None:
        print(words)
        return
    sys.argv[1:] = arguments
    app(prog_name="vigil")


if __name__ == "__main__":
    main()
