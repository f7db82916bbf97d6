"""Layers beside transformers' own on the same weights: outputs, gradients, and token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headwise.layers.base import Dims
from headwise.layers.layer import AttentionLayer
from tests.contract.layers.test_forms import near

WIDTH = 24
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Twin:
    """A layer of transformers and ours. same: our weights by name, as cuts of its own; gradients are cut alike."""

    theirs: nn.Module
    ours: AttentionLayer
    same: Callable[[Weights], Weights]
    told: Callable[[Tensor], dict[str, Any]] = lambda x: {}

    def output(self, x: Tensor) -> Tensor:
        found = self.theirs(x, **self.told(x))
        return found[0] if isinstance(found, tuple) else found


def qwen3_next() -> Twin:
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextConfig, Qwen3NextGatedDeltaNet

    keys, values, dim, wide = 2, 4, 6, 5
    config = Qwen3NextConfig(
        hidden_size=WIDTH, linear_num_key_heads=keys, linear_num_value_heads=values, linear_key_head_dim=dim,
        linear_value_head_dim=wide, num_hidden_layers=1, layer_types=["linear_attention"], vocab_size=8,
    )  # fmt: skip
    each = values // keys

    def same(own: Weights) -> Weights:
        qkvz = own["in_proj_qkvz.weight"].unflatten(0, (keys, -1))
        q, k, v, z = (one.flatten(0, 1) for one in qkvz.split([dim, dim, each * wide, each * wide], 1))
        b, a = (one.flatten(0, 1) for one in own["in_proj_ba.weight"].unflatten(0, (keys, -1)).split([each, each], 1))
        return {
            "project.q.weight": q, "project.k.weight": k, "project.v.weight": v, "out.gate.weight": z,
            "project.weight": own["conv1d.weight"].squeeze(1), "gates.by_name.beta.proj.weight": b,
            "gates.by_name.decay.steps.proj.weight": a, "gates.by_name.decay.steps.bias": own["dt_bias"],
            "gates.by_name.decay.rate": own["A_log"], "out.norm.weight": own["norm.weight"],
            "out.o.weight": own["out_proj.weight"],
        }  # fmt: skip

    ours = AttentionLayer(f"short_conv(key_heads={keys}, key_dim={dim}) | gated_delta", Dims(WIDTH, values, wide))
    return Twin(Qwen3NextGatedDeltaNet(config, 0), ours, same)


def mamba2() -> Twin:
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    heads, dim, states, groups = 6, 8, 10, 1
    config = Mamba2Config(
        hidden_size=WIDTH, num_heads=heads, head_dim=dim, state_size=states, n_groups=1, expand=2, chunk_size=16,
        num_hidden_layers=1, vocab_size=8, layer_norm_epsilon=1e-6,
    )  # fmt: skip
    inner = heads * dim

    def same(own: Weights) -> Weights:
        z, x, b, c, dt = own["in_proj.weight"].split([inner, inner, groups * states, groups * states, heads])

        def turned(one: Tensor) -> Tensor:  # ours has q, k, v = C, B, x
            x, b, c = one.split([inner, groups * states, groups * states])
            return torch.cat((c, b, x))

        return {
            "project.q.weight": c, "project.k.weight": b, "project.v.weight": x, "out.gate.weight": z,
            "project.weight": turned(own["conv1d.weight"].squeeze(1)), "project.bias": turned(own["conv1d.bias"]),
            "gates.steps.proj.weight": dt, "gates.steps.bias": own["dt_bias"], "gates.rate": own["A_log"],
            "gates.skip": own["D"], "out.norm.weight": own["norm.weight"], "out.o.weight": own["out_proj.weight"],
        }  # fmt: skip

    ours = AttentionLayer(f"short_conv(key_heads=1, key_dim={states}, bias=True) | mamba2", Dims(WIDTH, heads, dim))
    return Twin(Mamba2Mixer(config, 0), ours, same)


def deepseek(query_rank: int | None) -> Twin:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as module

    heads, dim, rope, rank = 4, 6, 4, 10
    config = module.DeepseekV3Config(
        hidden_size=WIDTH, num_attention_heads=heads, num_key_value_heads=heads, kv_lora_rank=rank,
        q_lora_rank=query_rank, qk_nope_head_dim=dim, qk_rope_head_dim=rope, v_head_dim=dim, num_hidden_layers=1,
        vocab_size=8, max_position_embeddings=64, attention_bias=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    rotary = module.DeepseekV3RotaryEmbedding(config)

    def told(x: Tensor) -> dict[str, Any]:
        count = x.shape[1]
        later = torch.ones(count, count, dtype=torch.bool).triu(1)
        mask = torch.zeros(1, 1, count, count).masked_fill(later, float("-inf"))
        return {"position_embeddings": rotary(x, torch.arange(count)[None]), "attention_mask": mask}

    def same(own: Weights) -> Weights:
        names = {
            "project.kv_a.weight": "kv_a_proj_with_mqa.weight", "project.kv_norm.weight": "kv_a_layernorm.weight",
            "project.kv_b.weight": "kv_b_proj.weight", "out.o.weight": "o_proj.weight",
        }  # fmt: skip
        if query_rank is None:
            names |= {"project.q_b.weight": "q_proj.weight"}
        else:
            names |= {"project.q_a.weight": "q_a_proj.weight", "project.q_norm.weight": "q_a_layernorm.weight"}
            names |= {"project.q_b.weight": "q_b_proj.weight"}
        return {ours: own[theirs] for ours, theirs in names.items()}

    text = f"mla(rank={rank}, rope={rope}, query_rank={query_rank or 0}) | rope(interleaved=True)"
    return Twin(module.DeepseekV3Attention(config, 0), AttentionLayer(text, Dims(WIDTH, heads, dim)), same, told)


TWINS = {
    "Qwen3-Next's Gated DeltaNet": qwen3_next,
    "Mamba-2": mamba2,
    "DeepSeek-V3's MLA": lambda: deepseek(12),
    "DeepSeek-V2-Lite's MLA": lambda: deepseek(None),
}


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> Twin:
    torch.manual_seed(0)
    made = TWINS[request.param]()
    with torch.no_grad():
        for weight in made.theirs.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() > 1 else 0.5))
        made.ours.load_state_dict(made.same(dict(made.theirs.named_parameters())), strict=True)
    return made


def test_outputs_and_gradients_are_transformers_own(twin: Twin) -> None:
    x = torch.randn(2, 70, WIDTH)
    pull = torch.randn(2, 70, WIDTH)

    def gradients(of: Callable[[Tensor], Tensor], module: nn.Module) -> tuple[Tensor, Tensor, Weights]:
        told = x.clone().requires_grad_()
        out = of(told)
        names, weights = zip(*module.named_parameters(), strict=True)
        own = torch.autograd.grad((out * pull).sum(), [told, *weights])
        return out, own[0], dict(zip(names, own[1:], strict=True))

    expected, by_input, by_weight = gradients(twin.output, twin.theirs)
    found, by_own_input, by_own_weight = gradients(lambda told: twin.ours(told)[0], twin.ours)
    near(found, expected, 1e-4)
    near(by_own_input, by_input, 1e-4)
    for name, own in twin.same(by_weight).items():
        scale = own.abs().max()
        near(by_own_weight[name] / scale, own / scale, 1e-4)


def test_token_by_token_it_is_still_transformers_own(twin: Twin) -> None:
    x = torch.randn(2, 21, WIDTH)
    with torch.no_grad():
        expected, state, found = twin.output(x), None, []
        for piece in x.split([8] + [1] * 13, dim=1):
            out, state = twin.ours(piece, state)
            found.append(out)
    near(torch.cat(found, 1), expected, 1e-4)
