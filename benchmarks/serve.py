"""Many conversations at once: tokens a second and the time between two tokens, together and one after the other.

Requests with random prompts come at times drawn as a Poisson process; the same requests are answered by a scheduler
that runs all of them together and by one that runs one at a time. Answers of both must be the same, token for token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import torch

from headwise.assets import embedded_model
from headwise.compiled.fast import fast
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_pair
from headwise.serve.request import Event, Failed, Piece, Request, Usage
from headwise.serve.rows import steady_rows
from headwise.serve.sampling import Sampling
from headwise.serve.scheduler import Limits, Scheduler


@dataclass
class Answer:
    """What a request was told, and when, in seconds from the start."""

    start: float
    came: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    kv_bytes: int = 0

    def tell(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, Failed):
            raise SystemExit(f"a request failed: {event.error}")
        if isinstance(event, Piece):
            self.came.append(time.perf_counter() - self.start)
            self.tokens.append(event.token)
        elif isinstance(event, Usage):
            self.kv_bytes = event.kv_bytes


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(embedded_model()), help="a path, hub id or short name")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4096, help="of each prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens written for each")
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second, on average")
    parser.add_argument("--recipe", default="", help="that all caches follow")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def measure(scheduler: Scheduler, requests: list[Request], rate: float) -> dict[str, object]:
    """Answer all requests as they come; figures, and the tokens of each."""
    drawn = Random(0)
    times = [drawn.expovariate(rate) for _ in requests]
    arrivals = [sum(times[: place + 1]) for place in range(len(times))]
    start, answers, most = time.perf_counter(), list[Answer](), 0
    while len(answers) < len(requests) or not scheduler.idle:
        now = time.perf_counter() - start
        while len(answers) < len(requests) and arrivals[len(answers)] <= now:
            answers.append(Answer(start))
            scheduler.submit(requests[len(answers) - 1], answers[-1].tell)
        if not scheduler.advance():
            time.sleep(0.001)
        most = max(most, scheduler.stats().held)
    took = time.perf_counter() - start
    between = [b - a for one in answers for a, b in zip(one.came, one.came[1:], strict=False)]
    first = [one.came[0] - arrival for one, arrival in zip(answers, arrivals, strict=True)]
    return {
        "tokens_per_s": sum(len(one.tokens) for one in answers) / took,
        "between_ms": 1000 * statistics.median(between or [0.0]),
        "first_token_s": statistics.median(first),
        "held_bytes": most,
        "tokens": [one.tokens for one in answers],
    }


def main() -> None:
    """Measure and print."""
    told = arguments().parse_args()
    tokenizer, model = load_pair(told.model, told.dtype)
    fast(model)
    seam, drawn = attach(model), torch.Generator().manual_seed(0)
    plan = Plan.uniform(seam.geometry, told.recipe, seam.fingerprint)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    requests = [
        Request(
            tuple(torch.randint(vocabulary, (told.tokens,), generator=drawn).tolist()), plan, told.new, Sampling(0.0)
        )
        for _ in range(told.requests)
    ]
    rows, limits = steady_rows(model), Limits(kv_bytes=1 << 40, sequences=told.requests)
    figures: dict[str, object] = {"model": told.model, "recipe": told.recipe, "rows": [rows.least, rows.most]}
    print(
        f"{told.requests} requests of {told.tokens} tokens, {told.new} new; steps of {rows.least} to {rows.most} rows"
    )
    answers = []
    for name, own in (("together", limits), ("one at a time", replace(limits, sequences=1))):
        found = measure(Scheduler(model, tokenizer, own, rows), requests, told.rate)
        answers.append(found.pop("tokens"))
        figures[name] = found
        line = "{tokens_per_s:.1f} tokens/s, {between_ms:.1f} ms between tokens, first after {first_token_s:.2f} s"
        print(f"{name:14} {line.format(**found)}, at most {found['held_bytes']} bytes held")
    print("the same tokens" if answers[0] == answers[1] else "OTHER TOKENS")
    if told.json is not None:
        told.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
