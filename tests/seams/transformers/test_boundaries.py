"""What lies past windows, chunks and changes of a rotary embedding is followed or refused, never served wrongly."""

from __future__ import annotations

import pytest
import torch
import transformers as t

import headwise
from headwise.errors import ContextError, SessionError, UnsupportedModel
from headwise.seams.transformers import drive
from headwise.seams.transformers.forward import cache_argument, forward
from headwise.seams.transformers.selfcheck import small_copy

SMALL = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
EXPERTS = SMALL | dict(num_local_experts=4, num_experts=4, num_experts_per_tok=2)
SPARSE = dict(moe_intermediate_size=32, shared_expert_intermediate_size=32)
NEWEST = cache_argument(t.LlamaForCausalLM) == "cache"


def grown(model: t.PreTrainedModel) -> t.PreTrainedModel:
    """Weights larger than the default, so that greedy choices are no near ties."""
    model.eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0 if weight.dim() > 1 else 1.0)
    return model


def tokens(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 128, (1, count), generator=torch.Generator().manual_seed(seed))


def greedy(model: t.PreTrainedModel, ids: torch.Tensor, held: object, new: int = 16) -> torch.Tensor:
    how = {cache_argument(type(model)): held, "max_new_tokens": new, "do_sample": False, "eos_token_id": None}
    return model.generate(ids, pad_token_id=0, **how)


WINDOWED = {
    "qwen2_moe": lambda: t.Qwen2MoeForCausalLM(
        t.Qwen2MoeConfig(**EXPERTS, **SPARSE, use_sliding_window=True, sliding_window=24, max_window_layers=1)
    ),
    "phimoe": lambda: t.PhimoeForCausalLM(t.PhimoeConfig(**EXPERTS, sliding_window=24)),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**SMALL, sliding_window=24)),
    "starcoder2": lambda: t.Starcoder2ForCausalLM(t.Starcoder2Config(**SMALL, sliding_window=24)),
    "cohere2": lambda: t.Cohere2ForCausalLM(t.Cohere2Config(**SMALL, sliding_window=24)),
}


@pytest.mark.parametrize("family", WINDOWED)
def test_windows_are_honoured_where_the_mask_alone_has_them_or_refused(family: str) -> None:
    torch.manual_seed(0)
    model = grown(WINDOWED[family]())
    model.set_attn_implementation("eager")
    expected = greedy(model, tokens(70), None)
    try:
        held = headwise.Cache(model, "")
    except UnsupportedModel:
        assert not NEWEST, f"{family} is followed in the newest transformers"  # before, some make masks of their own
        return
    assert torch.equal(greedy(model, tokens(70), held), expected)
    windows = held.seam.geometry.windows
    assert 24 in windows and held.session.lengths(windows.index(24)).max() < 70


def long_rope() -> t.Phi3ForCausalLM:
    """A model that rotates by other frequencies beyond 48 tokens."""
    torch.manual_seed(0)
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0 + i for i in range(8)]}
    config = t.Phi3Config(
        **SMALL, original_max_position_embeddings=48, rope_scaling={"type": "longrope", **factors}
    )  # fmt: skip
    return grown(t.Phi3ForCausalLM(config))


@pytest.mark.parametrize("prompt", [20, 70])
def test_longrope_on_either_side_of_its_change_is_served_exactly(prompt: int) -> None:
    expected = greedy(long_rope(), tokens(prompt), t.DynamicCache())
    model = long_rope()
    held = headwise.Cache(model, "")
    assert torch.equal(greedy(model, tokens(prompt), held), expected)
    assert held.get_seq_length() == prompt + 15  # the cache was used, not dropped by the model
    assert held.seam.rope_switch == 48


def test_longrope_is_not_followed_across_its_change() -> None:
    model = long_rope()
    held = headwise.Cache(model, "")
    with pytest.raises(SessionError, match="beyond 48 tokens"):
        greedy(model, tokens(40), held)
    assert held.get_seq_length() == 48
    with pytest.raises(SessionError, match="one pass"):
        drive.prefill(model, headwise.Cache(model, ""), tokens(90), 34)
    after = headwise.Cache(model, "")
    drive.prefill(model, after, tokens(60), None)
    with pytest.raises(SessionError, match="beyond 48 tokens"):
        after.truncate(30)
    after.truncate(50)


def test_methods_that_undo_rotations_refuse_those_beyond_the_change() -> None:
    model = long_rope()
    greedy(model, tokens(20), headwise.Cache(model, "expected_attention(0.5)"))
    with pytest.raises(SessionError, match="undoes rotary positions"):
        greedy(model, tokens(70), headwise.Cache(model, "expected_attention(0.5)"))


