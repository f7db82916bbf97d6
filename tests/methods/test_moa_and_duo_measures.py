"""MoA's estimate and its choice of spans, and DuoAttention's gates, on a tiny model and by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM

from headwise.calibrate.subject import ModelSubject
from headwise.errors import HeadwiseError
from headwise.methods.evict.duo.measure import duo_gates
from headwise.methods.evict.moa.choice import BLOCK, Choices, choose_spans, exact_choice
from headwise.methods.evict.moa.losses import answer_loss, span_losses
from headwise.observe import GateTraining, LayerAttention, Recall
from tests import tiny


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> ModelSubject:
    return ModelSubject(AutoModelForCausalLM.from_pretrained(tiny.build(tmp_path_factory.mktemp("model"))).eval())


@pytest.fixture(scope="module")
def recall() -> Recall:
    ids = torch.randint(2, 512, (1, 250), generator=torch.Generator().manual_seed(0))
    return Recall(ids, ((ids[:, 10:14], ids[:, 14:17]), (ids[:, 100:104], ids[:, 104:107])))


def test_answers_are_said_from_the_tokens_before_them(recall: Recall) -> None:
    ids, places = recall.with_answers()
    assert ids.shape == (1, 264)
    assert torch.equal(ids[0, places + 1], torch.cat([answer[0] for _, answer in recall.asked]))


def test_span_losses_are_the_papers_formula(subject: ModelSubject, recall: Recall) -> None:
    """Every entry with its own gradient, through attention matrices that are written out."""
    matrices: dict[int, torch.Tensor] = {}

    def attention(one: LayerAttention) -> torch.Tensor:
        keys, values = (x[0].repeat_interleave(2, 0) for x in (one.k, one.v))
        scores = one.q[0] @ keys.mT * one.scoring.scale
        matrices[one.layer] = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf).softmax(-1)
        return (matrices[one.layer] @ values)[None]

    loss = answer_loss(subject, recall, attention)
    gradients = torch.autograd.grad(loss, [matrices[layer] for layer in range(3)])
    signed, found = span_losses(subject, recall, lambda cost: cost), span_losses(subject, recall)
    n = matrices[0].shape[1]
    at, of = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    for layer, g in enumerate(gradients):
        a = matrices[layer].detach()
        cost = a / (1 - a).clamp(min=0.01) * ((g * a).sum(-1, keepdim=True) - g)
        for blocks in range(found.shape[2]):
            masked = (at - of >= blocks * BLOCK) & (of >= BLOCK)
            for got, entries in ((signed, cost), (found, cost.abs())):
                expected = (entries * masked).sum((1, 2)).unflatten(0, (2, 2)).sum(1)
                torch.testing.assert_close(got[layer, :, blocks], expected, atol=1e-5, rtol=1e-3)
    assert float(found[:, :, 0].abs().max()) > 1e-3 and not found[:, :, -1].any()


def test_the_cheapest_choice_is_found_exactly() -> None:
    """Against all combinations: 4 heads, 4 candidates, two costs."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        losses = torch.randn(4, 4, generator=generator)
        costs = [torch.randint(1, 11, (4,), generator=generator) / 10 for _ in range(2)]
        found = exact_choice(losses, costs, 0.6, most=24)  # tenths are exact in 24 units of 4 heads at 0.6
        total = float(losses.gather(1, found[:, None]).sum())
        open_to = [
            sum(float(losses[head, one]) for head, one in enumerate(combination))
            for combination in itertools.product(range(4), repeat=4)
            if all(sum(float(cost[one]) for one in combination) <= 4 * 0.6 + 1e-6 for cost in costs)
        ]
        assert total == pytest.approx(min(open_to), abs=1e-5)
        assert all(float(cost[found].mean()) <= 0.6 + 1e-6 for cost in costs)


def test_spans_go_to_the_heads_that_need_them() -> None:
    lengths, heads = [512, 1024, 2048], 4
    measured = [torch.zeros(1, heads, length // BLOCK + 1) for length in lengths]
    for one in measured:
        one[0, 2] = torch.linspace(1, 0, one.shape[2])  # only this head loses anything, the less it sees the more
    spans = choose_spans(measured, lengths, 0.5)
    assert spans.shape == (1, heads, 2)
    kept = [[alpha + beta * length for alpha, beta in spans[0].tolist()] for length in lengths]
    assert kept[1][2] >= 1024 and all(max(one[:2] + one[3:]) < 0.3 * one[2] for one in kept)
    choices = Choices.default(2048)
    assert all(float(choices.density(length).max()) == 1 for length in lengths)
    with pytest.raises(HeadwiseError, match="longer texts"):
        choose_spans(measured, lengths, 0.1)
    with pytest.raises(HeadwiseError, match="ascending"):
        choose_spans(measured[:2], lengths[:2], 0.5)


def test_gates_fall_where_nothing_is_lost(subject: ModelSubject, recall: Recall) -> None:
    """With a window over everything both attentions are the same, so that only the weight on gates speaks."""
    steps: list[int] = []
    training = GateTraining(sinks=0, recent=300, steps=30, rate=0.1)
    gates = duo_gates(subject, [recall], training, lambda done, total: steps.append(done))
    assert steps == list(range(1, 31))
    assert not gates.any()
    narrow = duo_gates(subject, [recall], GateTraining(sinks=0, recent=8, steps=30, rate=0.1, weight=0.0))
    assert float(narrow.mean()) > 0.7
    with pytest.raises(HeadwiseError, match="nothing to recall"):
        duo_gates(subject, [])
