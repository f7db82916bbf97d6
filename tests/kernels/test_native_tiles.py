"""The emulation that tiles are tested on, held to Intel's definition and, where it has any, to the processor."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headwise.kernels.native.library import supported
from tests.attention_cases import NATIVE

CXX = os.environ.get("CXX", "c++")
pytestmark = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"until there is a C++ compiler ({CXX})")
FAULTS = [
    "tiles are configured",
    "tiles are configured",
    "palette is 1",
    "reserved bytes are 0",
    "at most 16 rows",
    "at most 64 bytes",
    "both rows and bytes",
    "the tile is configured",
    "whole dwords",
    "as many rows as the first factor",
    "as many columns as the second factor",
    "as many pairs",
    "three different tiles",
]


def compiled(folder: Path, *flags: str) -> Path:
    target = folder / "probe.so"
    source = Path(__file__).with_name("tile_probe.cpp")
    command = [CXX, "-std=c++20", "-O2", "-fPIC", "-shared", f"-I{NATIVE}", *flags, str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("tiles"), "-DHW_EMULATE_TILES", "-Wno-psabi")


def product(probe: Path, a: Tensor, b: Tensor, c: Tensor, name: str = "product") -> Tensor:
    """c + a b in tiles: `a [m, 2k]`, `b [2k, n]`, `c [m, 16]` of which n columns count."""
    a, b = a.bfloat16().contiguous(), b.bfloat16()
    pairs = b.view(-1, 2, b.shape[1]).transpose(1, 2).contiguous()  # two rows side by side
    out = c.clone()
    getattr(ctypes.CDLL(str(probe)), name)(*(ctypes.c_void_p(x.data_ptr()) for x in (a, pairs, out)))
    return out


def factors(**first: float) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros but for the first entries of a's first row (`a0`, `a1`, ...), of b's first column, and of c."""
    a, b, c = torch.zeros(16, 32), torch.zeros(32, 16), torch.zeros(16, 16)
    for name, value in first.items():
        place = int(name[1:])
        (a[0] if name[0] == "a" else b[:, 0] if name[0] == "b" else c[0])[place] = value
    return a, b, c


def test_products_of_whole_numbers_are_exact(emulated: Path) -> None:
    made = torch.Generator().manual_seed(0)
    a, b, c = (torch.randint(-9, 10, shape, generator=made).float() for shape in ((16, 32), (32, 16), (16, 16)))
    assert torch.equal(product(emulated, a, b, c), c + a @ b)


def test_smaller_tiles(emulated: Path) -> None:
    made = torch.Generator().manual_seed(0)
    a, b, c = (torch.randint(-9, 10, shape, generator=made).float() for shape in ((3, 4), (4, 5), (3, 16)))
    want = c.clone()
    want[:, :5] += a @ b
    assert torch.equal(product(emulated, a, b, c, "small_product"), want)


def test_even_and_odd_channels_are_summed_apart_and_before_the_tile(emulated: Path) -> None:
    big = 2.0**24  # one more is lost beside it, a tie to even
    ones = {f"{side}{i}": 1.0 for side in "ab" for i in range(1, 16, 2)}
    a, b, c = factors(a0=big, b0=1.0, **ones)
    assert product(emulated, a, b, c)[0, 0] == big + 8
    a, b, c = factors(a0=big, b0=1.0, a2=1.0, b2=1.0, a4=1.0, b4=1.0)
    assert product(emulated, a, b, c)[0, 0] == big
    a, b, c = factors(c0=big, a0=1.0, b0=1.0, a1=1.0, b1=1.0)
    assert product(emulated, a, b, c)[0, 0] == big + 2


def test_products_are_not_rounded_before_they_are_added(emulated: Path) -> None:
    a, b, c = factors(a0=-(2.0**127), b0=1.0, a2=2.0**64, b2=2.0**64)  # 2^128 alone is infinite
    assert product(emulated, a, b, c)[0, 0] == 2.0**127


@pytest.mark.parametrize(
    "first",
    [
        {"a0": 2.0**-127, "b0": 2.0**100},  # read
        {"a0": 2.0**100, "b0": 2.0**-127},
        {"c0": 2.0**-127},
        {"a0": 2.0**-64, "b0": 2.0**-63},  # made
        {"a0": 2.0**-126, "b0": 1.5, "a2": -(2.0**-126), "b2": 1.0},
        {"a0": 2.0**-126, "b0": 1.5, "a1": -(2.0**-126), "b1": 1.0},
        {"c0": 1.5 * 2.0**-126, "a1": -(2.0**-126), "b1": 1.0},
    ],
    ids=str,
)
def test_denormals_are_zeros(emulated: Path, first: dict[str, float]) -> None:
    assert product(emulated, *factors(**first))[0, 0] == 0


def test_spoiled_numbers_show(emulated: Path) -> None:
    a, b, c = factors(a0=float("inf"), b0=1.0)
    assert product(emulated, a, b, c)[0, 0] == float("inf")
    assert bool(product(emulated, a, b, c)[0, 1:].isnan().all())  # infinity times the zeros of other columns


@pytest.mark.parametrize("which", range(len(FAULTS)), ids=lambda which: FAULTS[which])
def test_what_a_processor_would_fault_on_aborts(emulated: Path, which: int) -> None:
    code = f"import ctypes; ctypes.CDLL({str(emulated)!r}).fault({which})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGABRT
    assert FAULTS[which] in done.stderr


def test_a_processor_multiplies_as_the_emulation_does(emulated: Path, tmp_path: Path) -> None:
    if why := supported("amx"):  # asking also has Linux hand out the tiles
        pytest.skip(f"until a processor has it: {why}")
    processor = compiled(tmp_path, "-mamx-tile", "-mamx-bf16")
    made = torch.Generator().manual_seed(0)
    for spread in (1.0, 20.0, 60.0):  # powers of two: sums that lose digits, and denormals
        shapes = ((16, 32), (32, 16), (16, 16))
        drawn = [torch.randn(s, generator=made) * 2 ** (torch.randn(s, generator=made) * spread) for s in shapes]
        want, got = product(emulated, *drawn), product(processor, *drawn)
        assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0))
