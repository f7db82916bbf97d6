"""Trains the small vision-language model: first its encoder to see, then all of it to answer.

A stopped training goes on where it was, with the same result.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.drafts import replaced
from headwise.errors import FileError
from headwise.files import write_json
from headwise.knobs import Knobs, NonNegative, Positive, PositiveWeight
from headwise.models.vlm.asked import EOS, IDS, KINDS, PAD, opening, question
from headwise.models.vlm.network import save, untrained
from headwise.models.vlm.scenes import CELL, CELLS, COLOURS, PATCH, SHAPES, SIDE, Scene, scene
from headwise.watch import Watch

CHECKPOINT, FIGURES = "training.pt", "figures.json"
SAVE_SECONDS = 20.0
IGNORED = -100
TURNS = 5  # questions of one word about each picture, before it is described
HELD = 2**30  # seeds from here on are of pictures that are never trained on


@dataclass(frozen=True)
class Schedule(Knobs):
    """How the model is trained.

    seeing, answering: updates of the two parts. horizon: updates after which the learning rate of the second would
    reach 0. batch: pictures of each. lr: highest learning rate, which rises over a twentieth of a part and falls as a
    cosine. seed: of weights and pictures. layers: of the decoder.
    """

    seeing: Positive = 500
    answering: Positive = 1250
    horizon: Positive = 1500
    batch: Positive = 24
    lr: PositiveWeight = 1.5e-3
    seed: NonNegative = 0
    layers: Positive = 6

    @property
    def steps(self) -> int:
        """All updates."""
        return self.seeing + self.answering

    def lr_at(self, step: int) -> float:
        """The learning rate of an update, counted from 0."""
        first, length = (0, self.seeing) if step < self.seeing else (self.seeing, max(self.horizon, self.answering))
        done, warm = step - first, max(1, length // 20)
        return self.lr * min((done + 1) / warm, 0.5 * (1 + math.cos(math.pi * done / length)))


class Seer(nn.Module):
    """What the encoder is asked before there is a decoder: of each patch the shape and colour it lies on and whether
    that has the dot, of the picture which shapes there are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, len(SHAPES) + 1 + len(COLOURS) + 1 + 1)
        self.whole = nn.Linear(width, len(SHAPES) * 2)

    def loss(self, vision: nn.Module, scenes: Sequence[Scene]) -> Tensor:
        """Cross-entropies of all of that."""
        found = vision(_pixels(scenes), output_hidden_states=True)
        told = self.patch(found.hidden_states[-2][:, 1:])
        shape, colour, dot = told.split((len(SHAPES) + 1, len(COLOURS) + 1, 1), dim=-1)
        labels = torch.from_numpy(np.stack([_labels(one) for one in scenes]))
        there = torch.zeros(len(scenes), 2, len(SHAPES))
        for row, one in enumerate(scenes):
            for thing in one.things:
                there[row, 0, thing.shape] = 1
                there[row, 1, thing.shape] = float(thing.dotted)
        whole = self.whole(found.last_hidden_state[:, 0])
        return (
            F.cross_entropy(shape.flatten(0, 1), labels[..., 0].flatten())
            + F.cross_entropy(colour.flatten(0, 1), labels[..., 1].flatten())
            + F.binary_cross_entropy_with_logits(dot[..., 0], labels[..., 2].float())
            + F.binary_cross_entropy_with_logits(whole, there.flatten(1))
        )


def _labels(one: Scene) -> np.ndarray:
    """By patch [patches, 3]: shape and colour of the thing in its cell, counted from 1, and whether it has the dot."""
    side, patches = SIDE // PATCH, CELL // PATCH
    found = np.zeros((side, side, 3), dtype=np.int64)
    for thing in one.things:
        y, x = (patches * place for place in divmod(thing.cell, CELLS))
        found[y : y + patches, x : x + patches] = (thing.shape + 1, thing.colour + 1, int(thing.dotted))
    return found.reshape(-1, 3)


def _pixels(scenes: Sequence[Scene]) -> Tensor:
    """The pictures [pictures, 3, SIDE, SIDE]."""
    return torch.from_numpy(np.stack([one.pixels() for one in scenes]))


