"""What the recall team does to a credential that was compromised."""

from vigil.api.revocation.v1 import revocation_pb2
from vigil.cli.session import Session
from vigil.core.statements.bodies import Revocation, RevocationEffect, RevocationReason, Scope
from vigil.core.statements.envelope import Statement


def compromised(by: Session, thumbprint: str) -> Statement[Revocation]:
    """A person's word that one credential (hex) counts no more."""
    body = Revocation(
        scope=Scope.CREDENTIAL,
        ids=(thumbprint,),
        effect=RevocationEffect.DENY,
        reason=RevocationReason.COMPROMISE,
    )
    return by.scribe.sign(body, subject=f"credential/{thumbprint}")


async def revoke(by: Session, statement: Statement[Revocation]) -> int:
    """Have it take effect; answers the epoch."""
    request = revocation_pb2.RevokeRequest(revocation=statement.data)
    return (await by.call("revocation", by.revocations.Revoke, request)).epoch


async def revoke_credential(by: Session, thumbprint: str) -> int:
    """Both; answers the epoch."""
    return await revoke(by, compromised(by, thumbprint))
