"""Weights in whole numbers: what packing loses, and the native product beside that of the weights meant."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headwise.errors import HeadwiseError
from headwise.kernels import ops
from headwise.kernels.native.library import LEVELS, missing, supported
from headwise.kernels.native.linear import linear, refuse
from headwise.kernels.packed import BITS, GROUP, Packed, pack

built = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_are_within_half_a_step(dtype: torch.dtype) -> None:
    weight = numbers(5, 3 * GROUP).to(dtype)
    packed = pack(weight, 8)
    step = weight.float().unflatten(1, (-1, GROUP)).abs().amax(-1) / 127
    away = (packed.dense().float() - weight.float()).abs().unflatten(1, (-1, GROUP)).amax(-1)
    rounded = weight.float().abs().max() * (2**-8 if dtype == torch.bfloat16 else 2**-11)  # of the type, and of scales
    assert packed.shape == weight.shape and packed.dense().dtype == dtype
    assert (away <= step / 2 + rounded).all()
    assert packed.nbytes == weight.numel() + weight.numel() // GROUP * 2


def test_four_bits_lose_less_than_plain_rounding() -> None:
    weight = numbers(64, 8 * GROUP)
    groups = weight.unflatten(1, (-1, GROUP))
    low, step = groups.amin(-1, keepdim=True), (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    plain = ((groups - low) / step).round() * step + low
    packed = pack(weight, 4)
    assert (packed.dense() - weight).norm() < 0.97 * (plain.flatten(1) - weight).norm()
    assert packed.nbytes == weight.numel() // 2 + weight.numel() // GROUP * 4


@pytest.mark.parametrize("bits", BITS)
def test_what_the_codes_hold_exactly_stays(bits: int) -> None:
    for weight in (torch.zeros(2, GROUP), torch.full((2, 2 * GROUP), -0.5), torch.eye(GROUP)):
        assert torch.allclose(pack(weight, bits).dense(), weight, atol=5e-4)


def test_codes_lie_as_they_are_told() -> None:
    """Against the same written out one weight after the other."""
    for bits in BITS:
        packed = pack(numbers(3, 2 * GROUP), bits)
        for row in range(3):
            for place in range(2 * GROUP):
                group, inside = divmod(place, GROUP)
                scale = float(packed.scale[row, group])
                if packed.low is None:
                    value = int(packed.codes[row, place]) * scale
                else:
                    byte = int(packed.codes[row, group * GROUP // 2 + inside % (GROUP // 2)])
                    code = byte >> 4 if inside >= GROUP // 2 else byte & 15
                    value = code * scale + float(packed.low[row, group])
                assert abs(value - float(packed.dense()[row, place])) < 1e-6


@built
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_native_product_is_that_of_the_weights_meant(dtype: torch.dtype, bits: int, level: str) -> None:
    if why := supported(level):
        pytest.skip(why)
    for rows, inner, outer in ((1, 32, 1), (1, 96, 7), (2, 64, 3), (3, 544, 9), (5, 32, 130), (16, 160, 6)):
        for bias in (None, numbers(outer, seed=2).to(dtype)):
            x, packed = numbers(rows, inner, seed=3).to(dtype), pack(numbers(outer, inner).to(dtype), bits)
            exact = Packed(packed.codes, packed.scale, packed.low, torch.float32).dense().double()
            expected = nn.functional.linear(x.double(), exact, None if bias is None else bias.double())
            found = linear(x, packed, bias, level).double()
            most = {"rtol": 1e-5, "atol": 3e-5} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 3e-2}
            torch.testing.assert_close(found, expected, **most)


@built
@pytest.mark.parametrize("bits", BITS)
def test_a_row_gives_the_same_alone_and_beside_others(bits: int) -> None:
    x, packed = numbers(7, 128).bfloat16(), pack(numbers(30, 128).bfloat16(), bits)
    together = linear(x, packed)
    assert all(torch.equal(linear(x[i : i + 1], packed)[0], together[i]) for i in range(7))


def test_the_operation_takes_packed_weights_with_and_without_gradients() -> None:
    x, packed = numbers(2, 64).requires_grad_(), pack(numbers(5, 64), 8)
    ops.linear(x, packed, None).sum().backward()
    assert torch.allclose(x.grad, packed.dense().sum(0).expand(2, -1), atol=1e-5)
    assert refuse(x, packed, None)
    with torch.no_grad():
        assert torch.allclose(ops.linear(x, packed, None), x @ packed.dense().T, atol=1e-4)


@pytest.mark.parametrize(
    ("weight", "bits", "says"),
    [
        (torch.zeros(2, 40), 8, "groups of 32"),
        (torch.zeros(2, 32), 3, "3 bits"),
        (torch.zeros(2, 32, dtype=torch.float16), 8, "float16"),
        (torch.zeros(32), 8, "shape"),
    ],
)
def test_what_cannot_be_packed_is_refused(weight: torch.Tensor, bits: int, says: str) -> None:
    with pytest.raises(HeadwiseError, match=says):
        pack(weight, bits)
