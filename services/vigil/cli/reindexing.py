"""`vigil evidence reindex`: the index of a log, made again or held against it by the log's own code."""

import json
import subprocess
import sys

from vigil.cli.options import Options
from vigil.cli.output import DONE, REFUSED, Output
from vigil.cli.session import data_folder
from vigil.errors import VigilError


def reindex_folder(output: Output, options: Options, *, check: bool) -> int:
    """Run it as a process of its own, whose bar goes to stderr; exit 3 when the index differs from the log."""
    config = data_folder(options).config("evidence")
    if not config.exists():
        raise VigilError(f"{config} is missing: this is for the machine that runs the evidence service")
    arguments = [sys.executable, "-m", "vigil.evidence.reindex", "--config", str(config)]
    if check:
        arguments.append("--check")
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - a list of our own, no shell
    if not done.stdout:
        raise VigilError("the index was left as it is")
    value = json.loads(done.stdout)
    output.record(value)
    if not check:
        return DONE
    if not output.json:
        output.say("the index is what the log says" if value["holds"] else "the index DIFFERS from the log")
    return DONE if value["holds"] else REFUSED
