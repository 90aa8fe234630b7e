"""`vigil witness`: a witness of a log, anywhere, with a key and a memory of its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.options import group
from vigil.cli.perform import plainly

if TYPE_CHECKING:
    from vigil.cli.output import Output

app = group("A witness of logs (C2SP tlog-witness), run by somebody else than the log's operator.")

CONFIG = "witness.toml"
FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The witness's folder: its key, its memory, its configuration.")
]


@app.command()
def init(
    ctx: typer.Context,
    folder: FolderArgument,
    *,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Its name: a URL without its scheme, as it signs.")
    ],
    log: Annotated[
        list[str],
        typer.Option("--log", metavar="KEY", help="Verifier key of a log that it watches; repeatable."),
    ],
    listen: Annotated[
        str,
        typer.Option("--listen", metavar="HOST:PORT", help="Where it takes checkpoints, over plain HTTP."),
    ] = "127.0.0.1:8420",
) -> None:
    """Make a witness: its key, its empty memory, its configuration. Says the key that others are to know."""

    def work(output: "Output") -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        from vigil.cli.options import UsageError
        from vigil.core.certificates import replace_file
        from vigil.core.notes import is_key_name, parse_verifier_key
        from vigil.run.configs import toml
        from vigil.witness.founding import found

        if not is_key_name(name):
            raise UsageError("a witness's name is not empty and has neither spaces nor plus signs")
        for key in log:
            parse_verifier_key(key)
        verifier_key = found(
            folder / "witness.key", folder / "witness.db", name=name, generate=Ed25519PrivateKey.generate
        )
        path = folder / CONFIG
        values = {"data_dir": ".", "listen": listen, "name": name, "logs": log}
        replace_file(path, toml(values).encode(), mode=0o600)
        output.record({"name": name, "verifier_key": verifier_key, "listen": listen, "config": str(path)})

    plainly(ctx, work)


@app.command()
def run(ctx: typer.Context, folder: FolderArgument) -> None:
    """Run a witness until it is stopped."""

    def work(_output: "Output") -> None:
        import os
        import sys

        from vigil.errors import VigilError

        path = folder / CONFIG
        if not path.exists():
            raise VigilError(f"{path} is missing: `vigil witness init` makes a witness")
        arguments = [sys.executable, "-m", "vigil.witness", "--config", str(path)]
        os.execv(sys.executable, arguments)  # noqa: S606 - a list, no shell

    plainly(ctx, work)
