"""Logs: one JSON object a line on stderr, with nothing secret in it."""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

REDACTED = "[redacted]"
MAX_TEXT = 4096
"""Characters of one value: what a caller sent may be repeated in an error, but not at any length."""

_SECRET_NAME = re.compile(
    r"(^|_)(key|private|passphrase|password|passwd|secret|token|authorization|cookie|helper|entropy|seed)($|_)"
)
_NOT_SECRET = frozenset({"key_thumbprint", "public_key"})
_SECRET_TEXT = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL
)
_IN_URL = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Remove what a log must not hold, by name and by look (Invariant 8)."""
    for name in list(event):
        event[name] = _clean(name, event[name])
    return event


def configure(*, role: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's logs to ``stream`` as JSON lines that name the role."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Frames without their local variables: those hold keys, parameters and people's data.
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.ExceptionRenderer(frames),
            _add_role(role),
            redact,
            structlog.processors.JSONRenderer(default=repr),
        ],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _add_role(role: str) -> structlog.typing.Processor:
    def add(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["role"] = role
        return event

    return add


def _clean(name: str, value: Any) -> Any:
    if name not in _NOT_SECRET and _SECRET_NAME.search(name.lower()):
        return REDACTED
    if isinstance(value, str):
        text = _IN_URL.sub(rf"\1{REDACTED}@", _SECRET_TEXT.sub(REDACTED, value))
        return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {str(inner): _clean(str(inner), each) for inner, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean("", each) for each in value]
    return value
