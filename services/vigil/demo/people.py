"""The people of the demonstration: each with a key made here, a credential from identity, a session of their own."""

from dataclasses import dataclass
from pathlib import Path

from vigil.api.identity.v1 import identity_pb2
from vigil.cli.contexts import Context, change_contexts
from vigil.cli.options import Options, OutputMode
from vigil.cli.output import Output
from vigil.cli.session import Session
from vigil.core.certificates import make_request, replace_file, store_pair
from vigil.core.keys import new_private_key
from vigil.run.layout import DataFolder

TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Somebody to appoint. ``privileged`` roles take a second administrator."""

    name: str
    display_name: str
    organization: str
    roles: tuple[str, ...]
    sites: tuple[str, ...]
    privileged: bool = False


def session_of(folder: DataFolder, context: Context) -> Session:
    """A session in one person's name."""
    options = Options(data=folder.path, context=context.name, output=OutputMode.JSON, timeout=TIMEOUT_S)
    return Session(options=options, folder=folder, context=context, output=Output(OutputMode.JSON))


async def appoint(
    folder: DataFolder, cast: Cast, *, admin: Session, second: Session, trust_domain: str
) -> Session:
    """Create a person, have a second administrator agree where that is needed, and issue a credential."""
    principal_id = f"p-{cast.name}"
    principal = identity_pb2.Principal(
        principal_id=principal_id,
        organization_id=cast.organization,
        display_name=cast.display_name,
        roles=cast.roles,
        site_ids=cast.sites,
    )
    create = identity_pb2.CreatePrincipalRequest(principal=principal)
    await admin.call("identity", admin.registry.CreatePrincipal, create)
    if cast.privileged:
        approve = identity_pb2.ApprovePrincipalRequest(principal_id=principal_id)
        await second.call("identity", second.registry.ApprovePrincipal, approve)
    key = new_private_key()
    request = identity_pb2.IssueCredentialRequest(
        principal_id=principal_id, csr_pem=make_request(key).decode()
    )
    credential = await admin.call("identity", admin.certificates.IssueCredential, request)
    home = folder.path / "people" / principal_id
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    store_pair(
        home / "tls.pem", home / "tls.key", chain_pem=credential.certificate_pem.encode(), private_key=key
    )
    replace_file(home / "trust.json", folder.trust.read_bytes())
    context = _context(folder, cast.name, principal_id, home, trust_domain)
    change_contexts(folder, lambda book: book.with_context(context))
    return session_of(folder, context)


def admin_session(folder: DataFolder, number: int, trust_domain: str) -> Session:
    """One of the two first administrators."""
    principal_id = f"p-admin-{number}"
    home = folder.path / "people" / principal_id
    return session_of(folder, _context(folder, f"admin-{number}", principal_id, home, trust_domain))


def _context(folder: DataFolder, name: str, principal: str, home: Path, trust_domain: str) -> Context:
    return Context(
        name=name,
        principal=principal,
        certificate=home / "tls.pem",
        key=home / "tls.key",
        trust=home / "trust.json",
        trust_domain=trust_domain,
        endpoints=folder.read_endpoints(),
    )
