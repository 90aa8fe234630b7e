"""`vigil credential`: certificates of people. The key is made where it is used and never travels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.options import LimitOption, UsageError, group
from vigil.cli.perform import perform, plainly

if TYPE_CHECKING:
    from vigil.api.identity.v1 import identity_pb2
    from vigil.cli.session import Session

app = group("Credentials: certificates of people.")


@app.command()
def issue(
    ctx: typer.Context,
    principal: Annotated[str, typer.Argument(metavar="PRINCIPAL", help="Who gets it, p-…")],
    *,
    csr: Annotated[
        Path | None,
        typer.Option(
            "--csr", metavar="FILE", help="A signing request (PEM) made where the key will be used."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="With --csr: where to write the certificate."),
    ] = None,
    lifetime: Annotated[
        str,
        typer.Option("--lifetime", metavar="DURATION", help="Such as 8h; by default as the roles have it."),
    ] = "",
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Name of the new context.")] = "",
) -> None:
    """Issue a credential: on this machine a key, its certificate and a context; elsewhere for a --csr."""

    async def work(session: "Session") -> None:
        from vigil.cli.durations import seconds

        if (csr is None) != (out is None):
            raise UsageError("--csr and --out belong together")
        lifetime_s = seconds(lifetime) if lifetime else 0
        if csr is not None and out is not None:
            made = await _issue(session, principal, csr.read_text(), lifetime_s)
            await _write_remote(session, made, out)
            return
        await _issue_here(session, principal, lifetime_s, name)

    perform(ctx, work)


@app.command()
def request(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the key and its request.")],
) -> None:
    """Make a key and a signing request here, for an administrator elsewhere to answer with `issue --csr`."""

    def work(output: "Any") -> None:
        from vigil.core.certificates import make_request, write_file
        from vigil.core.keys import new_private_key, store_private_key

        folder.mkdir(mode=0o700, parents=True)
        private_key = new_private_key()
        store_private_key(folder / "tls.key", private_key)
        write_file(folder / "request.pem", make_request(private_key))
        output.record({"key": str(folder / "tls.key"), "request": str(folder / "request.pem")})

    plainly(ctx, work)


@app.command()
def renew(ctx: typer.Context) -> None:
    """Renew your own credential while it is valid: a new key, the files of your context replaced."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.core.certificates import make_request, store_pair
        from vigil.core.keys import new_private_key

        private_key = new_private_key()
        asked = pb.RenewCredentialRequest(
            principal_id=session.context.principal, csr_pem=make_request(private_key).decode()
        )
        made = await session.call("identity", session.certificates.RenewCredential, asked)
        store_pair(
            session.context.certificate,
            session.context.key,
            chain_pem=made.certificate_pem.encode(),
            private_key=private_key,
        )
        session.output.record({**credential_value(made), "context": session.context.name})

    perform(ctx, work)


@app.command("list")
def list_all(
    ctx: typer.Context,
    *,
    principal: Annotated[str, typer.Option("--principal", help="Only this person's.")] = "",
    limit: LimitOption = 2000,
) -> None:
    """List the credentials of your organization."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.output import field, short

        found = await session.every(
            "identity",
            session.certificates.ListCredentials,
            pb.ListCredentialsRequest(principal_id=principal),
            "credentials",
            limit=limit,
        )
        columns = [
            ("credential", short("thumbprint", 16)),
            ("principal", field("principal_id")),
            ("roles", field("roles")),
            ("sites", field("site_ids")),
            ("operational until", field("operational_until")),
            ("issued by", field("issued_by")),
        ]
        session.output.rows("credentials", [credential_value(one) for one in found], columns)

    perform(ctx, work)


@app.command()
def show(
    ctx: typer.Context,
    thumbprint: Annotated[str, typer.Argument(metavar="THUMBPRINT", help="By default your own.")] = "",
) -> None:
    """Show one credential."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb

        asked = pb.GetCredentialRequest(thumbprint=thumbprint or session.person.thumbprint.hex())
        found = await session.call("identity", session.certificates.GetCredential, asked)
        session.output.record(credential_value(found))

    perform(ctx, work)


async def _issue(
    session: "Session", principal: str, csr_pem: str, lifetime_s: int
) -> "identity_pb2.Credential":
    from vigil.api.identity.v1 import identity_pb2 as pb

    asked = pb.IssueCredentialRequest(principal_id=principal, csr_pem=csr_pem, lifetime_s=lifetime_s)
    return await session.call("identity", session.certificates.IssueCredential, asked)


async def _issue_here(session: "Session", principal: str, lifetime_s: int, name: str) -> None:
    from vigil.cli.contexts import change_contexts, check_name
    from vigil.core.certificates import make_request, store_pair
    from vigil.core.keys import new_private_key

    label = check_name(name or principal.removeprefix("p-"))
    private_key = new_private_key()
    made = await _issue(session, principal, make_request(private_key).decode(), lifetime_s)
    home = session.folder.path / "people" / principal
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    store_pair(
        home / "tls.pem", home / "tls.key", chain_pem=made.certificate_pem.encode(), private_key=private_key
    )
    context = _context(session, label, principal, home)
    change_contexts(session.folder, lambda book: book.with_context(context))
    files = {"certificate": str(home / "tls.pem"), "key": str(home / "tls.key")}
    session.output.record({**credential_value(made), "context": label, **files})


def _context(session: "Session", label: str, principal: str, home: Path) -> "Any":
    """A context beside the one that acts: the same installation, another person."""
    from dataclasses import replace

    from vigil.core.certificates import replace_file

    replace_file(home / "trust.json", session.bundle.to_json().encode())
    return replace(
        session.context,
        name=label,
        principal=principal,
        certificate=home / "tls.pem",
        key=home / "tls.key",
        trust=home / "trust.json",
    )


async def _write_remote(session: "Session", made: "identity_pb2.Credential", out: Path) -> None:
    """Certificate, trust and addresses in files, for `vigil context import` where the key is."""
    import json

    from vigil.core.certificates import replace_file

    replace_file(out, made.certificate_pem.encode())
    replace_file(out.with_name("trust.json"), session.bundle.to_json().encode())
    seed = {
        "principal": made.principal_id,
        "trust_domain": session.context.trust_domain,
        "endpoints": dict(session.context.endpoints),
    }
    replace_file(out.with_name("context.json"), (json.dumps(seed, indent=2) + "\n").encode())
    session.output.record({**credential_value(made), "context": "", "certificate": str(out), "key": ""})


def credential_value(message: "identity_pb2.Credential") -> dict[str, Any]:
    """A credential as JSON, without its PEM."""
    from vigil.cli.messages import plain

    return plain(message)
