"""DREAM's drafter beside itself without cross-attention, and beside a fixed layer to learn from: tokens a pass.

    python benchmarks/dream.py --json docs/data/decode/dream.json

Each is trained alike on the built-in novel; prompts are windows that none of them learnt from, and questions of the
comparison. Greedy tokens are those of plain decoding, which is checked. Trainings are kept in --folder.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from headwise.assets import embedded_model, novel
from headwise.bench.job import encode
from headwise.bench.judging.intervals import of_scores, of_strata
from headwise.bench.passes import drafted, per_pass, plain, trained
from headwise.bench.provenance import machine
from headwise.decoding.headed import Headed
from headwise.decoding.heads.base import Trained, heads
from headwise.decoding.heads.dream import DreamHeads
from headwise.decoding.heads.train import Lesson, windows
from headwise.findings import Finding, as_data, part
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_pair, quiet


@heads("dream_uncrossed")
class Uncrossed(DreamHeads):
    """Without cross-attention: its gates stay at 0."""

    def __init__(self, model: Any, depth: int) -> None:
        super().__init__(model, depth)
        self.gates.requires_grad_(False)


@heads("dream_fixed")
class Fixed(DreamHeads):
    """Learns from the last of the early layers, whichever looked most sharply."""

    def early(self, model: Any) -> range:
        return super().early(model)[-1:]


@heads("dream_alone")
class Alone(DreamHeads):
    """Learns from the last states alone."""

    def middle(self, model: Any, ids: torch.Tensor) -> torch.Tensor | None:
        return None


Prompts = list[tuple[torch.Tensor, list[int]]]  # with what plain decoding writes after each
WORDS = {
    "dream": "`dream`",
    "dream_uncrossed": "without cross-attention",
    "dream_fixed": "learning from one early layer",
    "dream_alone": "learning from the last states alone",
}


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(embedded_model()))
    parser.add_argument("--kinds", nargs="+", default=list(WORDS), choices=list(WORDS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("out/dream"))
    parser.add_argument("--json", type=Path, help="A table of figures for the docs.")
    return parser


def tokens_a_pass(model: Any, path: Path, kind: str, prompts: Prompts, given: argparse.Namespace) -> list[float]:
    """What a drafter brings for each prompt: new tokens by passes over drafts."""
    found = []
    for ids, want in prompts:
        got, ledger = drafted(model, ids, Headed(model, kind, path, given.nodes), given.new)
        assert got == want, kind
        found.append(per_pass(ledger))
    return found


def main() -> None:
    """A line for every drafter."""
    given = arguments().parse_args()
    quiet()
    given.folder.mkdir(parents=True, exist_ok=True)
    tokenizer, model = load_pair(given.model, "float32")  # in bfloat16 near ties fall either way
    ids = encode(tokenizer, novel(), start=True)[0]
    _, others = windows([ids], Lesson("", window=given.window))
    cut = [one[None, : given.tokens] for one in others[:: max(1, len(others) // given.prompts)]][: given.prompts]
    prompts = [(one, plain(model, one, given.new)) for one in cut]
    rows: dict[str, dict[str, Any]] = {}
    for kind in given.kinds:
        path = trained(model, ids, Lesson(kind, steps=given.steps, window=given.window, seed=given.seed), given.folder)
        own = Trained.load(path, kind, model, attach(model).fingerprint)
        brought = tokens_a_pass(model, path, kind, prompts, given)
        first = rows.get("dream", {"brought": brought})["brought"]
        gaps = [one - other for one, other in zip(first, brought, strict=True)]
        rows[kind] = {"hits": [[round(hit, 4) for hit in one] for one in own.hits], "brought": brought,
                      "mean": asdict(of_strata([brought])), "dream_over": asdict(of_strata([gaps]))}  # fmt: skip
        print(kind, json.dumps({name: one for name, one in rows[kind].items() if name != "brought"}), flush=True)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(figures(rows, given), indent=1) + "\n")


def figures(rows: dict[str, dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    """The rows as a table of figures."""
    said = f"--steps {given.steps} --window {given.window} --prompts {given.prompts} --tokens {given.tokens}"
    cells = []
    for kind, row in rows.items():
        mean, gap = row["mean"], row["dream_over"]
        best = [f"{100 * one[0]:.1f} %" for one in row["hits"]]
        told = f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]" if kind != "dream" else ""
        cells.append([WORDS[kind], *best, f"{mean['mean']:.3f} ({mean['low']:.2f} to {mean['high']:.2f})", told])
    typed = ["python", f"benchmarks/{Path(__file__).name}", said, "--new", str(given.new), "--kinds", *rows]
    run: dict[str, Any] = {
        "command": " ".join(typed), "date": date.today().isoformat(),
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()),
    }  # fmt: skip
    return {
        "source": f"{given.steps} steps of {given.window} tokens, {given.prompts} prompts of {given.tokens} tokens",
        **run, "model": Path(given.model).name, "rows": cells,
        "columns": ["drafter", "first guess", "second", "third", "tokens a pass", "dream over it"],
        "findings": as_data(found(rows, Path(given.model).name, given, run)),
    }  # fmt: skip


def found(rows: dict[str, dict[str, Any]], model: str, given: argparse.Namespace, run: dict[str, Any]) -> list[Finding]:
    """What it shows of row 128, where both of the paper's ideas have been left out once."""
    controls = {"dream_uncrossed": "the same without cross-attention", "dream_fixed": "the same of one early layer"}
    if given.prompts < 64 or not controls.keys() <= rows.keys():
        return []
    parts = [part("tokens a pass", of_strata([rows["dream"]["brought"]]), above=1.0)]
    parts.append(part("prompts after which what is written is plain decoding's", of_scores([1.0] * given.prompts),
                      above=0.9))  # fmt: skip
    for kind, control in controls.items():
        gaps = [one - other for one, other in zip(rows["dream"]["brought"], rows[kind]["brought"], strict=True)]
        parts.append(part("tokens a pass over it", of_strata([gaps]), control, above=0.0))
    host = f"{model}, {given.steps} steps on the novel, {given.prompts} prompts of its tenth that was left out"
    says = "cross-attention to the model's states and the sharpest early layer each bring tokens a pass"
    return [Finding(row=128, says=says, host=host, parts=tuple(parts), leaves_out="image tokens", **run)]


if __name__ == "__main__":
    main()
