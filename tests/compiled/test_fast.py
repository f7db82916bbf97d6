"""`headwise.fast`: families of models beside themselves, and when a layer goes its own way."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers as t
from torch import Tensor, nn

import headwise
from headwise.compiled import fast as layers
from headwise.compiled.linear import StreamedLinear
from headwise.errors import SessionError
from headwise.kernels.native.chain import Chain
from headwise.kernels.native.layer import Enter
from headwise.kernels.native.library import missing
from headwise.kernels.native.prompt import PromptEnter
from headwise.seams.transformers.compiled import CompiledLayer
from headwise.seams.transformers.forward import cache_argument, forward
from tests.engine.small import build as build_llama
from tests.engine.small import tokens

built = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")

SMALL = dict(
    vocab_size=128, hidden_size=80, intermediate_size=100, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
GEMMA = SMALL | dict(head_dim=16, sliding_window=24, query_pre_attn_scalar=16)
FAMILIES = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL)),
    "llama_biases": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)),
    "mistral_window": lambda: t.MistralForCausalLM(t.MistralConfig(**SMALL, head_dim=16, sliding_window=24)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SMALL)),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**SMALL, head_dim=32)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**GEMMA, attn_logit_softcapping=2.0)),
    "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**GEMMA)),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**SMALL, partial_rotary_factor=0.5)),
    "granite": lambda: t.GraniteForCausalLM(
        t.GraniteConfig(**SMALL, residual_multiplier=0.22, attention_multiplier=0.1, embedding_multiplier=4.0)
    ),
    "smollm3": lambda: t.SmolLM3ForCausalLM(t.SmolLM3Config(**SMALL, no_rope_layer_interval=2)),
    "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**SMALL)),
}
RECIPES = ("", "snapkv(0.25) | int8", "quest(0.25)")


def build(family: str, dtype: torch.dtype = torch.float32) -> t.PreTrainedModel:
    """Greedy choices are no near ties, and no norm's weight is as it was made."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0) if weight.dim() > 1 else weight.add_(torch.randn_like(weight), alpha=0.2)
    return model.to(dtype)


