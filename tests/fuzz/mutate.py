"""A few inputs like given ones, from a seed: for `make test`, and for where atheris does not run."""

import random
from collections.abc import Sequence
from typing import Final

TELLING: Final = (
    b"\x00",
    b"\xff",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"NaN",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"[" * 200,
    b'{"a":' * 100,
    b"\x81" * 64,
    b"\x0a\xff\xff\xff\xff\x0f",
    "\N{RIGHT-TO-LEFT OVERRIDE}é".encode(),
)


def mutated(chance: random.Random, inputs: Sequence[bytes], most: int) -> bytes:
    """One input: a kept one, changed in one to four places, at most ``most`` bytes long."""
    data = bytearray(chance.choice(inputs)[:most]) if inputs else bytearray()
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(data))
        match chance.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                data[at:at] = chance.choice(TELLING)
            case 2:
                del data[at : at + chance.randint(1, 16)]
            case 3:
                del data[at:]
            case 4:
                other = chance.choice(inputs) if inputs else b""
                start = chance.randint(0, len(other))
                data[at : at + 32] = other[start : start + 32]
            case _:
                part = data[at : at + chance.randint(1, 32)]
                data[at:at] = part * chance.choice((1, 2, 8, 64))
    return bytes(data[:most])
