"""Checkpoint -> a plain Hugging Face folder that transformers loads with no code of ours."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save

from headwise.files import write_bytes, write_text

from .prepare import BOS_ID, EOS_ID, PAD_ID, TOKENIZER_FILES
from .recipe import Architecture
from .state import read_checkpoint


def llama_config(arch: Architecture, dtype: str = "bfloat16") -> dict[str, object]:
    """config.json of the architecture, with the keys old and new transformers versions read."""
    rope = {"rope_type": "default", "rope_theta": arch.rope_theta}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": arch.vocab,
        "hidden_size": arch.hidden,
        "intermediate_size": arch.intermediate,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "max_position_embeddings": arch.max_positions,
        "rms_norm_eps": arch.norm_eps,
        "rope_theta": arch.rope_theta,
        "rope_parameters": rope,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": arch.init_std,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "dtype": dtype,
        "use_cache": True,
    }


def export(checkpoint: Path, data: Path, out: Path) -> Path:
    """Write config, bfloat16 weights, generation config and the tokenizer files of `data` into `out`."""
    found = read_checkpoint(checkpoint)
    recipe = found.recipe
    out.mkdir(parents=True, exist_ok=True)
    weights = {n: t.to(torch.bfloat16).contiguous() for n, t in found.network.items()}
    write_bytes(out / "model.safetensors", save(weights, metadata={"format": "pt"}))
    # What `headwise run` reads by default: longer texts fit the positions, but were not trained on.
    config = llama_config(recipe.architecture) | {"headwise_context": max(stage.context for stage in recipe.stages)}
    write_text(out / "config.json", json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID, "do_sample": False}
    write_text(out / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        write_bytes(out / name, (data / name).read_bytes())
    training = {"recipe": recipe.fingerprint(), "optimizer": recipe.optimizer, **asdict(found.position)}
    write_text(out / "training.json", json.dumps(training, indent=2) + "\n")
    return out
