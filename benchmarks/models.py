"""Models of the benchmarks: random weights in real shapes, so that nothing is downloaded; and the embedded one.

    python benchmarks/models.py 0.5b FOLDER

writes one of them with the embedded model's tokenizer, for the commands to run on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from headwise.assets import embedded_model

# hidden, intermediate, layers, query heads, KV heads
SHAPES = {
    "1b": (2048, 8192, 16, 32, 8),
    "0.5b": (896, 4864, 24, 14, 2),
    "small": (256, 704, 8, 8, 4),
    "tiny": (64, 128, 2, 4, 2),
}


def load(
    name: str, positions: int = 65_536, dtype: torch.dtype = torch.bfloat16, layers: int | None = None
) -> PreTrainedModel:
    """`embedded`, or a random Qwen2-like model: `1b` (16 layers, 32/8 heads of 64, as
    Llama-3.2-1B), `0.5b` (24 layers, 14/2 heads of 64), `small` or `tiny`. layers: fewer than the shape has."""
    if name == "embedded":
        return AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=dtype).eval()
    if name not in SHAPES:
        raise SystemExit(f"error: no model '{name}'; known: embedded, {', '.join(SHAPES)}")
    hidden, intermediate, depth, heads, kv_heads = SHAPES[name]
    config = Qwen2Config(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers or depth,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,  # a padding token's embedding is zeros, at which gradients overflow
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).to(dtype).eval()


def prompt(model: PreTrainedModel, tokens: int, seed: int = 0) -> torch.Tensor:
    """Random ids [1, tokens]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, model.config.vocab_size, (1, tokens), generator=generator)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"embedded, {', '.join(SHAPES)}")
    parser.add_argument("folder", type=Path)
    return parser


def main() -> None:
    """Write a model's folder."""
    told = arguments().parse_args()
    load(told.name).save_pretrained(told.folder)
    AutoTokenizer.from_pretrained(embedded_model()).save_pretrained(told.folder)


if __name__ == "__main__":
    main()
