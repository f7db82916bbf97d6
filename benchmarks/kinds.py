"""Tiny models of every kind of attention, trained until they find a needle: what evictions leave of it.

    python benchmarks/kinds.py --json docs/data/kinds.json

A document is filler with eight facts, each a token that names a key and its value. It is read with a question behind,
a plan evicts, and the question is asked once more, so that it is answered by what was kept. All arms keep as many
tokens; SnapKV holds its last queries beside them, which in models as small as these are many bytes. Each kind is
trained in a minute or two; what is finished stays in the folder of --state, and a stopped run goes on there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

import headwise
from headwise.bench.judging.intervals import of_scores
from headwise.bench.provenance import machine, versions
from headwise.kept import once
from headwise.seams.transformers.forward import forward

FILLERS, KEYS, VALUES, FACTS, LENGTH = 32, 16, 8, 8, 48
FIRST_FILLER = 2
FIRST_FACT = FIRST_FILLER + FILLERS
FIRST_QUESTION = FIRST_FACT + KEYS * VALUES
FIRST_VALUE = FIRST_QUESTION + KEYS
WORDS = FIRST_VALUE + VALUES
ALIKE: dict[str, Any] = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
SIZES: dict[str, Any] = {
    **ALIKE, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_hidden_layers": 2, "intermediate_size": 128, "max_position_embeddings": 256, "initializer_range": 0.1,
}  # fmt: skip
BUDGET = 10  # tokens kept of 50
ARMS = {
    "dense": "",
    "snapkv": f"snapkv({BUDGET}, sinks=1, recent=2, window=1)",
    "random": f"random({BUDGET}, sinks=1, recent=2)",
    "recent": f"streaming({BUDGET}, sinks=1, recent=2)",
}


def sinks() -> PreTrainedModel:
    """gpt-oss: a sink logit a head, windows of 8 tokens below full attention."""
    config = transformers.GptOssConfig(
        **SIZES, num_local_experts=2, num_experts_per_tok=1, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    return transformers.GptOssForCausalLM(config)


def latent() -> PreTrainedModel:
    """DeepSeek-V3: a latent of 32 numbers and a rotary key of 8 a token."""
    config = transformers.DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4, "head_dim": 8}, kv_lora_rank=32, q_lora_rank=None, qk_rope_head_dim=8,
        qk_nope_head_dim=16, v_head_dim=16, first_k_dense_replace=2,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config)


def hybrid() -> PreTrainedModel:
    """LFM2: a short convolution between two layers of full attention."""
    sizes = {name: size for name, size in SIZES.items() if name != "head_dim"} | {"num_hidden_layers": 3}
    config = transformers.Lfm2Config(**sizes, layer_types=["full_attention", "conv", "full_attention"])
    return transformers.Lfm2ForCausalLM(config)


def windows() -> PreTrainedModel:
    """Gemma 3: windows of 8 tokens below two layers of full attention."""
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(**SIZES | {"num_hidden_layers": 3}, sliding_window=8, layer_types=kinds)
    return transformers.Gemma3ForCausalLM(config)


def chunks() -> PreTrainedModel:
    """Llama 4: chunks of 16 tokens below full attention without positions."""
    config = transformers.Llama4TextConfig(
        **SIZES, intermediate_size_mlp=128, attention_chunk_size=16, no_rope_layers=[1, 0], num_local_experts=2,
        num_experts_per_tok=1, moe_layers=[], layer_types=["chunked_attention", "full_attention"],
    )  # fmt: skip
    return transformers.Llama4ForCausalLM(config)


def encoder_decoder() -> PreTrainedModel:
    """BART: the encoder reads the document, the decoder the question."""
    config = transformers.BartConfig(
        **ALIKE, d_model=64, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=128, max_position_embeddings=256, decoder_start_token_id=1, dropout=0.0,
        forced_eos_token_id=None, init_std=0.1,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    one.__name__: one for one in (sinks, latent, hybrid, windows, chunks, encoder_decoder)
}


def documents(rows: int, questions: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Documents [rows, LENGTH], questions [rows, questions] about facts in them, and their values."""
    filler = torch.randint(FIRST_FILLER, FIRST_FACT, (rows, LENGTH), generator=generator)
    keys = torch.rand(rows, KEYS, generator=generator).argsort(1)[:, :FACTS]
    values = torch.randint(VALUES, (rows, FACTS), generator=generator)
    places = torch.rand(rows, LENGTH, generator=generator).argsort(1)[:, :FACTS]
    ids = filler.scatter(1, places, FIRST_FACT + keys * VALUES + values)
    return ids, FIRST_QUESTION + keys[:, :questions], FIRST_VALUE + values[:, :questions]


