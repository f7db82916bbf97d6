"""The two native calls of a decoder layer, and those around the products of its prompts, against the same in torch, at
every level, on odd shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from headwise.kernels.native.layer import (
    ACTIVATIONS,
    MANNERS,
    MOST_ROWS,
    After,
    Before,
    Enter,
    Leave,
    Matrix,
    Norm,
    refuse,
)
from headwise.kernels.native.library import EMULATED, LEVELS, missing, supported
from headwise.kernels.native.prompt import PromptEnter, PromptLeave
from headwise.kernels.packed import BITS, Packed, pack

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")
TYPES = (torch.bfloat16, torch.float32)
# batch, tokens, hidden, query heads, KV heads, head width, value width, inner
SHAPES = {
    "one row": (1, 1, 64, 4, 2, 16, 16, 96),
    "two rows": (2, 1, 100, 3, 1, 64, 64, 72),
    "three tokens": (1, 3, 33, 2, 2, 80, 16, 31),
    "five rows": (5, 1, 72, 5, 1, 96, 96, 130),
    "a batch of drafts": (2, 9, 160, 2, 1, 128, 128, 17),
    "seventeen": (17, 1, 40, 1, 1, 256, 256, 48),
    "packable": (1, 1, 96, 3, 1, 32, 32, 160),
    "packable drafts": (2, 5, 64, 2, 2, 16, 16, 32),
    "the most": (4, MOST_ROWS // 4, 96, 3, 3, 16, 16, 50),
}


@pytest.fixture(params=[*LEVELS, EMULATED])
def level(request: pytest.FixtureRequest) -> str:
    if why := supported(request.param):
        pytest.skip(why)
    return request.param


class Made:
    """Random numbers of one type."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(seed)

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def matrix(self, outer: int, inner: int, bias: bool = False) -> Matrix:
        weight = torch.randn(outer, inner, generator=self.generator) * inner**-0.5
        return Matrix(weight.to(self.dtype), self.numbers(outer) if bias else None)

    def norm(self, width: int, manner: str = "rounded", eps: float = 1e-5) -> Norm:
        return Norm(self.numbers(width), eps, manner)

    def before(self, shape: str) -> Before:
        _, _, hidden, query_heads, heads, width, value_width, _ = SHAPES[shape]
        rows = (query_heads * width, heads * width, heads * value_width)
        q, k, v = (self.matrix(outer, hidden) for outer in rows)
        return Before(q, k, v, self.norm(hidden), None, None, width, value_width, True)

    def after(self, shape: str) -> After:
        _, _, hidden, query_heads, _, _, value_width, inner = SHAPES[shape]
        o, gate = self.matrix(hidden, query_heads * value_width), self.matrix(inner, hidden)
        up, down = self.matrix(inner, hidden), self.matrix(hidden, inner)
        return After(o, gate, up, down, None, self.norm(hidden), None, "silu", 1.0)

    def angles(self, batch: int, tokens: int, width: int) -> tuple[Tensor, Tensor]:
        angle = torch.rand(batch, tokens, width // 2, generator=self.generator).mul(6).repeat(1, 1, 2)
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)


def exact(matrix: Matrix, x: Tensor) -> Tensor:
    weight = matrix.weight.dense() if isinstance(matrix.weight, Packed) else matrix.weight
    return nn.functional.linear(x, weight.double(), None if matrix.bias is None else matrix.bias.double())


