"""The sizes of state-space and other mixing layers, which hang together in each config by a rule of its own."""

from __future__ import annotations

from typing import Any

# Heads and their width, which multiply to the width of the mixer: `expand` times the hidden size.
HEADS = {"mamba_n_heads": "mamba_d_head", "n_mamba_heads": "mamba_headdim"}
FEW = {  # sizes without such a rule
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "mamba_num_heads": 2,
    "mamba_n_groups": 1,
    "mamba_ngroups": 1,
    "n_groups": 1,
    "mamba_d_ssm": 64,
}
PERIODS = {"attn_layer_period": "attn_layer_offset", "expert_layer_period": "expert_layer_offset"}  # Jamba's


def shrink_mixers(config: Any) -> None:
    """Make mixing layers of a config whose hidden size was made small fit it, with few heads; and have one layer in two
    attend where the config tells a period."""
    for name, size in FEW.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(size, getattr(config, name)))
    mixed = int(getattr(config, "mamba_expand", 1) * config.hidden_size)
    if isinstance(getattr(config, "mamba_d_ssm", None), int):
        mixed = config.mamba_d_ssm
    for heads, width in HEADS.items():
        if isinstance(getattr(config, heads, None), int):
            setattr(config, heads, 2)
            setattr(config, width, mixed // 2)
    if isinstance(
        getattr(config, "attention_hidden_size", None), int
    ):  # Zamba: attention over two hidden states at once
        config.attention_hidden_size = 2 * config.hidden_size
        config.attention_head_dim = config.attention_hidden_size // config.num_attention_heads
    for period, offset in PERIODS.items():
        if isinstance(getattr(config, period, None), int):
            setattr(config, period, 2)
            setattr(config, offset, 1)
    if getattr(config, "attn_layer_indices", None):  # Bamba
        config.attn_layer_indices = [1]
    if getattr(config, "hybrid_layer_ids", None):  # Zamba2
        config.hybrid_layer_ids = [layer for layer, kind in enumerate(config.layer_types) if kind == "hybrid"]
