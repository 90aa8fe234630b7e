"""`vigil model`: what a device model can be told to do, signed by its manufacturer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.options import LimitOption, SignerOption, group
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.api.release.v1 import release_pb2
    from vigil.cli.session import Session

app = group("Device models: their actions, limits and classes.")


@app.command()
def publish(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="The profile's source.")],
    *,
    signer: SignerOption,
) -> None:
    """Sign a profile as the manufacturer and publish it. Its version only rises."""

    async def work(session: "Session") -> None:
        from vigil.api.release.v1 import release_pb2 as pb
        from vigil.cli.signing import manufacturer_scribe
        from vigil.core.profiles import profile_from_json

        profile = profile_from_json(file.read_text(encoding="utf-8"))
        statement = manufacturer_scribe(signer, "profile").sign(profile, subject=f"model/{profile.model}")
        request = pb.PublishModelRequest(profile=statement.data)
        made = await session.call("release", session.releases.PublishModel, request)
        session.output.record({**model_value(made), "digest": statement.digest.hex()})

    perform(ctx, work)


@app.command("list")
def list_all(ctx: typer.Context, *, limit: LimitOption = 1000) -> None:
    """List the published models."""

    async def work(session: "Session") -> None:
        from vigil.api.release.v1 import release_pb2 as pb
        from vigil.cli.output import field

        found = await session.every(
            "release", session.releases.ListModels, pb.ListModelsRequest(), "models", limit=limit
        )
        columns = [
            ("model", field("model")),
            ("version", field("version")),
            ("manufacturer", field("organization_id")),
            ("since", field("create_time")),
        ]
        session.output.rows("models", [model_value(one) for one in found], columns)

    perform(ctx, work)


@app.command()
def show(ctx: typer.Context, model: Annotated[str, typer.Argument(metavar="MODEL")]) -> None:
    """Show a model's actions with their classes, limits and approvals; the signature is verified here."""

    async def work(session: "Session") -> None:
        import json

        from vigil.api.release.v1 import release_pb2 as pb
        from vigil.cli.proofs import signed_profile
        from vigil.core.profiles import profile_to_json

        request = pb.GetModelRequest(model=model)
        found = await session.call("release", session.releases.GetModel, request)
        statement = signed_profile(found.profile, session.verifier)
        source = json.loads(profile_to_json(statement.body))
        if session.output.json:
            session.output.value({**model_value(found), "digest": statement.digest.hex(), "profile": source})
            return
        session.output.record(
            {**model_value(found), **{key: value for key, value in source.items() if key != "actions"}}
        )
        rows = [
            (one["name"], one["class"], one["effect"], one["approvals"], one["states"], _parameters(one))
            for one in source["actions"]
        ]
        session.output.table(["action", "class", "effect", "approvals", "states", "parameters"], rows)

    perform(ctx, work)


def _parameters(action: dict[str, Any]) -> str:
    words = []
    for one in action.get("parameters", []):
        limits = f" {one['minimum']} to {one['maximum']}" if "minimum" in one else ""
        choices = f" one of {'|'.join(one['choices'])}" if "choices" in one else ""
        unit = f" {one['unit']}" if "unit" in one else ""
        words.append(f"{one['name']}: {one['type']}{limits}{unit}{choices}")
    return "; ".join(words)


def model_value(message: "release_pb2.Model") -> dict[str, Any]:
    """A model as JSON, without its profile."""
    from vigil.cli.messages import plain

    return plain(message)
