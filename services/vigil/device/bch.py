"""The binary BCH code (255, 131) that corrects 18 errors in a block.

Polynomials over GF(2) are integers whose bit i is the coefficient of x^i. GF(2^8) is built on the primitive
polynomial x^8 + x^4 + x^3 + x^2 + 1. Source: S. Lin, D. J. Costello, Error Control Coding, chapter 6 and appendix C.
The running time depends on the errors; a device that leaks it to an attacker needs a decoder in hardware.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

LENGTH: Final = 255
DIMENSION: Final = 131
CORRECTABLE: Final = 18
_PARITY: Final = LENGTH - DIMENSION
_PRIMITIVE: Final = 0b1_0001_1101
_ORDER: Final = 255
"""Of the multiplicative group of GF(2^8)."""


class UncorrectableError(ValueError):
    """A block has more errors than the code corrects."""


@dataclass(frozen=True, slots=True)
class Corrected:
    """A decoded block: its 131 message bits, and how many of its 255 bits were wrong."""

    message: int
    errors: int


@dataclass(frozen=True, slots=True)
class _Field:
    """GF(2^8) by logarithms: ``power[i]`` is a^i (two periods, so that a sum of logs needs no reduction)."""

    power: tuple[int, ...]
    log: tuple[int, ...]
    generator: int


def encode(message: int) -> int:
    """Encode 131 message bits into a block of 255, systematically: the message stands in the upper bits.

    Raises ValueError for a message that does not fit.
    """
    if message < 0 or message >> DIMENSION:
        raise ValueError(f"a message has {DIMENSION} bits")
    shifted = message << _PARITY
    return shifted | _remainder(shifted)


def decode(received: int) -> Corrected:
    """Correct up to 18 errors in a block of 255 bits.

    Raises UncorrectableError if more are found, ValueError for a block that does not fit. Beyond 18 errors a
    few blocks lie within reach of another codeword and decode to it: whoever needs to know checks the result.
    """
    if received < 0 or received >> LENGTH:
        raise ValueError(f"a block has {LENGTH} bits")
    remainder = _remainder(received)
    if not remainder:
        return Corrected(received >> _PARITY, 0)
    locator = _error_locator(_syndromes(remainder))
    positions = _roots(locator)
    if len(positions) != len(locator) - 1:
        raise UncorrectableError("the block has more errors than the code corrects")
    for position in positions:
        received ^= 1 << position
    if _remainder(received):
        raise UncorrectableError("the block has more errors than the code corrects")
    return Corrected(received >> _PARITY, len(positions))


def generator_polynomial() -> int:
    """The generator polynomial: the product of the minimal polynomials of a, a^3, …, a^35; degree 124."""
    return _field().generator


@cache
def _field() -> _Field:
    power, log, element = [], [0] * (_ORDER + 1), 1
    for exponent in range(_ORDER):
        power.append(element)
        log[element] = exponent
        element <<= 1
        if element >> 8:
            element ^= _PRIMITIVE
    generator, covered = 1, set[int]()
    for exponent in range(1, 2 * CORRECTABLE, 2):
        if exponent in covered:
            continue
        conjugates = {exponent * 2**square % _ORDER for square in range(8)}
        covered |= conjugates
        generator = _times(generator, _minimal_polynomial(conjugates, power, log))
    return _Field(tuple(power * 2), tuple(log), generator)


def _minimal_polynomial(conjugates: set[int], power: list[int], log: list[int]) -> int:
    """Multiply out (x + a^e) over the conjugates; the coefficients end up in GF(2)."""
    coefficients = [1]
    for exponent in conjugates:
        shifted = [0, *coefficients]
        for place, coefficient in enumerate(coefficients):
            if coefficient:
                shifted[place] ^= power[(log[coefficient] + exponent) % _ORDER]
        coefficients = shifted
    return sum(coefficient << place for place, coefficient in enumerate(coefficients))


def _times(left: int, right: int) -> int:
    """Multiply two polynomials over GF(2)."""
    product = 0
    for place in range(right.bit_length()):
        if right >> place & 1:
            product ^= left << place
    return product


def _remainder(dividend: int) -> int:
    """Reduce a polynomial modulo the generator."""
    generator = _field().generator
    degree = dividend.bit_length() - 1
    while degree >= _PARITY:
        dividend ^= generator << degree - _PARITY
        degree = dividend.bit_length() - 1
    return dividend


def _syndromes(remainder: int) -> list[int]:
    """Evaluate at a^1 … a^36; the generator is zero there, so the remainder stands for the whole block."""
    field = _field()
    power, log = field.power, field.log
    places = [place for place in range(_PARITY) if remainder >> place & 1]
    syndromes = [0] * (2 * CORRECTABLE)
    for exponent in range(1, 2 * CORRECTABLE + 1):
        if exponent % 2:
            value = 0
            for place in places:
                value ^= power[place * exponent % _ORDER]
        else:  # in characteristic 2, S(2i) = S(i)^2
            half = syndromes[exponent // 2 - 1]
            value = power[2 * log[half]] if half else 0
        syndromes[exponent - 1] = value
    return syndromes


def _error_locator(syndromes: list[int]) -> list[int]:
    """Berlekamp and Massey's algorithm: the coefficients, constant term first. Raises UncorrectableError."""
    field = _field()
    power, log = field.power, field.log
    current, previous = [1], [1]
    length, gap, previous_discrepancy = 0, 1, 1
    for step, syndrome in enumerate(syndromes):
        discrepancy = syndrome
        for place in range(1, min(length + 1, len(current))):
            coefficient, earlier = current[place], syndromes[step - place]
            if coefficient and earlier:
                discrepancy ^= power[log[coefficient] + log[earlier]]
        if not discrepancy:
            gap += 1
            continue
        factor = (log[discrepancy] - log[previous_discrepancy]) % _ORDER
        updated = current + [0] * (len(previous) + gap - len(current))
        for place, coefficient in enumerate(previous):
            if coefficient:
                updated[place + gap] ^= power[log[coefficient] + factor]
        if 2 * length <= step:
            length, previous, previous_discrepancy, gap = step + 1 - length, current, discrepancy, 1
        else:
            gap += 1
        current = updated
    while not current[-1]:
        current.pop()
    if length > CORRECTABLE or len(current) != length + 1:
        raise UncorrectableError("the block has more errors than the code corrects")
    return current


def _roots(locator: list[int]) -> list[int]:
    """Chien's search: the places i at which the locator vanishes for a^-i."""
    field = _field()
    power, log = field.power, field.log
    terms = [(place, log[coefficient]) for place, coefficient in enumerate(locator) if coefficient]
    roots = []
    for position in range(LENGTH):
        value = 0
        for place, exponent in terms:
            value ^= power[(exponent - place * position) % _ORDER]
        if not value:
            roots.append(position)
    return roots
