"""Fidelity: nothing lost where nothing is evicted, the figures of a real eviction, and its bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headwise.assets import novel
from headwise.bench.checks.fidelity import Fidelity, fidelity
from headwise.bench.job import encode
from headwise.bench.judging.judge import _by_head
from headwise.errors import ContextError
from headwise.seams.transformers.cache import Cache, as_plan, attach
from headwise.seams.transformers.drive import continuation_nll, prefill
from tests.engine.small import tokens
from tests.seams.transformers.unlike import gemma4

Loaded = tuple[Any, Any]


def measured(loaded: Loaded, recipe: str) -> Fidelity:
    model, tokenizer = loaded
    ids = encode(tokenizer, novel()[:1200], start=True)
    return fidelity(model, as_plan(attach(model), recipe), ids[:, :-100], ids[:, -100:])


def test_a_plan_that_evicts_nothing_is_dense(loaded: Loaded) -> None:
    found = measured(loaded, "streaming(1.0)")
    assert found.mean_kl == 0 and found.agreement == 1
    assert len(found.kl) == len(found.top1) == 100
    assert found.layer_error == [0, 0, 0]
    assert found.lost_mass == [[0, 0]] * 3
    assert all(error < 1e-6 for heads in found.error for error in heads)


def test_what_eviction_does_is_measured_and_bounded(loaded: Loaded) -> None:
    less, more = measured(loaded, "streaming(40, recent=8)"), measured(loaded, "streaming(200, recent=8)")
    assert less.mean_kl > more.mean_kl > 0
    for found in (less, more):
        # only evictions: the layer's error is that of its heads; the bound holds in the mean as it does each time
        for error, bound, lost in zip(found.error, found.bound, found.lost_mass, strict=True):
            assert all(0 < e <= b for e, b in zip(error, bound, strict=True))
            assert all(0 < share < 1 for share in lost)
        for error, heads in zip(found.layer_error, found.error, strict=True):
            assert 0.2 < error / (sum(heads) / 2) < 5
    assert less.lost_mass[0][0] > more.lost_mass[0][0]


def test_layers_of_unlike_heads_are_each_measured() -> None:
    model = gemma4()
    found = fidelity(model, as_plan(attach(model), "streaming(40, recent=8)"), tokens(200), tokens(40, seed=2))
    assert [len(heads) for heads in found.lost_mass] == [4, 2, 4, 2]
    assert found.lost_mass[0] == [0] * 4 and all(0 < share < 1 for share in found.lost_mass[1])
    tables = [{"lost_mass": found.lost_mass}, {"lost_mass": [[0.0] * len(heads) for heads in found.lost_mass]}]
    means = _by_head(tables, lambda one: one["lost_mass"])
    assert means == [[round(share / 2, 6) for share in heads] for heads in found.lost_mass]


def test_a_codec_loses_no_mass_but_moves_outputs(loaded: Loaded) -> None:
    found = measured(loaded, "int8")
    assert found.lost_mass == [[0, 0]] * 3
    assert all(0 < error < 0.05 for error in found.layer_error)


def test_divergence_is_from_dense_to_the_plan(loaded: Loaded) -> None:
    """Against a second way: the mean difference of log likelihoods over tokens drawn from dense is about the KL."""
    model, tokenizer = loaded
    ids = encode(tokenizer, novel()[:1200], start=True)
    found = measured(loaded, "streaming(40, recent=8)")
    logs = []
    for recipe in ("", "streaming(40, recent=8)"):
        cache = Cache(model, recipe)
        prefill(model, cache, ids[:, :-100], None)
        with torch.no_grad():
            logits = model(input_ids=ids[:, -100:-84], past_key_values=cache, use_cache=True).logits[0]
        logs.append(torch.log_softmax(logits.double(), -1))
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
    assert found.kl[:16] == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-9)
    assert continuation_nll(model, Cache(model, ""), ids[:, :20])[1] == 19


def test_a_continuation_of_one_token_is_refused(loaded: Loaded) -> None:
    model = loaded[0]
    with pytest.raises(ContextError, match="at least 2"):
        fidelity(model, as_plan(attach(model), ""), torch.ones(1, 40, dtype=torch.int64), torch.ones(1, 1).long())
