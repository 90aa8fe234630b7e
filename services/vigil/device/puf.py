"""The physical unclonable function: the port, and a simulated SRAM behind it.

SRAM cells wake up as 0 or 1 by the chance of their manufacture: mostly the same way each time, and differently
from chip to chip. In a real device a boot loader reads them before memory is used; nothing above this port can
tell which it is.
"""

from hashlib import shake_256
from pathlib import Path
from typing import Final, Protocol, Self

from vigil.core.clock import Entropy

SRAM_BYTES: Final = 512
"""Start-up memory that the simulation sets aside for the PUF."""
TYPICAL_BIT_ERROR_RATE: Final = 0.10
"""Between two readings of one chip over temperature and age; the extractor is made for 0.15."""

_FRACTION_BITS = 16


class Puf(Protocol):
    """Something that answers nearly the same bits each time it is read, and that no other device answers."""

    def read(self) -> bytes:
        """Read the noisy response, eight cells to a byte; the same length each time."""
        ...


class SimulatedSramPuf:
    """A simulated SRAM PUF: fixed, unbiased, independent cells, each read wrongly with the same probability.

    Its cells lie in a file or follow from a seed, so it protects nothing: it stands in for hardware.
    """

    def __init__(
        self, cells: bytes, *, entropy: Entropy, bit_error_rate: float = TYPICAL_BIT_ERROR_RATE
    ) -> None:
        """Take the cells' preferred values. Raises ValueError without cells or for a rate outside 0 to 0.5."""
        if not cells:
            raise ValueError("a PUF has cells")
        if not 0 <= bit_error_rate <= 0.5:
            raise ValueError("a bit error rate lies between 0 and 0.5")
        self._cells = int.from_bytes(cells, "big")
        self._size = len(cells)
        self._entropy = entropy
        self._error_rate = round(bit_error_rate * 2**_FRACTION_BITS)

    @classmethod
    def from_seed(
        cls,
        seed: bytes,
        *,
        entropy: Entropy,
        bit_error_rate: float = TYPICAL_BIT_ERROR_RATE,
    ) -> Self:
        """Make the chip that ``seed`` stands for: SHAKE-256 of it gives the cells."""
        return cls(shake_256(seed).digest(SRAM_BYTES), entropy=entropy, bit_error_rate=bit_error_rate)

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        entropy: Entropy,
        bit_error_rate: float = TYPICAL_BIT_ERROR_RATE,
    ) -> Self:
        """Take the cells from a file of raw bytes. Raises OSError, or ValueError for an empty file."""
        return cls(path.read_bytes(), entropy=entropy, bit_error_rate=bit_error_rate)

    def read(self) -> bytes:
        return (self._cells ^ self._noise()).to_bytes(self._size, "big")

    def _noise(self) -> int:
        """Draw a word in which each bit is 1 with the error rate's probability, all cells at once.

        Along the rate's binary digits, the least first: OR with a random word halves the distance to 1, AND the
        distance to 0.
        """
        noise = 0
        for digit in range(_FRACTION_BITS):
            word = int.from_bytes(self._entropy(self._size), "big")
            noise = noise | word if self._error_rate >> digit & 1 else noise & word
        return noise
