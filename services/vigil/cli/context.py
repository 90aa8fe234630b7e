"""`vigil context`: as whom, and where."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.options import group, options_of
from vigil.cli.perform import plainly

if TYPE_CHECKING:
    from vigil.cli.contexts import Context
    from vigil.cli.output import Output

app = group("Contexts: as whom you act, and at which installation.")


@app.command("list")
def list_all(ctx: typer.Context) -> None:
    """List the contexts of the data folder."""

    def work(output: "Output") -> None:
        from vigil.cli.contexts import read_contexts
        from vigil.cli.output import field
        from vigil.cli.session import data_folder

        book = read_contexts(data_folder(options_of(ctx)))
        rows = [
            {"name": name, "current": name == book.current, "principal": one.principal}
            | {"trust_domain": one.trust_domain, "identity": one.endpoints.get("identity", "")}
            for name, one in book.contexts.items()
        ]
        columns = [
            ("", lambda row: "*" if row["current"] else ""),
            ("context", field("name")),
            ("principal", field("principal")),
            ("trust domain", field("trust_domain")),
            ("identity", field("identity")),
        ]
        output.rows("contexts", rows, columns, more={"current": book.current})

    plainly(ctx, work)


@app.command()
def use(ctx: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Make a context the current one."""

    def work(output: "Output") -> None:
        from dataclasses import replace

        from vigil.cli.contexts import change_contexts
        from vigil.cli.session import data_folder

        folder = data_folder(options_of(ctx))
        book = change_contexts(folder, lambda old: replace(old, current=old.get(name).name))
        output.record(context_value(book.get(name), current=True))

    plainly(ctx, work)


@app.command()
def show(ctx: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")] = "") -> None:
    """Show a context: whose it is, its files, its addresses. By default the current one."""

    def work(output: "Output") -> None:
        from vigil.cli.contexts import read_contexts, with_local_endpoints
        from vigil.cli.session import Session, data_folder
        from vigil.errors import Refused

        options = options_of(ctx)
        folder = data_folder(options)
        book = read_contexts(folder)
        found = with_local_endpoints(book.get(name or options.context), folder)
        value = context_value(found, current=found.name == book.current)
        session = Session(options=options, folder=folder, context=found, output=output)
        value["trust"] = str(session.trust_file)
        try:
            person = session.person
        except (Refused, OSError) as error:
            output.say(f"the credential cannot be used: {error}")
        else:
            from vigil.cli.messages import instant

            value["organization"] = person.organization
            value["roles"] = list(person.roles)
            value["sites"] = list(person.sites)
            value["operational_until"] = instant(person.operational_until)
            value["not_after"] = instant(person.not_after)
        output.record(value)

    plainly(ctx, work)


@app.command("import")
def import_folder(
    ctx: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="With tls.key, tls.pem, trust.json, context.json, as they were issued."
        ),
    ],
    *,
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="What to call it here.")] = "",
) -> None:
    """Add a context from a credential's folder."""

    def work(output: "Output") -> None:
        from vigil.cli.contexts import change_contexts, check_name
        from vigil.cli.session import data_folder

        context = _read_folder(folder.absolute(), name)
        check_name(context.name)
        book = change_contexts(data_folder(options_of(ctx)), lambda old: old.with_context(context))
        output.record(context_value(context, current=book.current == context.name))

    plainly(ctx, work)


def _read_folder(folder: Path, name: str) -> "Context":
    import json

    from vigil.cli.contexts import Context
    from vigil.core.certificates import ChainVerifier, TrustBundle, load_pair
    from vigil.core.clock import SystemClock
    from vigil.errors import Reason, refused

    try:
        seed = json.loads((folder / "context.json").read_text(encoding="utf-8"))
        endpoints = {str(role): str(address) for role, address in seed["endpoints"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise refused(Reason.FIELD_INVALID, f"{folder / 'context.json'} cannot be used: {error}") from error
    pair = load_pair(folder / "tls.pem", folder / "tls.key")
    bundle = TrustBundle.from_json((folder / "trust.json").read_text(encoding="utf-8"))
    person = ChainVerifier(bundle).verify(pair.chain_der, at=SystemClock().now(), grace=True)
    return Context(
        name=name or person.id.removeprefix("p-"),
        principal=person.id,
        certificate=folder / "tls.pem",
        key=folder / "tls.key",
        trust=folder / "trust.json",
        trust_domain=bundle.trust_domain,
        endpoints=endpoints,
    )


def context_value(context: "Context", *, current: bool) -> dict[str, Any]:
    """A context as JSON."""
    return {"name": context.name, "current": current, **context.to_value()}
