"""A prompt in chunks, a greedy answer, the likelihood of a continuation: as transformers and one pass have them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

import headwise
from headwise.errors import ContextError, HeadwiseError, SessionError, ShapeError
from headwise.seams.transformers.drive import (
    LEAST_CHUNK,
    continuation_nll,
    decode,
    feed,
    forced,
    forced_rows,
    generate,
    prefill,
)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    network = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in network.parameters():  # larger than the default, so that greedy choices are not near ties
            weight.mul_(3.0 if weight.dim() > 1 else 1.0)
    return network


def text(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 128, (1, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [None, 40, 64, 1000])
def test_a_prompt_in_chunks_equals_one_forward(model: LlamaForCausalLM, chunk: int | None) -> None:
    ids, cache, told = text(201), headwise.Cache(model, ""), []
    logits = prefill(model, cache, ids, chunk, lambda done, total: told.append((done, total)))
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == 201
    assert cache.total is None
    assert told[-1] == (201, 201)
    assert cache.session.ledger.steps["prefill"] == len(told)
    assert cache.session.ledger.steps["decode"] == 0


@pytest.mark.parametrize("count", [LEAST_CHUNK + 1, 35, 69, 103, 511])
def test_no_piece_is_so_short_that_it_counts_as_decoding(model: LlamaForCausalLM, count: int) -> None:
    cache = headwise.Cache(model, "streaming(0.5, sinks=1, recent=4)")
    prefill(model, cache, text(count), LEAST_CHUNK)
    assert cache.session.ledger.steps["decode"] == 0
    assert set(cache.session.lengths(0).flatten().tolist()) == {round(0.5 * count)}


def test_the_budget_refers_to_the_whole_prompt_from_the_first_chunk(model: LlamaForCausalLM) -> None:
    cache, held = headwise.Cache(model, "streaming(0.25)"), []
    prefill(model, cache, text(400), 100, lambda done, total: held.append(cache.session.lengths(0)[0, 0].item()))
    assert held == [100, 100, 100, 100]


def test_generating_equals_transformers(model: LlamaForCausalLM) -> None:
    ids = text(90)
    how = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, past_key_values=headwise.Cache(model, ""), **how)[:, 90:]
    cache = headwise.Cache(model, "")
    prefill(model, cache, ids[:, :50], 40)
    assert torch.equal(generate(model, cache, ids[:, 50:], 20), expected)
    assert cache.get_seq_length() == 90 + 19
    assert torch.equal(generate(model, headwise.Cache(model, ""), ids, 20), expected)


def test_generation_stops(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = headwise.Cache(model, "")
    logits = prefill(model, cache, text(50))
    whole = decode(model, cache.fork(), logits, 12)[0].tolist()
    assert decode(model, cache.fork(), logits, 12, lambda new: len(new) == 5)[0].tolist() == whole[:5]
    for ends in (whole[3], [whole[3], 1000]):
        monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
        found = decode(model, cache.fork(), logits, 12)[0].tolist()
        assert found == whole[: whole.index(whole[3]) + 1]


def test_the_likelihood_of_a_continuation(model: LlamaForCausalLM) -> None:
    ids = text(140)
    cache = headwise.Cache(model, "")
    prefill(model, cache, ids[:, :100])
    total, count = continuation_nll(model, cache, ids[:, 100:])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, 100:-1]
    assert count == 39
    assert total == pytest.approx(float(cross_entropy(logits, ids[0, 101:], reduction="sum")), rel=1e-4)
    assert cache.session.ledger.steps["prefill"] == 1


@pytest.mark.parametrize("recipe", ["", "h2o(0.25)", "exact_topk(0.2)", "balanced"])
def test_a_cache_goes_on_by_several_texts_at_once_as_by_each(model: LlamaForCausalLM, recipe: str) -> None:
    cache = headwise.Cache(model, recipe)
    prefill(model, cache, text(150), None)
    rows = [text(count, seed=count) for count in (3, 30, 16, 17)]
    together = forced_rows(model, cache.fork(), rows)
    for row, logits in zip(rows, together, strict=True):
        alone, first = cache.fork(), max(row.shape[1] - 14, 0)  # of 30 tokens, pieces of 16 and 14 that end together
        pieces = [*forced(model, alone, row[:, :first]), *forced(model, alone, row[:, first:])]
        torch.testing.assert_close(logits, torch.cat(pieces), atol=2e-3, rtol=2e-3)
    assert cache.get_seq_length() == 150


def test_refusals_name_value_and_fix(model: LlamaForCausalLM) -> None:
    cache = headwise.Cache(model, "")
    with pytest.raises(ContextError, match="empty"):
        prefill(model, cache, text(0))
    with pytest.raises(ContextError, match="600 tokens are more than the 512"):
        prefill(model, cache, text(600), 100)
    with pytest.raises(SessionError, match=f"8 tokens .* {LEAST_CHUNK}"):
        prefill(model, cache, text(60), 8)
    with pytest.raises(ShapeError):
        prefill(model, cache, text(60).expand(2, 60))
    assert cache.session is None
    logits = prefill(model, cache, text(500))
    with pytest.raises(ContextError, match="at least one"):
        feed(model, cache, text(0))
    with pytest.raises(ContextError, match="at least 2"):
        continuation_nll(model, cache, text(1))
    for most in (0, 14):
        with pytest.raises(ContextError, match=f"max_new_tokens={most}: after 500 tokens, 1 to 13"):
            decode(model, cache, logits, most)
    assert decode(model, cache, logits, 13).shape == (1, 13)


def test_a_failure_leaves_an_empty_cache_empty_and_another_usable(model: LlamaForCausalLM) -> None:
    def stop(done: int, total: int) -> None:
        if done > 100:
            raise HeadwiseError("stopped")

    cache = headwise.Cache(model, "streaming(64)")
    with pytest.raises(HeadwiseError, match="stopped"):
        prefill(model, cache, text(200), 60, stop)
    assert cache.session is None
    assert cache.total is None
    again = generate(model, cache, text(60), 5)
    assert torch.equal(again, generate(model, headwise.Cache(model, "streaming(64)"), text(60), 5))
