"""What a site approves: configurations and drug libraries, as JSON for people and as the bytes that are signed.

The bytes are deterministic CBOR, so a pump that applied a configuration measures the baseline's own digest.
A configuration is a map of settings (integer, text or boolean). A drug library is
``{"format": "vigil.drug-library.1", "name": …, "entries": [{drug, care_area, concentration, unit, scale, hard_min,
soft_min, soft_max, hard_max}]}`` with limits as integers of ``scale`` digits after the point; the soft limits and
``hard_min`` may be absent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from vigil.core import cbor, strict_json
from vigil.core.commands import check_parameters
from vigil.core.profiles import invalid, scaled
from vigil.core.statements.bodies import ActionClass, ActionSpec, BaselineKind, Effect, Profile
from vigil.errors import Reason, Refusal, Refused, refused

MAX_SETTINGS: Final = 512
MAX_SETTINGS_BYTES: Final = 64 << 10
MAX_LIBRARY_BYTES: Final = 512 << 10
"""What the memory of a device holds of each."""
MAX_ENTRIES: Final = 5_000
"""The largest libraries of the trade hold about 3,000 protocols."""
MAX_TEXT: Final = 1024
LIBRARY_FORMAT: Final = "vigil.drug-library.1"

_TEXTS: Final[Mapping[str, tuple[int, int]]] = {
    "drug": (1, 128),
    "care_area": (0, 64),
    "concentration": (0, 64),
    "unit": (1, 32),
}
_LIMITS: Final = ("hard_min", "soft_min", "soft_max", "hard_max")


@dataclass(frozen=True, slots=True)
class BaselineSource:
    """A baseline's file: what it is called, for which models, and the bytes to sign."""

    kind: BaselineKind
    name: str
    models: tuple[str, ...]
    content: bytes


def baseline_from_json(text: str) -> BaselineSource:
    """Read ``{"name", "models", "settings": {…}}`` or ``{"name", "models", "entries": […]}``. Raises FIELD_INVALID."""
    try:
        value = strict_json.parse(
            text.encode(errors="surrogatepass"), max_bytes=8 * MAX_LIBRARY_BYTES, decimals=Decimal
        )
        return _source(value)
    except ValueError as error:
        raise invalid("baseline", f"the file cannot be used: {error}") from None


def content_of_settings(text: str) -> bytes:
    """The bytes to sign of a baseline's file, of either kind. Raises FIELD_INVALID."""
    return baseline_from_json(text).content


def check_content(kind: BaselineKind, content: bytes) -> Mapping[str, Any]:
    """Read signed bytes back. Raises FIELD_INVALID, REQUEST_TOO_LARGE."""
    most = MAX_SETTINGS_BYTES if kind is BaselineKind.CONFIGURATION else MAX_LIBRARY_BYTES
    if len(content) > most:
        raise refused(
            Reason.REQUEST_TOO_LARGE,
            f"a {kind} holds at most {most} bytes: more has no room in a device",
            lifted_by="a smaller one",
            who="its author",
        )
    try:
        value = cbor.decode(content, max_bytes=most, max_depth=4)
    except Refused as error:
        raise invalid("content", error.refusals[0].sentence) from None
    if not isinstance(value, dict):
        raise invalid("content", f"this is no {kind}: it is not a map")
    try:
        if kind is BaselineKind.CONFIGURATION:
            _check_settings(value)
        else:
            _check_library(value)
    except ValueError as error:
        raise invalid("content", f"this is no {kind}: {error}") from None
    return value


def limit_refusals(settings: Mapping[str, Any], profile: Profile) -> list[Refusal]:
    """Hard limits hold for a baseline too: whatever a parameter of a SET action of the model bounds."""
    specs = {
        spec.name: spec
        for action in profile.actions
        if action.effect is Effect.SET
        for spec in action.parameters
    }
    named = {name: value for name, value in settings.items() if name in specs}
    bounds = ActionSpec(
        name="baseline",
        action_class=ActionClass.C,
        effect=Effect.INSTALL_BASELINE,
        parameters=tuple(specs[name] for name in named),
        approvals=0,
        states=(),
    )
    return check_parameters(bounds, named)


