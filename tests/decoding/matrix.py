"""Greedy tokens with drafts beside those without, for every drafter on every kind of cache that drafts are verified on.

    python -m tests.decoding.matrix docs/data/decode/same_tokens.json --prompts 1

runs all cells, each on so many of 100 random prompts, other ones in each; `test_matrix.py` runs some of them. Heads are
trained on the model first, shortly: that they hit is tested elsewhere, here that it does not matter.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import headwise
from headwise.bench.provenance import machine
from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.heads.train import Lesson, train
from headwise.decoding.pace import Pace
from headwise.errors import HeadwiseError
from headwise.files import write_json
from headwise.kept import once
from headwise.seams.transformers.forward import cache_argument
from tests.contract.drive import everything, small
from tests.engine.small import build, tokens

NEW, PROMPTS = 70, 100  # past the eviction after 64 decoded tokens
HEADED = ("medusa", "clover", "dream")
DRAFTS = (
    "lookup", "lookup(drafts=4)", "hierarchy", "hierarchy(drafts=4)", "itself('streaming(24, sinks=2, recent=8)')",
    "exact_topk(16)", "smaller", "often right", *HEADED,
)  # fmt: skip
Cell = tuple[str, str]  # a drafter and a cache


class OftenRight(Proposer):
    """Guesses what plain decoding wrote, one of five guesses spoilt; as a tree, in which a wrong guess comes first."""

    def __init__(self, text: list[int]) -> None:
        self.text, self.calls = text, 0

    def propose(self, written: Written) -> Draft:
        self.calls += 1
        guess = self.text[len(written.ids) : len(written.ids) + min(written.most, 6)]
        right = [(token + 1) % 128 if (self.calls + place) % 5 == 0 else token for place, token in enumerate(guess)]
        if self.calls % 2 or not right:
            return Draft(right)
        wrong = (right[0] + 2) % 128
        return Draft([wrong, *right], parents=[-1, -1, *range(1, len(right))])


def cells() -> Iterator[Cell]:
    """Every drafter on every method's cache, and on those of several."""
    return ((draft, cache) for cache in ["", *everything()] for draft in DRAFTS)


@functools.cache
def model() -> Any:
    return build(num_hidden_layers=2)


@functools.cache
def prompt(number: int) -> torch.Tensor:
    """Random ids [1, n] that repeat themselves, so that there is something to look up; of lengths from 60 to 99."""
    return tokens(30 + number % 20, seed=number).repeat(1, 2)


@functools.cache
def headed(kind: str, folder: Path) -> Path:
    """A file of heads that were shortly trained on what the model writes."""
    torch.manual_seed(7)
    texts: torch.Tensor = model().generate(tokens(8, rows=24), max_new_tokens=120, do_sample=True)
    path = folder / f"{kind}.heads"
    train(model(), list(texts), Lesson(kind, steps=20, window=64), folder / kind).save(path)
    return path


@functools.cache
def plain(cache: str, number: int) -> list[int]:
    return _generated(headwise.Cache(model(), small(cache) if cache else ""), number, None)


def differs(cell: Cell, number: int, folder: Path) -> bool:
    """Whether drafts change what is written after a prompt. HeadwiseError where drafts are refused."""
    name, cache = cell
    draft: Any = name
    if name in HEADED:
        draft = f"{name}('{headed(name, folder)}', nodes=8)"
    elif name == "smaller":
        draft = build(seed=3, num_hidden_layers=1)
    made = headwise.Cache(model(), small(cache) if cache else "")
    made.refuse_drafts()
    if name == "often right":
        draft = OftenRight(plain(cache, number))
    return _generated(made, number, draft) != plain(cache, number)


def _generated(cache: headwise.Cache, number: int, draft: Any) -> list[int]:
    how: dict[str, Any] = {cache_argument(type(model())): cache}
    if draft is not None:
        how = {"custom_generate": headwise.speculate(model(), cache, draft)}
    with mock.patch.object(Pace, "drafted", lambda own, tokens, seconds: None):  # never switched off
        ids = prompt(number)
        out: torch.Tensor = model().generate(ids, max_new_tokens=NEW, do_sample=False, **how)
    return out[0].tolist()


def main() -> None:
    """Run all cells and write how many were the same, which differ and which are refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="Prompts of a cell.")
    parser.add_argument("--state", type=Path, help="Folder in which finished caches are kept, so that a run goes on.")
    given = parser.parse_args()
    caches, same, differing, refused = ["", *everything()], Counter[str](), list[str](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        for at, cache in enumerate(caches):

            def one(at: int = at, cache: str = cache) -> dict[str, Any]:
                return _row(at, cache, given.prompts, Path(folder))

            row = once(given.state, f"{given.prompts}-{at}", one)
            same.update(row["same"])
            differing += row["differing"]
            refused += [f"{cache}: {row['refused']}"] if row["refused"] else []
            print(f"{cache or 'dense'}: {row}", flush=True)
    runs = given.prompts * (len(caches) - len(refused))
    told = [one.partition(" on ")[::2] for one in differing]
    write_json(given.out, {
        "source": f"{len(caches) - len(refused)} caches; refused: {'; '.join(refused) or 'none'}",
        "command": f"python -m tests.decoding.matrix {given.out} --prompts {given.prompts}",
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()), "date": date.today().isoformat(),
        "model": "a small random one", "columns": ["drafter", "runs", "the same tokens", "others, on"],
        "rows": [[f"`{draft}`", runs, same[draft], "; ".join(on for name, on in told if name == draft)]
                 for draft in DRAFTS],
    })  # fmt: skip


def _row(at: int, cache: str, prompts: int, folder: Path) -> dict[str, Any]:
    """All drafters on one cache: by drafter, how often the tokens were the same, and where they were not."""
    same, differing = dict.fromkeys(DRAFTS, 0), list[str]()
    for place, draft in enumerate(DRAFTS):
        for number in range(prompts):
            which = (at * len(DRAFTS) + place + number) % PROMPTS
            try:
                found = differs((draft, cache), which, folder)
            except HeadwiseError as error:
                return {"same": {}, "differing": [], "refused": str(error)}
            same[draft] += not found
            differing += [f"{draft} on {cache or 'dense'}, prompt {which}"] if found else []
    plain.cache_clear()
    return {"same": same, "differing": differing, "refused": ""}


if __name__ == "__main__":
    main()
