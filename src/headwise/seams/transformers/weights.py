"""The weights of a plain decoder, read out of a transformers model by what they are for, and models made of them.

Read are Llama's and what is built exactly as it is. Made are Llama again, with other numbers of KV heads, and
DeepSeek-V3, whose attention is multi-head latent attention.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV3Config, PreTrainedModel

from headwise.errors import UnsupportedModel

READ = ("llama", "mistral")  # model types of which every weight is known
NEUTRAL = 2.0**12  # how many times a latent's length its constant channel is: what its norm then changes is below 1e-7


@dataclass(frozen=True, eq=False)
class Layer:
    """A decoder layer's weights in float32, each [out, in]; norms [width]."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    norm: Tensor
    mlp_norm: Tensor


@dataclass(frozen=True, eq=False)
class Decoder:
    """A decoder's weights and sizes. frequencies [head_dim / 2]: by how much a token turns each pair of channels, a
    pair being a channel of the first half of a head and its like in the second. config: the model's own."""

    layers: tuple[Layer, ...]
    embed: Tensor
    norm: Tensor
    head: Tensor
    heads: int
    kv_heads: int
    head_dim: int
    frequencies: Tensor
    theta: float
    config: Any

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.embed.shape[1]

    @property
    def cache_numbers(self) -> int:
        """Numbers that a token adds to its cache, over all layers."""
        return 2 * len(self.layers) * self.kv_heads * self.head_dim


@dataclass(frozen=True, eq=False)
class Latent:
    """A layer of multi-head latent attention. q [heads, nope + rope, width]; kv_a [rank + rope, width]; kv_b [heads,
    nope + value, rank]: queries, keys, and what reads them of the latent. length: of the latent, as it is usually."""

    q: Tensor
    kv_a: Tensor
    kv_b: Tensor
    rope: int
    length: float

    @property
    def rank(self) -> int:
        """Channels of the latent."""
        return self.kv_b.shape[2]

    @property
    def nope(self) -> int:
        """Channels of a head's queries that no position turns."""
        return self.q.shape[1] - self.rope


def read_decoder(model: PreTrainedModel) -> Decoder:
    """The weights of a model; UnsupportedModel naming what of it a conversion would lose."""
    config = model.config
    _refuse(config)
    inner = model.get_decoder()
    rotary = inner.rotary_emb
    return Decoder(
        tuple(_layer(one) for one in inner.layers),
        _exact(inner.embed_tokens.weight),
        _exact(inner.norm.weight),
        _exact(model.get_output_embeddings().weight),
        config.num_attention_heads,
        config.num_key_value_heads,
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        _exact(rotary.inv_freq),
        float(config.rope_parameters["rope_theta"]),
        config,
    )


def _refuse(config: Any) -> None:
    """Refuse a model with anything that the weights read here do not hold."""
    if config.model_type not in READ:
        raise UnsupportedModel(
            f"a '{config.model_type}' model has parts that conversions do not know; give a model of the type "
            f"{' or '.join(READ)}, such as smollm2 or the embedded one"
        )
    rope = config.rope_parameters.get("rope_type", "default")
    lost = {
        f"rotations of the kind '{rope}'": rope != "default",
        "biases of its projections": getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False),
        "a sliding window": getattr(config, "sliding_window", None) is not None,
        f"'{config.hidden_act}' as its activation": config.hidden_act != "silu",
    }
    for what, there in lost.items():
        if there:
            raise UnsupportedModel(f"the model has {what}, which a conversion would lose; give a model without")


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    matrices = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    matrices += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    return Layer(*(_exact(one.weight) for one in (*matrices, *norms)))


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.float32).clone()


def as_llama(source: Decoder, keys: Sequence[tuple[Tensor, Tensor]]) -> PreTrainedModel:
    """The source with other keys and values: by layer (W_k, W_v), each [KV heads * head dim, width]."""
    config = copy.deepcopy(source.config)
    config.num_key_value_heads = keys[0][0].shape[0] // source.head_dim
    state = _around(source)
    for index, (layer, (k, v)) in enumerate(zip(source.layers, keys, strict=True)):
        own = {"q_proj": layer.q, "k_proj": k, "v_proj": v, "o_proj": layer.o}
        state |= {f"model.layers.{index}.self_attn.{name}.weight": one for name, one in own.items()}
    return _made(config, state)


