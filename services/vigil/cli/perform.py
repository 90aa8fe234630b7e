"""Runs one command: a session if it needs one, and what came of it as an exit code."""

import os
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import typer

from vigil.cli.options import UsageError, options_of

if TYPE_CHECKING:
    from vigil.cli.output import Output
    from vigil.cli.session import Session

INTERRUPTED = 130
"""As a shell tells of SIGINT."""


def perform(context: typer.Context, work: "Callable[[Session], Coroutine[Any, Any, int | None]]") -> None:
    """Run work that talks to services, then exit with its code."""
    import asyncio

    from vigil.cli.session import open_session

    options = options_of(context)

    def run(output: "Output") -> int:
        async def main() -> int:
            session = open_session(options, output)
            try:
                return await work(session) or 0
            finally:
                await session.close()

        return asyncio.run(main())

    plainly(context, run)


def plainly(context: typer.Context, work: "Callable[[Output], int | None]") -> None:
    """Run work that needs no session, then exit with its code."""
    from vigil.cli.output import OTHER, USAGE, Output, exit_code
    from vigil.errors import Refused, VigilError

    output = Output(options_of(context).output)
    try:
        code = work(output) or 0
    except Refused as error:
        output.refusal(error)
        code = exit_code(error)
    except UsageError as error:
        output.failure("USAGE", str(error))
        code = USAGE
    except UnicodeEncodeError as error:
        # A lone surrogate stands for a byte of the command line that is not UTF-8; anything else is no input's fault.
        if not all("\ud800" <= letter <= "\udfff" for letter in error.object[error.start : error.end]):
            raise
        output.failure("USAGE", "what was typed, or a file that it names, holds text that is not UTF-8")
        code = USAGE
    except BrokenPipeError:
        # Whoever read has gone; nothing more can be said on this stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OTHER
    except (VigilError, OSError) as error:
        output.failure("ERROR", str(error))
        code = OTHER
    except KeyboardInterrupt:
        code = INTERRUPTED
    raise typer.Exit(code)
