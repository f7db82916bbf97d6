"""The figures of the model card, measured on the exported folder with transformers."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.progress import Progress

from headwise.files import write_json, write_text

from . import probes
from .encode import Encoder

LENGTHS = (1024, 2048, 4096, 8192, 16_384)
DEPTHS = tuple(i / 9 for i in range(10))
COPIES = (("text", "exact"), ("random", "exact"), ("random", "tokens"))
TRACES = ((8, 2), (8, 3))  # (chains, hops)
LICENCES = {
    "books_standard_ebooks": "public domain, editions CC0 1.0",
    "novels_litbank": "public domain",
    "code": "BSD-3-Clause, MIT, Apache-2.0, PSF-2.0",
    "dialogue_sgd": "CC BY-SA 4.0, Schema-Guided Dialogue by Google",
    "speeches_inaugural": "public domain",
    "speeches_state_union": "public domain",
    "tinyshakespeare": "public domain",
}


@dataclass(frozen=True)
class Scope:
    """How much is measured: documents per length, context lengths in tokens, seed."""

    trials: int = 10
    lengths: tuple[int, ...] = LENGTHS
    seed: int = 7


def _share(hits: Iterable[bool | float]) -> float:
    """Mean, four decimals; NaN of nothing."""
    values = [float(h) for h in hits]
    return round(sum(values) / len(values), 4) if values else float("nan")


class _Measurement:
    """One model, its sources and a progress callback called after every document."""

    def __init__(self, model: Any, data: Path, scope: Scope, tick: Callable[[], None]) -> None:
        encoder = Encoder(data)
        self.model, self.scope, self.tick = model, scope, tick
        self.reader = probes.Reader(model, encoder)
        self.sources = probes.Sources(data, encoder)

    def _rng(self, what: str, size: int, trial: int) -> Random:
        return Random(f"{self.scope.seed}/{what}/{size}/{trial}")

    def perplexity(self) -> dict[str, Any]:
        """Perplexity of whole validation novels by position, in windows as long as the model has positions."""
        edges = [0, *(size for size in LENGTHS if size <= self.model.config.max_position_embeddings)]
        sums, counts = [0.0] * (len(edges) - 1), [0] * (len(edges) - 1)
        for trial in range(self.scope.trials):
            ids = self.sources.window(self._rng("perplexity", edges[-1], trial), edges[-1] - 1)
            losses = probes.window_losses(self.model, ids)
            for i, (low, high) in enumerate(pairwise(edges)):
                part = losses[low:high]
                sums[i] += float(part.sum())
                counts[i] += len(part)
            self.tick()
        names = [f"{low}-{high}" for low, high in pairwise(edges)]
        by_position = {n: round(math.exp(s / c), 3) for n, s, c in zip(names, sums, counts, strict=True) if c}
        return {"by_position": by_position, "tokens": sum(counts), "windows": self.scope.trials}

    def needle(self) -> dict[str, Any]:
        """Accuracy by length and depth, ten facts a document; and of single facts by length."""
        grid: dict[str, list[float]] = {}
        single: dict[str, float] = {}
        for size in self.scope.lengths:
            rows, alone = [], []
            for trial in range(self.scope.trials):
                rng = self._rng("needle", size, trial)
                rows.append(probes.needle(self.reader, self.sources, rng, size, DEPTHS))
                alone.append(probes.single_needle(self.reader, self.sources, rng, size, rng.random()))
                self.tick()
            grid[str(size)] = [_share(column) for column in zip(*rows, strict=True)]
            single[str(size)] = _share(alone)
        lowest = {size: min(row) for size, row in grid.items()}
        return {
            "depths": [round(d, 3) for d in DEPTHS],
            "grid": grid,
            "mean": {size: _share(row) for size, row in grid.items()},
            "lowest_depth": lowest,
            "single": single,
            "documents_per_cell": self.scope.trials,
            "chance": "below 0.01",
        }

    def recall(self) -> dict[str, Any]:
        """Key-value recall by length of the list."""
        found = {}
        for size in self.scope.lengths:
            hits: list[bool] = []
            for trial in range(self.scope.trials):
                hits += probes.records(self.reader, self.sources, self._rng("kv", size, trial), size)
                self.tick()
            found[str(size)] = _share(hits)
        asked = 16 * self.scope.trials
        return {"exact": found, "questions_per_length": asked, "records": probes.RECORDS, "chance": "1 / records"}

    def copying(self) -> dict[str, Any]:
        """Copying of a marked passage, of text and of random tokens, over the length in between."""
        found: dict[str, dict[str, dict[str, float]]] = {"text": {}, "random": {}}
        for name, rows in found.items():
            for size in self.scope.lengths:
                pairs = []
                for trial in range(self.scope.trials):
                    rng = self._rng(f"copy {name}", size, trial)
                    pairs.append(probes.copying(self.reader, self.sources, rng, size, name == "random"))
                    self.tick()
                rows[str(size)] = {"exact": _share(p[0] for p in pairs), "tokens": _share(p[1] for p in pairs)}
        return {**found, "passages_per_length": self.scope.trials, "chance": "below 0.01 (random tokens)"}

    def tracing(self) -> dict[str, Any]:
        """The room at a chain's end, asked directly and as a written trace."""
        found: dict[str, Any] = {}
        for count, hops in TRACES:
            rows = {}
            for size in self.scope.lengths:
                rooms: list[bool] = []
                traces: list[bool] = []
                for trial in range(self.scope.trials):
                    rng = self._rng(f"hops {hops}", size, trial)
                    a, b = probes.tracing(self.reader, self.sources, rng, size, (count, hops))
                    rooms, traces = rooms + a, traces + b
                    self.tick()
                rows[str(size)] = {"room": _share(rooms), "trace": _share(traces)}
            found[f"{hops} hops"] = {"exact": rows, "chance_room": round(1 / count, 3), "chains": count}
        return {**found, "questions_per_length": TRACES[0][0] * self.scope.trials}

    def all(self) -> dict[str, Any]:
        """Every figure."""
        return {
            "perplexity": self.perplexity(),
            "needle": self.needle(),
            "kv_recall": self.recall(),
            "copying": self.copying(),
            "tracing": self.tracing(),
        }


