"""What codecs keep on really pretrained models: facts asked after a text was read, and the likelihood of its going on.

    python benchmarks/cache_codecs.py smollm2 gemma3 --documents 4 --tokens 2600 --out docs/data/keep_less/codecs.json

Models are folders, or names of those in ~/.cache/headwise/models. Dense attention reads every text once and each recipe
is given what it read. An answer is right where each of its tokens is the most likely one after the question and those
before it, as greedy decoding would write it. Only questions that dense attention answers are asked of the others.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import headwise
from headwise.assets import novel
from headwise.bench.job import encode
from headwise.bench.provenance import machine
from headwise.cli.figures import Figures
from headwise.models.embedded import tasks
from headwise.seams.transformers.drive import forced
from headwise.seams.transformers.replay import Recording, open_prompt, read_once

RECIPES = (
    "int8",
    "int4",
    "kivi(4, value=4)",
    "balanced",
    "balanced(4, value=2, group=32)",
    "balanced(2, group=32)",
    "int2",
)
FACTS, AFTER = 16, 257


@dataclass(frozen=True)
class Text:
    """ids [1, n] of a stretch of the novel with facts in it, what comes after it, and questions with answers [1, m]."""

    ids: torch.Tensor
    after: torch.Tensor
    asked: tuple[tuple[torch.Tensor, torch.Tensor], ...]


def text(tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int) -> Text:
    """One of about `tokens` tokens."""
    whole = novel()[50_000 + 40_000 * seed :]
    start = whole.index(". ") + 2
    end = start + 4 * tokens
    facts = tasks.draw_facts(Random(f"claims/{seed}"), FACTS, held=True)
    depths = [(i + 0.5) / FACTS for i in range(FACTS)]
    planted = tasks.plant(whole[start:end], [fact.sentence for fact in facts], depths)
    asked = tuple((encode(tokenizer, fact.question), encode(tokenizer, fact.answer)) for fact in facts)
    after = encode(tokenizer, whole[end : end + 4000])[:, :AFTER]
    return Text(encode(tokenizer, planted, start=True), after, asked)


def losses(model: PreTrainedModel, cache: headwise.Cache, before: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Nats of each of `ids [1, m]` after `before [1, k]`, and -1 of those that are the most likely, [m, 2]."""
    logits = torch.cat(list(forced(model, cache, torch.cat((before, ids[:, :-1]), 1)))).float()[-ids.shape[1] :]
    likely = logits.log_softmax(-1)
    return torch.stack((-likely.gather(1, ids.mT)[:, 0], -(logits.argmax(-1) == ids[0]).float()), 1)


def measure(model: PreTrainedModel, texts: list[tuple[Text, Recording]], recipe: str, known: list[list[bool]]) -> dict:
    """What a recipe holds and keeps of the questions that are `known`."""
    nats, right, held, dense = [], [], 0, 0
    for (one, recording), own in zip(texts, known, strict=True):
        read = headwise.Cache(model, recipe)
        open_prompt(model, read, one.ids, recording)
        held, dense = held + read.session.cache_bytes(), dense + read.session.dense_bytes()
        nats.append(losses(model, read.fork(), one.after[:, :1], one.after[:, 1:])[:, 0])
        asked = [pair for pair, asks in zip(one.asked, own, strict=True) if asks]
        right.append([bool(losses(model, read.fork(), *pair)[:, 1].all()) for pair in asked])
    return {"nats": torch.cat(nats), "right": right, "share": held / dense}


def table(name: str, documents: int, tokens: int, recipes: list[str]) -> list[dict]:
    """A row for each recipe, dense attention first; printed as they come."""
    folder = Path(name) if Path(name).is_dir() else Path.home() / ".cache/headwise/models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    headwise.attach(model)
    given = [text(tokenizer, tokens, seed) for seed in range(documents)]
    texts = [(one, read_once(model, one.ids)) for one in given]
    known, rows, base = [[True] * FACTS] * documents, [], None
    for recipe in ["", *recipes]:
        found = measure(model, texts, recipe, known)
        if base is None:
            base, known = found, found["right"]
        worse = found["nats"] - base["nats"]
        rows.append({
            "model": name, "recipe": recipe or "dense", "tokens": sum(one.ids.shape[1] for one in given) // documents,
            "share": round(found["share"], 4), "right": sum(map(sum, found["right"])), "of": sum(map(sum, known)),
            "perplexity": round(math.exp(float(found["nats"].mean())), 3),
            "worse": round(math.expm1(float(worse.mean())), 5),
            "error": round(float(worse.std()) / len(worse) ** 0.5, 5),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def figures(rows: list[dict], args: argparse.Namespace) -> Figures:
    """The table of a page."""
    columns = ["model", "recipe", "bytes of dense", "dense attention's answers kept", "perplexity", "change, 95 %"]
    cells = [
        [
            row["model"], f"`{row['recipe']}`", f"{row['share']:.3f}", f"{row['right']} of {row['of']}",
            f"{row['perplexity']:.2f}", f"{row['worse']:+.2%} ± {1.96 * row['error']:.2%}",
        ]
        for row in rows
    ]  # fmt: skip
    given = f"{' '.join(args.models)} --documents {args.documents} --tokens {args.tokens}"
    told = machine()
    return Figures(
        source="a run of its own", command=f"python benchmarks/cache_codecs.py {given}",
        machine=f"{told['processor']}, {told['cores']} cores", date=date.today().isoformat(), columns=columns,
        rows=cells,
    )  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders of models, or smollm2 and gemma3")
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2600)
    parser.add_argument("--recipe", action="append", help="recipes to measure; by default a list of codecs")
    parser.add_argument("--out", type=Path)
    return parser


def main() -> None:
    args = arguments().parse_args()
    torch.set_num_threads(1)
    rows = [row for name in args.models for row in table(name, args.documents, args.tokens, args.recipe or [*RECIPES])]
    if args.out is not None:
        args.out.write_text(figures(rows, args).model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    main()
