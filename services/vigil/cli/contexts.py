"""Contexts: as whom, with which key, and where. One JSON file of mode 0600 in the data folder.

``{"current": name, "contexts": {name: {principal, certificate, key, trust, trust_domain, endpoints, gateways}}}``;
``endpoints`` are services by role (host:port), ``gateways`` what was learnt of them: ``{id: {address, site}}``.
"""

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from vigil.cli.options import UsageError
from vigil.core.certificates import replace_file
from vigil.errors import Reason, Refused, refused
from vigil.run.layout import SERVICES, DataFolder

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class KnownGateway:
    address: str
    site: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One person at one installation."""

    name: str
    principal: str
    certificate: Path
    key: Path
    trust: Path
    trust_domain: str
    endpoints: Mapping[str, str] = field(default_factory=dict)
    gateways: Mapping[str, KnownGateway] = field(default_factory=dict)

    def to_value(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "principal": self.principal,
            "certificate": str(self.certificate),
            "key": str(self.key),
            "trust": str(self.trust),
            "trust_domain": self.trust_domain,
            "endpoints": dict(self.endpoints),
            "gateways": {
                name: {"address": one.address, "site": one.site} for name, one in self.gateways.items()
            },
        }


@dataclass(frozen=True, slots=True)
class ContextBook:
    """Every context of a data folder, and which one is current."""

    current: str
    contexts: Mapping[str, Context]

    def get(self, name: str | None) -> Context:
        """The named context, else the current one. Raises UsageError."""
        wanted = name or self.current
        found = self.contexts.get(wanted)
        if found is None:
            known = ", ".join(self.contexts) or "none"
            named = f"context {wanted!r}" if wanted else "context"
            raise UsageError(
                f"there is no {named} here (there are: {known}); `vigil up` makes the first ones, "
                "`vigil context import` adds one, --data names another folder"
            )
        return found

    def with_context(self, context: Context) -> "ContextBook":
        """The same with one context more, or anew; the first becomes the current one."""
        contexts = {**self.contexts, context.name: context}
        return ContextBook(self.current or context.name, contexts)


def read_contexts(folder: DataFolder) -> ContextBook:
    """Read the file; empty where there is none. Raises FIELD_INVALID when it cannot be used."""
    path = folder.contexts_file
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        contexts = {str(name): _context(str(name), one) for name, one in value["contexts"].items()}
        return ContextBook(str(value["current"]), contexts)
    except FileNotFoundError:
        return ContextBook("", {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(path, error) from error


def change_contexts(folder: DataFolder, change: Callable[[ContextBook], ContextBook]) -> ContextBook:
    """Change the file while no other command does. Raises as `read_contexts`, OSError."""
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder.contexts_file.with_suffix(".lock")):
        book = change(read_contexts(folder))
        value = {
            "current": book.current,
            "contexts": {name: one.to_value() for name, one in book.contexts.items()},
        }
        replace_file(folder.contexts_file, (json.dumps(value, indent=2) + "\n").encode(), mode=0o600)
    return book


def with_local_endpoints(context: Context, folder: DataFolder) -> Context:
    """On the machine that runs the services, their own addresses stand before what the context remembers."""
    local = {name: address for name, address in folder.read_endpoints().items() if name in SERVICES}
    return replace(context, endpoints={**context.endpoints, **local})


def remember_gateways(folder: DataFolder, name: str, found: Mapping[str, KnownGateway]) -> None:
    """Keep gateways' addresses for the day when nobody can be asked for them."""
    known = read_contexts(folder).contexts.get(name)
    if known is None or all(known.gateways.get(key) == one for key, one in found.items()):
        return

    def change(book: ContextBook) -> ContextBook:
        context = book.get(name)
        return book.with_context(replace(context, gateways={**context.gateways, **found}))

    change_contexts(folder, change)


def check_name(name: str) -> str:
    """Give back a context's name. Raises FIELD_INVALID."""
    if NAME.fullmatch(name) is None:
        raise refused(Reason.FIELD_INVALID, f"{name!r} is no name for a context", field="context")
    return name


def _context(name: str, value: Mapping[str, Any]) -> Context:
    return Context(
        name=name,
        principal=str(value["principal"]),
        certificate=Path(value["certificate"]),
        key=Path(value["key"]),
        trust=Path(value["trust"]),
        trust_domain=str(value["trust_domain"]),
        endpoints={str(role): str(address) for role, address in value.get("endpoints", {}).items()},
        gateways={
            str(key): KnownGateway(str(one["address"]), str(one.get("site", "")))
            for key, one in value.get("gateways", {}).items()
        },
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unusable(path: Path, error: Exception) -> Refused:
    return refused(
        Reason.FIELD_INVALID,
        f"{path} cannot be used: {error}",
        lifted_by="the file as `vigil context import` writes it",
        who="you",
    )