def conversation(one: Scene) -> tuple[list[int], list[int]]:
    """A picture's prompt with questions and answers, and its labels: the answers alone are learnt. A description comes
    last, so that it is a second task and none to begin with."""
    rng = np.random.default_rng([one.seed, 2])
    ids = opening()
    labels = [IGNORED] * len(ids)
    for kind in [*rng.choice(KINDS, TURNS).tolist(), "describe"]:
        asked = question(kind, one, rng)
        answer = [*asked.answer_ids, IDS[";"] if kind != "describe" else IDS[EOS]]
        ids += asked.ids + answer
        labels += [IGNORED] * len(asked.ids) + answer
    return ids, labels


def batch_of(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """What the model is given of these pictures, padded on the right."""
    made = [conversation(one) for one in scenes]
    longest = max(len(ids) for ids, _ in made)
    ids, labels = (
        torch.tensor([one[side] + [fill] * (longest - len(one[side])) for one in made])
        for side, fill in ((0, IDS[PAD]), (1, IGNORED))
    )
    return {"input_ids": ids, "labels": labels, "pixel_values": _pixels(scenes)}


class Training:
    """The network, its optimiser and how far they are. seconds: of processor time."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.model = untrained(schedule.seed, layers=schedule.layers)
        self.seer = Seer(self.model.config.vision_config.hidden_size)  # type: ignore[union-attr]
        self.step, self.seconds = 0, 0.0
        self.curve: list[tuple[int, float]] = []
        self.optimizer = torch.optim.AdamW(self._parameters(), lr=schedule.lr, betas=(0.9, 0.95), weight_decay=0.01)

    def _parameters(self) -> Iterator[nn.Parameter]:
        yield from self.model.parameters()
        yield from self.seer.parameters()

    def update(self) -> None:
        """One step; its pictures follow from its number."""
        schedule = self.schedule
        first = schedule.seed * 2**24 + self.step * schedule.batch
        scenes = [scene(seed) for seed in range(first, first + schedule.batch)]
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.lr_at(self.step)
        self.model.train()
        if self.step < schedule.seeing:
            loss = self.seer.loss(self.model.model.vision_tower, scenes)
        else:
            given = batch_of(scenes)
            labels = given.pop("labels")
            logits = self.model(**given, use_cache=False).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(list(self._parameters()), 1.0)
        self.optimizer.step()
        self.step += 1
        if self.step % 25 == 0:
            self.curve.append((self.step, round(float(loss.detach()), 4)))

    def save(self, path: Path) -> None:
        """Write a checkpoint whole or not at all."""
        own = {
            "facts": json.dumps(asdict(self.schedule), sort_keys=True),
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "model": self.model.state_dict(),
            "seer": self.seer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with replaced(path) as stream:
            torch.save(own, stream)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; one of another schedule is refused."""
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        facts = json.dumps(asdict(self.schedule), sort_keys=True)
        if found.get("facts") != facts:
            raise FileError(
                f"{path} was trained with {found.get('facts')}, this is {facts}; give the same settings to go on, or "
                "delete it to begin anew"
            )
        self.model.load_state_dict(found["model"])
        self.seer.load_state_dict(found["seer"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.step, self.seconds, self.curve = found["step"], found["seconds"], found["curve"]


def train(schedule: Schedule, out: Path, watch: Watch) -> Training:
    """Train to the end, or go on in `out`; writes the model's folder and the curve of its losses there."""
    training = Training(schedule)
    out.mkdir(parents=True, exist_ok=True)
    path = out / CHECKPOINT
    if path.exists():
        training.restore(path)
    saved = time.monotonic()
    try:
        while training.step < schedule.steps:
            watch("seeing" if training.step < schedule.seeing else "answering", training.step, schedule.steps)
            began = time.process_time()
            training.update()
            training.seconds += time.process_time() - began
            if time.monotonic() - saved > SAVE_SECONDS:
                training.save(path)
                saved = time.monotonic()
    finally:
        training.save(path)
    save(training.model, out)
    write_json(out / FIGURES, {"seconds": round(training.seconds), "curve": training.curve, **asdict(schedule)})
    return training
