"""One harness in a process of its own, under libFuzzer: ``python -m tests.fuzz.target NAME [libFuzzer's arguments]``.

Where atheris has no wheel for this platform or Python, the same inputs are mutated without coverage: see `fallback`.
"""

import importlib.util
import logging
import sys


def main() -> None:
    """Fuzz until libFuzzer is told to stop; it never returns."""
    import atheris

    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["vigil", "biip"]):
        from tests.fuzz.registry import HARNESSES
    from tests.fuzz.harness import attempt

    harness = HARNESSES[sys.argv[1]]
    run = harness.prepare()

    def one(data: bytes) -> None:
        attempt(run, data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
    atheris.Fuzz()


def available() -> bool:
    """Whether atheris is installed here."""
    return importlib.util.find_spec("atheris") is not None


if __name__ == "__main__":
    main()