def normed(norm: Norm | None, x: Tensor) -> Tensor:
    """x [..., n], of which each `width` channels are normalised."""
    if norm is None:
        return x
    parts = x.unflatten(-1, (-1, len(norm.weight)))
    weight = norm.weight.double() + (norm.manner == "plus one")
    return (parts * (parts.pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt() * weight).flatten(-2)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [b, h, t, d], of which the first channels are rotated, half by half."""
    width = cos.shape[-1]
    head, rest = x[..., :width], x[..., width:]
    other = torch.cat((-head[..., width // 2 :], head[..., : width // 2]), dim=-1)
    return torch.cat((head * cos.double()[:, None] + other * sin.double()[:, None], rest), dim=-1)


def before(parts: Before, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    x = normed(parts.norm, x.double())
    q, k = normed(parts.q_norm, exact(parts.q, x)), normed(parts.k_norm, exact(parts.k, x))
    q, k, v = (
        one.unflatten(-1, (-1, width)).transpose(1, 2)
        for one, width in ((q, parts.width), (k, parts.width), (exact(parts.v, x), parts.value_width))
    )
    return (turned(q, cos, sin), turned(k, cos, sin), v) if parts.turned else (q, k, v)


def after(parts: After, attended: Tensor, x: Tensor) -> Tensor:
    out = exact(parts.o, attended.double().transpose(1, 2).flatten(2))
    stream = x.double() + parts.factor * normed(parts.after_attention, out)
    inner = normed(parts.before_mlp, stream)
    gate = exact(parts.gate, inner)
    active = nn.functional.silu(gate) if parts.activation == "silu" else nn.functional.gelu(gate, approximate="tanh")
    down = exact(parts.down, active * exact(parts.up, inner))
    return stream + parts.factor * normed(parts.after_mlp, down)


def close(found: Tensor, expected: Tensor) -> None:
    """Within a few roundings of the type."""
    limit = 3e-6 if found.dtype == torch.float32 else 1.2e-2
    assert found.shape == expected.shape and found.is_contiguous()
    assert float((found.double() - expected).norm() / expected.norm()) < limit
    most = 2e-5 if found.dtype == torch.float32 else 0.08
    assert float((found.double() - expected).abs().max() / expected.abs().max()) < most


def check_before(parts: Before, shape: str, made: Made, level: str, turning: int | None = None) -> None:
    batch, tokens, hidden, *_ = SHAPES[shape]
    x, angles = made.numbers(batch, tokens, hidden), made.angles(batch, tokens, turning or parts.width)
    enter = Enter(parts, level)
    for call in (enter, PromptEnter(enter, level)):
        for own, expected in zip(call(x, *angles), before(parts, x, *angles), strict=True):
            close(own, expected)


def check_after(parts: After, shape: str, made: Made, level: str) -> None:
    batch, tokens, hidden, query_heads, _, _, width, _ = SHAPES[shape]
    attended, x = made.numbers(batch, query_heads, tokens, width), made.numbers(batch, tokens, hidden)
    leave = Leave(parts, level)
    for call in (leave, PromptLeave(leave, level)):
        close(call(attended, x), after(parts, attended, x))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_plain_layers_on_odd_shapes(shape: str, dtype: torch.dtype, level: str) -> None:
    made = Made(dtype)
    check_before(made.before(shape), shape, made, level)
    check_after(made.after(shape), shape, made, level)


def packed(matrix: Matrix, bits: int) -> Matrix:
    assert isinstance(matrix.weight, Tensor)
    return replace(matrix, weight=pack(matrix.weight, bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", ["packable", "packable drafts"])
def test_packed_weights_and_plain_ones_beside_them(shape: str, dtype: torch.dtype, bits: int, level: str) -> None:
    made = Made(dtype, 3)
    first, last = made.before(shape), made.after(shape)
    for names in (("q", "k", "v"), ("k",)):
        check_before(replace(first, **{one: packed(getattr(first, one), bits) for one in names}), shape, made, level)
    for names in (("o", "gate", "up", "down"), ("up",), ("gate", "down")):
        check_after(replace(last, **{one: packed(getattr(last, one), bits) for one in names}), shape, made, level)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("shape", ["one row", "three tokens", "a batch of drafts"])
def test_every_norm_in_every_place(shape: str, manner: str, dtype: torch.dtype, level: str) -> None:
    made = Made(dtype, 1)
    _, _, hidden, query_heads, heads, width, *_ = SHAPES[shape]
    plain = replace(made.before(shape), norm=made.norm(hidden, manner, 1e-2))
    a_head = replace(plain, q_norm=made.norm(width, manner), k_norm=made.norm(width, manner))
    whole = replace(
        plain, norm=None, q_norm=made.norm(query_heads * width, manner), k_norm=made.norm(heads * width, manner)
    )
    for one in (plain, a_head, whole):
        check_before(one, shape, made, level)
    around, closing = replace(made.after(shape), before_mlp=made.norm(hidden, manner)), made.norm(hidden, manner, 1e-2)
    for one in (
        around,
        replace(around, after_attention=made.norm(hidden, manner), after_mlp=closing),
        replace(around, before_mlp=None, after_attention=closing, after_mlp=made.norm(hidden, manner)),
    ):
        check_after(one, shape, made, level)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", ["one row", "three tokens", "a batch of drafts"])
def test_biases_partial_rotations_activations_and_factors(shape: str, dtype: torch.dtype, level: str) -> None:
    made = Made(dtype, 2)
    _, _, hidden, query_heads, heads, width, value_width, inner = SHAPES[shape]
    parts = replace(
        made.before(shape),
        q=made.matrix(query_heads * width, hidden, True),
        k=made.matrix(heads * width, hidden, True),
        v=made.matrix(heads * value_width, hidden, True),
    )
    for one, turning in ((parts, None), (parts, width // 2), (parts, width // 4), (replace(parts, turned=False), None)):
        check_before(one, shape, made, level, turning)
    biased = replace(
        made.after(shape),
        o=made.matrix(hidden, query_heads * value_width, True),
        gate=made.matrix(inner, hidden, True),
        up=made.matrix(inner, hidden, True),
        down=made.matrix(hidden, inner, True),
    )
    for activation in ACTIVATIONS:
        for factor in (1.0, 0.22):
            check_after(replace(biased, activation=activation, factor=factor), shape, made, level)


def test_angles_of_one_row_serve_a_batch_and_may_be_float32(level: str) -> None:
    made = Made(torch.bfloat16)
    parts = made.before("a batch of drafts")
    x = made.numbers(2, 9, 160)
    cos, sin = Made(torch.float32).angles(1, 9, 128)
    for own, expected in zip(Enter(parts, level)(x, cos, sin), before(parts, x, cos, sin), strict=True):
        close(own, expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_is_the_same_alone_and_among_others(dtype: torch.dtype, level: str) -> None:
    """Not bit by bit at every level, as few rows are added up beside others; but to the last rounding of the type."""
    made = Made(dtype)
    parts, x, attended = made.after("the most"), made.numbers(64, 1, 96), made.numbers(64, 3, 1, 16)
    leave = Leave(parts, level)
    together = leave(attended, x)
    alone = torch.cat([leave(attended[i : i + 1], x[i : i + 1]) for i in range(64)])
    close(alone, together.double())


@pytest.mark.parametrize("dtype", TYPES)
def test_threads_change_nothing(dtype: torch.dtype, level: str) -> None:
    made, before_them = Made(dtype), torch.get_num_threads()
    for shape in ("one row", "three tokens", "a batch of drafts"):
        batch, tokens, hidden, query_heads, _, width, value_width, _ = SHAPES[shape]
        x, angles = made.numbers(batch, tokens, hidden), made.angles(batch, tokens, width)
        enter, attended = Enter(made.before(shape), level), made.numbers(batch, query_heads, tokens, value_width)
        after_them = made.after(shape)
        leave = Leave(replace(after_them, after_mlp=after_them.before_mlp), level)
        found = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                found.append([*enter(x, *angles), leave(attended, x)])
        finally:
            torch.set_num_threads(before_them)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_extreme_gates_neither_overflow_nor_hide_what_is_not_a_number(level: str) -> None:
    made = Made(torch.float32)
    parts = replace(made.after("one row"), before_mlp=None)
    attended = made.numbers(1, 4, 1, 16)
    for activation in ACTIVATIONS:
        leave = Leave(replace(parts, activation=activation), level)
        large = leave(attended, made.numbers(1, 1, 64) * 300)
        assert large.isfinite().all()
        assert leave(attended, torch.full((1, 1, 64), torch.nan)).isnan().all()


def test_what_cannot_be_read_is_told() -> None:
    one = torch.ones(4, 4)
    assert refuse([one, one]) == ""
    assert "bfloat16 and float32" in refuse([one, one.bfloat16()])
    assert "float16" in refuse([one.half()])
    assert "gaps" in refuse([torch.ones(4, 8)[:, ::2]])
    assert "device" in refuse([one.to("meta")])
