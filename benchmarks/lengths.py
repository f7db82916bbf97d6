"""A plan that was tuned at one length, used at others: its shares of tokens grow with the prompt, what do they lose?

    python benchmarks/lengths.py [--plan FILE] [--tokens 1024 2048 4096 8192] [--rival "keydiff | int4"]

Documents are of the test split, one of each task, which no plan was tuned on; the rival gets the plan's own bytes at
each length, fitted anew. An answer is right where greedy decoding would give all of it; the loss is KL(dense || plan)
in nats by answer token. Dense attention stands beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from headwise.assets import embedded_model, embedded_plan
from headwise.bench.job import encode
from headwise.bench.taskbook import DEFAULT_TASKS, build_task
from headwise.calibrate.answers import Told, dense_answers, told
from headwise.calibrate.heads import Recall
from headwise.engine.budget import fitted, predicted_bytes
from headwise.engine.hf import attach
from headwise.engine.load import load_model, load_tokenizer, quiet
from headwise.plan import Plan
from headwise.recipe import Recipe

ASKS = 4  # of a document


def documents(tokenizer: object, tasks: list[str], tokens: int, seed: int) -> list[Recall]:
    """One document of each task with its questions and true answers."""
    found = []
    for name in tasks:
        (item,) = build_task(name).items(lambda text: encode(tokenizer, text).shape[1], tokens, 1, seed)
        asked = [(encode(tokenizer, a.prompt), encode(tokenizer, a.expected[0])) for a in item.asks[:ASKS]]
        found.append(Recall(encode(tokenizer, item.document, start=True), tuple(asked)))
    return found


def mean(found: list[Told]) -> str:
    """Over documents."""
    loss, right = (sum(getattr(one, what) for one in found) / len(found) for what in ("loss", "right"))
    return f"{right:6.1%} right, {loss:.4f} nats"


def main() -> None:
    """A line for every length and row, as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=embedded_plan(0.1))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--tasks", nargs="+", default=list(DEFAULT_TASKS))
    parser.add_argument("--rival", default="keydiff | int4")
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    place = str(embedded_model())
    model, tokenizer, plan = load_model(place), load_tokenizer(place), Plan.load(given.plan)
    geometry = attach(model).geometry
    for tokens in given.tokens:
        held = predicted_bytes(plan, tokens, model.dtype)
        rival = fitted(geometry, Recipe.parse(given.rival), held, tokens, model.dtype)
        rows: dict[str, Plan] = {"dense": Plan.uniform(geometry, ""), given.plan.stem: plan}
        rows[given.rival] = Plan.uniform(geometry, rival)
        found: dict[str, list[Told]] = {name: [] for name in rows}
        for recall in documents(tokenizer, given.tasks, tokens, given.seed):
            answers = dense_answers(model, recall)
            for name, one in rows.items():
                found[name].append(told(model, one, answers, given.seed))
        share = held / geometry.dense_bytes(tokens, model.dtype)
        for name, ones in found.items():
            print(
                f"{tokens:6} tokens, {1 if name == 'dense' else share:6.1%} of dense  {name:20} {mean(ones)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
