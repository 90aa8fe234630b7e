"""`vigil baseline`: configurations and drug libraries that a site approves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.options import LimitOption, UsageError, group, one_of
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.api.release.v1 import release_pb2
    from vigil.cli.session import Session

app = group("Configuration baselines and drug libraries, signed by a person of the site.")

_DAY_MS = 86_400_000


@app.command()
def publish(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="Settings, or a drug library.")],
    *,
    site: Annotated[str, typer.Option("--site", help="The site that approves it.")],
    kind: Annotated[
        str, typer.Option("--kind", help="configuration or drug-library; must fit the file.")
    ] = "",
    valid_days: Annotated[int, typer.Option("--valid-days", min=1, max=3650, help="For how long.")] = 365,
) -> None:
    """Sign a configuration or drug library for a site and publish it."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2
        from vigil.api.release.v1 import release_pb2 as pb
        from vigil.core.baselines import baseline_from_json
        from vigil.core.digest import sha256
        from vigil.core.statements.bodies import Baseline, BaselineKind

        source = baseline_from_json(file.read_text(encoding="utf-8"))
        if kind and one_of(kind, tuple(BaselineKind), "--kind") != source.kind:
            raise UsageError(f"{file} holds a {source.kind}")
        registered = await session.call(
            "identity", session.registry.GetSite, identity_pb2.GetSiteRequest(site_id=site)
        )
        now = session.clock.now()
        body = Baseline(
            baseline_kind=source.kind,
            name=source.name,
            site=site,
            organization=registered.organization_id,
            content=sha256(source.content),
            size=len(source.content),
            models=source.models,
            valid_from=now,
            valid_to=now + valid_days * _DAY_MS,
        )
        statement = session.scribe.sign(body, subject=f"site/{site}")
        request = pb.PublishBaselineRequest(baseline=statement.data, content=source.content)
        made = await session.call("release", session.releases.PublishBaseline, request, timeout=30.0)
        session.output.record(baseline_value(made))

    perform(ctx, work)


@app.command("list")
def list_all(
    ctx: typer.Context,
    *,
    site: Annotated[str, typer.Option("--site", help="Only this site's.")] = "",
    limit: LimitOption = 1000,
) -> None:
    """List the baselines in your scope."""

    async def work(session: "Session") -> None:
        from vigil.api.release.v1 import release_pb2 as pb
        from vigil.cli.output import field, short

        found = await session.every(
            "release",
            session.releases.ListBaselines,
            pb.ListBaselinesRequest(site_id=site),
            "baselines",
            limit=limit,
        )
        columns = [
            ("name", field("name")),
            ("kind", field("kind")),
            ("site", field("site_id")),
            ("models", field("models")),
            ("content", short("content", 16)),
            ("valid to", field("valid_to")),
        ]
        session.output.rows("baselines", [baseline_value(one) for one in found], columns)

    perform(ctx, work)


def baseline_value(message: "release_pb2.Baseline") -> dict[str, Any]:
    """A baseline as JSON, without its statement."""
    from vigil.cli.messages import plain

    return plain(message)
