"""Who may call a method, and for what: the contract's option ``access``, read from descriptors and enforced.

A method without the option, without callers, with a caller of no kind or no rule, or with a field that is not
a text, stops the server from starting. Scope is held against every message:

* a unary request must have the field; on a stream the first message must have it, and each later one is
  checked when it has it;
* a field of several values (a repeated field, or a field inside repeated messages) must be in scope with each,
  and inside a repeated message an empty text is a value that is in nobody's scope;
* where several rules admit a caller, the messages of one stream must all satisfy one of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import Default, DescriptorPool
from google.protobuf.message import Message

from vigil.api.access.v1 import access_pb2
from vigil.core.certificates import EVERY, Identity, Kind
from vigil.errors import Reason, Refused, VigilError, refused

_KINDS = {
    access_pb2.CALLER_KIND_SERVICE: Kind.SERVICE,
    access_pb2.CALLER_KIND_GATEWAY: Kind.GATEWAY,
    access_pb2.CALLER_KIND_PERSON: Kind.PERSON,
    access_pb2.CALLER_KIND_DEVICE: Kind.DEVICE,
}
_WITH_FIELD = {
    access_pb2.SCOPE_RULE_CALLER,
    access_pb2.SCOPE_RULE_SITE,
    access_pb2.SCOPE_RULE_ORGANIZATION,
}
_RULES = _WITH_FIELD | {access_pb2.SCOPE_RULE_NONE, access_pb2.SCOPE_RULE_RESOURCE}

VERIFIED_CALLER_METHODS = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)
"""The fixed table: foreign contracts that cannot carry our option. Any verified caller, no scope."""


class ContractError(VigilError):
    """A contract names no usable admission rule; the server does not start."""


def not_permitted() -> Refused:
    """Gateway check 1: the caller's kind or role has no place at this method."""
    return refused(
        Reason.ROLE_NOT_PERMITTED,
        "Your role does not permit this call.",
        lifted_by="a credential with a role that does",
        who="an administrator of your organization",
    )


def not_in_scope() -> Refused:
    """Gateway check 1: what is asked for is out of scope; word for word the same when it does not exist."""
    return refused(
        Reason.NOT_IN_SCOPE,
        "What you named does not exist, or it is not in your scope.",
        lifted_by="a credential whose organization and sites cover it",
        who="an administrator of the organization that owns it",
    )


@dataclass(frozen=True, slots=True)
class _Field:
    """What of a field's descriptor each message is read by."""

    name: str
    is_repeated: bool
    has_presence: bool


@dataclass(frozen=True, slots=True)
class _Path:
    """A field of a request, from the outside in."""

    fields: tuple[_Field, ...]

    def values(self, message: Message) -> list[str]:
        """Every value present in the message."""
        return list(_values(message, self.fields, inside_repeated=False))


@dataclass(frozen=True, slots=True)
class CallerRule:
    """One kind of caller that a method admits."""

    kind: Kind
    roles: tuple[str, ...]
    rule: int
    path: _Path | None

    def admits(self, caller: Identity) -> bool:
        """Whether this entry is about this caller."""
        return caller.kind is self.kind and (not self.roles or caller.has_role(*self.roles))

    def covers(self, caller: Identity, message: Message, *, first: bool) -> bool:
        """Whether what the message names lies in the caller's scope."""
        if self.path is None:
            return True
        values = self.path.values(message)
        if not values:
            return not first
        return all(self._in_scope(caller, value) for value in values)

    def obliges(self, caller: Identity) -> bool:
        """Whether the handler must still look up an owner and call ``require_site`` or its like."""
        if self.rule == access_pb2.SCOPE_RULE_SITE:
            # "Every site" means of one organization, and whose site this is only the handler can look up.
            return EVERY in caller.sites and not caller.operator
        return self.rule == access_pb2.SCOPE_RULE_RESOURCE

    def _in_scope(self, caller: Identity, value: str) -> bool:
        if not value:
            return False
        if self.rule == access_pb2.SCOPE_RULE_CALLER:
            return value == caller.id
        if self.rule == access_pb2.SCOPE_RULE_ORGANIZATION:
            return caller.covers_organization(value)
        return EVERY in caller.sites or value in caller.sites


