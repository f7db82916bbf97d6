"""Trains a host on sequences of ids with labels; a stopped training goes on where it was, with the same result."""

from __future__ import annotations

import json
import math
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from headwise.drafts import replaced
from headwise.errors import FileError
from headwise.files import write_json
from headwise.knobs import Knobs, NonNegative, Positive, PositiveWeight, ShareBelowOne, Weight
from headwise.layers.attend import Attend
from headwise.layers.layer import AttentionLayer
from headwise.models.hooking import Attached, Step, attention_layers
from headwise.models.host import IGNORED, HeadwiseForCausalLM, HostConfig
from headwise.schema import checked
from headwise.training_hooks import parse_hooks
from headwise.watch import Watch

CHECKPOINT, FIGURES = "training.pt", "figures.json"
SAVE_SECONDS = 20.0
HELD = 2**40  # seeds from here on are of sequences that are never trained on
CURVE = 20  # points of the curve of losses
Sequences = Callable[[int], tuple[np.ndarray, np.ndarray]]  # a seed -> (inputs, labels), each [length]


@dataclass(frozen=True)
class Schedule(Knobs):
    """How a host is trained.

    steps: updates. batch: sequences of each. lr: highest learning rate, which rises over the share `warmup` of the
    steps and falls as a cosine. weight_decay: of matrices. seed: of weights and sequences. held: sequences that are
    never trained on, of which accuracy is told.
    """

    steps: Positive = 400
    batch: Positive = 32
    lr: PositiveWeight = 3e-3
    warmup: ShareBelowOne = 0.1
    weight_decay: Weight = 0.1
    seed: NonNegative = 0
    held: Positive = 128

    def lr_at(self, step: int) -> float:
        """The learning rate of an update, counted from 0."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.lr * (step + 1) / warm
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


class Checkpoint(BaseModel):
    """What the file of a training holds: tensors and plain data alone."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    facts: str
    step: int
    seconds: float
    curve: list[tuple[int, float]]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]


@dataclass
class Training:
    """A host, its optimiser, the hooks of its training and how far they are. facts: what a checkpoint must have been
    made with, as text."""

    model: HeadwiseForCausalLM
    optimizer: torch.optim.Optimizer
    facts: str
    hooks: tuple[Attached, ...] = ()
    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write a checkpoint whole or not at all."""
        own = {"facts": self.facts, "step": self.step, "seconds": self.seconds, "curve": self.curve}
        with replaced(path) as stream:
            torch.save(own | {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, stream)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; one of other settings is refused."""
        found = read_checkpoint(path)
        if found.facts != self.facts:
            raise FileError(
                f"{path} was trained with {found.facts}, this is {self.facts}; give the same settings to go on, "
                "another --out, or --fresh to begin anew"
            )
        self.model.load_state_dict(found.model)
        self.optimizer.load_state_dict(found.optimizer)
        self.step, self.seconds, self.curve = found.step, found.seconds, found.curve


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of our own, on the CPU. FileError where it is damaged or holds anything but data."""
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileError(f"{path} is no checkpoint of this version ({told}); give another --out, or --fresh") from None
    return checked(Checkpoint, payload, str(path), FileError, "give another --out, or --fresh")


def begin(config: HostConfig, schedule: Schedule, task: str, hooks: str = "") -> Training:
    """An untrained host with its optimiser, and `hooks`, what is done beside the task."""
    torch.manual_seed(schedule.seed)
    model = HeadwiseForCausalLM(config)
    attached = tuple(hook.attach(model) for hook in parse_hooks(hooks))
    matrices = [one for one in model.parameters() if one.dim() > 1]
    vectors = [one for one in model.parameters() if one.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.95))
    sizes = {name: value for name, value in config.to_dict().items() if isinstance(value, str | int | float)}
    sizes.pop("transformers_version", None)
    facts = {"task": task, **asdict(schedule), "host": sizes} | ({"hooks": hooks} if hooks else {})
    return Training(model, optimizer, json.dumps(facts, sort_keys=True), attached)


def train_host(training: Training, schedule: Schedule, sequences: Sequences, out: Path, watch: Watch) -> dict[str, Any]:
    """Train to the end, or go on in `out`; writes the model's folder and its figures there, and returns the figures."""
    path = out / CHECKPOINT
    if path.exists():
        training.restore(path)
    saved = time.monotonic()
    try:
        while training.step < schedule.steps:
            watch("training", training.step, schedule.steps)
            began = time.monotonic()
            _update(training, schedule, sequences)
            training.seconds += time.monotonic() - began
            if time.monotonic() - saved > SAVE_SECONDS:
                training.save(path)
                saved = time.monotonic()
    finally:
        training.save(path)
    for hook in training.hooks:
        hook.finish()
    figures = measured(training, schedule, sequences, watch)
    training.model.save_pretrained(out)
    write_json(out / FIGURES, figures)
    return figures


