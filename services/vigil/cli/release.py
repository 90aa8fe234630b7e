"""`vigil release`: firmware builds with their SBOMs, signed by the manufacturer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.options import LimitOption, SignerOption, group
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.api.release.v1 import release_pb2
    from vigil.cli.session import Session

app = group("Firmware builds and their bills of materials.")


@app.command()
def publish(
    ctx: typer.Context,
    *,
    model: Annotated[str, typer.Option("--model", help="The device model.")],
    version: Annotated[str, typer.Option("--version", help="The build's version.")],
    security_version: Annotated[
        int, typer.Option("--security-version", min=0, help="No device goes below the one it has had.")
    ],
    firmware: Annotated[Path, typer.Option("--firmware", metavar="FILE", help="The image.")],
    sbom: Annotated[Path, typer.Option("--sbom", metavar="FILE", help="CycloneDX JSON.")],
    udi_di: Annotated[str, typer.Option("--udi-di", help="Device identifier (GTIN) of the model.")],
    signer: SignerOption,
) -> None:
    """Sign a build and its SBOM as the manufacturer, upload the image and publish both."""

    async def work(session: "Session") -> None:
        import json

        from vigil.api.release.v1 import release_pb2 as pb
        from vigil.cli.signing import manufacturer_scribe, manufacturer_signer
        from vigil.cli.uploads import upload
        from vigil.core.digest import sha256
        from vigil.core.dsse import in_toto_statement, make_dsse
        from vigil.core.statements.bodies import Release

        image, document = firmware.read_bytes(), sbom.read_bytes()
        body = Release(
            model=model,
            version=version,
            firmware=sha256(image),
            size=len(image),
            security_version=security_version,
            sbom=sha256(document),
            udi_di=udi_di,
        )
        statement = manufacturer_scribe(signer, "release").sign(body, subject=f"build/{body.firmware.hex()}")
        in_toto = in_toto_statement(
            name=f"{model}@{version}", sha256=body.firmware, predicate=json.loads(document)
        )
        envelope = make_dsse(in_toto, signer=manufacturer_signer(signer, "release"))
        await upload(session, image, name=f"{model}@{version}")
        request = pb.PublishReleaseRequest(release=statement.data, sbom_attestation=envelope, sbom=document)
        made = await session.call("release", session.releases.PublishRelease, request, timeout=60.0)
        session.output.record(release_value(made))

    perform(ctx, work)


@app.command("list")
def list_all(
    ctx: typer.Context,
    *,
    model: Annotated[str, typer.Option("--model", help="Only this model's.")] = "",
    limit: LimitOption = 1000,
) -> None:
    """List the published builds."""

    async def work(session: "Session") -> None:
        from vigil.api.release.v1 import release_pb2 as pb
        from vigil.cli.output import field, short

        found = await session.every(
            "release",
            session.releases.ListReleases,
            pb.ListReleasesRequest(model=model),
            "releases",
            limit=limit,
        )
        columns = [
            ("model", field("model")),
            ("version", field("version")),
            ("security", field("security_version")),
            ("firmware", short("firmware", 16)),
            ("bytes", field("size")),
            ("components", field("component_count")),
            ("since", field("create_time")),
        ]
        session.output.rows("releases", [release_value(one) for one in found], columns)

    perform(ctx, work)


@app.command()
def show(
    ctx: typer.Context,
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="Firmware digest, or model@version.")],
) -> None:
    """Show one build; the manufacturer's signature is verified here."""

    async def work(session: "Session") -> None:
        from vigil.api.release.v1 import release_pb2 as pb
        from vigil.core.certificates import Kind
        from vigil.core.statements.bodies import Release
        from vigil.core.statements.envelope import check, read

        request = pb.GetReleaseRequest(release=release)
        found = await session.call("release", session.releases.GetRelease, request)
        statement = read(found.statement, Release)
        signer = session.verifier.verify(
            statement.chain, at=statement.issued_at * 1000, kinds=frozenset({Kind.SIGNER}), grace=True
        )
        check(statement, signer)
        value = {**release_value(found), "digest": statement.digest.hex(), "signed_by": signer.organization}
        session.output.record(value)

    perform(ctx, work)


def release_value(message: "release_pb2.Release") -> dict[str, Any]:
    """A build as JSON, without its statement."""
    from vigil.cli.messages import plain

    return plain(message)
