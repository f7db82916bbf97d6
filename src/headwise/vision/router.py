"""Trains the router of `dyvte` for a model."""

from __future__ import annotations

from collections.abc import Sequence
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
from headwise.watch import Watch

DEARER = 1.03  # how many times the loss may be what it was, for an exit to count as free
HIDDEN, STEPS, RATE = 64, 400, 3e-3
APART = 2**29  # the first picture that it is trained on


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
    model: Any, items: Sequence[Item], seed: int = 0, watch: Watch = lambda what, done, total: None
) -> tuple[Router, float]:
    """A router of `model`, by a random layer of each question, and the share of these at which the image may leave."""
    layers, drawn = len(attach(model).geometry.layers), torch.Generator().manual_seed(seed)
    seen, free = [], []
    for number, item in enumerate(items):
        watch("trying layers", number, len(items))
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


def make(model: Any, file: Path, questions: int, watch: Watch = lambda what, done, total: None) -> float:
    """Train a router on pictures that neither the model was trained on nor the judge asks about, and write its
    file; the share of the layers that were tried at which the image may leave."""
    drawn = seeing(APART)
    router, positive = trained(model, [next(drawn) for _ in range(questions)], 0, watch)
    facts = Facts(model=attach(model).fingerprint, questions=questions, positive=positive)
    write_tensors(file, FORM, facts.model_dump(), dict(router.state_dict()))
    return positive
