"""The sizes of state-space and other mixing layers, and of models with an encoder, which hang together in each config
by a rule of its own."""

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


# Sizes of an encoder and a decoder, by the names that one config, or one for each of them, gives them.
SIDES = {
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "speech_encoder_layers", "t2u_encoder_layers", "t2u_decoder_layers"), 2),
    **dict.fromkeys(("d_model", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_size", "ffn_dim"), 64),
    **dict.fromkeys(("feed_forward_proj_dim", "intermediate_size", "expert_ffn_size"), 64),
    **dict.fromkeys(("num_heads", "encoder_attention_heads", "decoder_attention_heads", "num_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_num_attention_heads", "decoder_num_attention_heads"), 4),
    **dict.fromkeys(("encoder_num_hidden_layers", "decoder_num_hidden_layers", "num_hidden_layers"), 2),
    **dict.fromkeys(("encoder_num_key_value_heads", "decoder_num_key_value_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("d_kv", "head_dim"), 16),
    **dict.fromkeys(("num_experts", "encoder_sparse_step", "decoder_sparse_step"), 4),
    **dict.fromkeys(("vocab_size", "decoder_vocab_size"), 512),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), 0),
    **dict.fromkeys(("eos_token_id", "decoder_start_token_id"), 1),
    "cross_attention_hidden_size": 64,
}


def shrink_both(config: Any) -> None:
    """Make an encoder and a decoder small, whether one config tells of both or one of each."""
    for part in (config, *(getattr(config, name, None) for name in ("encoder", "decoder"))):
        for name, size in SIDES.items():
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, min(size, getattr(part, name)))
        if part is not None and getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[: part.num_hidden_layers]
