"""What the embedded model scores on every task with dense attention: which tasks can tell methods apart on it.

    python benchmarks/tasks.py --contexts 1024 4096 --items 4

Writes the scores, their chance and what was asked (a hash) beside the model, where `headwise.tasks.answerable`
reads them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from headwise import tasks
from headwise.assets import embedded_model, embedded_scores
from headwise.bench.job import encode
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.drive import continuation_nll, generate, prefill
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet
from headwise.tasks.base import Item, Task, chance, digest


def answers(model: Any, tokenizer: Any, item: Item) -> list[str]:
    """What dense attention writes for every ask of an item."""
    cache = Cache(model, "")
    prefill(model, cache, encode(tokenizer, item.document, start=True))
    outputs = []
    for ask in item.asks:
        new = generate(model, cache.fork(), encode(tokenizer, ask.prompt), ask.limit)[0].tolist()
        outputs.append(tokenizer.decode(new, skip_special_tokens=True))
    return outputs


def scored(model: Any, tokenizer: Any, task: Task, items: list[Item]) -> dict[str, Any]:
    """Mean score over all asks."""
    told = [
        (ask, output) for item in items for ask, output in zip(item.asks, answers(model, tokenizer, item), strict=True)
    ]
    scores = [task.score(ask, output) for ask, output in told]
    for ask, output in told[:2]:
        print(f"    {ask.prompt[-60:]!r} -> {output[:60]!r}, expected {ask.expected[:2]!r}", flush=True)
    mean = sum(scores) / len(scores)
    return {"score": round(mean, 4), "chance": round(chance(items), 4), "asks": len(scores), "digest": digest(items)}


def perplexity(model: Any, tokenizer: Any, stretches: list[Any]) -> dict[str, Any]:
    """Nats per token of the continuations."""
    total = count = 0.0
    for one in stretches:
        cache = Cache(model, "")
        prefill(model, cache, encode(tokenizer, one.document, start=True))
        nll, tokens = continuation_nll(model, cache, encode(tokenizer, one.continuation))
        total, count = total + nll, count + tokens
    return {"nats": round(total / count, 4), "tokens": int(count), "digest": digest(stretches)}


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--items", type=int, default=4, help="documents of a task and context")
    parser.add_argument("--tasks", nargs="+", help="phrases such as niah_multikey(keys=4); all tasks by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=embedded_scores())
    return parser


def main() -> None:
    """Measure, print and write."""
    options = arguments().parse_args()
    quiet()
    torch.set_grad_enabled(False)
    folder = str(embedded_model())
    model, tokenizer = load_model(folder), load_tokenizer(folder)

    def tokens(text: str) -> int:
        return encode(tokenizer, text).shape[1]

    found = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for phrase in options.tasks or [name for name in tasks.everything() if name != "file"]:
        task = tasks.task(phrase)
        for context in options.contexts:
            if isinstance(task, Task):
                items = task.items(tokens, context, options.items, options.seed)
                row = scored(model, tokenizer, task, items)
            else:
                row = perplexity(model, tokenizer, task.texts(tokens, context, options.items, options.seed))
            found.setdefault(phrase, {})[str(context)] = {**row, "items": options.items, "version": task.version}
            print(f"{phrase:24} {context:6}  {row}", flush=True)
        options.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
