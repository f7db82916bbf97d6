"""How long tuning takes by layers x KV heads: the table of what each head can do without, and the knapsack.

    python benchmarks/tuning_time.py [--tokens 512] [--model embedded 0.5b]

The first part is random models of one width with 2 to 16 layers and 2, 4 and 8 KV heads; seconds are told against heads
by a straight line. The second is whole models, with documents of random ids: the time of one document under every
candidate of the built-in menu. Times are of one thread's processor (`time.process_time`), so that what else runs counts
little; the cost of a table does not depend on what the weights know.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import torch
from calibrate import recall
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from headwise.recipe import Recipe
from headwise.seams.transformers.cache import attach
from headwise.tune.knapsack import spend
from headwise.tune.menu import default_menu
from headwise.tune.table import measure

LAYERS, KV_HEADS = (2, 4, 8, 16), (2, 4, 8)
FEW = ("dense", "int4", "streaming(0.1)", "keydiff(0.1)", "snapkv(0.1) | int4")  # candidates of the first part
QUESTIONS = 6  # of a document, as `headwise tune` asks at most
BUDGET = 0.1


def shaped(layers: int, kv_heads: int) -> PreTrainedModel:
    """A random model, 8 query heads of 32 in every layer, of which `kv_heads` have keys of their own."""
    config = Qwen2Config(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=kv_heads, max_position_embeddings=4096, bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).to(torch.bfloat16).eval()


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def table_seconds(model: PreTrainedModel, tokens: int, menu: list[Recipe]) -> tuple[float, float]:
    """Of the table of one document of `tokens`: what is spent once, to read and to differentiate it, and on all
    candidates of the menu."""
    attach(model)
    document, marks = recall(model, tokens, QUESTIONS), [time.process_time()]
    with tempfile.TemporaryDirectory() as folder:  # told before each candidate, and at the end
        measure(model, [document], menu, Path(folder), lambda *_: marks.append(time.process_time()))
    return marks[1] - marks[0], marks[-1] - marks[1]


def knapsack_seconds(layers: int, kv_heads: int, recipes: int) -> float:
    """Of choosing for every head among random losses and bytes, at a tenth of the dearest."""
    draw = np.random.default_rng(0)
    kept = draw.random(recipes) * 0.9 + 0.01
    costs = np.repeat((kept * 1e6).astype(np.int64)[:, None], layers, axis=1)
    losses = (1 - kept)[:, None, None] * np.exp(draw.normal(0, 2, (recipes, layers, kv_heads)))
    return seconds(lambda: spend(losses, costs, [kv_heads] * layers, int(BUDGET * 1e6 * layers * kv_heads)))


def told_line(what: str, sizes: list[int], taken: list[float]) -> str:
    """The straight line through `taken` over `sizes`, and how much of the variance it tells."""
    slope, start = np.polyfit(sizes, taken, 1)
    rest = np.array(taken) - (slope * np.array(sizes) + start)
    told = 1 - float(rest.var() / np.var(taken))
    return f"{what}: {start:.3f} s + {slope * 1e3:.2f} ms each, R2 {told:.3f}"


def by_size(tokens: int, depths: list[int], widths: list[int]) -> None:
    """Tables of random models: by layers at each number of KV heads, then over all, by layers x heads."""
    menu = [Recipe.parse(one) for one in FEW]
    table_seconds(shaped(2, 2), tokens, menu)  # pays for what is set up once
    print(f"table of one document of {tokens} tokens, {len(menu)} candidates, by layers at each number of KV heads, s")
    heads, layers, taken = [], [], []
    for kv_heads in widths:
        row = [sum(table_seconds(shaped(one, kv_heads), tokens, menu)) for one in depths]
        print(f"  {kv_heads} KV heads: " + "  ".join(f"{n} layers {s:.2f}" for n, s in zip(depths, row, strict=True)))
        print("  " + told_line("  by layer", depths, row))
        heads, layers, taken = heads + [kv_heads * n for n in depths], layers + depths, taken + row
    print(told_line("table over all, by layers", layers, taken))
    print(told_line("table over all, by layers x KV heads", heads, taken))
    sizes = [64, 128, 256, 512, 1024, 2048]
    taken = [knapsack_seconds(one // 8, 8, len(default_menu())) for one in sizes]
    print("knapsack, s: " + "  ".join(f"{n} heads {s:.3f}" for n, s in zip(sizes, taken, strict=True)))
    print(told_line("knapsack by head", sizes, taken))


def whole(name: str, tokens: int, candidates: int) -> None:
    """One document of a whole model under the first `candidates` of the menu, evenly spread over it."""
    model, menu = models.load(name), default_menu()
    some = menu[:: max(1, len(menu) // candidates)]
    geometry = attach(model).geometry
    layers, width = geometry.by_head
    heads = sum(geometry.kv_heads)
    once, taken = table_seconds(model, tokens, some)
    each = taken / len(some)
    print(
        f"{name}: {layers} x {width} = {heads} heads, one document of {tokens} tokens with "
        f"{QUESTIONS} questions: {once:.2f} s to read and differentiate it, {each:.2f} s a candidate (of "
        f"{len(some)} measured), {each / heads * 1e3:.1f} ms by head and candidate; all {len(menu)} would take "
        f"{once + each * len(menu):.0f} s a document"
    )


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512, help="of the documents of the random models")
    parser.add_argument("--layers", type=int, nargs="+", default=list(LAYERS), help="of the random models")
    parser.add_argument("--kv-heads", type=int, nargs="+", default=list(KV_HEADS), help="of the random models")
    parser.add_argument("--model", nargs="*", default=["embedded"], help="whole models, as in benchmarks/models.py")
    parser.add_argument("--whole-tokens", type=int, default=1536)
    parser.add_argument("--candidates", type=int, default=6, help="of the menu, for whole models")
    return parser


def main() -> None:
    """Print lines."""
    given = arguments().parse_args()
    torch.set_num_threads(1)
    if given.tokens:
        by_size(given.tokens, given.layers, given.kv_heads)
    for name in given.model:
        whole(name, given.whole_tokens, given.candidates)


if __name__ == "__main__":
    main()
