"""Small random models of latent attention, of every kind that the installed transformers has."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as t

from .unlike import SIZES, grown

LATENT = SIZES | dict(
    num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, moe_intermediate_size=32, kv_lora_rank=32,
    q_lora_rank=24, qk_rope_head_dim=16, qk_nope_head_dim=24, v_head_dim=20, n_routed_experts=4, num_experts_per_tok=2,
    n_group=1, topk_group=1, head_dim=16, eos_token_id=None,
)  # fmt: skip
MIXED = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}  # beside layers with a state
OWN: dict[str, dict[str, object]] = {
    "AXK1": {}, "DeepseekV2": {}, "DeepseekV3": {}, "Glm4MoeLite": {}, "LongcatFlash": {}, "MiniCPM3": {},
    "Mistral4": {"head_dim": 40}, "Youtu": {}, "KimiLinear": MIXED, "BailingHybrid": MIXED,
}  # fmt: skip


def builder(name: str, **changed: object) -> Callable[[], t.PreTrainedModel]:
    """Makes the model called `name`; its greedy choices are no near ties."""

    def build() -> t.PreTrainedModel:
        torch.manual_seed(0)
        config = getattr(t, f"{name}Config")(**LATENT | OWN[name] | changed)
        return grown(getattr(t, f"{name}ForCausalLM")(config))

    return build


KINDS = {name: builder(name) for name in OWN if hasattr(t, f"{name}ForCausalLM")}
