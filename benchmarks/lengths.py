"""Plans that were tuned at one length, used at others: their shares of tokens grow with the prompt, what do they lose?

    python benchmarks/lengths.py [--plan FILE ...] [--tokens 1024 2048 4096 8192] [--rival "keydiff | int4"]

Documents are of the test split, one of each task, which no plan was tuned on; beside each plan stands the rival with
the plan's own bytes at each length, fitted anew. An answer is right where greedy decoding would give all of it; the
loss is KL(dense || plan) in nats by answer token. Dense attention stands beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from headwise.assets import embedded_model, embedded_plan
from headwise.bench.job import recalls
from headwise.calibrate.answers import AnswerScore, answer_score, dense_answers
from headwise.cost.prediction import fitted, predicted_bytes
from headwise.observe import Recall
from headwise.plan import Plan
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet
from headwise.tasks.taskbook import DEFAULT_TASKS, build_task

ASKS = 4  # of a document


def documents(tokenizer: object, tasks: list[str], tokens: int, seed: int, asks: int = ASKS) -> list[Recall]:
    """One document of each task with at most `asks` of its questions and true answers."""
    return [one for name in tasks for one in recalls(tokenizer, build_task(name), tokens, 1, seed, asks)]


def mean(found: list[AnswerScore]) -> str:
    """Over documents."""
    loss, right = (sum(getattr(one, what) for one in found) / len(found) for what in ("loss", "right"))
    return f"{right:6.1%} right, {loss:.4f} nats"


def rows(plans: dict[str, Plan], rival: str, tokens: int, model: PreTrainedModel) -> dict[str, tuple[Plan, float]]:
    """What is measured at a length, with its share of dense bytes: dense, every plan, and the rival at its bytes."""
    geometry = attach(model).geometry
    found = {"dense": (Plan.uniform(geometry, ""), 1.0)}
    for name, plan in plans.items():
        held = predicted_bytes(plan, tokens, model.dtype)
        share = held / geometry.dense_bytes(tokens, model.dtype)
        alike = fitted(Plan.uniform(geometry, rival), held, tokens, model.dtype)
        found |= {name: (plan, share), f"{rival} @ {name}": (Plan.uniform(geometry, alike), share)}
    return found


def tried(
    model: PreTrainedModel, tokenizer: object, plans: dict[str, Plan], tasks: list[str], tokens: int, seed: int
) -> dict[str, list[AnswerScore]]:
    """What every plan does to the answers about each document."""
    found: dict[str, list[AnswerScore]] = {name: [] for name in plans}
    for recall in documents(tokenizer, tasks, tokens, seed):
        answers = dense_answers(model, recall)
        for name, plan in plans.items():
            found[name].append(answer_score(model, plan, answers, seed))
    return found


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, nargs="+", default=[embedded_plan(share) for share in (0.25, 0.1, 0.05)])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--tasks", nargs="+", default=list(DEFAULT_TASKS))
    parser.add_argument("--rival", default="keydiff | int4")
    parser.add_argument("--seed", type=int, default=11)
    return parser


def main() -> None:
    """A line for every length and row, as soon as it is known."""
    given = arguments().parse_args()
    quiet()
    torch.set_num_threads(1)
    place = str(embedded_model())
    model, tokenizer = load_model(place), load_tokenizer(place)
    plans = {path.stem: Plan.load(path) for path in given.plan}
    for tokens in given.tokens:
        measured = rows(plans, given.rival, tokens, model)
        alone = {name: plan for name, (plan, _) in measured.items()}
        found = tried(model, tokenizer, alone, given.tasks, tokens, given.seed)
        for name, (_, share) in measured.items():
            print(f"{tokens:6} tokens, {share:6.1%} of dense  {name:24} {mean(found[name])}", flush=True)


if __name__ == "__main__":
    main()
