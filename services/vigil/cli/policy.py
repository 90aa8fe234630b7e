"""`vigil policy`: what decides."""

from typing import TYPE_CHECKING

import typer

from vigil.cli.options import group
from vigil.cli.perform import perform

if TYPE_CHECKING:
    from vigil.cli.session import Session

app = group("The policy in force.")


@app.command()
def show(ctx: typer.Context) -> None:
    """Show the revision in force, its engine and how fresh its facts are."""

    async def work(session: "Session") -> None:
        from vigil.api.policy.v1 import policy_pb2
        from vigil.cli.messages import plain

        request = policy_pb2.GetPolicyStatusRequest()
        found = await session.call("policy", session.policy.GetPolicyStatus, request)
        session.output.record(plain(found))

    perform(ctx, work)