@dataclass(frozen=True, slots=True)
class MethodAccess:
    """The admission rule of one method; ``callers`` None stands for the fixed table's any verified caller."""

    method: str
    callers: tuple[CallerRule, ...] | None

    def admit(self, caller: Identity) -> "Scope":
        """Hold kind and role against the contract. Raises ROLE_NOT_PERMITTED."""
        if self.callers is None:
            return Scope(caller=caller, rules=None)
        rules = tuple(rule for rule in self.callers if rule.admits(caller))
        if not rules:  # empty means deny
            raise not_permitted()
        return Scope(caller=caller, rules=rules)


class Scope:
    """What one call may name; narrows with every message."""

    __slots__ = ("_caller", "_first", "_rules", "obliged")

    def __init__(self, *, caller: Identity, rules: tuple[CallerRule, ...] | None) -> None:
        self._caller = caller
        self._rules = rules
        self._first = True
        self.obliged = self._obliged()
        """Whether every rule that still admits this call leaves the scope to the handler."""

    def check(self, message: Message) -> None:
        """Hold one message of the request against the caller's scope. Raises NOT_IN_SCOPE."""
        if self._rules is not None:
            first = self._first
            rules = tuple(rule for rule in self._rules if rule.covers(self._caller, message, first=first))
            if len(rules) < len(self._rules):
                self._rules = rules
                self.obliged = self._obliged()
            if not rules:
                raise not_in_scope()
        self._first = False

    def _obliged(self) -> bool:
        return bool(self._rules) and all(rule.obliges(self._caller) for rule in self._rules or ())


def access_of(service: str, *, pool: DescriptorPool | None = None) -> Mapping[str, MethodAccess]:
    """Read the rules of a service's methods, by their full path. Raises ContractError."""
    try:
        descriptor = (pool or Default()).FindServiceByName(service)
    except KeyError as error:
        raise ContractError(f"no contract is known for {service}") from error
    rules: dict[str, MethodAccess] = {}
    for method in descriptor.methods:
        path = f"/{service}/{method.name}"
        if path in VERIFIED_CALLER_METHODS:
            rules[path] = MethodAccess(path, None)
        else:
            rules[path] = MethodAccess(path, tuple(_callers(path, method)))
    return rules


def _callers(path: str, method: MethodDescriptor) -> Iterator[CallerRule]:
    # Read again from its encoding: a pool that never saw the extension keeps it as an unknown field.
    options = descriptor_pb2.MethodOptions.FromString(method.GetOptions().SerializeToString())
    access = options.Extensions[access_pb2.access]
    if not access.callers:
        raise ContractError(f"{path} does not say who may call it")
    for caller in access.callers:
        kind = _KINDS.get(caller.kind)
        if kind is None:
            raise ContractError(f"{path} admits a caller of no kind")
        if caller.rule not in _RULES:
            raise ContractError(f"{path} has no scope rule for a {kind}")
        needs_field = caller.rule in _WITH_FIELD
        if needs_field and not caller.field:
            raise ContractError(f"{path} names no field for its scope rule")
        yield CallerRule(
            kind,
            tuple(caller.roles),
            caller.rule,
            _Path(
                tuple(
                    _Field(field.name, field.is_repeated, field.has_presence)
                    for field in _resolve(path, method.input_type, caller.field)
                )
            )
            if needs_field
            else None,
        )


def _resolve(path: str, message: Descriptor | None, field: str) -> Iterator[FieldDescriptor]:
    last = None
    for name in field.split("."):
        last = message.fields_by_name.get(name) if message is not None else None
        if last is None:
            raise ContractError(f"{path} names a field {field} that its request does not have")
        yield last
        message = last.message_type
    if last is None or last.type != FieldDescriptor.TYPE_STRING:
        raise ContractError(f"{path} names a field {field} that is not a text")


def _values(message: Message, fields: tuple[_Field, ...], *, inside_repeated: bool) -> Iterable[str]:
    field, rest = fields[0], fields[1:]
    value = getattr(message, field.name)
    if field.is_repeated:
        for item in value:
            if rest:
                yield from _values(item, rest, inside_repeated=True)
            else:
                yield item
    elif rest:
        if message.HasField(field.name):
            yield from _values(value, rest, inside_repeated=inside_repeated)
    elif field.has_presence:
        if message.HasField(field.name):
            yield value
    elif value or inside_repeated:
        yield value
