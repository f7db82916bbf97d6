"""Trains the router of `dyvte` for a model: python -m headwise.vision.router FOLDER FILE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headwise.files import write_tensors
from headwise.seams.transformers.cache import attach
from headwise.vision.pruners.dyvte import FORM, Facts, Router, told
from headwise.vision.pruners.exit_at import ExitAt
from headwise.vision.questions import Item, seeing
from headwise.vision.seen import Picture, Seen, read

DEARER = 1.03  # how many times the loss may be what it was, for an exit to count as free
HIDDEN, STEPS, RATE = 64, 400, 3e-3


class Noting(ExitAt):
    """Lets the image leave before a layer, and notes what a router is told there."""

    def __init__(self, layer: int) -> None:
        super().__init__(layer)
        self.told: list[Tensor] = []

    def stay(self, seen: Seen) -> Tensor | None:
        if seen.layer == self.layer:
            self.told.append(told(seen.now.states, seen.image))
        return super().stay(seen)


def example(model: Any, item: Item, layer: int) -> tuple[Tensor, bool]:
    """What a router is told of a question before a layer [2 width], and whether the image may leave there: the answer
    stays what it was and the true one's loss below 1.03 times what it was."""
    picture, answer = Picture(model, item.pixels), item.question.answer_ids[0]
    noting = Noting(layer)
    whole, without = (read(model, item.ids, picture, one).logits.log_softmax(-1) for one in (None, noting))
    free = int(whole.argmax()) == int(without.argmax())
    return noting.told[0], free and float(-without[answer]) <= DEARER * max(float(-whole[answer]), 1e-3)


def trained(
    model: Any, items: Sequence[Item], seed: int = 0, watch: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Router, float]:
    """A router of `model`, by a random layer of each question, and the share of these at which the image may leave."""
    layers, drawn = len(attach(model).geometry.layers), torch.Generator().manual_seed(seed)
    seen, free = [], []
    for number, item in enumerate(items):
        watch(number, len(items))
        own, good = example(model, item, int(torch.randint(1, layers, (), generator=drawn)))
        seen.append(own)
        free.append(good)
    return fitted(torch.stack(seen), torch.tensor(free), seed), sum(free) / len(free)


def fitted(seen: Tensor, free: Tensor, seed: int) -> Router:
    """A router that says of what it was told [n, 2 width] whether the image may leave, bool [n]."""
    torch.manual_seed(seed)
    router = Router(seen.shape[1] // 2, HIDDEN)
    optimizer = torch.optim.AdamW(router.parameters(), lr=RATE, weight_decay=0.1)
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(router(seen), free.long())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return router.eval()


def write(path: Path, model: Any, router: Router, facts: Facts) -> None:
    """Write a router's file."""
    write_tensors(path, FORM, facts.model_dump(), dict(router.state_dict()))


def main() -> None:
    """Train a router and write it."""
    from headwise.models.vlm.network import load

    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("folder", type=Path)
    reader.add_argument("file", type=Path)
    reader.add_argument("--questions", type=int, default=400)
    given = reader.parse_args()
    model = load(given.folder)
    drawn = seeing(2**29)  # pictures that neither the model was trained on nor is asked about
    items = [next(drawn) for _ in range(given.questions)]
    router, positive = trained(model, items, 0, lambda done, total: print(f"\r{done}/{total}", end="", file=sys.stderr))
    write(given.file, model, router, Facts(model=attach(model).fingerprint, questions=len(items), positive=positive))
    print(f"\r{given.file}: the image may leave at {positive:.0%} of the layers that were tried", file=sys.stderr)


if __name__ == "__main__":
    main()
