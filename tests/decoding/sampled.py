"""Sampling with drafts beside what the model's probabilities say, by chi-square, for every way in which guesses stay.

    python -m tests.decoding.sampled docs/data/decode/sampled.json --draws 20000

Three tokens of four words after a prompt: 64 texts, whose probabilities are multiplied of single forwards. Typical
acceptance changes them and a planted wrong rule does, and both must be found out; `test_sampled.py` takes fewer draws.
"""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from collections.abc import Sequence
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import headwise
from headwise.bench.provenance import machine
from headwise.decoding import speculate
from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.pace import Pace
from headwise.decoding.typical import Typical
from headwise.decoding.verify import Verifier
from headwise.files import write_json
from headwise.kept import once
from tests.engine.small import build, tokens

WORDS, NEW = 4, 3
TEXTS = list(product(range(WORDS), repeat=NEW))
BY = torch.tensor([0.7, 0.1, 0.1, 0.1])  # how guesses are drawn, which is not how the model draws
CHUNK = 500  # draws of one seed, which are kept together


class Sure(Proposer):
    """Guesses that nothing drew, as those that are looked up."""

    def propose(self, written: Written) -> Draft:
        return Draft([1, 2][: written.most])


class Drawn(Proposer):
    """A chain of guesses that were drawn."""

    def propose(self, written: Written) -> Draft:
        guesses = torch.multinomial(BY, 2, replacement=True)[: written.most].tolist()
        return Draft(guesses, BY.expand(len(guesses), -1))


class Siblings(Proposer):
    """Two guesses for one place, drawn without replacement, and one behind the first of them."""

    def propose(self, written: Written) -> Draft:
        first, second = torch.multinomial(BY, 2).tolist()
        left = BY.index_fill(0, torch.tensor(first), 0.0)
        rows = torch.stack((BY, left / left.sum(), BY))
        return Draft([first, second, int(torch.multinomial(BY, 1))], rows, [-1, -1, 0])


def wrong(wanted: torch.Tensor, guesses: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """A rule that forgets what guesses took of the distribution."""
    for token, by in guesses:
        if float(torch.rand(())) * float(by[token]) < float(wanted[token]):
            return torch.tensor(token)
    return torch.multinomial(wanted, 1)[0]


class Nothing(Proposer):
    """No guess: plain sampling."""

    def propose(self, written: Written) -> Draft:
        return Draft()


ARMS: dict[str, tuple[type[Proposer], Typical | None]] = {
    "no guesses": (Nothing, None),
    "looked up": (Sure, None),
    "drawn": (Drawn, None),
    "drawn siblings": (Siblings, None),
    "typical": (Sure, Typical()),
    "a wrong rule": (Drawn, None),
}
KEEP = ("no guesses", "looked up", "drawn", "drawn siblings")


@functools.cache
def model() -> Any:
    """Draws all words often enough."""
    made = build(vocab_size=WORDS, num_hidden_layers=1, pad_token_id=0)
    with torch.no_grad():
        made.lm_head.weight.mul_(0.15)
    return made


@functools.cache
def prompt() -> torch.Tensor:
    return tokens(12) % WORDS


@functools.cache
def expected() -> torch.Tensor:
    """The probability of every text."""
    ids = torch.cat((prompt().expand(len(TEXTS), -1), torch.tensor(TEXTS)), dim=1)
    with torch.no_grad():
        logs = model()(ids).logits[:, -NEW - 1 : -1].double().log_softmax(-1)
    return logs.gather(2, torch.tensor(TEXTS)[..., None])[..., 0].sum(1).exp()


@functools.cache
def read() -> tuple[headwise.Cache, torch.Tensor]:
    """A cache that has read the prompt, and the logits [1, vocab] after it."""
    cache = headwise.Cache(model())
    return cache, headwise.prefill(model(), cache, prompt())


def drawn(arm: str, count: int, seed: int) -> list[int]:
    """How often each text was drawn in `count` draws."""
    torch.manual_seed(seed)
    found: Counter[tuple[int, ...]] = Counter()
    with (
        mock.patch.object(Pace, "ready", True),  # drafts from the first token on
        mock.patch.object(speculate, "_tried", wrong if arm == "a wrong rule" else speculate._tried),
    ):
        for _ in range(count):
            found[_text(*ARMS[arm])] += 1
    return [found[text] for text in TEXTS]


def _text(made: type[Proposer], typical: Typical | None) -> tuple[int, ...]:
    """One text, drawn as `generate` draws it under `headwise.speculate`."""
    cache, logits = read()
    verifier, ids = Verifier(model(), cache.fork(), made()), prompt()
    new = torch.multinomial(logits.softmax(-1), 1)
    for left in range(NEW - 1, -1, -1):
        ids = torch.cat((ids, new), dim=1)
        if left:
            logits = verifier.after(ids, torch.ones(1, dtype=torch.long), left, _softmax)
            if typical is None:
                new = speculate.draw(verifier, logits, True)[:, None]
            else:
                new = speculate.draw_typical(verifier, logits, typical, ids, _softmax)[:, None]
    return tuple(ids[0, -NEW:].tolist())


def _softmax(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(-1)


def p_value(counts: Sequence[int]) -> float:
    """How likely counts as far from what is expected would be (Pearson's chi-square); rare texts are put together."""
    told, wanted = torch.tensor(counts, dtype=torch.double), expected() * sum(counts)
    rare = wanted < 5
    told = torch.cat((told[~rare], told[rare].sum()[None]))
    wanted = torch.cat((wanted[~rare], wanted[rare].sum()[None]))
    told, wanted = told[wanted > 0], wanted[wanted > 0]
    square = ((told - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc(torch.tensor((len(told) - 1) / 2, dtype=torch.double), square / 2))


def main() -> None:
    """A line for every way in which guesses stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--state", type=Path, help="Folder in which finished draws are kept, so that a run goes on.")
    given, rows = parser.parse_args(), list[list[str | int]]()
    for arm in ARMS:
        counts = torch.zeros(len(TEXTS), dtype=torch.long)
        for part in range(-(-given.draws // CHUNK)):

            def one(arm: str = arm, part: int = part) -> dict[str, Any]:
                return {"counts": drawn(arm, min(CHUNK, given.draws - part * CHUNK), part)}

            counts += torch.tensor(once(given.state, f"{arm}-{part}", one)["counts"])
        rows.append([arm, int(counts.sum()), f"{p_value(counts.tolist()):.2g}", "yes" if arm in KEEP else "no"])
        print(*rows[-1], flush=True)
    source = f"{NEW} tokens of {WORDS} words, drawn {given.draws} times"
    write_json(given.out, {
        "source": source, "command": f"python -m tests.decoding.sampled {given.out} --draws {given.draws}",
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()), "date": date.today().isoformat(),
        "model": "a small random one", "columns": ["guesses", "draws", "p", "distribution should stay"], "rows": rows,
    })  # fmt: skip


if __name__ == "__main__":
    main()
