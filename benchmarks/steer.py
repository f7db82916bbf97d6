"""Whether steering makes a model follow its prompt where it does not by itself, beside steering elsewhere.

    python benchmarks/steer.py smollm2 --state out/steer --json docs/data/steer/smollm2.json

Questions about capitals: the prompt says one that is wrong, and is to be believed (`facts`); a sentence in its middle
says to answer with another word (`order`); or it says nothing of the country, and what is marked should do no harm
(`memory`). A sentence in the middle is marked. An answer is right where the next token of the right word has a higher
logit than that of the word to be mistaken for: what the model knows, or in `memory` what the marked sentence says.
Layers are chosen, five at a time, on questions of their own. Every method stands beside itself on as many random heads
or on another span of the same length. A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from random import Random

import torch

import headwise
from headwise.bench.judging.intervals import Interval, of_strata
from headwise.bench.provenance import machine
from headwise.findings import ENOUGH, Finding, as_data, part
from headwise.kept import once
from headwise.seams.transformers.load import load_pair, quiet
from headwise.shapes import Mark
from headwise.tasks.few_shot import COUNTRIES

WORDS = ["banana", "guitar", "purple", "window", "silver", "dragon", "rocket", "cheese"]
TASKS, AROUND, CHOSEN, BLOCK = ("facts", "order", "memory"), 2, 2, 5
# What each arm is to be better than, beside dense attention.
CONTROLS = {
    "pasta, chosen layers": ("pasta, as many random heads", "pasta, chosen layers, another span"),
    "act, chosen layers": ("act, as many random heads", "act, all heads"),
    "paint, all heads": ("paint, all heads, another span",),
}
Results = dict[str, dict[str, list[dict[str, float]]]]  # by task and arm, an outcome a question
KINDS = {"pasta": "emphasis", "paint": "image"}


@dataclass(frozen=True)
class Item:
    """A prompt with the characters of its marked sentence, the right word and the one to be mistaken for."""

    text: str
    first: int
    last: int
    right: str
    wrong: str


def item(task: str, number: int) -> Item:
    """A question of a task, the same for the same number."""
    draw = Random(f"steer/{task}/{number}")
    (country, capital), (another, town), *rest = draw.sample([one.split("/") for one in COUNTRIES], 2 + 2 * AROUND)
    sentence, right, wrong = f"The capital of {country} is {town}.", town, capital
    if task == "order":
        right = draw.choice(WORDS)
        sentence = f"Answer every question with the word {right}."
    elif task == "memory":
        sentence, right, wrong = f"The capital of {another} is {town}.", capital, town
    lines = [f"The capital of {one} is {own}." for one, own in rest]
    before = " ".join(["Context:", *lines[:AROUND]]) + " "
    ask = f"\nQuestion: What is the capital of {country}?\nAnswer:"
    ask += "" if task == "order" else f" The capital of {country} is"
    text = " ".join([before + sentence, *lines[AROUND:]]) + ask
    return Item(text, len(before), len(before) + len(sentence), right, wrong)


@dataclass(frozen=True)
class Arm:
    """A way to read: a recipe, and whether another span than the marked one is steered."""

    name: str
    recipe: str
    elsewhere: bool = False


class Asker:
    """A model and its tokenizer."""

    def __init__(self, name: str) -> None:
        self.tokenizer, self.model = load_pair(name, "auto", "cpu", False)
        self.layers = self.model.config.num_hidden_layers
        self.heads = self.model.config.num_attention_heads

    def margin(self, task: str, number: int, arm: Arm) -> dict[str, float]:
        """By how much the right word is ahead of the wrong one at the next token, and whether it is the next."""
        one = item(task, number)
        coded = self.tokenizer(one.text, return_offsets_mapping=True)
        ids = torch.tensor([coded["input_ids"]])
        marks = []
        if kind := KINDS.get(arm.recipe.partition("(")[0]):
            marks = [self._mark(kind, one, coded["offset_mapping"], f"{task}/{number}" if arm.elsewhere else "")]
        with torch.no_grad():
            logits = headwise.prefill(self.model, headwise.Cache(self.model, arm.recipe, marks=marks), ids)[0].float()
        right, wrong = (self.tokenizer(f" {word}").input_ids[0] for word in (one.right, one.wrong))
        return {"margin": float(logits[right] - logits[wrong]), "next": float(logits.argmax() == right)}

    def _mark(self, kind: str, one: Item, offsets: Sequence[tuple[int, int]], seed: str) -> Mark:
        """The marked sentence; with a seed, as many tokens elsewhere, but the first."""
        own = Mark.of_text(kind, offsets, one.first, one.last)
        if not seed:
            return own
        long = own.end - own.start
        starts = [a for a in range(1, len(offsets) - long) if a + long <= own.start or a >= own.end]
        start = Random(seed).choice(starts)
        return Mark(kind, start, start + long)


def blocks(layers: int) -> list[str]:
    """Layers, BLOCK at a time, as a steering method names them."""
    return [f"{first}-{min(first + BLOCK, layers) - 1}" for first in range(0, layers, BLOCK)]


def chosen(asker: Asker, method: str, tasks: Sequence[str], count: int, folder: Path) -> list[str]:
    """The CHOSEN blocks of layers under whose steering alone the margin is highest, on questions that nothing else is
    measured on."""
    means = {}
    for heads in blocks(asker.layers):
        arm = Arm("", f"{method}(heads='{heads}')")
        cases = [(task, 1000 + n) for task in tasks for n in range(count)]
        found = [
            once(folder, f"choose-{method}-{heads}-{task}-{n}", partial(asker.margin, task, n, arm))
            for task, n in cases
        ]
        means[heads] = sum(one["margin"] for one in found) / len(found)
        print(f"{method} in layers {heads}: margin {means[heads]:.2f}", flush=True)
    return sorted(means, key=lambda heads: -means[heads])[:CHOSEN]


def arms(asker: Asker, best: dict[str, list[str]]) -> list[Arm]:
    """Dense attention, each method, and its controls."""
    random = Random("steer/heads")
    every = [f"{layer}.{head}" for layer in range(asker.layers) for head in range(asker.heads)]
    drawn = " ".join(random.sample(every, min(len(every), CHOSEN * BLOCK * asker.heads)))
    found = [Arm("dense", "")]
    for method, layers in best.items():
        found.append(Arm(f"{method}, chosen layers", f"{method}(heads='{' '.join(layers)}')"))
        found.append(Arm(f"{method}, as many random heads", f"{method}(heads='{drawn}')"))
    found += [
        Arm("pasta, chosen layers, another span", found[1].recipe, elsewhere=True),
        Arm("pasta, all heads", "pasta"),
        Arm("act, all heads", "act"),
        Arm("paint, all heads", "paint"),
        Arm("paint, all heads, another span", "paint", elsewhere=True),
    ]
    return found


def finding(results: Results, host: str, facts: dict[str, str]) -> Finding:
    """What `act` shows of row 21. facts: command, machine and date."""
    right = {
        task: {arm: [float(one["margin"] > 0) for one in found] for arm, found in by_arm.items()}
        for task, by_arm in results.items()
    }
    chosen, (chance, every) = "act, chosen layers", CONTROLS["act, chosen layers"]
    parts = (
        part("of what it knows, loses less than 2 points",
             difference(right["memory"][chosen], right["memory"]["dense"]),
             above=-0.02),
        part("follows the prompt more often", difference(right["facts"][chosen], right["facts"][every]), above=0.0,
             control=every),
        part("follows the prompt more often", difference(right["facts"][chosen], right["facts"][chance]), above=0.0,
             control=chance),
        part("answers more of what it knows", difference(right["memory"][chosen], right["memory"][every]), above=0.0,
             control=every),
    )  # fmt: skip
    says = "Weight taken from hidden sinks in chosen layers harms nothing and helps more than in all heads"
    leaves_out = "heads chosen one by one, and sinks at the first token"
    return Finding(row=21, says=says, host=host, **facts, parts=parts, leaves_out=leaves_out)


def judged(results: Results) -> list[list[str]]:
    """A row for each task and arm: right answers, the paired difference to dense attention, and that to the arm's
    controls, each with its interval."""
    rows = []
    for task, by_arm in results.items():
        right = {arm: [float(one["margin"] > 0) for one in found] for arm, found in by_arm.items()}
        for arm, found in by_arm.items():
            controls = [one for one in CONTROLS.get(arm, ()) if one in right]
            over = {other: points(difference(right[arm], right[other])) for other in ("dense", *controls)}
            shares = [f"{sum(own) / len(own):.0%}" for own in (right[arm], [one["next"] for one in found])]
            beside = "; ".join(f"{over[other]} over {other}" for other in controls)
            rows.append([task, arm, *shares, "" if arm == "dense" else over["dense"], beside])
            print(" | ".join(rows[-1]))
    return rows


def difference(one: Sequence[float], other: Sequence[float]) -> Interval:
    """The mean of paired differences with its bootstrap interval."""
    return of_strata([[a - b for a, b in zip(one, other, strict=True)]])


def points(gain: Interval) -> str:
    """An interval in points of a hundred."""
    return f"{100 * gain.mean:+.0f} [{100 * gain.low:+.0f}, {100 * gain.high:+.0f}]"


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--choosing", type=int, default=6, help="Questions a task to choose layers by.")
    parser.add_argument("--state", type=Path, required=True, help="Folder of finished questions.")
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    """Choose, ask, judge; a line for every task and arm."""
    given = arguments().parse_args()
    quiet()
    given.state.mkdir(parents=True, exist_ok=True)
    asker = Asker(given.model)
    best = {
        "pasta": chosen(asker, "pasta", TASKS[:2], given.choosing, given.state),
        "act": chosen(asker, "act", TASKS[:1], given.choosing, given.state),
    }
    asked = arms(asker, best)
    results: Results = {task: {} for task in TASKS}
    for number in range(given.questions):
        for task in TASKS:
            for arm in asked:
                if task == "order" and arm.recipe.startswith("act"):  # it is told of no marks: it cannot know the order
                    continue
                key = f"{task}-{number}-{arm.name.replace(', ', '-').replace(' ', '-')}"
                found = once(given.state, key, partial(asker.margin, task, number, arm))
                results[task].setdefault(arm.name, []).append(found)
        print(f"{number + 1} of {given.questions} questions", flush=True)
    rows = judged(results)
    if given.json is not None:
        found = machine()
        layers = "; ".join(f"{method} in layers {' and '.join(heads)}" for method, heads in best.items())
        facts = {
            "command": f"python benchmarks/{Path(__file__).name} {given.model} --questions {given.questions} "
            "--state out/steer",
            "machine": f"{found['processor']}, {found['threads']} thread",
            "date": date.today().isoformat(),
        }
        host = f"{given.model}, {given.questions} questions a task"
        told = {
            "source": f"`benchmarks/steer.py`, {given.questions} questions a task; chosen: {layers}",
            **facts,
            "model": given.model,
            "columns": ["task", "what is read", "right", "said next", "over dense, points", "over controls, points"],
            "rows": rows,
            "findings": as_data([finding(results, host, facts)] if given.questions >= ENOUGH else []),
        }
        given.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
