"""`vigil device`: the fielded devices, from enrolment to ban."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.options import (
    DeviceArgument,
    FromOption,
    GatewayOption,
    LimitOption,
    PageOption,
    ReasonOption,
    ToOption,
    group,
    one_of,
)
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.cli.session import Session

app = group("Devices: enrol, look at, hold, quarantine, ban.")

STATES = ("pending", "active", "quarantined", "banned", "stored", "retired")

WorkOrderOption = Annotated[str, typer.Option("--work-order", "-w", help="Asked for by every change.")]
WhenOption = Annotated[
    str, typer.Option("--when", help="now, or idle: staged until no patient is connected.")
]
IntentOption = Annotated[
    str, typer.Option("--intent", metavar="ID", help="Finish the intent once another person has approved it.")
]


@app.command()
def enrol(
    ctx: typer.Context,
    pump: Annotated[Path, typer.Argument(metavar="PUMPDIR", help="The simulated pump on the bench.")],
    *,
    site: Annotated[str, typer.Option("--site", help="The site that gets custody.")],
    voucher: Annotated[
        Path | None,
        typer.Option("--voucher", metavar="FILE", help="By default PUMPDIR/voucher.cose."),
    ] = None,
    asset_tag: Annotated[str, typer.Option("--asset-tag", help="The hospital's own label.")] = "",
) -> None:
    """Enrol a pump: its voucher, proof of its key, its certificates. It is *pending* until another activates it."""

    async def work(session: "Session") -> None:
        from vigil.cli.enrolling import enrol_pump

        session.output.record(
            await enrol_pump(session, pump, site_id=site, voucher=voucher, asset_tag=asset_tag)
        )
        session.output.say("pending: another person makes it active with `vigil device activate`")

    perform(ctx, work)


@app.command()
def activate(ctx: typer.Context, device: DeviceArgument) -> None:
    """Make a pending device active, as another person than the one who enrolled it."""

    async def work(session: "Session") -> None:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.messages import plain

        found = await session.call(
            "identity", session.devices.GetDevice, pb.GetDeviceRequest(device_id=device)
        )
        request = pb.ActivateDeviceRequest(device_id=found.device_id)
        made = await session.call("identity", session.enrolment.ActivateDevice, request)
        session.output.record(plain(made))

    perform(ctx, work)


@app.command("list")
def list_all(
    ctx: typer.Context,
    *,
    site: Annotated[str, typer.Option("--site", help="Only at this site.")] = "",
    state: Annotated[str, typer.Option("--state", help=f"Only in this state: {', '.join(STATES)}.")] = "",
    model: Annotated[str, typer.Option("--model", help="Only of this model.")] = "",
    limit: LimitOption = 1000,
) -> None:
    """List the devices in your scope, with what attestation last said of them."""

    async def work(session: "Session") -> None:
        from vigil.cli.enrolling import list_devices
        from vigil.cli.output import field

        if state:
            one_of(state, STATES, "--state")
        rows = await list_devices(session, site=site, state=state, model=model, limit=limit)
        columns = [
            ("device", field("device_id")),
            ("model", field("model")),
            ("serial", field("serial")),
            ("site", field("site_id")),
            ("state", field("state")),
            ("trust", field("trust")),
            ("version", field("software_version")),
            ("holds", field("holds")),
            ("gateway", field("observed_gateway_id")),
        ]
        session.output.rows("devices", rows, columns)

    perform(ctx, work)


@app.command()
def show(ctx: typer.Context, device: DeviceArgument, *, gateway: GatewayOption = "") -> None:
    """Show one device: the registry's, attestation's (verified here) and its gateway's view of it."""

    async def work(session: "Session") -> None:
        from vigil.cli.enrolling import device_view

        value = await device_view(session, device, gateway)
        if session.output.json:
            session.output.value(value)
            return
        parts = {name: value[name] for name in ("attestation", "live")}
        session.output.record({name: item for name, item in value.items() if name not in parts})
        for name, part in parts.items():
            if part is not None:
                session.output.record(part, title=name)

    perform(ctx, work)