@contextmanager
def counted() -> Iterator[list[int]]:
    """The rows of every compiled layer inside, by itself or in a chain, of a step or a prompt."""
    rows: list[int] = []
    own, own_chain, own_prompt = Enter.__call__, Chain.run, PromptEnter.__call__

    def call(self: Enter, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows.append(x.shape[0] * x.shape[1])
        return own(self, x, cos, sin)

    def run(
        self: Chain, first: int, x: Tensor, outs: Sequence[Tensor], angles: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        rows.extend(x.shape[0] * x.shape[1] for _ in outs)
        own_chain(self, first, x, outs, angles)

    def prompt(self: PromptEnter, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows.append(x.shape[0] * x.shape[1])
        return own_prompt(self, x, cos, sin)

    with (
        mock.patch.object(Enter, "__call__", call),
        mock.patch.object(PromptEnter, "__call__", prompt),
        mock.patch.object(Chain, "run", run),
    ):
        yield rows


def greedy(model: t.PreTrainedModel, ids: Tensor, recipe: str, **how: object) -> Tensor:
    cache = headwise.Cache(model, recipe)
    held = {cache_argument(type(model)): cache}
    return model.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=0, eos_token_id=None, **held, **how)


def logits(model: t.PreTrainedModel, ids: Tensor, recipe: str, mask: Tensor | None = None) -> Tensor:
    """Of a prompt, then of steps of 1, 1, 3 and 1 tokens."""
    cache, out, at = headwise.Cache(model, recipe), [], 0
    with torch.no_grad():
        for count in (ids.shape[1] - 6, 1, 1, 3, 1):
            told = {} if mask is None else {"attention_mask": mask[:, : at + count]}
            out.append(forward(model, cache, ids[:, at : at + count], **told).logits)
            at += count
    return torch.cat(out, dim=1)


@built
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_compiled_and_writes_the_same_tokens(family: str) -> None:
    model, ids = build(family), tokens(90)
    expected = {recipe: greedy(model, ids, recipe) for recipe in RECIPES}
    report = headwise.fast(model)
    assert (report.compiled, report.layers, report.reasons) == (4, 4, {})
    for recipe in RECIPES:
        with counted() as rows:
            assert torch.equal(greedy(model, ids, recipe), expected[recipe])
        assert rows == [90] * 4 + [1] * 4 * 15


@built
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_agree_in_both_types(family: str, recipe: str) -> None:
    ids = tokens(100, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :17] = 0
    for dtype, limit in ((torch.float32, 2e-5), (torch.bfloat16, 4e-2)):
        model = build(family, dtype)
        headwise.attach(model)
        for given in (None, mask):
            expected = logits(model, ids, recipe, given)
            headwise.fast(model)
            found = logits(model, ids, recipe, given)
            headwise.detach(model)
            away = (found - expected)[:, 17:].float().norm() / expected[:, 17:].float().norm()
            assert away < limit, (dtype, given is None, float(away))


@built
def test_a_padded_batch_writes_the_same_tokens() -> None:
    for family in ("llama", "gemma3"):
        model, ids = build(family), tokens(60, rows=3)
        mask = torch.ones_like(ids)
        mask[0, :17], mask[2, :40] = 0, 0
        expected = greedy(model, ids, "", attention_mask=mask)
        headwise.fast(model)
        with counted() as rows:
            assert torch.equal(greedy(model, ids, "", attention_mask=mask), expected)
        assert set(rows) == {3, 180}


@built
def test_detach_puts_the_layers_back_and_a_second_fast_finds_them_again() -> None:
    model = build_llama()
    names, kinds = list(model.state_dict()), [type(one) for one in model.modules() if type(one) is not nn.Linear]
    weights = dict(model.named_parameters())
    headwise.fast(model)
    assert str(headwise.fast(model)) == "3 of 3 decoder layers are compiled, 22 linear layers stream"
    assert list(model.state_dict()) == names and all(weights[name] is one for name, one in model.named_parameters())
    assert all(isinstance(one, CompiledLayer) for one in model.model.layers)
    assert all(isinstance(one, t.models.llama.modeling_llama.LlamaDecoderLayer) for one in model.model.layers)
    headwise.detach(model)
    assert [type(one) for one in model.modules() if type(one) is not StreamedLinear] == kinds
    with counted() as rows:
        greedy(model, tokens(30), "")
    assert rows == []


@built
def test_what_a_step_is_not_for_takes_the_layers_own_way() -> None:
    model, ids = build_llama(), tokens(30)
    headwise.fast(model)
    cache = headwise.Cache(model, "")
    with torch.no_grad():
        forward(model, cache, ids)
        with counted() as rows:
            model(ids[:, :4])  # without a cache, and with one of transformers
            model(ids[:, :4], **{cache_argument(type(model)): t.DynamicCache(config=model.config)})
            with torch.autocast("cpu", torch.bfloat16):
                forward(model, headwise.Cache(model, ""), ids[:, :4])
            assert rows == []
            forward(model, cache, tokens(64))
            forward(model, cache, tokens(65))  # these rows are a prompt, with products of its own
            assert rows == [64] * 3 + [65] * 3


@built
def test_gradients_flow_and_training_is_the_models_own() -> None:
    model, ids = build_llama(), tokens(5)
    headwise.fast(model)
    with counted() as rows:
        forward(model, headwise.Cache(model, ""), ids).logits.sum().backward()
        assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in model.model.layers[0].parameters())
        model.train()
        with torch.no_grad():
            forward(model, headwise.Cache(model, ""), ids)
        model.eval().requires_grad_(False)
        embedded = model.get_input_embeddings()(ids).requires_grad_()
        model(
            inputs_embeds=embedded, **{cache_argument(type(model)): headwise.Cache(model, "")}
        ).logits.sum().backward()
        assert embedded.grad is not None and rows == []


@built
def test_hooks_and_replaced_parts_are_honoured() -> None:
    model, ids = build_llama(), tokens(4)
    headwise.fast(model)
    layer, seen = model.model.layers[1], []

    def rows() -> int:
        with counted() as rows, torch.no_grad():
            forward(model, headwise.Cache(model, ""), ids)
        return len(rows)

    assert rows() == 3
    for part in (layer.self_attn, layer.mlp.down_proj, layer.input_layernorm):
        for register in (part.register_forward_hook, part.register_forward_pre_hook):
            hook = register(lambda *_: seen.append(1))
            assert rows() == 2 and seen.pop()
            hook.remove()
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert rows() == 0
    everywhere.remove()
    own, layer.mlp.up_proj = layer.mlp.up_proj, nn.Sequential(layer.mlp.up_proj)  # as adapters are put around one
    assert rows() == 2
    layer.mlp.up_proj = own
    layer.register_forward_hook(lambda *_: seen.append(2))  # on the layer itself: called as ever
    assert rows() == 3 and seen == [2]


@built
def test_outputs_that_transformers_records_do_not_end_the_fast_way() -> None:
    model, ids = build_llama(), tokens(4)
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states
        headwise.fast(model)
        with counted() as rows:
            found = forward(model, headwise.Cache(model, ""), ids, output_hidden_states=True).hidden_states
            assert len(rows) == 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@built
def test_weights_may_move_change_and_be_copied() -> None:
    model, ids = build_llama(), tokens(90)
    headwise.fast(model)
    with torch.no_grad():
        twin = copy.deepcopy(model)
        twin.model.layers[2].mlp.up_proj.weight.mul_(-1)
        saved = io.BytesIO()
        torch.save(twin, saved)
        read = torch.load(io.BytesIO(saved.getvalue()), weights_only=False)
        plain = build_llama()
        plain.load_state_dict(twin.state_dict())
        expected = logits(plain, ids, "")
        for one in (twin, read):
            with counted() as rows:
                torch.testing.assert_close(logits(one, ids, ""), expected, rtol=1e-4, atol=1e-4)
            assert len(rows) == 3 * 5
        assert not torch.allclose(logits(model, ids, ""), expected, atol=1e-2)
        twin.model.layers[0].mlp.gate_proj.weight.data = torch.zeros(96, 64)  # elsewhere now
        plain.load_state_dict(twin.state_dict())
        torch.testing.assert_close(logits(twin, ids, ""), logits(plain, ids, ""), rtol=1e-4, atol=1e-4)
        twin.bfloat16()
        with counted() as rows:
            found = logits(twin, ids, "")
        assert len(rows) == 3 * 5
        torch.testing.assert_close(found, logits(plain.bfloat16(), ids, ""), rtol=0.05, atol=0.3)
        with counted() as rows:
            logits(twin.half(), ids, "")
        assert rows == []


@built
def test_a_saved_model_is_the_plain_one(tmp_path: Path) -> None:
    model, ids = build_llama(), tokens(20)
    headwise.fast(model)
    model.save_pretrained(tmp_path)
    again = t.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert not any(isinstance(one, CompiledLayer) for one in again.modules())
    assert torch.equal(again(ids).logits, model(ids).logits)


@built
def test_unknown_parts_keep_their_layers_and_it_is_said() -> None:
    model, ids = build_llama(), tokens(90)
    first, second, _ = model.model.layers
    first.mlp.up_proj = nn.Sequential(first.mlp.up_proj)
    second.self_attn.register_parameter("sinks", nn.Parameter(torch.zeros(8)))
    expected = greedy(model, ids, "")
    report = headwise.fast(model)
    assert report.compiled == 1 and report.reasons == {
        "up_proj is a Sequential, not a plain linear layer": 1,
        "weights that are not known: sinks": 1,
    }
    assert "1 stay as they are: weights that are not known: sinks" in str(report)
    with counted() as rows:
        assert torch.equal(greedy(model, ids, ""), expected)
    assert rows == [90] + [1] * 15


@built
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: t.GlmForCausalLM(t.GlmConfig(**SMALL, head_dim=16)), "queries that differ"),  # rotates neighbours
        (lambda: t.OlmoForCausalLM(t.OlmoConfig(**SMALL)), "not a root-mean-square norm"),
        (lambda: t.MixtralForCausalLM(t.MixtralConfig(**SMALL, num_local_experts=2)), "experts"),
        (lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL, hidden_act="gelu")), "activation GELUActivation"),
        (lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**SMALL)), "no self_attn"),
        (lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL)).half(), "float16"),
    ],
)
def test_other_layers_are_told_apart(make: object, reason: str) -> None:
    torch.manual_seed(0)
    model = make().eval()  # type: ignore[operator]
    report = headwise.fast(model)
    assert report.compiled == 0 and any(reason in one for one in report.reasons), report
    assert not any(isinstance(one, CompiledLayer) for one in model.modules())


