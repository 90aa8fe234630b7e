"""Parts out of one input, for decoders that take several values; `pack` writes the input of given parts.

Every input has a meaning: what is missing at its end is zero or empty.
"""

from typing import Final

_LENGTH: Final = 2


class Source:
    """Reads parts from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        self._at += size
        return part

    def number(self, size: int = 8) -> int:
        return int.from_bytes(self.take(size).ljust(size, b"\0"), "big")

    def chunk(self) -> bytes:
        """A part with its length before it."""
        return self.take(self.number(_LENGTH))

    def chunks(self, most: int = 64) -> list[bytes]:
        return [self.chunk() for _ in range(self.number(1) % (most + 1))]

    def rest(self) -> bytes:
        return self._data[self._at :]


def pack(*parts: int | bytes | list[bytes], rest: bytes = b"") -> bytes:
    """Numbers have eight bytes; chunks their length before them; a list its count."""
    out = b""
    for part in parts:
        if isinstance(part, int):
            out += part.to_bytes(8, "big")
        elif isinstance(part, bytes):
            out += _chunk(part)
        else:
            out += len(part).to_bytes(1, "big") + b"".join(map(_chunk, part))
    return out + rest


def _chunk(data: bytes) -> bytes:
    return len(data).to_bytes(_LENGTH, "big") + data


def text(data: bytes) -> str:
    """Text out of any bytes; what is not UTF-8 becomes lone surrogates, as an escape in JSON can make them."""
    return data.decode("utf-8", "surrogateescape")
