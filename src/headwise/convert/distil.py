"""A converted model learns to say what its source says; a stopped distillation goes on where it was."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from headwise.convert.texts import Book, divergence
from headwise.knobs import Knobs, NonNegative, Positive, PositiveWeight
from headwise.models.host_training import CHECKPOINT, SAVE_SECONDS, Schedule, Training
from headwise.watch import Watch


@dataclass(frozen=True)
class Distilling(Knobs):
    """steps: updates; 0 is none. batch, tokens: windows of an update, and their length. lr: highest learning rate,
    which rises over the first tenth and falls as a cosine. seed: of the windows."""

    steps: NonNegative = 0
    batch: Positive = 4
    tokens: Positive = 128
    lr: PositiveWeight = 5e-4
    seed: NonNegative = 0

    @property
    def schedule(self) -> Schedule:
        """The learning rates."""
        return Schedule(max(1, self.steps), self.batch, self.lr, seed=self.seed)


def distilled(student: Any, teacher: Any, book: Book, how: Distilling, folder: Path, told: str, watch: Watch) -> None:
    """Train `student` towards what `teacher` says of windows of a book, or go on in `folder`.

    told: what is distilled, which a checkpoint must have been made of.
    """
    optimizer = torch.optim.AdamW(student.parameters(), lr=how.lr, betas=(0.9, 0.95), weight_decay=0.0)
    training = Training(student, optimizer, json.dumps([told, asdict(how)]))
    path = folder / CHECKPOINT
    if path.exists():
        training.restore(path)
    saved = time.monotonic()
    student.train()
    try:
        while training.step < how.steps:
            watch("distilling", training.step, how.steps)
            _update(training, teacher, book, how)
            if time.monotonic() - saved > SAVE_SECONDS:
                training.save(path)
                saved = time.monotonic()
    finally:
        training.save(path)
        student.eval()


def _update(training: Training, teacher: Any, book: Book, how: Distilling) -> None:
    """One step. Its windows follow from its number, so that a distillation that goes on reads what it would have."""
    ids = book.drawn(how.batch, how.tokens, how.seed * 2**24 + training.step)
    for group in training.optimizer.param_groups:
        group["lr"] = how.schedule.lr_at(training.step)
    with torch.no_grad():
        said = teacher(input_ids=ids, use_cache=False).logits
    loss = divergence(training.model(input_ids=ids, use_cache=False).logits, said).mean()
    training.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
    training.optimizer.step()
    training.step += 1
