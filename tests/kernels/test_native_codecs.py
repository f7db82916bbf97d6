"""Integer codecs by the native kernel: the planes and vectors of the torch codecs, bit for bit, at every level."""

from __future__ import annotations

import pytest
import torch

from headwise.cache.codecs import codec
from headwise.kernels.native.codecs import decode, encode, refuse_encode
from headwise.kernels.native.library import LEVELS, missing, supported
from headwise.kernels.reference import integers as plain

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def vectors(width: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of every size, and the awkward ones: zeros, equal channels, one outlier, the largest of the type."""
    x = torch.randn(3, 37, width, generator=torch.Generator().manual_seed(width))
    x *= torch.logspace(-6, 4, 37)[:, None]
    x[0, 0], x[0, 1] = 0, 2.5
    x[0, 2, width // 2] = 1e4
    x[0, 3] = torch.finfo(torch.float16).max
    x[0, 4] = -torch.finfo(torch.float16).max
    return x.to(dtype)


def same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, plane in expected.items():
        torch.testing.assert_close(got[name], plane, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_as_torch_writes_them(level: str, dtype: torch.dtype) -> None:
    if why := supported(level):
        pytest.skip(why)
    for width in (1, 7, 16, 33, 64, 80, 512):
        x = vectors(width, dtype)
        same(encode(x, 8, width, minimum=False, level=level), plain.encode(x, 8, x.shape[-1], False))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 4])
def test_packed_codes_as_torch_writes_them(level: str, dtype: torch.dtype, bits: int) -> None:
    if why := supported(level):
        pytest.skip(why)
    for width in (4, 20, 64, 80, 96, 512):
        for group in (16, 32, 128):
            x = vectors(width, dtype)
            planes = encode(x, bits, group, minimum=True, level=level)
            same(planes, plain.encode(x, bits, group, True))
            expected = plain.decode(planes, width, group, dtype)
            torch.testing.assert_close(decode(planes, width, group, dtype, level), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["int8", "int4/32", "int2/16"])
def test_a_nan_is_not_lost(name: str) -> None:
    x = torch.ones(2, 64)
    x[0, 5] = float("nan")
    back = codec(name).decode(codec(name).encode(x), torch.float32)
    assert back[0].isnan().any()
    assert not back[1].isnan().any()


def test_views_are_written_as_they_look() -> None:
    x = torch.randn(6, 5, 64).transpose(0, 1)[:, ::2]
    same(codec("int4/32").encode(x), plain.encode(x, 4, 32, True))
    assert refuse_encode(torch.ones(1, 600), 8, 600, False), "wider than the kernel's buffer: torch does it"
    wide = torch.randn(3, 600)
    same(codec("int8").encode(wide), plain.encode(wide, 8, 600, False))
