"""`vigil command`: what is done to devices, and what came of it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.options import (
    DeviceArgument,
    GatewayOption,
    LimitOption,
    UsageError,
    YesOption,
    group,
    one_of,
)
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.api.gateway.v1 import gateway_pb2
    from vigil.cli.sending import Ask, Done
    from vigil.cli.session import GatewayEnd, Session

app = group("Commands to devices: send, approve, look up.")

IntentArgument = Annotated[
    str, typer.Argument(metavar="INTENT", help="An intent's id, or the first 8 characters or more of it.")
]


@app.command()
def send(
    ctx: typer.Context,
    device: DeviceArgument,
    action: Annotated[
        str, typer.Argument(metavar="ACTION", help="As the device's model has it: vigil model show.")
    ] = "",
    *,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="May be repeated; units as in the profile."),
    ] = None,
    work_order: Annotated[str, typer.Option("--work-order", "-w", help="Asked for by every change.")] = "",
    when: Annotated[
        str, typer.Option("--when", help="now, or idle: staged until no patient is connected.")
    ] = "now",
    expires: Annotated[str, typer.Option("--expires", metavar="DURATION", help="Such as 10m or 8h.")] = "10m",
    intent: Annotated[
        str, typer.Option("--intent", metavar="ID", help="Finish an intent that others have approved.")
    ] = "",
    request_id: Annotated[
        str,
        typer.Option(
            "--request-id", metavar="HEX", help="Ask for the same thing again, never for a second one."
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be refused, and move nothing.")
    ] = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=1.0, help="For the receipt.")
    ] = 30.0,
    gateway: GatewayOption = "",
) -> None:
    """Send a command and wait for the device's signed receipt.

    An action that needs approvals is left with the gateway; finish it with --intent once they are given.
    """
    if not action and not intent and not request_id:
        raise typer.BadParameter("name an action, or the --intent to finish", ctx=ctx)

    async def work(session: "Session") -> int:
        from vigil.cli.durations import milliseconds
        from vigil.cli.parameters import split
        from vigil.cli.sending import Ask
        from vigil.core.statements.bodies import Mode

        ask = Ask(
            device=device,
            action=action,
            texts=tuple(split(param or []).items()),
            work_order=work_order,
            mode=Mode(one_of(when, (Mode.NOW, Mode.IDLE), "--when")),
            expires_ms=milliseconds(expires),
            intent_id=intent,
            request_id=_request_id(request_id),
            gateway=gateway,
            dry_run=dry_run,
            wait_s=wait,
        )
        return await run_send(session, ask)

    perform(ctx, work)


async def run_send(session: "Session", ask: "Ask") -> int:
    """All of `send`; the noun `device` uses it for its safety actions."""
    from vigil.cli import journal, sending
    from vigil.core.commands import find_action
    from vigil.core.statements.bodies import Intent
    from vigil.core.statements.envelope import read
    from vigil.errors import Reason, refused

    target = await sending.find_target(session, ask.device, ask.gateway)
    device_ids = [target.device_id]
    known = journal.find(session.folder, ask.request_id) if ask.request_id else None
    if known is not None and known.device_id != target.device_id:
        raise refused(
            Reason.REQUEST_ID_REUSED,
            f"this request id was used for {known.device_id}",
            lifted_by="leaving --request-id away",
            who="you",
        )
    if ask.intent_id:
        intent, record = await sending.own_intent(session, target, ask.intent_id)
        device_ids = list(record.device_ids) or device_ids
        if record.state == "pending" and not ask.dry_run:
            raise sending.approvals_missing(record, ask.device)
    elif known is not None:
        intent = read(known.intent, Intent)
    else:
        intent, action = await sending.make_intent(session, target, ask)
        if action.approvals and not ask.dry_run:
            _keep(session, target.end.gateway_id, intent, target.device_id)
            raise sending.approvals_missing(await sending.create_intent(session, target, intent), ask.device)
    if ask.dry_run:
        session.output.record(await sending.preview(session, target, intent))
        return 0
    if not session.output.json:
        profile = (await sending.profile_of(session, target, intent.body.action)).body
        said = sending.words_of(dict(intent.body.parameters), find_action(profile, intent.body.action))
        what = f"{intent.body.action} ({said})" if said else intent.body.action
        session.output.say(f"{what} on {target.device_id} through {target.end.whom}")
    done = await sending.carry(session, target, intent, device_ids, wait_s=ask.wait_s)
    return sending.conclude(session, done, lambda one: _show_done(session, one))


@app.command()
def receipt(
    ctx: typer.Context,
    device: DeviceArgument,
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As an unknown outcome named it.")],
    *,
    gateway: GatewayOption = "",
) -> None:
    """Ask the device what became of a request; nothing is repeated."""

    async def work(session: "Session") -> int:
        from vigil.cli import journal, sending
        from vigil.errors import Reason, refused

        sent = journal.find(session.folder, _request_id(request_id))
        if sent is None:
            raise refused(
                Reason.RESOURCE_NOT_FOUND,
                "nothing was sent under this request id from this data folder",
                lifted_by="the data folder that it was sent from, or `vigil command list`",
                who="you",
            )
        target = await sending.find_target(session, device, gateway or sent.gateway_id)
        done = await sending.ask_receipt(session, target, sent)
        return sending.conclude(session, done, lambda one: _show_done(session, one))

    perform(ctx, work)


@app.command("list")
def list_all(
    ctx: typer.Context,
    *,
    device: Annotated[str, typer.Option("--device", help="Only this device's.")] = "",
    gateway: GatewayOption = "",
    limit: LimitOption = 50,
) -> None:
    """List commands, newest first: the gateways' word, which `show` verifies."""

    async def work(session: "Session") -> None:
        from vigil.api.gateway.v1 import gateway_pb2 as pb
        from vigil.cli.messages import plain
        from vigil.cli.output import field, short
        from vigil.cli.places import from_all, gateway_of

        async def ask(end: "GatewayEnd") -> list[Any]:
            request = pb.ListCommandsRequest(device_id=device)
            return await session.every(end.whom, end.commands.ListCommands, request, "commands", limit=limit)

        named = (await gateway_of(session, device, gateway))[0].gateway_id if device else gateway
        found = [
            {**plain(row), "gateway_id": end.gateway_id} for end, row in await from_all(session, named, ask)
        ]
        found.sort(key=lambda row: row["create_time"] or "", reverse=True)
        columns = [
            ("command", short("command_id")),
            ("device", field("device_id")),
            ("action", field("action")),
            ("by", field("requester")),
            ("outcome", field("outcome")),
            ("reason", field("reason")),
            ("at", field("create_time")),
            ("gateway", field("gateway_id")),
        ]
        session.output.rows("commands", found[:limit], columns)

    perform(ctx, work)


