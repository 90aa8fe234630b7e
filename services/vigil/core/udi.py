"""Unique device identification: reading a UDI carrier as GS1 writes it.

Sources: GS1 General Specifications; 21 CFR 801.3 and 801.40.

A UDI is a device identifier (DI: the model or version) and production identifiers (PI: serial, lot, dates).
One fielded device is named by DI **and** serial; a DI alone names a model. Serials are case-sensitive and
kept as they are. A carrier comes as the human-readable ``(01)…(21)…`` or as the scanned element string, where
FNC1 is the control character GS and a symbology identifier such as ``]d2`` may stand before it.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vigil.errors import Reason, Refused, refused

if TYPE_CHECKING:
    from biip.gs1_element_strings import GS1ElementStrings

GS1: Final = "GS1"
FNC1: Final = "\x1d"
MAX_CARRIER: Final = 256
"""Characters; the longest base UDI has 76 (FDA, UDI formats by issuing agency)."""

_SYMBOLOGIES = ("]C1", "]e0", "]d2", "]Q3", "]J1")
"""Symbology identifiers that announce GS1 data (General Specifications, figure 5.1.2-1)."""
_DI, _LOT, _MANUFACTURED, _EXPIRES, _SERIAL, _SOFTWARE = "01", "10", "11", "17", "21", "8012"
_CHARACTERS = re.compile(r"[!\"%&'()*+,\-./0-9:;<=>?A-Z_a-z\x1d]+", re.ASCII)
"""GS1 character set 82 (General Specifications, figure 7.11-1) and the separator."""
_GTIN_14 = re.compile(r"[0-9]{14}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Udi:
    """One device's UDI. Dates are the label's own six digits, YYMMDD; what is not there is empty."""

    issuer: str
    di: str
    serial: str
    lot: str
    manufactured: str
    expires: str
    software_version: str
    carrier: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes two carriers the same device: ``(issuer, di, serial)``."""
        return self.issuer, self.di, self.serial

    @property
    def canonical(self) -> str:
        """The device's name in statements: ``(01)…(21)…``, whatever else its carrier says."""
        return f"({_DI}){self.di}({_SERIAL}){self.serial}"


def parse(carrier: str) -> Udi:
    """Read a carrier that names one device. Raises Refused UDI_INVALID, and guesses nothing."""
    elements = _elements(carrier)
    values: dict[str, str] = {}
    for element in elements:
        if element.gtin_error is not None:
            raise _invalid("the check digit or the form of its GTIN is wrong")
        if element.ai.ai in values:
            raise _invalid(f"it says ({element.ai.ai}) twice")
        values[element.ai.ai] = element.value
    if _DI not in values:
        raise _invalid("it holds no device identifier, (01)")
    serial = values.get(_SERIAL, "")
    if not serial:
        raise _invalid("it holds no serial number, (21), and so names a model, not a device")
    if "(" in serial:
        raise _invalid("its serial holds a bracket and could not be written between brackets again")
    return Udi(
        issuer=GS1,
        di=values[_DI],
        serial=serial,
        lot=values.get(_LOT, ""),
        manufactured=values.get(_MANUFACTURED, ""),
        expires=values.get(_EXPIRES, ""),
        software_version=values.get(_SOFTWARE, ""),
        carrier=carrier,
    )


def parse_di(text: str) -> str:
    """Read a model's device identifier, a GTIN-14 with its check digit. Raises Refused UDI_INVALID."""
    if _GTIN_14.fullmatch(text) is None:
        raise _invalid("a GS1 device identifier is a GTIN of 14 digits")
    elements = _elements(_DI + text)
    if elements[0].gtin_error is not None:
        raise _invalid("the check digit or the form of its GTIN is wrong")
    return elements[0].value


def _elements(carrier: str) -> "GS1ElementStrings":
    """Split a carrier into element strings that account for every one of its characters."""
    if not carrier or len(carrier) > MAX_CARRIER:
        raise _invalid(f"it is empty or longer than {MAX_CARRIER} characters")
    if carrier[0] == "+":
        raise _invalid("it is an HIBCC carrier, and Vigil reads GS1 carriers only")
    if carrier[0] in "=&":
        raise _invalid("it is an ICCBBA carrier, and Vigil reads GS1 carriers only")
    text = carrier[3:] if carrier.startswith(_SYMBOLOGIES) else carrier.removeprefix(FNC1)
    if _CHARACTERS.fullmatch(text) is None:
        raise _invalid("it holds a character outside GS1 character set 82, or nothing")
    # The library loads every prefix of GS1's members: a service starts without it.
    from biip import ParseConfig, ParseError
    from biip.gs1_messages import GS1Message

    readable = text.startswith("(")
    config = ParseConfig(separator_chars=[FNC1])
    try:
        message = GS1Message.parse_hri(text) if readable else GS1Message.parse(text, config=config)
    except (ParseError, ValueError, ArithmeticError):
        raise _invalid("GS1 knows no such application identifier, or not with such a value") from None
    elements = message.element_strings
    # The library skips what it does not understand: what it understood must be all there was.
    if not (_readable_is(elements, text) if readable else _scanned_is(elements, text)):
        raise _invalid("not every part of it belongs to an application identifier, or a separator is missing")
    return elements


def _readable_is(elements: "GS1ElementStrings", text: str) -> bool:
    return text == "".join(f"({element.ai.ai}){element.value}" for element in elements)


def _scanned_is(elements: "GS1ElementStrings", text: str) -> bool:
    """General Specifications 7.8.6: a field of variable length ends with FNC1, unless it is the last."""
    rest = text
    for element in elements:
        field = element.ai.ai + element.value
        if not rest.startswith(field):
            return False
        rest = rest[len(field) :]
        if rest and element.ai.separator_required and not rest.startswith(FNC1):
            return False
        rest = rest.removeprefix(FNC1)
    return not rest


def _invalid(what: str) -> Refused:
    return refused(
        Reason.UDI_INVALID,
        f"The UDI carrier cannot be accepted: {what}.",
        lifted_by="Give the carrier as the label shows it, (01)…(21)…, or as the scanner reads it.",
        who="caller",
        field="udi",
    )
