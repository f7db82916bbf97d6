"""Integers in a frame of the lane's own: read in place as decoded, better than without where channels differ."""

from __future__ import annotations

import pytest
import torch

from headwise.attention import attend_pages
from headwise.cache.factory import new_store
from headwise.cache.kv_store import KVStore
from headwise.cache.shape import Shape
from headwise.forms import Attended, Causal, Full, Scoring, Where, Window
from headwise.kernels.dispatch import BACKENDS, only

needs_kernels = pytest.mark.skipif(not BACKENDS.get("native").available()[0], reason="until the kernels are built")
FOUR = ("balanced/int4/64", "balanced/int4/64")


def outlying(lanes: int, tokens: int, width: int, seed: int) -> torch.Tensor:
    """Keys as models have them: a mean of their own in every channel, and some channels much larger than others."""
    random = torch.Generator().manual_seed(seed)
    size = torch.rand(lanes, 1, width, generator=random).mul(6).exp()
    mean = torch.randn(lanes, 1, width, generator=random)
    return (torch.randn(lanes, tokens, width, generator=random) + 2 * mean) * size / 40


def stored(
    codecs: tuple[str, str], keys: torch.Tensor, values: torch.Tensor, q: torch.Tensor, centred: bool
) -> KVStore:
    """A store of all tokens, which was told what meets its keys; the last token came alone."""
    store = new_store(Shape(len(keys), keys.shape[2], values.shape[2], keys.dtype), [codecs])
    if store.unfitted:
        store.meet(q.double().square().mean((1, 2)), centred)
    positions = torch.arange(keys.shape[1]).expand(len(keys), -1)
    for part in (slice(0, -1), slice(-1, None)):
        store.append(keys[:, part], values[:, part], positions[:, part])
    return store


def queries(keys: torch.Tensor, tokens: int) -> torch.Tensor:
    """Small where keys are large, as trained ones are: [h, 3, t, d]."""
    random = torch.Generator().manual_seed(7)
    return (
        torch.randn(len(keys), 3, tokens, keys.shape[2], generator=random).to(keys.dtype) / keys.std(1)[:, None, None]
    )


@needs_kernels
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(("tokens", "where"), [(1, Full()), (3, Causal()), (3, Window(40)), (40, Causal())])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("widths", [(64, 64), (48, 80), (256, 96)], ids=str)
def test_kernels_read_in_the_frame_what_is_decoded(
    widths: tuple[int, int], dtype: torch.dtype, tokens: int, where: Where, softcap: float | None
) -> None:
    keys, values = (outlying(2, 203, width, seed).to(dtype) for seed, width in enumerate(widths))
    group = 64 if widths == (64, 64) else 16 if widths == (48, 80) else 32
    q, codecs = queries(keys, tokens), (f"balanced/int4/{group}", f"balanced/int4/{group}")
    store, scoring = stored(codecs, keys, values, q, softcap is None), Scoring(0.1, softcap)

    def attended() -> Attended:
        return attend_pages(q, store.paged(0, 2), where, scoring)

    with only("native", "decoded") if widths == (48, 80) else only("native"):
        one = attended()
    with only("reference", "decoded"):
        other = attended()
    rough = 2e-4 if dtype == torch.float32 else 3e-2
    size = float(values.float().abs().max())
    torch.testing.assert_close(one.out.float(), other.out.float(), atol=rough * size, rtol=rough)
    torch.testing.assert_close(one.lse, other.lse, atol=10 * rough, rtol=rough)


def test_scores_lose_a_tenth_of_what_they_lose_without_a_frame() -> None:
    keys, values = outlying(2, 400, 64, 0), torch.randn(2, 400, 64)
    q = queries(keys, 50)

    def error(codecs: tuple[str, str]) -> float:
        gone = stored(codecs, keys, values, q, True).keys(0, 2) - keys
        scores = q.flatten(1, 2) @ gone.mT
        return float((scores - scores.mean(2, keepdim=True)).square().mean())

    assert error(FOUR) < 0.1 * error(("int4/64", "int4/64"))


@pytest.mark.parametrize("first", [1, 2, 5])
def test_a_frame_of_a_few_tokens_serves_those_that_follow(first: int) -> None:
    keys = outlying(1, 300, 64, 3)
    store = new_store(Shape(1, 64, 64, torch.float32), [FOUR])
    for part in (slice(0, first), slice(first, None)):
        store.append(keys[:, part], keys[:, part], torch.arange(300)[None, part])
    gone = (store.keys(0, 1) - keys).square().mean()
    plain = new_store(Shape(1, 64, 64, torch.float32), [("int4/64", "int4/64")])
    plain.append(keys, keys, torch.arange(300)[None])
    assert gone < 2 * (plain.keys(0, 1) - keys).square().mean()


def test_nothing_but_zeros_stays_zero() -> None:
    zeros = torch.zeros(1, 20, 64)
    store = new_store(Shape(1, 64, 64, torch.float32), [FOUR])
    store.append(zeros, zeros, torch.arange(20)[None])
    assert torch.equal(store.keys(0, 1), zeros)