@app.command()
def show(
    ctx: typer.Context,
    command: Annotated[
        str, typer.Argument(metavar="ID", help="A command's or intent's id, or 8 characters or more of it.")
    ],
    *,
    gateway: GatewayOption = "",
) -> None:
    """Show a command with everything that was signed for it, each signature and proof verified here."""

    async def work(session: "Session") -> int:
        from vigil.cli.records import show_command

        return await show_command(session, command, gateway)

    perform(ctx, work)


@app.command()
def pending(ctx: typer.Context, *, gateway: GatewayOption = "", limit: LimitOption = 100) -> None:
    """List intents that wait for approvals, or for their requester to finish them."""

    async def work(session: "Session") -> None:
        from vigil.api.gateway.v1 import gateway_pb2 as pb
        from vigil.cli.output import field, short
        from vigil.cli.places import from_all

        async def ask(end: "GatewayEnd") -> list[Any]:
            found: list[Any] = []
            for state in ("pending", "approved"):
                request = pb.ListIntentsRequest(state=state)
                found += await session.every(
                    end.whom, end.intents.ListIntents, request, "intents", limit=limit
                )
            return found

        rows = [
            {**record_value(row), "gateway_id": end.gateway_id}
            for end, row in await from_all(session, gateway, ask)
        ]
        columns = [
            ("intent", short("intent_id", 16)),
            ("action", field("action")),
            ("device", field("device_id")),
            ("by", field("requester")),
            ("state", field("state")),
            ("approvals", lambda row: f"{row['approvals_given']} of {row['approvals_needed']}"),
            ("expires", field("expire_time")),
        ]
        session.output.rows("intents", rows[:limit], columns)

    perform(ctx, work)