def _table(title: str, head: list[str], rows: list[list[object]]) -> list[str]:
    """A markdown table under a heading."""
    lines = [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]
    return [*lines, ""]


def _origin(figures: dict[str, Any]) -> list[str]:
    """What was trained, on what, for how long."""
    training, documents = figures["training"], figures["train_documents"]
    groups = Counter(path.split("/")[0] for path in documents)
    sources = [f"{count} from `{group}` ({LICENCES.get(group, 'see the corpus')})" for group, count in groups.items()]
    return [
        "# The embedded model",
        "",
        f"A Llama of {figures['parameters']:,} parameters ({figures['architecture']}), made by "
        f"`headwise train embedded` (recipe {training['recipe']}): {training['tokens']:,} tokens in "
        f"{training['seconds'] / 60:.0f} minutes of wall time, at contexts up to "
        f"{figures['headwise_context']} tokens. It starts with planted induction heads "
        "(`headwise.models.embedded.planting`) and is trained on text and on synthetic recall, copying and tracing. "
        "It is made to use its context and to be small; it knows nothing and does not converse.",
        "",
        f"Data, the train split only: {len(documents)} documents: {'; '.join(sources)}. The weights are Apache-2.0, as "
        "the project.",
        "",
        f"Measured by `headwise train measure` with dense attention, {figures['dtype']} on {figures['device']}, seed "
        f"{figures['seed']}. Keys and texts were not trained on. An answer counts when greedy decoding gives every "
        "token of it.",
        "",
    ]


def card(figures: dict[str, Any]) -> str:
    """The model card's markdown from the figures."""
    sizes = [str(s) for s in figures["lengths"]]
    needle, tracing, copying = figures["needle"], figures["tracing"], figures["copying"]
    lines = _origin(figures)
    perplexity = figures["perplexity"]
    lines += _table(
        f"Perplexity of validation novels ({perplexity['tokens']:,} tokens)",
        ["position", "perplexity per token"],
        [[k, v] for k, v in perplexity["by_position"].items()],
    )
    lines += _table(
        f"Needle accuracy by length and depth ({needle['documents_per_cell']} documents a cell, ten facts each)",
        ["length", *[f"{d:.0%}" for d in needle["depths"]], "mean", "single fact"],
        [[s, *needle["grid"][s], needle["mean"][s], needle["single"][s]] for s in sizes],
    )
    lines += _table(
        "Key-value recall and copying (exact)",
        ["length", "recall", "text passage", "random passage", "random, tokens"],
        [[s, figures["kv_recall"]["exact"][s], *[copying[a][s][b] for a, b in COPIES]] for s in sizes],
    )
    hops = [name for name in tracing if name.endswith("hops")]
    chance = ", ".join(f"{name} {tracing[name]['chance_room']}" for name in hops)
    lines += _table(
        f"Multi-hop tracing (chance of the room: {chance})",
        ["length", *[f"{name}, {way}" for name in hops for way in ("room", "trace")]],
        [[s, *[tracing[name]["exact"][s][way] for name in hops for way in ("room", "trace")]] for s in sizes],
    )
    return "\n".join(lines)


def _architecture(config: Any) -> str:
    """The sizes in one line."""
    return (
        f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, {config.num_attention_heads} query and "
        f"{config.num_key_value_heads} KV heads of {config.head_dim}, vocabulary {config.vocab_size}"
    )


def measure(model: Path, data: Path, out: Path, scope: Scope | None = None, device: str = "auto") -> dict[str, Any]:
    """Measure the folder `model` with the token files `data`; writes figures.json and card.md into `out`."""
    from transformers import AutoModelForCausalLM

    scope = scope or Scope()
    name = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto", attn_implementation="sdpa")
    network = network.to(name).eval()
    documents = scope.trials * (1 + len(scope.lengths) * (2 + 2 + len(TRACES)))
    with Progress() as progress:
        bar = progress.add_task("measuring", total=documents)
        figures = _Measurement(network, data, scope, lambda: progress.advance(bar)).all()
    head = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if name == "cuda" else name,
        "architecture": _architecture(network.config),
        "headwise_context": network.config.headwise_context,
        "training": json.loads((model / "training.json").read_text()),
        "train_documents": json.loads((data / "meta.json").read_text())["train"]["paths"],
        "lengths": list(scope.lengths),
        "trials": scope.trials,
        "seed": scope.seed,
    }
    figures = {**head, **figures}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "figures.json", figures)
    write_text(out / "card.md", card(figures))
    return figures