def asked(model: PreTrainedModel, ids: torch.Tensor, questions: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a forward is given: all of it in a row, or the document to the encoder and the questions to the decoder."""
    start = torch.ones(len(ids), 1, dtype=torch.int64)
    if model.config.is_encoder_decoder:
        return {"input_ids": ids, "decoder_input_ids": torch.cat((start, questions), 1)}
    return {"input_ids": torch.cat((start, ids, questions), 1)}


def train(model: PreTrainedModel, most: int, told: Callable[[int, float], None]) -> tuple[int, float]:
    """Train on questions until 99 % of a batch are right, `most` steps at most: how many it took, and that share."""
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    generator, right = torch.Generator().manual_seed(1), 0.0
    model.train()
    for step in range(1, most + 1):
        ids, questions, values = documents(64, 4, generator)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, step / 50)
        logits = model(**asked(model, ids, questions), use_cache=False).logits[:, -4:]
        loss = cross_entropy(logits.flatten(0, 1).float(), values.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        right = 0.9 * right + 0.1 * float((logits.argmax(-1) == values).float().mean())
        if step % 50 == 0:
            told(step, right)
            if right > 0.99:
                break
    model.eval()
    return step, right


def answers(model: PreTrainedModel, recipe: str, count: int) -> tuple[list[bool], int]:
    """Of so many questions, asked again after the recipe has evicted, which are answered; and the bytes held of one."""
    ids, questions, values = documents(count, 1, torch.Generator().manual_seed(2**40))
    right: list[bool] = []
    for first in range(0, count, 64):
        rows = slice(first, first + 64)
        how = asked(model, ids[rows], questions[rows])
        if model.config.is_encoder_decoder:
            cache: Any = headwise.EncoderDecoderCache(model, "", recipe)
            read, how = how.pop("decoder_input_ids"), {"encoder_outputs": model.get_encoder()(how["input_ids"])}
        else:
            cache, read, how = headwise.Cache(model, recipe), how["input_ids"], {}
        forward(model, cache, read, **how)
        logits = forward(model, cache, questions[rows], **how).logits[:, -1]
        right += (logits.argmax(-1) == values[rows, 0]).tolist()
    return right, cache.nbytes // len(ids[rows])


def measured(name: str, most: int, count: int) -> dict[str, Any]:
    """One kind: trained, and asked under every arm."""
    torch.manual_seed(0)
    model = KINDS[name]()
    steps, share = train(
        model, most, lambda step, right: print(f"{name}: step {step}, {right:.2f} right", file=sys.stderr)
    )
    found: dict[str, Any] = {"kind": name, "class": type(model).__name__, "steps": steps, "trained": round(share, 3)}
    found["says"] = (KINDS[name].__doc__ or "").strip()
    with torch.no_grad():
        for arm, recipe in ARMS.items():
            right, held = answers(model, recipe, count)
            found[arm] = {"recipe": recipe, "right": [int(one) for one in right], "bytes": held}
    return found


def told_of(row: dict[str, Any]) -> dict[str, Any]:
    """A kind's figures: the share answered under each arm, and what the votes are worth over random eviction."""
    shares = {arm: of_scores(row[arm]["right"]) for arm in ARMS}
    over = of_scores([one - other for one, other in zip(row["snapkv"]["right"], row["random"]["right"], strict=True)])
    kept = of_scores([one - other for one, other in zip(row["snapkv"]["right"], row["dense"]["right"], strict=True)])
    return {"shares": shares, "over random": over, "over dense": kept}


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The table as text."""
    yield f"{'kind':16} {'steps':>5} " + " ".join(f"{arm:>7}" for arm in ARMS) + "  snapkv over random"
    for row in rows:
        told = told_of(row)
        shares = " ".join(f"{told['shares'][arm].mean:7.2f}" for arm in ARMS)
        over = told["over random"]
        yield f"{row['kind']:16} {row['steps']:5} {shares}  {over.mean:+.2f} [{over.low:+.2f}, {over.high:+.2f}]"


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="kinds to train")
    parser.add_argument("--steps", type=int, default=1500, help="updates at most")
    parser.add_argument("--questions", type=int, default=256, help="needles asked of each")
    parser.add_argument("--state", type=Path, help="a folder for what is finished, to go on from")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    return parser


def main() -> None:
    """Train, ask, tell."""
    told = arguments().parse_args()
    if told.state is not None:
        told.state.mkdir(parents=True, exist_ok=True)
    rows = [
        once(
            told.state,
            f"{name}-{told.steps}-{told.questions}",
            partial(measured, name, told.steps, told.questions),
        )
        for name in told.only
    ]
    print("\n".join(lines(rows)))
    if told.json is not None:
        facts = {"machine": machine(), "versions": versions(), "steps": told.steps, "questions": told.questions}
        told.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
