"""What is told of prompts and heads equals brute force, or a library of the field."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scipy import stats

from headwise.calibrate.subject import ModelSubject
from headwise.explanations import EXPLANATIONS
from headwise.lens import Text
from headwise.lens.channels import Circuits
from headwise.lens.explained import comprehensiveness, kendall, spearman, sufficiency
from headwise.lens.prompt import Prompt, attention_rows
from headwise.lens.pursuit import pursued
from headwise.lens.ships import evenly
from headwise.lens.stream import directions, stream
from headwise.observe import LayerAttention


@pytest.fixture
def prompt(subject: ModelSubject, text: Text) -> Prompt:
    return Prompt(subject, text.ids[:, :23], target=5, blank=1)


@torch.no_grad()
def maps(prompt: Prompt) -> list[torch.Tensor]:
    """Half of the mean over heads of what the model itself gives out, and half of what goes straight on."""
    from transformers import AutoModelForCausalLM

    eager = AutoModelForCausalLM.from_pretrained(prompt.model.name_or_path, attn_implementation="eager").eval()
    own = eager(prompt.ids, output_attentions=True).attentions
    return [0.5 * one[0].mean(0).double() + 0.5 * torch.eye(prompt.tokens) for one in own]


def test_rollout_is_the_last_row_of_the_product(prompt: Prompt) -> None:
    row = maps(prompt)[-1][-1]
    for one in reversed(maps(prompt)[:-1]):
        row = row @ one
    found = EXPLANATIONS.get("rollout").of(prompt)
    torch.testing.assert_close(found.double(), row, atol=1e-5, rtol=1e-4)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-6)


def test_flow_is_a_maximum_flow_and_within_what_goes_out(prompt: Prompt) -> None:
    import networkx

    graph = networkx.DiGraph()
    for layer, one in enumerate(maps(prompt)):
        for above, below in one.nonzero().tolist():
            graph.add_edge((layer + 1, above), (layer, below), capacity=float(one[above, below]))
    found = EXPLANATIONS.get("flow").of(prompt)
    top = (len(maps(prompt)), prompt.tokens - 1)
    for token in (0, 9, 22):
        assert float(found[token]) == pytest.approx(networkx.maximum_flow_value(graph, top, (0, token)), abs=1e-4)
    assert float(found.max()) <= 1.0 + 1e-6


def test_attention_is_the_models_own(prompt: Prompt) -> None:
    found = attention_rows(prompt.layers[1], 4, 9)
    torch.testing.assert_close(2 * maps(prompt)[1][4:9] - torch.eye(23)[4:9], found.double(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlations_are_scipys(ties: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(30, generator=generator) for _ in range(2))
    if ties:
        a, b = a.round(), b.round()
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert kendall(a, a) == pytest.approx(1.0) and kendall(a, torch.ones(30)) != kendall(a, torch.ones(30))


def test_integrated_gradients_add_up_to_what_the_embeddings_change(prompt: Prompt) -> None:
    """The axiom of completeness: from embeddings of zero to the prompt, up to the error of sixteen steps."""
    found = float(EXPLANATIONS.get("integrated").of(prompt).sum())
    with torch.no_grad():
        embedded = prompt.model.get_input_embeddings()(prompt.ids)
        ends = [prompt.model(inputs_embeds=x).logits[0, -1].log_softmax(-1)[5] for x in (embedded, 1e-3 * embedded)]
    assert found == pytest.approx(float(ends[0] - ends[1]), abs=0.35 * abs(float(ends[0] - ends[1])) + 0.3)


def test_taking_nothing_away_changes_nothing(prompt: Prompt) -> None:
    blank = Prompt(prompt.subject, torch.ones(1, 9, dtype=torch.int64), target=5, blank=1)
    figures = torch.arange(9.0)
    assert comprehensiveness(blank, figures) == pytest.approx(0.0, abs=1e-6)
    assert sufficiency(blank, figures) == pytest.approx(1.0, abs=1e-6)


def test_one_step_of_pursuit_is_the_logit_lens_and_more_atoms_never_explain_less() -> None:
    generator = torch.Generator().manual_seed(0)
    dictionary, samples = (torch.randn(rows, 16, generator=generator) for rows in (64, 5))
    for one in samples:
        assert pursued(one[None], dictionary, 1).atoms == [int((dictionary @ one).argmax())]
    explained = pursued(samples, dictionary, 16).explained
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(explained))
    assert explained[-1] == pytest.approx(1.0, abs=1e-4)
    planted = dictionary[[3, 40]] * torch.tensor([[2.0], [1.0]])
    assert set(pursued(planted, dictionary, 2).atoms) == {3, 40}


def test_a_head_without_queries_looks_at_all_alike(prompt: Prompt) -> None:
    one = prompt.layers[1]
    alike = torch.stack([one.v[0, 1, : i + 1].mean(0) for i in range(23)])
    torch.testing.assert_close(evenly([(1, 3)])(one)[0, 3], alike, atol=1e-4, rtol=1e-4)
    assert torch.equal(evenly([(0, 3)])(one), one.full())
    assert torch.equal(evenly([(1, 3)])(one)[0, :3], one.full()[0, :3])


def test_what_heads_add_sums_to_the_layers_output_and_directions_read_the_logit(prompt: Prompt) -> None:
    model, places = prompt.model, torch.tensor([3, 22])
    found = stream(prompt.subject, prompt.ids, places)
    given: list[torch.Tensor] = []
    handle = model.model.layers[1].self_attn.register_forward_hook(lambda _, inputs, out: given.append(out[0]))
    prompt.subject.logits(prompt.ids, places, LayerAttention.full)
    handle.remove()
    torch.testing.assert_close(found.added(1).sum(0), given[0][0, places], atol=1e-4, rtol=1e-4)
    told = found.logits[:, 7] - found.logits.mean(-1)
    toward = directions(prompt.subject, found, torch.tensor([7, 7]))
    torch.testing.assert_close((toward * found.final).sum(-1), told.detach(), atol=1e-4, rtol=1e-3)
    scale = found.final.square().mean(-1, keepdim=True).sqrt()
    own = model.lm_head.weight - model.lm_head.weight.mean(0)
    torch.testing.assert_close(toward, (own[7] * model.model.norm.weight / scale).detach(), atol=1e-4, rtol=1e-2)


@torch.no_grad()
def test_channels_are_those_of_the_weights(subject: ModelSubject) -> None:
    circuits, attention = Circuits(subject), subject.model.model.layers[0].self_attn
    norm = subject.model.model.layers[0].input_layernorm.weight * 8.0  # a unit vector of 64 channels, at mean square 1
    value = norm[:, None] * attention.v_proj.weight[16:32].T
    truth = value @ attention.o_proj.weight[:, 32:48].T
    found = circuits.writer((0, 2))
    torch.testing.assert_close(
        (found.reads.T * found.strength) @ found.writes, truth, atol=1e-3 * float(truth.abs().max()), rtol=1e-2
    )
    later = subject.model.model.layers[2].self_attn
    scores = later.q_proj.weight[48:64].T @ later.k_proj.weight[16:32]
    own = (found.writes @ scores.T).norm(dim=1) / scores.norm()  # norms of weight 1 scale all channels alike
    torch.testing.assert_close(circuits.composition((2, 3), found.writes), own, atol=1e-3, rtol=1e-2)
