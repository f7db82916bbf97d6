"""The best entries of every row by the native kernel: what torch chooses, entry for entry, at every level."""

from __future__ import annotations

import pytest
import torch

from headwise.choose import choose, choose_blocks, choose_mask
from headwise.errors import HeadwiseError
from headwise.kernels.dispatch import only
from headwise.kernels.native import topk
from headwise.kernels.native.library import LEVELS, missing, supported

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    if why := supported(request.param):
        pytest.skip(why)
    return request.param


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores with ties and infinities, counts from below 0 to beyond the end, few to all protected."""
    g = torch.Generator().manual_seed(seed)
    h, n = int(torch.randint(1, 5, (1,), generator=g)), int(torch.randint(1, 900, (1,), generator=g))
    scores = torch.randn(h, n, generator=g)
    if seed % 3 == 0:
        scores = scores.mul(3).round()
    for value, share in ((-torch.inf, 0.3 * (seed % 5 == 0)), (torch.inf, 0.05 * (seed % 7 == 0))):
        scores[torch.rand(h, n, generator=g) < share] = value
    protect = torch.rand(h, n, generator=g) < (0, 0.1, 0.9, 1)[seed % 4]
    most = n + 5 if seed % 2 else n // 9 + 2
    return scores, torch.randint(-2, most, (h,), generator=g), protect


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_lists_as_torch_chooses_them(level: str, kind: torch.dtype) -> None:
    for seed in range(120):
        scores, counts, protect = drawn(seed)
        scores = scores.to(kind)
        if seed % 11 == 0:  # rows that do not lie side by side
            scores, protect = scores.T.contiguous().T, torch.cat((protect, protect), 1)[:, : protect.shape[1]]
        found = topk.topk(scores, counts, protect, level=level)
        assert found is not None
        with only("reference"):
            want = choose_mask(scores, counts, protect)
        for own, mask in zip(found, want, strict=True):
            assert own.tolist() == mask.nonzero()[:, 0].tolist()


def test_blocks_are_written_out_and_the_last_may_be_short(level: str) -> None:
    for size, stored in ((16, 16 * 40), (16, 16 * 40 - 15), (7, 7 * 40 - 3)):
        scores = torch.rand(3, 40, generator=torch.Generator().manual_seed(size))
        protect = torch.zeros(3, 40, dtype=torch.bool)
        protect[0, -1] = protect[1, 3] = True
        counts = torch.tensor([4, 5, 0])
        found = topk.topk(scores, counts, protect, size, stored, level=level)
        with only("reference"):
            want = choose_blocks(scores, counts, protect, size, stored)
        assert found is not None
        assert [one.tolist() for one in found] == [one.tolist() for one in want]
        assert len(want[0]) == 4 * size - (40 * size - stored)


def test_a_nan_is_told_and_some_scores_are_left_to_torch(level: str) -> None:
    scores, protect = torch.zeros(3, 40), torch.zeros(3, 40, dtype=torch.bool)
    assert topk.topk(scores, 5, protect, level=level) is not None
    scores[1, 39], protect[1, 39] = torch.nan, True  # even where it is protected
    with pytest.raises(HeadwiseError, match="head 1 contain NaN"):
        topk.topk(scores, 5, protect, level=level)
    assert not topk.refuse(scores, 5, protect, 1, 40)
    assert "float64" in topk.refuse(scores.double(), 5, protect, 1, 40)[0]
    assert "among 0 scores" in topk.refuse(scores[:, :0], 5, protect[:, :0], 1, 0)[0]
    assert [len(one) for one in choose(scores[:, :0], 3, protect[:, :0])] == [0, 0, 0]
