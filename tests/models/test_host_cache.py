"""Hosts over a headwise cache: their softmax layers follow plans, their running states are passed on beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise import Cache
from headwise.bench.checks.fidelity import fidelity
from headwise.cost.prediction import predicted_bytes
from headwise.errors import HeadwiseError, SessionError, UnsupportedModel
from headwise.models.host import HeadwiseForCausalLM
from headwise.seams.transformers.cache import as_plan, attach
from headwise.seams.transformers.forward import forward, generation_argument
from headwise.seams.transformers.probe import ropes
from headwise.seams.transformers.recorder import Recorder
from tests.models.test_host import build, ids

GOVERNED = (
    "heads | rope",
    "3*kda, heads | rope",
    "3*titans, mla(rank=16, rope=8) | rope",
    "mamba2, gqa(1) | rope",
    "flow, cca | rope",
    "vq, learned_query",
    "agents, short_conv | rope",
)


def written(model: HeadwiseForCausalLM, prompt: torch.Tensor, cache: Any, **told: Any) -> torch.Tensor:
    told |= {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    found: torch.Tensor = model.generate(prompt, **told, **({} if cache is None else {generation_argument(): cache}))
    return found


@pytest.mark.parametrize("pattern", GOVERNED)
def test_generate_over_a_dense_cache_writes_what_the_host_writes(pattern: str) -> None:
    model = build(pattern)
    expected = written(model, ids(), None)
    assert torch.equal(written(model, ids(), Cache(model)), expected)
    padded = torch.cat((torch.zeros(2, 5, dtype=torch.int64), ids()), 1)
    mask = (padded > 0).long()
    assert torch.equal(written(model, padded, Cache(model), attention_mask=mask)[:, 5:], expected)


@pytest.mark.parametrize("pattern", GOVERNED[1:4])
@torch.no_grad()
def test_logits_in_pieces_over_a_cache_are_those_of_the_whole_text(pattern: str) -> None:
    model = build(pattern)
    whole = model(ids()).logits
    cache = Cache(model)
    found = torch.cat([forward(model, cache, piece).logits for piece in ids().split([11, 1, 8], 1)], 1)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", GOVERNED[1:4])
@pytest.mark.parametrize("recipe", ["", "snapkv(128)"])
def test_a_hybrid_holds_the_bytes_that_were_foretold(pattern: str, recipe: str, dtype: torch.dtype) -> None:
    """Row 274's hybrid among them, after a prompt and after a whole page of 128 tokens more."""
    model = build(pattern).to(dtype)
    cache = Cache(model, recipe)
    with torch.no_grad():
        forward(model, cache, ids(1, 1024))
        expected = predicted_bytes(cache.plan, 1024, dtype)
        assert abs(cache.nbytes - expected) < 0.01 * expected
        if not recipe:
            forward(model, cache, ids(1, 128))
            expected = predicted_bytes(cache.plan, 1152, dtype)
            assert abs(cache.nbytes - expected) < 0.01 * expected


@torch.no_grad()
def test_an_eviction_changes_softmax_layers_alone() -> None:
    model = build("3*kda, heads | rope")
    dense, cache = Cache(model), Cache(model, "streaming(40)")
    for one in (dense, cache):
        forward(model, one, ids(1, 256))
    assert tuple(layer.kind for layer in cache.plan.geometry.layers) == ("state",) * 3 + ("attention",)
    assert cache.session is not None and dense.session is not None
    assert cache.states.nbytes == dense.states.nbytes
    kept = 40 * 2 * 16 * 2 * 4  # tokens, heads, channels of keys and values, bytes
    assert cache.nbytes - cache.states.nbytes < 2 * kept < (dense.nbytes - dense.states.nbytes) / 2


@torch.no_grad()
def test_forks_files_and_kept_lengths_go_on_as_the_cache_itself(tmp_path: Path) -> None:
    model = build("3*kda, mla(rank=16, rope=8) | rope")
    cache = Cache(model, "int8")
    forward(model, cache, ids())
    cache.keep_states()
    fork = cache.fork()
    cache.save(tmp_path / "talk")
    loaded = Cache.load(model, "int8", tmp_path / "talk")
    first = forward(model, cache, ids(2, 3)).logits
    for other in (fork, loaded):
        assert torch.equal(forward(model, other, ids(2, 3)).logits, first)
    with pytest.raises(SessionError, match="keep_states"):
        cache.truncate(21)
    cache.truncate(20)
    torch.testing.assert_close(forward(model, cache, ids(2, 3)).logits, first)
    cache.reorder_cache(torch.tensor([1, 1]))
    again = forward(model, cache, ids(2, 1)[1:].expand(2, 1)).logits
    assert torch.equal(again[0], again[1])


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("alibi, gqa(1)", "layer 0 of the host, 'alibi'"),
        ("heads, sigmoid", "layer 1 of the host, 'sigmoid'"),
        ("heads, diff_qkv(1, 2)", "layer 1 of the host, 'diff_qkv"),
        ("kda", "none of 4 layers hands keys and values"),
    ],
)
def test_layers_that_no_plan_governs_are_refused_by_name(pattern: str, what: str) -> None:
    with pytest.raises(UnsupportedModel, match=re.escape(what)):
        Cache(build(pattern))


def test_packed_texts_and_recipes_beside_a_state_are_refused() -> None:
    model = build("3*kda, heads | rope")
    segments = torch.tensor([[0] * 10 + [1] * 10] * 2)
    with pytest.raises(SessionError, match="packed"):
        model(ids(), segments=segments, use_cache=True, **{generation_argument(): Cache(model)})
    with pytest.raises(HeadwiseError):
        Cache(model, "no_such_method")


@torch.no_grad()
def test_rotations_that_a_host_tells_are_those_that_its_keys_show() -> None:
    """A probe finds them in keys of equal tokens, where no layer before it tells places apart."""
    model = build("heads | rope(base=500.0), gqa(1) | rope, mla(rank=16, rope=8) | rope(interleaved=True), mqa")
    recorder = Recorder(4)
    forward(model, recorder, torch.full((1, 16), 3))
    told = model.rotations()
    found = ropes(recorder.sightings, [one.frequencies for one in told if one is not None])
    assert found is not None and found[3] is None and told[3] is None
    for one, other in zip(found[:3], told[:3], strict=True):
        assert one is not None and other is not None and one.interleaved == other.interleaved
        torch.testing.assert_close(one.frequencies, other.frequencies)


def test_a_check_beside_dense_attention_tells_of_the_layers_that_attend() -> None:
    """What `headwise tune` ends with, of a host whose first layers pass a state on."""
    model = build("kda, heads | rope")
    found = fidelity(model, as_plan(attach(model), "streaming(0.5)"), ids(1, 200), ids(1, 20))
    assert len(found.layer_error) == len(found.lost_mass) == 2  # layers 1 and 3
    assert 0 < max(found.layer_error) < 1 and all(len(heads) == 2 for heads in found.lost_mass)
