"""`vigil ceremony`: what the offline root is brought back for. Nobody else's key signs here."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.options import group, options_of
from vigil.cli.perform import plainly

if TYPE_CHECKING:
    from vigil.cli.output import Output
    from vigil.run.ceremonies import Made

app = group("Ceremonies with the offline root: yearly signers, administrators who were locked out.")

RootOption = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="Where root.pem and root.key are; else DATA/pki/root."),
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option("--passphrase", metavar="FILE", help="Its first line opens the root; else DIR/passphrase."),
]


@app.command()
def signers(ctx: typer.Context, *, root: RootOption = None, passphrase: PassphraseOption = None) -> None:
    """Make the services' signers and their spares anew, for 13 months; what former ones signed stays known."""

    def work(output: "Output") -> None:
        from vigil.cli.output import field
        from vigil.cli.session import data_folder
        from vigil.run.ceremonies import renew_signers

        made = renew_signers(data_folder(options_of(ctx)), root=root, passphrase=passphrase)
        columns = (
            ("signer", field("name")),
            ("operational until", field("operational_until")),
            ("certificate", field("certificate")),
        )
        output.rows("signers", [_shown(one) for one in made], columns)
        output.say("next: start `vigil up` again; then carry the root and its passphrase away")

    plainly(ctx, work)


@app.command()
def admin(
    ctx: typer.Context,
    person: Annotated[str, typer.Argument(metavar="PERSON", help="p-admin-1 or p-admin-2.")],
    *,
    root: RootOption = None,
    passphrase: PassphraseOption = None,
) -> None:
    """Make a first administrator's credential anew: the way back in when both have ended."""

    def work(output: "Output") -> None:
        from vigil.cli.session import data_folder
        from vigil.run.ceremonies import renew_admin

        made = renew_admin(data_folder(options_of(ctx)), person, root=root, passphrase=passphrase)
        output.record(_shown(made))
        output.say("next: carry the root and its passphrase away")

    plainly(ctx, work)


def _shown(made: "Made") -> dict[str, Any]:
    from vigil.cli.messages import instant

    return {
        "name": made.name,
        "certificate": str(made.certificate),
        "operational_until": instant(made.operational_until),
    }