def _source(value: object) -> BaselineSource:
    if not isinstance(value, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 - as above
    unknown = value.keys() - {"note", "name", "models", "settings", "entries", "kind"}
    if unknown:
        raise ValueError(f"it has no member {', '.join(sorted(unknown))}")
    name, models = value.get("name"), value.get("models")
    if not isinstance(name, str) or not 1 <= len(name.encode()) <= 128:
        raise ValueError("name must be text of 1 to 128 bytes")
    if not isinstance(models, list) or not models or not all(isinstance(one, str) for one in models):
        raise ValueError("models must name at least one model")
    if ("settings" in value) is ("entries" in value):
        raise ValueError("it has either settings or entries")
    if "settings" in value:
        kind, content = BaselineKind.CONFIGURATION, _plain(value["settings"])
    else:
        kind = BaselineKind.DRUG_LIBRARY
        content = {"format": LIBRARY_FORMAT, "name": name, "entries": _entries(value["entries"])}
    if value.get("kind", str(kind)) != str(kind):
        raise ValueError(f"its content is a {kind}, its kind says otherwise")
    try:
        encoded = cbor.encode(content)
    except Refused as error:
        raise invalid("baseline", error.refusals[0].sentence) from None
    check_content(kind, encoded)
    return BaselineSource(kind, name, tuple(models), encoded)


def _plain(settings: object) -> dict[str, object]:
    if not isinstance(settings, dict):
        raise ValueError("settings must be an object")  # noqa: TRY004 - as above
    for name, value in settings.items():
        if isinstance(value, Decimal):
            sentence = f"{name} has a fraction: settings are integers, scaled as the profile says"
            raise ValueError(sentence)  # noqa: TRY004 - as above
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} does not fit into 64 bits")
    return dict(settings)


def _entries(entries: object) -> list[dict[str, object]]:
    if not isinstance(entries, list):
        raise ValueError("entries must be an array")  # noqa: TRY004 - as above
    out = []
    for place, entry in enumerate(entries):
        where = f"entries[{place}]"
        if not isinstance(entry, dict):
            raise ValueError(f"{where} must be an object")  # noqa: TRY004 - as above
        scale = entry.get("scale", 0)
        if type(scale) is not int:
            raise ValueError(f"{where}.scale must be a whole number")
        one: dict[str, object] = {"care_area": "", "concentration": "", "scale": scale}
        for name, value in entry.items():
            if name not in {"note", "scale"}:
                one[name] = scaled(value, scale, f"{where}.{name}") if name in _LIMITS else value
        out.append(one)
    return out


def _check_settings(settings: Mapping[Any, Any]) -> None:
    if not 1 <= len(settings) <= MAX_SETTINGS:
        raise ValueError(f"it holds 1 to {MAX_SETTINGS} settings")
    for name, value in settings.items():
        if type(name) is not str or not 1 <= len(name.encode()) <= 128:
            raise ValueError("a setting's name is text of 1 to 128 bytes")
        if type(value) not in {int, str, bool}:
            raise ValueError(f"{name} is neither an integer nor text nor true or false")
        if type(value) is str and (len(value.encode()) > MAX_TEXT or "\x00" in value):
            raise ValueError(f"{name} is text of at most {MAX_TEXT} bytes without NUL")


def _check_library(library: Mapping[Any, Any]) -> None:
    if library.keys() != {"format", "name", "entries"} or library["format"] != LIBRARY_FORMAT:
        raise ValueError(f"it is not in the format {LIBRARY_FORMAT}")
    _check_text(library["name"], 1, 128, "name")
    entries = library["entries"]
    if type(entries) is not list or not 1 <= len(entries) <= MAX_ENTRIES:
        raise ValueError(f"it holds 1 to {MAX_ENTRIES} entries")
    seen: set[tuple[str, str, str]] = set()
    for place, entry in enumerate(entries):
        key = _check_entry(entry, f"entries[{place}]")
        if key in seen:
            raise ValueError(
                f"entries[{place}] names {key[0]} a second time for its care area and concentration"
            )
        seen.add(key)


def _check_entry(entry: object, where: str) -> tuple[str, str, str]:
    if type(entry) is not dict or not entry.keys() <= {*_TEXTS, *_LIMITS, "scale"}:
        raise ValueError(f"{where} holds something unknown")
    for name, (least, most) in _TEXTS.items():
        _check_text(entry.get(name), least, most, f"{where}.{name}")
    scale = entry.get("scale")
    if type(scale) is not int or not 0 <= scale <= 9:
        raise ValueError(f"{where}.scale must be an integer from 0 to 9")
    if "hard_max" not in entry:
        raise ValueError(f"{where} has no hard_max")
    limits = [entry[name] for name in _LIMITS if name in entry]
    if any(type(limit) is not int or limit < 0 for limit in limits):
        raise ValueError(f"{where}: limits are integers, not below zero")
    if limits != sorted(limits):
        raise ValueError(f"{where}: hard_min, soft_min, soft_max and hard_max must rise in this order")
    return entry["drug"], entry["care_area"], entry["concentration"]


def _check_text(value: object, least: int, most: int, where: str) -> None:
    if type(value) is not str or not least <= len(value.encode()) <= most or "\x00" in value:
        raise ValueError(f"{where} must be text of {least} to {most} bytes without NUL")