@app.command()
def history(
    ctx: typer.Context,
    device: DeviceArgument,
    *,
    since: FromOption = "",
    until: ToOption = "",
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Only such statements; repeatable.")
    ] = None,
    limit: LimitOption = 200,
    page: PageOption = "",
) -> None:
    """Show a device's records in the evidence log, each signature verified here."""

    async def work(session: "Session") -> int:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.timeline import show_history

        found = await session.call(
            "identity", session.devices.GetDevice, pb.GetDeviceRequest(device_id=device)
        )
        return await show_history(
            session,
            f"device/{found.device_id}",
            kinds=kind or [],
            since=since,
            until=until,
            page=page,
            limit=limit,
        )

    perform(ctx, work)


@app.command()
def follow(
    ctx: typer.Context,
    device: DeviceArgument,
    *,
    count: Annotated[int, typer.Option("--count", min=0, help="Stop after so many reports; 0: never.")] = 0,
    gateway: GatewayOption = "",
) -> None:
    """Follow a device live until Ctrl-C: its own unsigned words, for looking and never for deciding."""

    async def work(session: "Session") -> int:
        from vigil.cli.following import follow_device

        return await follow_device(session, device, gateway, count=count)

    perform(ctx, work)


@app.command()
def quarantine(ctx: typer.Context, device: DeviceArgument, *, gateway: GatewayOption = "") -> None:
    """Close a device's management channel at once. A running therapy goes on."""
    _by_effect(ctx, device, "quarantine", gateway=gateway)


@app.command()
def hold(ctx: typer.Context, device: DeviceArgument, *, gateway: GatewayOption = "") -> None:
    """Hold a device's evidence at once: staged applications and log clearing stop."""
    _by_effect(ctx, device, "hold", gateway=gateway)


@app.command()
def lift(
    ctx: typer.Context,
    device: DeviceArgument,
    *,
    intent: IntentOption = "",
    work_order: WorkOrderOption = "",
    when: WhenOption = "now",
    expires: Annotated[str, typer.Option("--expires", metavar="DURATION")] = "8h",
    gateway: GatewayOption = "",
) -> None:
    """Lift a hold: two people. First run leaves an intent, another approves it, --intent finishes it."""
    _by_effect(
        ctx,
        device,
        "lift-hold",
        gateway=gateway,
        intent=intent,
        work_order=work_order,
        expires=expires,
        when=when,
    )


@app.command()
def release(
    ctx: typer.Context,
    device: DeviceArgument,
    *,
    intent: IntentOption = "",
    work_order: WorkOrderOption = "",
    when: WhenOption = "now",
    expires: Annotated[str, typer.Option("--expires", metavar="DURATION")] = "8h",
    gateway: GatewayOption = "",
) -> None:
    """Lead a device out of quarantine: two people, as with `lift`."""
    _by_effect(
        ctx,
        device,
        "release-quarantine",
        gateway=gateway,
        intent=intent,
        work_order=work_order,
        expires=expires,
        when=when,
    )


@app.command()
def ban(ctx: typer.Context, device: DeviceArgument, *, reason: ReasonOption = "compromise") -> None:
    """Revoke a device with the effect *deny*: only safety actions and its recovery reach it."""

    async def work(session: "Session") -> int:
        from vigil.api.identity.v1 import identity_pb2 as pb
        from vigil.cli.revoking import Draft, revoke

        found = await session.call(
            "identity", session.devices.GetDevice, pb.GetDeviceRequest(device_id=device)
        )
        draft = Draft(scope="device", ids=(found.device_id,), effect="deny", reason=reason)
        return await revoke(session, draft)

    perform(ctx, work)


def _by_effect(
    ctx: typer.Context,
    device: str,
    effect: str,
    *,
    gateway: str,
    intent: str = "",
    work_order: str = "",
    expires: str = "10m",
    when: str = "now",
) -> None:
    """The model's action with this effect, by the way of every command."""

    async def work(session: "Session") -> int:
        from vigil.cli import sending
        from vigil.cli.command import run_send
        from vigil.cli.durations import milliseconds
        from vigil.core.statements.bodies import Effect, Mode

        target = await sending.find_target(session, device, gateway)
        profile = (await sending.profile_of(session, target, effect)).body
        action = sending.action_by_effect(profile, Effect(effect))
        ask = sending.Ask(
            device=target.device_id,
            action=action.name,
            intent_id=intent,
            work_order=work_order,
            mode=Mode(one_of(when, (Mode.NOW, Mode.IDLE), "--when")),
            expires_ms=milliseconds(expires),
            gateway=f"{target.end.gateway_id}={target.end.address}",
        )
        return await run_send(session, ask)

    perform(ctx, work)
