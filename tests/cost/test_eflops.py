"""Kinetics' cost law (row 11): it says what is counted while a model decodes, and what the paper's code says."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

import headwise
from headwise.cost.eflops import Cost, Decoding, pass_at
from headwise.engine.chosen import Chosen, watching
from headwise.errors import HeadwiseError
from headwise.forms.where import causal_pairs
from headwise.geometry import Geometry
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.drive import prefill
from tests import tiny

CONTEXT, NEW, BUDGET, SIZE = 400, 64, 128, 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny.build(tmp_path_factory.mktemp("model"))).eval()


def counted(model: PreTrainedModel, recipe: str) -> tuple[float, float]:
    """FLOPs, and bytes of the cache at 2 a number, while NEW tokens are decoded: linear layers as torch counts them,
    attention by the pairs that are read, and a look at every whole block where a selection is made."""
    geometry, cache = attach(model).geometry, headwise.Cache(model, recipe)
    ids, pairs, looks = torch.arange(CONTEXT + NEW)[None] % 500, 0.0, 0.0
    widths = [(one.query_heads * one.key_width, one.kv_heads * one.key_width) for one in geometry.layers]
    query_width, kv_width = (sum(side) for side in zip(*widths, strict=True))
    prefill(model, cache, ids[:, :CONTEXT], None)
    left_out: list[float] = []

    def note(chosen: Chosen) -> None:
        possible = causal_pairs(chosen.queries, chosen.keys)
        share = chosen.heads / geometry.layers[0].query_heads / len(geometry.layers)
        left_out.append((possible - chosen.where.visible_pairs(chosen.queries, chosen.keys)) * share)

    linear = 0
    with torch.no_grad(), watching(note):
        for at in range(CONTEXT, CONTEXT + NEW):
            with FlopCounterMode(display=False) as flops:
                model(ids[:, at : at + 1], past_key_values=cache)
            linear += sum(
                count for op, count in flops.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm")
            )
            pairs += at + 1
            looks += (at + 1) // SIZE if recipe else 0
    pairs -= sum(left_out)
    return linear + (4 * pairs + 2 * looks) * query_width, 2 * (2 * pairs + looks) * kv_width


@pytest.mark.parametrize("recipe", ["", f"block_topk({BUDGET}, sinks=0, recent=1, size={SIZE})"])
def test_the_law_is_what_is_counted_within_five_percent(model: PreTrainedModel, recipe: str) -> None:
    linear = sum(one.weight.numel() for one in model.modules() if isinstance(one, torch.nn.Linear))
    law = Decoding.of(attach(model).geometry, linear)
    told = law.block_topk(CONTEXT, NEW, BUDGET, SIZE) if recipe else law.dense(CONTEXT, NEW)
    compute, reads = counted(model, recipe)
    print(f"row 11: {recipe or 'dense'}: FLOPs {compute / told.compute:.3f}, reads {reads / told.reads:.3f} of the law")
    assert compute == pytest.approx(told.compute, rel=0.05)
    assert reads == pytest.approx(told.reads, rel=0.05)


def test_it_is_the_papers_own_formula() -> None:
    """0.5B shapes, as in the released code: 2 P L + 2 (2 C + L) L Nq D, and so many reads by Nkv."""
    law = Decoding(0.752e9, 16 * 128 * 28, 8 * 128 * 28)
    dense = law.dense(300, 8000)
    assert dense.compute == 2 * 0.752e9 * 8000 + 2 * (2 * 300 + 8000) * 8000 * 16 * 128 * 28
    assert dense.reads == 2 * (2 * 300 + 8000) * 8000 * 8 * 128 * 28
    assert dense.eflops == dense.compute + 562.5 * dense.reads
    sparse = law.block_topk(300, 8000, 1024, 16)
    scaled = 1024 * 8000 - 0.5 * (1024 - 300) ** 2
    assert sparse.reads == pytest.approx((4 * scaled + (2 * 300 + 8000) * 8000 / 16) * 8 * 128 * 28, rel=0.01)


def test_dense_cost_is_quadratic_and_block_topk_nearly_linear() -> None:
    law = Decoding(0.752e9, 16 * 128 * 28, 8 * 128 * 28)
    for cost, low, high in ((law.dense, 1.8, 2.0), (lambda c, n: law.block_topk(c, n, 1024, 64), 1.0, 1.5)):
        short, long = (cost(256, n) for n in (16_384, 32_768))
        power = torch.tensor(long.eflops / short.eflops).log2()
        assert low < float(power) < high


def test_pass_at_counts_draws_without_putting_back() -> None:
    assert pass_at(4, 1, 1) == 0.25
    assert pass_at(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert pass_at(4, 4, 1) == 1 and pass_at(4, 0, 4) == 0
    with pytest.raises(HeadwiseError, match="give counts that fit"):
        pass_at(4, 5, 1)


def test_sliding_layers_are_refused() -> None:
    with pytest.raises(HeadwiseError, match="sliding windows"):
        Decoding.of(Geometry.uniform(4, 2, 16, 16, (None, 8), 100), 1.0)
    assert Cost(1.0, 2.0, 10.0).eflops == 21.0