@built
def test_a_layer_that_does_more_than_its_parts_say_is_found_out() -> None:
    """By position, by size, or in how its parts are put together."""

    class Louder(t.models.llama.modeling_llama.LlamaMLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.02

    model = build_llama()
    model.model.layers[1].mlp.__class__ = Louder
    attention = model.model.layers[2].self_attn
    own = attention.forward
    attention.forward = lambda *args, **how: own(*args, **how)
    report = headwise.fast(model)
    assert report.reasons == {"output that differ from the native ones by more than 1e-05": 1, "hooks on its parts": 1}
    config = t.Ministral3Config(**SMALL, head_dim=16)  # scales queries far from the start
    scaled = headwise.fast(t.Ministral3ForCausalLM(config).eval())
    assert scaled.compiled == 0


@built
def test_a_model_that_was_switched_away_is_refused_as_before() -> None:
    model = build_llama()
    headwise.fast(model)
    cache = headwise.Cache(model, "")
    with torch.no_grad():
        forward(model, cache, tokens(20))
        model.set_attn_implementation("sdpa")
        with pytest.raises(SessionError, match="set_attn_implementation"):
            forward(model, cache, tokens(1))


def test_without_kernels_all_stays_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "unusable", lambda: "the native kernels are not built")
    monkeypatch.setattr(layers, "stream_linears", lambda model: 0)
    report = headwise.fast(build_llama())
    assert str(report) == (
        "0 of 3 decoder layers are compiled, 0 linear layers stream\n"
        "3 stay as they are: the native kernels are not built"
    )
