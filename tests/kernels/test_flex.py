"""FlexAttention, uncompiled on the CPU, against the reference: its masks, and its maps of tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from headwise.forms import Causal, Full, Scoring, Tokens, Weighted, Where, Window
from headwise.kernels import flex
from headwise.kernels.flex import TILE, Flex, Frame
from headwise.kernels.request import Request
from tests.attention_cases import attend_on, forms, qkv

CPU = Flex(compiled=False)


@pytest.mark.parametrize("tile", [7, TILE])
@pytest.mark.parametrize(("t", "n"), [(40, 40), (33, 70), (150, 300)])
def test_equals_the_reference(t: int, n: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every form, over counts that fill no tile; small tiles have what lies between tiles as well."""
    monkeypatch.setattr(flex, "TILE", tile)
    q, k, v = qkv(2, 3, t, n, 16)
    for where in forms(2, t, n):
        for scoring in (Scoring(0.3), Scoring(0.3, 2.0)):
            request = Request(q, k, v, where, scoring)
            assert CPU.refuse(request) == [], where
            got, want = CPU.attend(request), attend_on("reference", q, k, v, where, scoring)
            torch.testing.assert_close(got.out, want.out, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(got.lse, want.lse, atol=1e-5, rtol=1e-5)
            assert got.lse.dtype == torch.float32


@pytest.mark.parametrize("tile", [4, 7])
def test_tiles_are_those_with_a_visible_pair(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """None that holds one is left out, and of a single rule, blocks or lists none is read for nothing."""
    monkeypatch.setattr(flex, "TILE", tile)
    t, n = 33, 70
    for where in forms(2, t, n):
        mask = flex.mask_of(where, Frame(t, n, torch.device("cpu")))
        assert mask is not None
        drawn = where.dense(t, n)
        padded = torch.nn.functional.pad(drawn, (0, -n % tile, 0, -t % tile))
        held = padded.unflatten(2, (-1, tile)).unflatten(1, (-1, tile)).any(4).any(2)
        tiles = mask.tiles.expand(held.shape[0], -1, -1)
        assert (tiles | ~held).all(), where
        if isinstance(where, Causal | Full | Window):
            assert torch.equal(tiles, held), where


def test_windows_of_all_sizes_are_one_compiled_kernel() -> None:
    """Numbers of a form reach the kernel as tensors: another window is compiled no second time."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    run = torch.compile(flex_attention, backend=counter, dynamic=True)
    q, k, v = qkv(2, 2, 40, 40, 16)
    for where in (Window(3), Window(9, sinks=2), Window(20, sinks=1), Window(5)):
        frame = Frame(40, 40, q.device)
        mask = flex.block_mask(flex.mask_of(where, frame), frame)
        run(q, k[:, None], v[:, None], block_mask=mask, scale=0.3, enable_gqa=True)
    assert counter.frame_count == 1


def test_what_is_refused_says_so() -> None:
    q, k, v = qkv(2, 2, 20, 40, 16)

    def refused(q: Tensor, where: Where) -> str:
        return " ".join(CPU.refuse(Request(q, k, v, where, Scoring(1.0))))

    assert refused(q, Causal()) == ""
    assert "3 queries: it reads prompts" in refused(q[:, :, :3], Causal())
    assert "no FlexAttention for torch.float64" in refused(q.double(), Causal())
    assert "gradients" in refused(q.clone().requires_grad_(), Causal())
    weighted: Where = Weighted(Tokens([torch.arange(4)] * 2), tuple(torch.zeros(1, 1, 4) for _ in range(2)))
    assert "Weighted" in refused(q, weighted)
    assert "compiled for cuda, not for cpu" in " ".join(Flex().refuse(Request(q, k, v, Causal(), Scoring(1.0))))
