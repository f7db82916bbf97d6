"""A host as a transformers model: what it generates, saves and holds, whatever its layers are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from headwise.errors import RecipeError, SessionError, ShapeError
from headwise.models.host import HeadwiseForCausalLM, HostConfig
from headwise.seams.transformers.forward import forward, generation_argument
from headwise.seams.transformers.layer_states import LayerStates

PATTERNS = ("heads | rope", "3*kda, mla(rank=16)", "mamba2, gqa(1) | rope", "taylor, lightning")


def build(pattern: str = "3*kda, mla(rank=16)") -> HeadwiseForCausalLM:
    torch.manual_seed(0)
    model = HeadwiseForCausalLM(HostConfig(pattern, num_hidden_layers=4, vocab_size=64, hidden_size=32)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4) if weight.dim() > 1 else weight
    return model


def ids(rows: int = 2, tokens: int = 20) -> torch.Tensor:
    return torch.randint(1, 64, (rows, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_generate_writes_what_whole_forwards_write(pattern: str) -> None:
    model, expected = build(pattern), ids()
    with torch.no_grad():
        for _ in range(8):
            expected = torch.cat((expected, model(expected).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(model.generate(ids(), max_new_tokens=8, do_sample=False, pad_token_id=0), expected)
    padded = torch.cat((torch.zeros(2, 5, dtype=torch.int64), ids()), 1)
    mask = (padded > 0).long()
    found = model.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(found[:, 5:], expected)


def test_beams_follow_their_own_states() -> None:
    model = build()
    told = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids(), **told), model.generate(ids(), use_cache=False, **told))


def test_a_saved_host_is_the_same(tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path)
    for again in (HeadwiseForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert torch.equal(again(ids()).logits, model(ids()).logits)
    text = (tmp_path / "config.json").read_text().replace("3*kda", "3*kdb")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RecipeError, match="did you mean 'kda'"):
        HeadwiseForCausalLM.from_pretrained(tmp_path)
    assert json.loads(text)["layers"] == "3*kdb, mla(rank=16)"


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_holds_the_bytes_that_were_foretold(pattern: str, dtype: torch.dtype) -> None:
    model, cache = build(pattern).to(dtype), LayerStates(4)
    with torch.no_grad():
        forward(model, cache, ids(1, 30))
        forward(model, cache, ids(1, 1))
    assert cache.get_seq_length() == 31
    assert cache.nbytes == model.config.state_bytes(31, dtype.itemsize)


def test_a_fork_goes_its_own_way_and_tokens_are_taken_back() -> None:
    model, cache = build("heads | rope"), LayerStates(4)
    with torch.no_grad():
        forward(model, cache, ids())
        fork = cache.fork()
        first = forward(model, cache, ids(2, 3)).logits
        assert torch.equal(forward(model, fork, ids(2, 3)).logits, first)
        back = cache.truncated(3)
        assert back.get_seq_length() == 20 and torch.equal(forward(model, back, ids(2, 3)).logits, first)
        hybrid = LayerStates(4)
        forward(build(), hybrid, ids())
        with pytest.raises(SessionError, match="cannot give back its last 3 tokens"):
            hybrid.truncated(3)
        with pytest.raises(SessionError, match="does not crop"):
            hybrid.crop(3)


def test_packed_texts_are_as_alone_and_loss_is_transformers_own() -> None:
    model, x = build(), ids(1, 20)
    segments = torch.tensor([[0] * 8 + [1] * 12])
    with torch.no_grad():
        packed = model(x, segments=segments).logits
        torch.testing.assert_close(packed[:, 8:], model(x[:, 8:]).logits, atol=1e-4, rtol=1e-4)
        found = model(x, labels=x)
    shifted = torch.nn.functional.cross_entropy(found.logits[0, :-1], x[0, 1:])
    torch.testing.assert_close(found.loss, shifted)


def test_what_a_host_cannot_take_is_refused() -> None:
    with pytest.raises(SessionError, match="given a DynamicCache, which has no place for running states"):
        build()(ids(), **{generation_argument(): DynamicCache()})
    with pytest.raises(RecipeError, match="of which 6 are no multiple"):
        HostConfig("3*kda, mla(rank=16)", num_hidden_layers=6)
    with pytest.raises(RecipeError, match="65 channels is no multiple of 2 heads"):
        HostConfig(hidden_size=65)
    with pytest.raises(ShapeError, match="no input_ids"):
        build()(inputs_embeds=torch.zeros(1, 2, 32))
