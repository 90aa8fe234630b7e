"""`vigil up`, `vigil demo`, `vigil version`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from vigil.cli.options import Options, OutputMode, options_of


def up(
    ctx: typer.Context,
    *,
    base_port: Annotated[
        int | None, typer.Option("--base-port", min=1024, max=65000, help="First port to look for free ones.")
    ] = None,
    trust_domain: Annotated[
        str, typer.Option("--trust-domain", metavar="NAME", help="Name of a new trust domain.")
    ] = "vigil.internal",
    gateway: Annotated[
        bool, typer.Option("--gateway/--no-gateway", help="Make a first site and gateway on a first start.")
    ] = True,
    metrics: Annotated[
        bool,
        typer.Option("--metrics", help="Serve Prometheus on the loopback interface (see config/*.toml)."),
    ] = False,
    passphrase_file: Annotated[
        Path | None,
        typer.Option("--passphrase-file", metavar="FILE", help="The root's passphrase, for a first start."),
    ] = None,
) -> None:
    """Start everything on this machine and stay until stopped."""

    def run(options: Options) -> int:
        from vigil.run.layout import default_data
        from vigil.run.up import run

        return run(
            options.data or default_data(),
            base_port=base_port,
            trust_domain=trust_domain,
            gateway=gateway,
            output=str(options.output),
            passphrase_file=passphrase_file,
            metrics=metrics,
        )

    _guarded(ctx, run)


def demo(
    ctx: typer.Context,
    *,
    pumps: Annotated[int, typer.Option("--pumps", min=1, help="How many pumps.")] = 240,
    sites: Annotated[int, typer.Option("--sites", min=2, help="At how many sites.")] = 12,
    leave: Annotated[
        bool, typer.Option("--exit", help="Stop after the last step instead of staying up.")
    ] = False,
) -> None:
    """Show everything at work: pumps, people, refusals, attacks, failures."""

    def run(options: Options) -> int:
        import sys

        from vigil.demo.main import run as play

        stay = not leave and sys.stdout.isatty() and options.output is OutputMode.TABLE
        return play(options.data, output=str(options.output), stay=stay, pumps=pumps, sites=sites)

    _guarded(ctx, run)


def version(ctx: typer.Context) -> None:
    """Show the version."""
    import vigil

    if options_of(ctx).output is OutputMode.JSON:
        import json

        print(json.dumps({"version": vigil.__version__}))
    else:
        print(vigil.__version__)


def _guarded(context: typer.Context, run: Callable[[Options], int]) -> None:
    from vigil.cli.perform import plainly

    plainly(context, lambda _output: run(options_of(context)))