def as_deepseek(source: Decoder, layers: Sequence[Latent], frequencies: Tensor) -> PreTrainedModel:
    """The source with latent attention, as transformers' DeepSeek-V3 without experts. frequencies [rope / 2]: of the
    shared turned key, whose halves hold the pairs.

    DeepSeek norms its latents. One more channel, which is constant and far larger than the latent, holds that norm
    constant, and its weight is 0: so that what is stored is the latent itself.
    """
    first = layers[0]
    config = DeepseekV3Config(
        **_kept(source.config) | {"head_dim": first.rope},
        num_key_value_heads=source.heads,
        kv_lora_rank=first.rank + 1, q_lora_rank=None, qk_rope_head_dim=first.rope, qk_nope_head_dim=first.nope,
        v_head_dim=source.head_dim, first_k_dense_replace=len(layers), moe_intermediate_size=1, n_routed_experts=8,
        attention_bias=True, rope_interleave=False, rope_parameters=_rope(source, frequencies),
    )  # fmt: skip
    state = _around(source)
    for index, (layer, latent) in enumerate(zip(source.layers, layers, strict=True)):
        own = _neutral(latent) | {"o_proj.weight": layer.o, "o_proj.bias": torch.zeros(source.width)}
        scale = math.sqrt(latent.q.shape[1] / source.head_dim)  # DeepSeek divides by the root of nope + rope
        own["q_proj.weight"] = (latent.q * scale).flatten(0, 1)
        state |= {f"model.layers.{index}.self_attn.{name}": one for name, one in own.items()}
    return _made(config, state)


def _neutral(latent: Latent) -> dict[str, Tensor]:
    """Keys and values of a latent whose norm changes nothing. All scales are powers of 2, and what a root leaves over
    goes into kv_b, so that bfloat16 rounds nothing that float32 does not."""
    rank, width = latent.rank, latent.kv_a.shape[1]
    constant = 2.0 ** math.ceil(math.log2(NEUTRAL * max(latent.length, 1e-30)))
    weight = 2.0 ** round(math.log2(constant / math.sqrt(rank + 1)))
    over = constant / math.sqrt(rank + 1) / weight
    a = torch.cat((latent.kv_a[:rank], latent.kv_a.new_zeros(1, width), latent.kv_a[rank:]))
    bias = torch.zeros(len(a))
    bias[rank] = constant
    norm = torch.full((rank + 1,), weight)
    norm[rank] = 0.0
    b = torch.cat((latent.kv_b * over, latent.kv_b.new_zeros(*latent.kv_b.shape[:2], 1)), 2).flatten(0, 1)
    return {
        "kv_a_proj_with_mqa.weight": a, "kv_a_proj_with_mqa.bias": bias, "kv_a_layernorm.weight": norm,
        "kv_b_proj.weight": b,
    }  # fmt: skip


def _rope(source: Decoder, frequencies: Tensor) -> dict[str, Any]:
    """Rotations by these frequencies: the usual ones where they are, else each with a factor of its own."""
    channels = torch.arange(0, 2 * len(frequencies), 2, dtype=torch.float32)
    usual = source.theta ** (-channels / (2 * len(frequencies)))
    if torch.allclose(usual, frequencies, rtol=1e-6):
        return {"rope_type": "default", "rope_theta": source.theta}
    factors = (usual.double() / frequencies.double()).tolist()
    return {
        "rope_type": "longrope", "rope_theta": source.theta, "short_factor": factors, "long_factor": factors,
        "factor": 1.0, "attention_factor": 1.0,
        "original_max_position_embeddings": source.config.max_position_embeddings,
    }  # fmt: skip


def _kept(config: Any) -> dict[str, Any]:
    """What of a config stays as it is."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
             "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id",
             "pad_token_id", "initializer_range")  # fmt: skip
    own = {"headwise_context": config.headwise_context} if hasattr(config, "headwise_context") else {}
    return {name: getattr(config, name) for name in names} | own


def _around(source: Decoder) -> dict[str, Tensor]:
    """All weights but those of attention, by the names that Llama and DeepSeek have for them."""
    state = {
        "model.embed_tokens.weight": source.embed, "model.norm.weight": source.norm, "lm_head.weight": source.head,
    }  # fmt: skip
    for index, layer in enumerate(source.layers):
        own = {
            "mlp.gate_proj": layer.gate, "mlp.up_proj": layer.up, "mlp.down_proj": layer.down,
            "input_layernorm": layer.norm, "post_attention_layernorm": layer.mlp_norm,
        }  # fmt: skip
        state |= {f"model.layers.{index}.{name}.weight": one for name, one in own.items()}
    return state


def _made(config: Any, state: dict[str, Tensor]) -> PreTrainedModel:
    """A model of exactly these weights, in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(state)
    return model.eval()
