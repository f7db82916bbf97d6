"""The Cache as users meet it: generate, pipeline, plain calls, turns, files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM, TextGenerationPipeline

import headwise
from headwise.errors import ContextError, PlanError, SessionError, UnsupportedModel
from tests.engine.small import build, tokens


def greedy(model: LlamaForCausalLM, ids: torch.Tensor, new: int = 12, **kwargs) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None, **kwargs)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return build()


def test_a_plain_call_matches_and_counts_tokens_seen(model: LlamaForCausalLM) -> None:
    ids = tokens(80)
    expected = model(ids).logits
    cache = headwise.Cache(model, "")
    first = model(ids[:, :50], past_key_values=cache).logits
    second = model(ids[:, 50:], past_key_values=cache).logits
    torch.testing.assert_close(torch.cat((first, second), 1), expected, rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == 80 and cache.session.lengths(0).tolist() == [[80, 80]]


def test_pipeline(model: LlamaForCausalLM, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(128)}
    bare = Tokenizer(models.WordLevel(words, unk_token="w0"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="w0", unk_token="w0")
    text = " ".join(f"w{i}" for i in tokens(40)[0].tolist())
    pipe = TextGenerationPipeline(model=model, tokenizer=tokenizer)
    plain = pipe(text, max_new_tokens=8, do_sample=False)
    cache = headwise.Cache(model, "")
    ours = pipe(text, max_new_tokens=8, do_sample=False, past_key_values=cache)
    assert ours == plain and cache.get_seq_length() > 40


def test_two_turns_with_one_cache_equal_one_prompt(model: LlamaForCausalLM) -> None:
    ids = tokens(60)
    cache = headwise.Cache(model, "")
    first = greedy(model, ids, past_key_values=cache)
    turn = torch.cat((first, tokens(20, seed=5)), 1)
    assert torch.equal(greedy(model, turn, past_key_values=cache), greedy(model, turn))


def test_save_and_load_continue_token_identically(model: LlamaForCausalLM, tmp_path: Path) -> None:
    ids = tokens(90)
    for recipe in ("", "snapkv(0.5) | ada | int8", "h2o(0.5)"):
        cache = headwise.Cache(model, recipe)
        model(ids, past_key_values=cache)
        path = tmp_path / "talk.session"
        cache.save(path)
        loaded = headwise.Cache.load(model, recipe, path)
        assert loaded.session.nbytes() <= cache.session.nbytes()
        turn = torch.cat((ids, tokens(3, seed=6)), 1)
        assert torch.equal(greedy(model, turn, past_key_values=loaded), greedy(model, turn, past_key_values=cache))


def test_foreign_and_damaged_session_files_are_refused_and_nothing_is_lost(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    cache = headwise.Cache(model, "streaming(0.5)")
    model(tokens(90), past_key_values=cache)
    path = tmp_path / "talk.session"
    cache.save(path)
    with pytest.raises(SessionError, match="plan"):
        headwise.Cache.load(model, "streaming(0.4)", path)
    with pytest.raises(SessionError, match="model"):
        headwise.Cache.load(build(seed=1), "streaming(0.5)", path)
    good = path.read_bytes()
    for bad in (good[: len(good) // 2], good[:-3] + b"abc", b"", b"hello"):
        path.write_bytes(bad)
        with pytest.raises(SessionError):
            headwise.Cache.load(model, "streaming(0.5)", path)
    path.write_bytes(good)
    assert headwise.Cache.load(model, "streaming(0.5)", path).get_seq_length() == cache.get_seq_length() == 90


def test_an_interrupted_save_leaves_the_good_file(
    model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = headwise.Cache(model, "")
    model(tokens(30), past_key_values=cache)
    path = tmp_path / "talk.session"
    cache.save(path)
    good = path.read_bytes()

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("headwise.files.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.save(path)
    assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]


def test_plan_files_are_bound_to_their_model(model: LlamaForCausalLM, tmp_path: Path) -> None:
    plan = headwise.Cache(model, "snapkv(0.5)").plan
    path = tmp_path / "p.plan"
    plan.save(path)
    again = headwise.Plan.load(path)
    assert again == plan and again.digest == plan.digest
    assert (
        headwise.Cache(model, again).plan == headwise.Cache(model, path).plan == headwise.Cache(model, str(path)).plan
    )
    with pytest.raises(PlanError, match="made for model"):
        headwise.Cache(build(seed=1), again)
    data = bytearray(path.read_bytes())
    data[data.index(b"0.5")] = ord("1")
    path.write_bytes(bytes(data))
    with pytest.raises(PlanError, match="altered"):
        headwise.Plan.load(path)
    with pytest.raises(PlanError, match="no file"):
        headwise.Plan.load(tmp_path / "missing.plan")


def test_right_padding_and_long_prompts_are_refused(model: LlamaForCausalLM) -> None:
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 30:] = 0
    with pytest.raises(SessionError, match="padding_side"):
        model(tokens(40, rows=2), attention_mask=mask, past_key_values=headwise.Cache(model, ""))
    with pytest.raises(ContextError, match="256 positions"):
        model(tokens(257), past_key_values=headwise.Cache(model, ""))


def test_a_model_switched_away_is_noticed(model: LlamaForCausalLM) -> None:
    cache = headwise.Cache(model, "")
    model.set_attn_implementation("sdpa")
    with pytest.raises(SessionError, match="set_attn_implementation"):
        model(tokens(20), past_key_values=cache)
    model.set_attn_implementation("headwise")
    model(tokens(20), past_key_values=headwise.Cache(model, ""))


def test_other_caches_keep_working_on_an_attached_model(model: LlamaForCausalLM) -> None:
    headwise.attach(model)
    ids = tokens(30)
    assert torch.equal(greedy(model, ids, past_key_values=DynamicCache()), greedy(model, ids, use_cache=False))


def test_two_caches_interleaved_on_one_model_do_not_meet(model: LlamaForCausalLM) -> None:
    one, two = headwise.Cache(model, ""), headwise.Cache(model, "streaming(0.5)")
    alone = headwise.Cache(model, "")
    a, b = tokens(50, seed=7), tokens(70, seed=8)
    model(a, past_key_values=one)
    model(b, past_key_values=two)
    model(a, past_key_values=alone)
    found = model(tokens(1), past_key_values=one).logits
    model(tokens(1), past_key_values=two)
    assert torch.equal(found, model(tokens(1), past_key_values=alone).logits)


def test_assisted_generation_equals_plain(model: LlamaForCausalLM) -> None:
    draft = build(seed=0)
    ids = tokens(40)
    expected = greedy(model, ids)
    cache = headwise.Cache(model, "int8")
    dense = headwise.Cache(model, "")
    assert torch.equal(greedy(model, ids, assistant_model=draft, past_key_values=dense), expected)
    assert cache.is_croppable and not headwise.Cache(model, "snapkv(0.5)").is_croppable


def test_crop_and_truncate_go_back(model: LlamaForCausalLM) -> None:
    ids = tokens(60)
    cache = headwise.Cache(model, "")
    model(ids, past_key_values=cache)
    expected = model(tokens(4, seed=9), past_key_values=cache.fork()).logits
    model(tokens(5, seed=3), past_key_values=cache)
    cache.crop(-5)
    assert cache.get_seq_length() == 60
    assert torch.equal(model(tokens(4, seed=9), past_key_values=cache).logits, expected)
    cache.truncate(10)
    assert cache.session.lengths(2).tolist() == [[10, 10]]
    with pytest.raises(SessionError, match="cannot truncate"):
        cache.truncate(11)


def test_an_interrupted_forward_can_be_undone(model: LlamaForCausalLM) -> None:
    cache = headwise.Cache(model, "")
    model(tokens(30), past_key_values=cache)
    expected = model(tokens(4, seed=9), past_key_values=cache.fork()).logits

    def fail(*args: object) -> None:
        raise RuntimeError("out of memory")

    hook = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError):
        model(tokens(4, seed=9), past_key_values=cache)
    hook.remove()
    with pytest.raises(SessionError, match="abort"):
        model(tokens(4, seed=9), past_key_values=cache)
    cache.abort()
    assert torch.equal(model(tokens(4, seed=9), past_key_values=cache).logits, expected)


def test_self_check_refuses_a_model_that_computes_something_else() -> None:
    odd = build(seed=3)

    def scaled(module: torch.nn.Module, args: object, kwargs: dict) -> None:
        module.scaling = 0.1 if module.config._attn_implementation == "headwise" else 0.35

    for layer in odd.model.layers:
        layer.self_attn.register_forward_pre_hook(scaled, with_kwargs=True)
    with pytest.raises(UnsupportedModel, match="differ"):
        headwise.Cache(odd, "")
    assert odd.config._attn_implementation != "headwise"
