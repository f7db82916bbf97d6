"""What selections read of the true attention, and what a step with them costs. Tables in Markdown.

    python benchmarks/selection.py recall --context 2000 --budgets 0.05 0.1 --methods quest loki
    python benchmarks/selection.py times --contexts 8192 65536 --tokens 2048 --methods quest recycled

`recall` reads a stretch of the novel with planted facts on the embedded model and asks for them. `times` runs decoding
steps over caches filled at random, in the shape of Llama-3.2-1B (32 query and 8 KV heads of 64, bfloat16), attention
alone; a context from which a method is quicker than dense attention is what its `pays_from` wants.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from models import load
from transformers import AutoTokenizer

from headwise.assets import embedded_model, novel
from headwise.bench.checks.coverage import coverage, table
from headwise.bench.job import encode
from headwise.engine import read
from headwise.engine.session import Session
from headwise.forms import Scoring
from headwise.geometry import Geometry
from headwise.models.embedded import tasks
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import methods

HEADS, KV_HEADS, WIDTH = 32, 8, 64
CHOOSING = ("choose", "choose_blocks", "choose_mask", "enough")


def recall(options: argparse.Namespace) -> None:
    """A stretch of the novel with planted facts, a question each, one row per method and budget."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    facts = tasks.draw_facts(Random("selection"), options.questions, held=True)
    depths = [(i + 0.5) / len(facts) for i in range(len(facts))]
    text = tasks.plant(novel()[60_000 : 60_000 + 3 * options.context], [fact.sentence for fact in facts], depths)
    ids, questions = encode(tokenizer, text, start=True), [encode(tokenizer, fact.question) for fact in facts]
    model, rows = load("embedded"), []
    for name in options.methods:
        for budget in options.budgets:
            recipe = name if "(" in name else f"{name}({budget}, sinks=4, recent=16)"
            rows.append(coverage(model, recipe, ids, questions))
            if "(" in name:
                break
    print(f"{ids.shape[1]} tokens, {len(questions)} questions, embedded model\n\n{table(rows)}")


@dataclass
class Watch:
    """Seconds by what they were spent on, added up."""

    clock: Callable[[], float]
    spent: Counter[str] = field(default_factory=Counter)

    def of(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed as `name`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.clock()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent[name] += self.clock() - start

        return timed


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Times choosing, selecting (with scoring and choosing in it) and reading, wherever they are called."""
    parts = [module for path, module in sys.modules.items() if path.startswith("headwise.methods")]
    places = [(module, name, "choosing") for module in parts for name in CHOOSING if hasattr(module, name)]
    places += [(read, "_selected", "selecting"), (read, "_held", "reading")]
    before = [getattr(module, name) for module, name, _ in places]
    for (module, name, what), call in zip(places, before, strict=True):
        setattr(module, name, watch.of(what, call))
    yield
    for (module, name, _), call in zip(places, before, strict=True):
        setattr(module, name, call)


def step_times(recipe: str, tokens: int, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds per layer of a step by what they go to, means over the layers and steps; `all`: the median step."""
    layers, generator = options.layers, torch.Generator().manual_seed(0)
    shape = Geometry.uniform(HEADS, KV_HEADS, WIDTH, WIDTH, (None,) * layers, tokens + 64)
    session = Session(Plan.uniform(shape, Recipe.parse(recipe)), dtype=torch.bfloat16)

    def draw(heads: int, count: int) -> torch.Tensor:
        return torch.randn(1, heads, count, WIDTH, generator=generator).bfloat16()

    session.begin(tokens, "prefill")
    for layer in range(layers):  # stored as a prompt's end leaves it, without the minutes of its attention
        q = draw(HEADS, 1).expand(-1, -1, tokens, -1)
        session.absorb(layer, q, draw(KV_HEADS, tokens), draw(KV_HEADS, tokens), Scoring(WIDTH**-0.5))
    new = [(draw(HEADS, 1), draw(KV_HEADS, 1), draw(KV_HEADS, 1)) for _ in range(layers)]

    def step() -> None:
        session.begin(1, "decode")
        for layer, (q, k, v) in enumerate(new):
            session.step(layer, q, k, v, Scoring(WIDTH**-0.5))

    watch, whole = Watch(time.process_time if options.cpu else time.perf_counter), []
    for _ in range(2):  # the first summarises everything stored
        step()
    with watching(watch):
        for _ in range(options.steps):
            start = watch.clock()
            step()
            whole.append(watch.clock() - start)
    spent = {name: watch.spent[name] / options.steps for name in ("selecting", "choosing", "reading")}
    spent["scoring"] = spent.pop("selecting") - spent["choosing"]
    middle = statistics.mean if "recycled" in recipe else statistics.median  # one step in a few is a full one
    return {name: seconds / layers * 1e3 for name, seconds in (spent | {"all": middle(whole)}).items()}


def times(options: argparse.Namespace) -> None:
    """One row per context and method, dense first."""
    names = options.methods
    recipes = ["", *(name if "(" in name else f"{name}({options.tokens})" for name in names)]
    print("| stored | selection | scoring | choosing | reading | all, ms per layer | times dense |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    with torch.no_grad():
        for tokens in options.contexts:
            dense = None
            for recipe in recipes:
                found = step_times(recipe, tokens, options)
                dense = dense or found["all"]
                cells = [f"{found[name]:.2f}" for name in ("scoring", "choosing", "reading", "all")]
                print(
                    f"| {tokens} | {recipe or 'dense'} | {' | '.join(cells)} | {dense / found['all']:.2f} |", flush=True
                )


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = parser.add_subparsers(required=True)
    everything = sorted(methods("select"))
    own = tables.add_parser("recall", help="the share of the true attention that is read")
    own.add_argument("--context", type=int, default=2000, help="about so many tokens")
    own.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    own.add_argument("--questions", type=int, default=4)
    own.set_defaults(run=recall)
    own.add_argument("--methods", nargs="+", default=everything, help="names, or phrases with knobs")
    own = tables.add_parser("times", help="milliseconds of a step")
    own.add_argument("--contexts", type=int, nargs="+", default=[8192, 65536], help="tokens stored")
    own.add_argument("--tokens", type=int, default=2048, help="read per step")
    own.add_argument("--layers", type=int, default=16)
    own.add_argument("--steps", type=int, default=10)
    own.add_argument("--cpu", action="store_true", help="processor time instead of wall time, for a busy machine")
    own.add_argument("--methods", nargs="+", default=everything, help="names, or phrases with knobs")
    own.set_defaults(run=times)
    return parser


def main() -> None:
    """Both tables."""
    options = arguments().parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