def dynamic_rope() -> t.LlamaForCausalLM:
    """A model that rotates by frequencies of the length from 48 tokens on (dynamic NTK)."""
    torch.manual_seed(0)
    settings = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    name = "rope_parameters" if hasattr(t.LlamaConfig(), "rope_parameters") else "rope_scaling"  # before transformers 5
    config = t.LlamaConfig(**SMALL | {"max_position_embeddings": 48}, **{name: settings})
    return grown(t.LlamaForCausalLM(config))


def test_dynamic_frequencies_are_followed_up_to_where_they_change() -> None:
    """Exact up to the last token before; the next one, by which all stored keys would be turned otherwise, is refused
    and changes nothing."""
    ids = tokens(49)
    model = dynamic_rope()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(ids[:, :48]).logits[:, -1]
        held = headwise.Cache(model, "")
        drive.prefill(model, held, ids[:, :47])
        torch.testing.assert_close(forward(model, held, ids[:, 47:48]).logits[:, -1], expected, atol=1e-4, rtol=1e-4)
        with pytest.raises(ContextError, match="49 tokens are more than the 48 positions"):
            forward(model, held, ids[:, 48:])
    assert held.get_seq_length() == 48
    with pytest.raises(UnsupportedModel, match="whose frequencies change with the length"):
        headwise.Cache(model, "long_heads(16, positions='compact')")


class Forgetful(t.MistralForCausalLM):
    """A model that loses its windows under headwise: what a family unknown to it might do."""

    def __init__(self, config: t.MistralConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.register_forward_pre_hook(self.lose, with_kwargs=True)

    @staticmethod
    def lose(layer: torch.nn.Module, args: object, kwargs: dict) -> tuple[object, dict]:
        if layer.self_attn.config._attn_implementation == "headwise":
            kwargs = kwargs | {"attention_mask": None}
        return args, kwargs


class Turning(t.LlamaForCausalLM):
    """A model that turns its keys otherwise past a chunk of its config, where it is run by headwise."""

    def __init__(self, config: t.LlamaConfig) -> None:
        super().__init__(config)
        self.model.rotary_emb.register_forward_hook(self.turn, with_kwargs=True)

    def turn(self, rotary: object, args: tuple, kwargs: dict, out: tuple) -> tuple:
        positions = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
        past = (positions > self.config.attention_chunk_size)[..., None]
        odd = self.config._attn_implementation == "headwise"
        return tuple(torch.where(past & odd, 0.5 * x, x) for x in out)


def test_what_differs_past_a_boundary_alone_is_refused() -> None:
    """Both compute the same up to 100 tokens: only a boundary moved close shows what they do beyond."""
    windowed = Forgetful(t.MistralConfig(**SMALL, sliding_window=100)).eval()
    turning = Turning(t.LlamaConfig(**SMALL, attention_chunk_size=100)).eval()
    for model in (windowed, turning):
        before = model.config._attn_implementation
        with pytest.raises(UnsupportedModel, match="differ from its own"):
            headwise.attach(model)
        assert model.config._attn_implementation == before


def test_a_small_copy_has_every_sort_of_layer_and_near_boundaries() -> None:
    config = t.Gemma3TextConfig(
        vocab_size=262_144, hidden_size=5376, intermediate_size=21_504, num_hidden_layers=62, num_attention_heads=32,
        num_key_value_heads=16, head_dim=128, sliding_window=1024, max_position_embeddings=131_072,
    )  # fmt: skip
    before = torch.random.get_rng_state()
    small = small_copy(t.Gemma3ForCausalLM, config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert set(small.config.layer_types) == {"sliding_attention", "full_attention"}
    assert small.config.sliding_window == 8 and small.config.head_dim == 128
    assert sum(one.numel() for one in small.parameters()) < 5_000_000
    assert config.num_hidden_layers == 62 and config.sliding_window == 1024


def test_what_cannot_be_checked_is_refused_and_what_the_model_itself_shows_is_not() -> None:
    class Fixed(t.MistralForCausalLM):
        """Comes in one size only."""

        def __init__(self, config: t.MistralConfig) -> None:
            if config.hidden_size != SMALL["hidden_size"] or config.sliding_window < 24:
                raise ValueError("one size only")
            super().__init__(config)

    wide = SMALL | dict(max_position_embeddings=8192)
    headwise.attach(Fixed(t.MistralConfig(**wide, sliding_window=24)).eval())
    with pytest.raises(UnsupportedModel, match="2000 tokens cannot be checked"):
        headwise.attach(Fixed(t.MistralConfig(**wide, sliding_window=2000)).eval())
