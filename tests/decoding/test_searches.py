"""Contrastive search, diverse beams and mirostat: neutral settings are greedy, and each does what its paper says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

import headwise
from headwise.decoding.mirostat import Mirostat
from headwise.decoding.searches import contrastive_search, diverse_beams
from headwise.errors import HeadwiseError
from headwise.seams.transformers.forward import last_states
from tests.decoding.test_generate import generated
from tests.engine.small import build, tokens

NEW = 12


@pytest.fixture(scope="module")
def model() -> Any:
    return build(seed=0)


def greedy(model: Any, ids: torch.Tensor, **how: Any) -> list[int]:
    return generated(model, ids, headwise.Cache(model), max_new_tokens=NEW, **how)[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("recipe", ["", "int8", "h2o(0.4, sinks=2, recent=6)"])
def test_neutral_settings_are_greedy(model: Any, recipe: str) -> None:
    ids = tokens(30)
    plain = generated(model, ids, headwise.Cache(model, recipe), max_new_tokens=NEW)[0, 30:].tolist()
    assert contrastive_search(model, headwise.Cache(model, recipe), ids, NEW, alpha=0.0) == plain
    assert diverse_beams(model, headwise.Cache(model, recipe), ids, NEW, groups=1) == plain


def test_contrastive_search_is_what_its_equation_says(model: Any) -> None:
    """Written out with a forward of the whole text for every candidate, without a cache."""
    ids, alpha, want = tokens(12), 0.6, list[int]()
    for step in range(6):
        with torch.no_grad(), last_states(model) as heard:
            logits = model(ids, use_cache=False).logits[0, -1]
        chances, words = logits.softmax(-1).topk(3)
        scores = []
        for chance, word in zip(chances, words, strict=True):
            with torch.no_grad(), last_states(model) as after:
                model(torch.cat((ids, word[None, None]), dim=1), use_cache=False)
            like = cosine_similarity(after[0][0, -1:], heard[0][0]).max()
            scores.append(float((1 - alpha) * chance - alpha * like))
        best = 0 if step == 5 else max(range(3), key=scores.__getitem__)
        want.append(int(words[best]))
        ids = torch.cat((ids, words[best][None, None]), dim=1)
    assert contrastive_search(model, headwise.Cache(model), tokens(12), 6, k=3, alpha=alpha) == want
    assert want != greedy(model, tokens(12))[:6]


def test_beams_of_one_group_are_transformers_beam_search(model: Any) -> None:
    ids = tokens(20)
    assert diverse_beams(model, headwise.Cache(model), ids, NEW, groups=1, width=4) == greedy(model, ids, num_beams=4)


def test_groups_that_pay_for_each_others_tokens_differ(model: Any) -> None:
    """Without a penalty all groups write the same; with a large one the first tokens are all different."""
    from headwise.decoding.searches import _chosen

    torch.manual_seed(0)
    logs = torch.randn(1, 50).log_softmax(-1).repeat(3, 1)
    same, other = (_chosen(torch.zeros(3), logs, 3, 1, penalty)[1] for penalty in (0.0, 50.0))
    assert len(set(same)) == 1 and len(set(other)) == 3 and other[0] == same[0]


def test_an_end_ends(model: Any) -> None:
    ids = tokens(20)
    text = greedy(model, ids)
    model.generation_config.eos_token_id = end = text[4]
    try:
        assert contrastive_search(model, headwise.Cache(model), ids, NEW, alpha=0.0)[-1] == end
        assert diverse_beams(model, headwise.Cache(model), ids, NEW, groups=1)[-1] == end
    finally:
        model.generation_config.eos_token_id = None


@pytest.mark.parametrize("tau", [1.5, 4.0])
def test_mirostat_holds_the_surprise(tau: float) -> None:
    """The mean surprise of what is drawn of one Zipf-like distribution again and again."""
    torch.manual_seed(0)
    scores = -torch.log(torch.arange(1.0, 400.0))[None]
    held, ids, surprises = Mirostat(tau), torch.zeros(1, 1, dtype=torch.long), []
    for _ in range(1500):
        left = held(ids, scores).log_softmax(-1)
        ids = torch.multinomial(left.exp(), 1)
        surprises.append(-float(left[0, int(ids)]) / torch.log(torch.tensor(2.0)))
    assert sum(map(float, surprises[300:])) / 1200 == pytest.approx(tau, abs=0.1)


def test_settings_that_are_none_are_refused(model: Any) -> None:
    ids, cache = tokens(20), headwise.Cache(model)
    for call, why in (
        (lambda: contrastive_search(model, cache, ids, 4, k=0), "one candidate"),
        (lambda: contrastive_search(model, cache, ids, 4, alpha=1.5), "weight of 0 to 1"),
        (lambda: diverse_beams(model, cache, ids, 4, groups=0), "one beam"),
        (lambda: Mirostat(tau=0.0), "above 0"),
    ):
        with pytest.raises(HeadwiseError, match=why):
            call()
    assert cache.get_seq_length() == 0