@app.command()
def approve(
    ctx: typer.Context,
    intent: IntentArgument,
    *,
    meaning: Annotated[
        str, typer.Option("--meaning", help="What your signature means (21 CFR 11.50).")
    ] = "approval",
    yes: YesOption = False,
    gateway: GatewayOption = "",
) -> None:
    """Approve an intent. What is shown is decoded from the very bytes that you sign for."""

    async def work(session: "Session") -> int:
        from vigil.cli.records import approve_intent

        return await approve_intent(session, intent, gateway, meaning=meaning, yes=yes)

    perform(ctx, work)


@app.command()
def cancel(ctx: typer.Context, intent: IntentArgument, *, gateway: GatewayOption = "") -> None:
    """Take an intent of yours back."""

    async def work(session: "Session") -> None:
        from vigil.api.gateway.v1 import gateway_pb2 as pb
        from vigil.cli.places import first_that_knows

        async def ask(end: "GatewayEnd") -> "gateway_pb2.IntentRecord":
            return await session.call(end.whom, end.intents.GetIntent, pb.GetIntentRequest(intent_id=intent))

        end, record = await first_that_knows(session, gateway, ask)
        request = pb.CancelIntentRequest(intent_id=record.intent_id)
        made = await session.call(end.whom, end.intents.CancelIntent, request)
        session.output.record({**record_value(made), "gateway_id": end.gateway_id})

    perform(ctx, work)


def record_value(record: "gateway_pb2.IntentRecord") -> dict[str, Any]:
    """An intent's record as JSON: the gateway's word."""
    from vigil.cli.messages import plain

    return plain(record)


def _request_id(text: str) -> bytes:
    if not text:
        return b""
    try:
        value = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        value = b""
    if len(value) != 16:
        raise UsageError("a request id has 32 hexadecimal digits")
    return value


def _keep(session: "Session", gateway_id: str, intent: Any, device_id: str) -> None:
    """A signed intent is on disk before it leaves."""
    from vigil.cli import journal

    sent = journal.Sent(
        request_id=intent.body.request_id,
        principal=session.person.id,
        device_id=device_id,
        gateway_id=gateway_id,
        action=intent.body.action,
        intent=intent.data,
    )
    journal.keep(session.folder, sent)


def _show_done(session: "Session", done: "Done") -> None:
    value = done.to_value()
    body = done.newest
    words = {
        "applied": "done: the device applied it and signed for it",
        "staged": "staged: the device applies it when its profile allows",
        "accepted": "accepted by the device; it has not said more yet",
    }
    session.output.say(words.get(str(body.outcome), f"{body.outcome}: {body.reason or 'no reason given'}"))
    receipt_value = value["receipt"] or {}
    keep = ("outcome", "reason", "device_id", "udi", "action", "request_id", "intent_id", "command_id")
    shown = {name: value[name] for name in keep}
    shown |= {name: receipt_value.get(name) for name in ("performed_by", "work_order", "device_time", "data")}
    session.output.record(shown)
    for proof in done.proofs:
        session.output.say(f"{'verified' if proof.holds else 'NOT VERIFIED'}: {proof.what}: {proof.sentence}")
