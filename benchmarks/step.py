"""A whole model's decoding step beside transformers' own: where the time of a token goes, and what each remedy gives.

    python benchmarks/step.py --model 1b --contexts 8192 32768 --steps 6

A random model of Llama-3.2-1B's shape by default. Caches are filled as a prompt of that length would leave them,
without reading one (times do not depend on what they hold). Arms take turns; medians of seconds per token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import models
import torch
from transformers import DynamicCache, PreTrainedModel

from headwise.bench.provenance import machine, versions
from headwise.compiled.fast import fast
from headwise.compiled.linear import stream_linears
from headwise.cost.pace import primed
from headwise.seams.transformers.forward import forward

RECIPES = {
    "headwise": "",
    "headwise int8": "int8",
    "headwise int4": "int4",
    "headwise, 1,024 tokens": "streaming(1024)",
}


def filled(model: PreTrainedModel, recipe: str | None, tokens: int) -> object:
    """A cache that holds `tokens` tokens, or what the recipe keeps of them; None: transformers' own, of random ones."""
    if recipe is not None:
        return primed(model, recipe, tokens)
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (1, config.num_key_value_heads, tokens, width)
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        cache.update(*(torch.randn(shape, dtype=model.dtype) for _ in "kv"), layer)
    return cache


def stepper(model: PreTrainedModel, cache: object, tokens: int, attention: str) -> Callable[[], float]:
    """Seconds of one more token on the cache."""
    place = [tokens]

    def step() -> float:
        model.set_attn_implementation(attention)
        ids = torch.randint(3, model.config.vocab_size, (1, 1))
        positions = torch.tensor([[place[0]]])
        start = time.perf_counter()
        with torch.no_grad():
            forward(model, cache, ids, position_ids=positions)
        place[0] += 1
        return time.perf_counter() - start

    return step


def compare(model: PreTrainedModel, tokens: int, steps: int, peers: bool) -> dict[str, float]:
    """Median seconds per token by arm."""
    arms = {name: stepper(model, filled(model, recipe, tokens), tokens, "headwise") for name, recipe in RECIPES.items()}
    if peers:
        arms["transformers sdpa"] = stepper(model, filled(model, None, tokens), tokens, "sdpa")
    times: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(steps + 1):
        for name in list(arms) if i % 2 else reversed(list(arms)):
            seconds = arms[name]()
            if i:  # the first is a warm-up
                times[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="1b", choices=sorted(models.SHAPES))
    parser.add_argument("--contexts", type=int, nargs="*", default=[8192, 32768])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    args = arguments().parse_args()
    model = models.load(args.model, dtype=torch.bfloat16)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for linears in ("torch", "streamed", "compiled"):  # the last: with all else of a decoder layer but its attention
        if linears == "streamed":
            stream_linears(model)
        if linears == "compiled":
            print(f"\n{fast(model)}")
        for tokens in args.contexts:
            own = compare(model, tokens, args.steps, peers=linears == "torch")
            found.setdefault(linears, {})[str(tokens)] = own
            print(f"\n{args.model}, {tokens} tokens, linear layers: {linears}")
            for name, seconds in own.items():
                print(f"  {name:24} {seconds * 1e3:8.1f} ms per token", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"seconds": found, "machine": machine(), "versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
