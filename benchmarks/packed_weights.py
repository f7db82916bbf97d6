"""What weights in 8 and 4 bits lose of a model's text, and what they take: `headwise.fast(model, weights=...)`.

    python benchmarks/packed_weights.py embedded smollm2 gemma3

The model reads windows of the built-in novel as it is and with packed weights: perplexity, the mean divergence of what
it predicts (KL, in nats a token), how often its first choice stays, and the bytes of its linear layers' weights.
Perplexities are paired by window, with a 95 % bootstrap interval of their ratio.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headwise.assets import embedded_model, novel
from headwise.bench.job import encode
from headwise.bench.judging.intervals import of_strata
from headwise.bench.provenance import machine
from headwise.compiled.packed import WEIGHTS, PackedLinear, pack_linears
from headwise.seams.transformers.load import load_pair, quiet


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="embedded, or what `headwise run` takes as a model")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--json", type=Path, help="a table of figures, as docs/data/ holds them")
    return parser


def predictions(model: nn.Module, windows: list[Tensor]) -> list[Tensor]:
    """Log-probabilities [t - 1, vocabulary] of what follows each token but the last, by window, in float16."""
    with torch.no_grad():
        return [model(ids[None]).logits[0, :-1].float().log_softmax(-1).half() for ids in windows]


def nats(found: list[Tensor], windows: list[Tensor]) -> Tensor:
    """Mean nats a token, by window."""
    pairs = zip(found, windows, strict=True)
    return torch.stack([-own.float().gather(1, ids[1:, None]).mean() for own, ids in pairs])


def stored(model: nn.Module) -> int:
    """Bytes of the weights of linear layers, each counted once."""
    found = {}
    for one in model.modules():
        if isinstance(one, nn.Linear | PackedLinear):
            found[id(one.weight) if isinstance(one, nn.Linear) else id(one)] = one.weight.nbytes
    return sum(found.values())


def measure(name: str, count: int, tokens: int) -> list[dict[str, Any]]:
    """A row for the model as it is and for each kind of packed weights."""
    place = str(embedded_model()) if name == "embedded" else name
    tokenizer, whole = load_pair(place, "auto")
    ids = encode(tokenizer, novel())[0]
    stride = (len(ids) - tokens) // count
    windows = [ids[i * stride : i * stride + tokens] for i in range(count)]
    dense = predictions(whole, windows)
    before, bytes_before = nats(dense, windows), stored(whole)
    rows = [{"model": name, "weights": "as they are", "bytes": bytes_before, "perplexity": float(before.mean().exp())}]
    del whole
    for weights in WEIGHTS:
        gc.collect()
        _, model = load_pair(place, "auto")
        pack_linears(model, weights)
        found = predictions(model, windows)
        after = nats(found, windows)
        kl = [_divergence(*pair) for pair in zip(dense, found, strict=True)]
        same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(dense, found, strict=True)]
        more = of_strata([(after - before).tolist()])  # in nats, so that its exponential is a ratio of perplexities
        rows.append({
            "model": name, "weights": weights, "bytes": stored(model), "perplexity": float(after.mean().exp()),
            "ratio": math.exp(more.mean),
            "interval": [math.exp(more.low), math.exp(more.high)],
            "kl": sum(kl) / len(kl), "same_first": float(torch.cat(same).float().mean()),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _divergence(own: Tensor, other: Tensor) -> float:
    """Mean KL of two log-probabilities [n, vocabulary], in nats, some rows at a time."""
    rows = [
        (a.float().exp() * (a.float() - b.float())).sum(-1) for a, b in zip(own.split(64), other.split(64), strict=True)
    ]
    return float(torch.cat(rows).mean())


def figures(rows: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    """The rows as a table of figures."""
    return {
        "source": f"benchmarks/{Path(__file__).name}, {given.windows} windows of {given.tokens} tokens of the novel",
        "command": f"python benchmarks/{Path(__file__).name} {' '.join(map(str, given.models))}",
        "machine": machine()["processor"],
        "date": time.strftime("%Y-%m-%d"),
        "columns": ["model", "weights", "MiB of linear layers", "perplexity", "times", "KL, nats", "same choice"],
        "rows": [
            [
                row["model"], row["weights"], f"{row['bytes'] / 2**20:.1f}", f"{row['perplexity']:.2f}",
                f"{row['ratio']:.4f} [{row['interval'][0]:.4f}, {row['interval'][1]:.4f}]" if "ratio" in row else "",
                f"{row['kl']:.4f}" if "kl" in row else "", f"{row['same_first']:.1%}" if "kl" in row else "",
            ]
            for row in rows
        ],
    }  # fmt: skip


def main() -> None:
    """A row for every model and kind of weights."""
    given = arguments().parse_args()
    quiet()
    rows = [row for name in given.models for row in measure(name, given.windows, given.tokens)]
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(figures(rows, given), indent=1) + "\n")


if __name__ == "__main__":
    main()
