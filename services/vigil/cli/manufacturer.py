"""`vigil manufacturer` and `vigil voucher`: what a manufacturer does on its own machine, with its own root."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.options import SignerOption, group
from vigil.cli.perform import plainly

if TYPE_CHECKING:
    from vigil.cli.output import Output

app = group("A manufacturer's own root and signers.")
voucher_app = group("Vouchers: the manufacturer says which key is which device.")


@app.command()
def init(
    ctx: typer.Context,
    organization: Annotated[str, typer.Argument(metavar="ORGANIZATION", help="The manufacturer's id.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    *,
    trust_domain: Annotated[
        str, typer.Option("--trust-domain", help="Its own; by default ORGANIZATION.manufacturer.")
    ] = "",
) -> None:
    """Make a manufacturer's root and its signers for vouchers, profiles, releases and downgrades."""

    def work(output: "Output") -> None:
        from vigil.run.manufacturer import init as make

        target = folder.absolute()
        root = make(
            target,
            organization=organization,
            trust_domain=trust_domain or f"{organization}.manufacturer",
        )
        output.record({"organization": organization, "root": str(root), "signers": str(target / "signers")})
        output.say(f"next: vigil organization create {organization} --manufacturer-root {root}")

    plainly(ctx, work)


@voucher_app.command("sign")
def sign(
    ctx: typer.Context,
    pump: Annotated[Path, typer.Argument(metavar="PUMPDIR", help="The simulated pump's folder.")],
    *,
    signer: SignerOption,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="By default PUMPDIR/voucher.cose.")
    ] = None,
) -> None:
    """Sign the voucher of a pump, as its factory does: UDI, model and the digest of its identity key."""

    def work(output: "Output") -> None:
        from vigil.cli.pumps import VOUCHER_FILE, read_label
        from vigil.cli.signing import manufacturer_scribe
        from vigil.core.certificates import replace_file
        from vigil.core.statements.bodies import Voucher

        label = read_label(pump)
        scribe = manufacturer_scribe(signer, "voucher")
        body = Voucher(udi=label.udi, model=label.model, identity_key=label.identity_key)
        statement = scribe.sign(body, subject=f"device/{label.device_id}")
        target = out or pump / VOUCHER_FILE
        replace_file(target, statement.data)
        output.record(
            {
                "device_id": label.device_id,
                "udi": label.udi,
                "model": label.model,
                "identity_key": label.identity_key.hex(),
            }
            | {"voucher": str(target), "digest": statement.digest.hex()}
        )

    plainly(ctx, work)
