from pathlib import Path
from random import Random

import pytest

from vigil.device.puf import SRAM_BYTES, Puf, SimulatedSramPuf

READS = 60


def differing(left: bytes, right: bytes) -> int:
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).bit_count()


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.10, 0.15, 0.5])
def test_each_reading_has_the_error_rate(rate: float) -> None:
    random = Random(11)
    cells = random.randbytes(SRAM_BYTES)
    puf: Puf = SimulatedSramPuf(cells, entropy=random.randbytes, bit_error_rate=rate)
    bits = READS * SRAM_BYTES * 8
    wrong = sum(differing(puf.read(), cells) for _ in range(READS))
    deviation = (bits * rate * (1 - rate)) ** 0.5
    assert abs(wrong - bits * rate) <= 5 * deviation


def test_errors_fall_on_all_cells_alike() -> None:
    random = Random(12)
    puf = SimulatedSramPuf(bytes(SRAM_BYTES), entropy=random.randbytes, bit_error_rate=0.15)
    counts = [0] * (SRAM_BYTES * 8)
    for _ in range(200):
        word = int.from_bytes(puf.read(), "big")
        for place in range(len(counts)):
            counts[place] += word >> place & 1
    assert min(counts) > 5
    assert max(counts) < 60  # mean 30, standard deviation 5


def test_chips_differ_in_half_their_cells_and_keep_their_own() -> None:
    random = Random(13)

    def chip(number: int) -> bytes:
        return SimulatedSramPuf.from_seed(b"%d" % number, entropy=random.randbytes, bit_error_rate=0.0).read()

    chips = [chip(number) for number in range(12)]
    bits = SRAM_BYTES * 8
    for first in range(12):
        assert chip(first) == chips[first]
        assert 0.45 < int.from_bytes(chips[first], "big").bit_count() / bits < 0.55
        for second in range(first):
            assert 0.45 < differing(chips[first], chips[second]) / bits < 0.55


def test_cells_lie_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cells"
    path.write_bytes(bytes(range(256)) * 2)
    puf = SimulatedSramPuf.from_file(path, entropy=Random(1).randbytes, bit_error_rate=0.0)
    assert puf.read() == bytes(range(256)) * 2
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="cells"):
        SimulatedSramPuf.from_file(path, entropy=Random(1).randbytes)


@pytest.mark.parametrize("rate", [-0.01, 0.51, float("nan")])
def test_an_error_rate_that_cannot_be(rate: float) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 0\.5"):
        SimulatedSramPuf(b"cells", entropy=Random(1).randbytes, bit_error_rate=rate)
