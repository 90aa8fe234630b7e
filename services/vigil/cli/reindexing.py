"""`vigil evidence reindex`: the index of a log, made again or held against it by the log's own code."""

import json
import subprocess
import sys

from vigil.cli.options import Options
from vigil.cli.output import DONE, REFUSED, Output
from vigil.cli.session import data_folder
from vigil.errors import Reason, VigilError, refused


def reindex_folder(output: Output, options: Options, *, check: bool) -> int:
    """Run it as a process of its own, whose bar goes to stderr; exit 3 when the index differs from the log.

    Raises EVIDENCE_UNAVAILABLE for a log with a hole.
    """
    config = data_folder(options).config("evidence")
    if not config.exists():
        raise VigilError(f"{config} is missing: this is for the machine that runs the evidence service")
    arguments = [sys.executable, "-m", "vigil.evidence.reindex", "--config", str(config)]
    if check:
        arguments.append("--check")
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - a list of our own, no shell
    if not done.stdout:
        raise VigilError("it did not end: what is left to do, the service does, or the same command")
    value = json.loads(done.stdout)
    if "failed" in value:
        raise VigilError(value["failed"])
    if "refused" in value:
        raise refused(
            Reason.EVIDENCE_UNAVAILABLE,
            f"{value['refused'][:1].upper()}{value['refused'][1:]}.",
            lifted_by="the log whole again",
            who="the operator",
        )
    output.record(value)
    if not check:
        return DONE
    if not output.json:
        output.say("the index is what the log says" if value["holds"] else "the index DIFFERS from the log")
    return DONE if value["holds"] else REFUSED
