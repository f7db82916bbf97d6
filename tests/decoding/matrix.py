"""Greedy tokens with drafts beside those without, for every drafter on every kind of cache that drafts are verified on.

    python -m tests.decoding.matrix docs/data/decode/matrix.json --state out/matrix --processes 2

runs every cell on 100 random prompts, ten in all cells before the next ten, which takes most of an hour of a core;
`test_matrix.py` runs some of them. A cache reads the prompt and decodes plainly once, and every drafter goes on from a
copy of it. After every fifth prompt the eviction after 64 decoded tokens falls among the tokens compared. Heads are
trained on the model first, shortly: that they hit is tested elsewhere, here that it does not matter.

Where tokens differ the cell is run once more in double precision. What is the same there was a near tie that a rounding
let fall otherwise, and is counted as such; anything else is a fault.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

import headwise
from headwise.bench.passes import Unjudged
from headwise.bench.provenance import machine
from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.heads.train import Lesson, train
from headwise.decoding.speculate import proposer, write_by
from headwise.decoding.verify import Verifier
from headwise.errors import HeadwiseError
from headwise.files import write_json
from headwise.kept import once
from headwise.seams.transformers.drive import feed
from tests.contract.drive import everything, small
from tests.engine.small import build, tokens

NEW, PROMPTS, BLOCK = 12, 100, 10
EVICTING, BEFORE = 5, 58  # of every so many-th prompt, tokens that are decoded before those compared
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


class Always(Unjudged):
    """Drafting from the first token on, and never switched off."""

    @property
    def ready(self) -> bool:
        return True


def cells() -> Iterator[Cell]:
    """Every drafter on every method's cache, and on those of several."""
    return ((draft, cache) for cache in ["", *everything()] for draft in DRAFTS)


@functools.cache
def model(dtype: torch.dtype = torch.float32) -> Any:
    return build(num_hidden_layers=2).to(dtype)


@functools.cache
def smaller(dtype: torch.dtype) -> Any:
    """The model's first layer alone, with its embeddings, which is right now and then."""
    first = build(num_hidden_layers=1)
    first.load_state_dict(model().state_dict(), strict=False)
    return first.to(dtype)


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


@dataclass(frozen=True)
class Begun:
    """A cache that has read `ids [1, n]`, the logits [1, vocab] after them, and what plain decoding writes then."""

    cache: headwise.Cache
    ids: torch.Tensor
    logits: torch.Tensor
    text: list[int]


@functools.lru_cache(maxsize=1)  # every drafter goes on from it, one after the other
def begun(cache: str, number: int, dtype: torch.dtype) -> Begun:
    """A prompt read, and of some, some tokens decoded. HeadwiseError where drafts are refused."""
    made, ids = headwise.Cache(model(dtype), small(cache) if cache else ""), prompt(number)
    made.refuse_drafts()
    logits = headwise.prefill(model(dtype), made, ids)
    for _ in range(BEFORE if number % EVICTING == 0 else 0):
        newest = logits.argmax(-1, keepdim=True)
        ids, logits = torch.cat((ids, newest), dim=1), feed(model(dtype), made, newest)
    text = headwise.decode(model(dtype), made.fork(), logits, NEW)
    return Begun(made, ids, logits, text[0].tolist())


def differs(cell: Cell, number: int, folder: Path, dtype: torch.dtype = torch.float32) -> bool:
    """Whether drafts change what is written after a prompt. HeadwiseError where drafts are refused."""
    name, cache = cell
    start = begun(cache, number, dtype)
    given: Any = name
    if name in HEADED:
        given = f"{name}('{headed(name, folder)}', nodes=8)"
    elif name == "smaller":
        given = smaller(dtype)
    elif name == "often right":
        given = OftenRight(start.ids[0].tolist() + start.text)
    verifier = Verifier(model(dtype), start.cache.fork(), proposer(model(dtype), given))
    verifier.pace = Always()
    return write_by(verifier, start.logits, NEW, start.ids)[0].tolist() != start.text


def outcome(cell: Cell, number: int, folder: Path) -> str:
    """Of a cell and a prompt: "same"; "tie", the tokens differ by rounding alone; or "other"."""
    if not differs(cell, number, folder):
        return "same"
    return "other" if differs(cell, number, folder, torch.float64) else "tie"


def main() -> None:
    """Run all cells and write how many were the same, which differ and which are refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="Prompts of a cell.")
    parser.add_argument("--state", type=Path, help="Folder in which finished caches are kept, so that a run goes on.")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    caches, counts, refused = ["", *everything()], {draft: Counter[str]() for draft in DRAFTS}, dict[str, str]()
    told: dict[str, list[str]] = {draft: [] for draft in DRAFTS}
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(given.processes) as pool:
        for kind in HEADED:
            headed(kind, Path(folder))
        starts = range(0, given.prompts, BLOCK)
        blocks = [(cache, range(at, min(at + BLOCK, given.prompts))) for at in starts for cache in caches]
        rows = pool.map(partial(_block, given.state, Path(folder)), *zip(*blocks, strict=True))
        for (cache, numbers), row in zip(blocks, rows, strict=True):
            refused |= {cache: row["refused"]} if row["refused"] else {}
            for draft, found in row["found"].items():
                counts[draft].update(found.values())
                told[draft] += [f"{cache or 'dense'}, prompt {at}" for at, one in found.items() if one == "other"]
            print(f"{numbers.start}: {cache or 'dense'}: {row['refused'] or _summary(row['found'])}", flush=True)
    runs = given.prompts * (len(caches) - len(refused))
    write_json(given.out, {
        "source": f"{len(caches) - len(refused)} caches, {given.prompts} prompts of each, {NEW} tokens after each; "
                  f"refused: {'; '.join(f'{cache}: {why}' for cache, why in refused.items()) or 'none'}",
        "command": f"python -m tests.decoding.matrix {given.out} --prompts {given.prompts}",
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()), "date": date.today().isoformat(),
        "model": "a small random one",
        "columns": ["drafter", "runs", "the same tokens", "near ties that rounding decides", "others"],
        "rows": [[f"`{draft}`", runs, found["same"], found["tie"], "; ".join(told[draft]) or 0]
                 for draft, found in counts.items()],
    })  # fmt: skip


def _summary(found: dict[str, dict[str, str]]) -> str:
    """How often a cache's tokens were the same, and which drafts changed them on which prompt."""
    runs = [(draft, number, one) for draft, own in found.items() for number, one in own.items()]
    others = [f"{one} by {draft} after prompt {number}" for draft, number, one in runs if one != "same"]
    return f"{len(runs) - len(others)} of {len(runs)} the same" + "".join(f"; {one}" for one in others)


def _block(state: Path | None, folder: Path, cache: str, numbers: range) -> dict[str, Any]:
    """All drafters on one cache after some prompts: by drafter and prompt what came out; or why drafts are refused."""

    def run() -> dict[str, Any]:
        torch.set_num_threads(1)
        found: dict[str, dict[str, str]] = {draft: {} for draft in DRAFTS}
        try:
            for number in numbers:
                for draft in DRAFTS:
                    found[draft][str(number)] = outcome((draft, cache), number, folder)
        except HeadwiseError as error:
            return {"found": {}, "refused": str(error)}
        return {"found": found, "refused": ""}

    name = hashlib.sha256(f"{cache} {NEW} {numbers}".encode()).hexdigest()[:16]
    return once(state, f"{numbers.start}-{name}", run)


if __name__ == "__main__":
    main()
