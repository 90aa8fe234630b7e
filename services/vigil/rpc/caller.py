"""Who is calling, for handlers: the verified identity of a call, and the scope checks that a handler owes."""

import contextvars

import grpc

from vigil.core.certificates import Identity
from vigil.rpc.access import not_in_scope


class Obligation:
    """Whether the handler of one call has held what it looked up against the caller's scope."""

    __slots__ = ("met",)

    def __init__(self) -> None:
        self.met = False


_OBLIGATION: contextvars.ContextVar[Obligation | None] = contextvars.ContextVar(
    "vigil_rpc_obligation", default=None
)


def begin(obligation: Obligation) -> None:
    """Make this the obligation of the task that serves a call, and of its children."""
    _OBLIGATION.set(obligation)


def caller_of(context: grpc.aio.ServicerContext) -> Identity:  # type: ignore[type-arg]
    """Name the verified identity behind a call. Raises TypeError for a context of another server."""
    caller = getattr(context, "caller", None)
    if not isinstance(caller, Identity):
        raise TypeError("this call was not admitted by vigil.rpc.server")
    return caller


def require_site(caller: Identity, organization: str, site: str) -> None:
    """Refuse with NOT_IN_SCOPE unless the site of that organization lies in the caller's scope."""
    if not caller.covers_site(organization, site):
        raise not_in_scope()
    _meet()


def require_organization(caller: Identity, organization: str) -> None:
    """Refuse with NOT_IN_SCOPE unless the caller belongs to that organization, or to the operator's."""
    if not caller.covers_organization(organization):
        raise not_in_scope()
    _meet()


def require_self(caller: Identity, subject_id: str) -> None:
    """Refuse with NOT_IN_SCOPE unless the resource is the caller itself."""
    if not subject_id or caller.id != subject_id:
        raise not_in_scope()
    _meet()


def scope_filtered(caller: Identity) -> None:
    """Declare that the answer was filtered and holds only what lies in the caller's scope."""
    if not caller.id:
        raise not_in_scope()
    _meet()


def _meet() -> None:
    obligation = _OBLIGATION.get()
    if obligation is not None:
        obligation.met = True