def _update(training: Training, schedule: Schedule, sequences: Sequences) -> None:
    """One step. Its sequences follow from its number, so that a training that goes on sees what it would have seen."""
    first = schedule.seed * 2**24 + training.step * schedule.batch
    ids, labels = batch_of(sequences, range(first, first + schedule.batch))
    for group in training.optimizer.param_groups:
        group["lr"] = schedule.lr_at(training.step)
    training.model.train()
    logits = training.model(input_ids=ids).logits
    loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
    step = Step(training.model, ids, labels, logits)
    for added in [hook.loss(step) for hook in training.hooks]:
        loss = loss if added is None else loss + added
    training.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
    training.optimizer.step()
    for hook in training.hooks:
        hook.stepped()
    training.step += 1
    if training.step % max(1, schedule.steps // CURVE) == 0:
        training.curve.append((training.step, round(float(loss.detach()), 4)))


def batch_of(sequences: Sequences, seeds: range) -> tuple[Tensor, Tensor]:
    """(ids, labels), each [sequences, length]."""
    made = [sequences(seed) for seed in seeds]
    ids, labels = (torch.from_numpy(np.stack([one[side] for one in made])) for side in (0, 1))
    return ids, labels


@contextmanager
def counted(model: torch.nn.Module, pairs: Counter[str]) -> Iterator[None]:
    """Within it, pairs of query and key are counted that layers read, and that they would of all before."""

    def count(layer: AttentionLayer, given: tuple[Any, ...], made: Any) -> None:
        assert isinstance(layer.mix, Attend)
        read, causal = layer.mix.pairs(layer.streams(*given)[0])
        pairs.update(read=read, causal=causal)

    layers = [one for one in attention_layers(model) if isinstance(one.mix, Attend)]
    handles = [one.register_forward_hook(count) for one in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def measured(
    training: Training, schedule: Schedule, sequences: Sequences, watch: Watch, first: int = HELD
) -> dict[str, Any]:
    """What a trained host gets right of the held sequences from the seed `first` on, and what it holds of one and
    reads."""
    model = training.model.eval()
    hits = asked = losses = 0.0
    length, read = 0, Counter[str]()
    with counted(model, read):
        for start in range(0, schedule.held, schedule.batch):
            watch("asking about held sequences", start, schedule.held)
            seeds = range(first + start, first + min(start + schedule.batch, schedule.held))
            ids, labels = batch_of(sequences, seeds)
            logits, length = model(input_ids=ids).logits, ids.shape[1]
            scored = labels != IGNORED
            hits += float((logits.argmax(-1) == labels)[scored].sum())
            losses += float(F.cross_entropy(logits[scored].float(), labels[scored], reduction="sum"))
            asked += float(scored.sum())
    return {
        "layers": model.config.layers,
        "parameters": sum(one.numel() for one in model.parameters()),
        "steps": training.step,
        "accuracy": hits / asked,
        "loss": losses / asked,
        "asked": int(asked),
        "read": read["read"] / read["causal"] if read["causal"] else 1.0,
        "state_bytes": model.config.state_bytes(length, model.dtype.itemsize),
        "tokens": length,
        "seconds": round(training.seconds, 2),
        "tokens_per_second": round(training.step * schedule.batch * length / max(training.seconds, 1e-9)),
        "curve": training.curve,
    }
