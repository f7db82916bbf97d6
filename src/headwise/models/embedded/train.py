"""The training loop: stages, learning rate, checkpoints, a clean stop and an exact resume."""

from __future__ import annotations

import os
import signal
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from .data import Batch, composer_of, loader, make_batch
from .network import Network, token_losses
from .planting import plant
from .recipe import Recipe, Stage
from .state import Optimizers, Position, load_checkpoint, save_checkpoint
from .watch import Watch, family_accuracies, family_losses

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
HEAD_TOKENS = 32_768  # tokens whose logits are computed at a time


@dataclass(frozen=True)
class Options:
    """How to run; nothing here changes the weights beyond rounding.

    minutes: stop cleanly after this wall time of this call (0: run to the end);
    workers: data processes (-1: one per core but two, 12 at most; 0 on small machines);
    micro_tokens: tokens of one forward pass (0: by device); the log, the valid batch and the
    checkpoint come every `log_steps`, `valid_steps` steps and `save_minutes`.
    """

    minutes: float = 0.0
    workers: int = -1
    device: str = "auto"
    compile: str = "auto"
    micro_tokens: int = 0
    log_steps: int = 25
    valid_steps: int = 250
    save_minutes: float = 2.0

    def torch_device(self) -> torch.device:
        """The device, CUDA where there is one if `auto`."""
        name = self.device if self.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(name)

    def worker_count(self) -> int:
        """Data processes."""
        cores = os.cpu_count() or 1
        return self.workers if self.workers >= 0 else (0 if cores < 4 else min(12, cores - 2))


class Trainer:
    """A network, its optimisers and one step of the recipe."""

    def __init__(self, recipe: Recipe, options: Options) -> None:
        self.recipe, self.options = recipe, options
        self.device = options.torch_device()
        cuda = self.device.type == "cuda"
        torch.manual_seed(recipe.seed)
        torch.set_float32_matmul_precision("high")
        self.network = Network(recipe.architecture)
        plant(self.network, recipe.seed)
        self.network.to(self.device)
        self.optimizers = Optimizers(recipe, self.network, fused=cuda)
        self.losses = token_losses
        if options.compile == "yes" or (options.compile == "auto" and cuda):
            for layer in self.network.model.layers:
                layer.compile(dynamic=False)
            self.losses = torch.compile(token_losses, dynamic=False)
        self.micro_tokens = options.micro_tokens or (262_144 if cuda else 8_192)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(nll float32, hit bool), each [rows, context]."""
        with self._autocast():
            hidden = self.network.hidden(batch.ids[:, :-1]).flatten(0, 1)
            targets = batch.ids[:, 1:].flatten()
            weight = self.network.lm_head.weight
            parts = [
                self.losses(h, weight, t)
                for h, t in zip(torch.split(hidden, HEAD_TOKENS), torch.split(targets, HEAD_TOKENS), strict=True)
            ]
        shape = batch.weights.shape
        return torch.cat([p[0] for p in parts]).view(shape), torch.cat([p[1] for p in parts]).view(shape)

    def micro_batches(self, batch: Batch) -> list[Batch]:
        """The batch in runs of rows that fit the device."""
        rows, context = batch.weights.shape
        each = max(1, self.micro_tokens // context)
        return [batch.rows(i, min(rows, i + each)) for i in range(0, rows, each)]

    def step(self, batch: Batch, factor: float) -> tuple[Tensor, Tensor, Tensor]:
        """One optimiser step; returns (nll, hits, gradient norm), the first two [rows, context]."""
        total = batch.weights.sum().to(self.device)
        nlls, hits = [], []
        for micro in self.micro_batches(batch):
            part = micro.to(self.device)
            nll, hit = self.forward(part)
            torch.autograd.backward((nll * part.weights).sum() / total)
            nlls.append(nll.detach())
            hits.append(hit)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.grad_clip)
        self.optimizers.step(factor)
        return torch.cat(nlls), torch.cat(hits), norm

    @torch.no_grad()
    def check(self, batch: Batch) -> tuple[dict[str, float], dict[str, float]]:
        """(losses, exact answers) by family on a batch that is not trained on."""
        with torch.compiler.set_stance("force_eager"):
            pairs = [self.forward(micro.to(self.device)) for micro in self.micro_batches(batch)]
        nll, hits = torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])
        tags = batch.tags.to(self.device)
        return family_losses(nll, tags), family_accuracies(hits, tags)


class _Stop:
    """Becomes true at SIGTERM or SIGINT, or once the minutes are over."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes if minutes > 0 else float("inf")
        self._told = False
        self._before = {s: signal.signal(s, self._tell) for s in (signal.SIGTERM, signal.SIGINT)}

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def __bool__(self) -> bool:
        return self._told or time.monotonic() >= self._end

    def restore(self) -> None:
        """Put the former signal handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Run:
    """One call of `train`: the stages from the checkpoint's position on."""

    def __init__(self, recipe: Recipe, data: Path, out: Path, options: Options) -> None:
        self.recipe, self.data, self.out, self.options = recipe, data, out, options
        self.train_composer = composer_of(data, "train")
        self.valid_composer = composer_of(data, "valid", held=True)
        if self.train_composer.encode.vocab > recipe.architecture.vocab:
            raise ValueError(
                f"the tokenizer has {self.train_composer.encode.vocab} entries, the model {recipe.architecture.vocab}; "
                "prepare the data with the recipe's vocabulary"
            )
        self.trainer = Trainer(recipe, options)
        self.position = Position()
        self.path = out / CHECKPOINT
        if self.path.exists():
            self.position = load_checkpoint(self.path, recipe, self.trainer.network, self.trainer.optimizers)
        self.watch = Watch(out / LOG)
        self.began = time.monotonic() - self.position.seconds
        self.saved = time.monotonic()

    def save(self) -> None:
        """Write the checkpoint."""
        self.position.seconds = time.monotonic() - self.began
        save_checkpoint(self.path, self.recipe, self.trainer.network, self.trainer.optimizers, self.position)
        self.saved = time.monotonic()

    def stage(self, stage: Stage, stop: _Stop) -> None:
        """The rest of one stage, or up to the stop."""
        options, position = self.options, self.position
        seed = f"{self.recipe.seed}/{position.stage}"
        cuda = self.trainer.device.type == "cuda"
        check_rows = max(1, min(stage.rows, 131_072 // stage.context if cuda else 16))
        check = make_batch(self.valid_composer, stage, f"valid/{seed}", check_rows)
        since, tokens = time.monotonic(), 0
        for batch in loader(self.train_composer, stage, seed, position.step, options.worker_count()):
            factor = self.recipe.lr_at(position.tokens + stage.step_tokens // 2, stage)
            nll, hits, norm = self.trainer.step(batch, factor)
            position.step += 1
            position.tokens += stage.step_tokens
            tokens += stage.step_tokens
            last = position.step == stage.steps
            if position.step % options.log_steps == 0 or last:
                tags = batch.tags.to(self.trainer.device)
                losses = family_losses(nll, tags)
                if not all(v == v for v in losses.values()):
                    raise RuntimeError(
                        f"the loss is not a number at step {position.step}; lower `lr` and go on from {self.path}"
                    )
                rate = tokens / (time.monotonic() - since)
                since, tokens = time.monotonic(), 0
                self.watch.line(
                    "train", stage=position.stage, context=stage.context, step=position.step, of=stage.steps,
                    tokens_M=round(position.tokens / 1e6, 2), rate_k=round(rate / 1e3, 1),
                    lr=round(factor * self.recipe.lr, 7), norm=round(float(norm), 3),
                    minutes=round((time.monotonic() - self.began) / 60, 2),
                    loss=losses, exact=family_accuracies(hits, tags),
                )  # fmt: skip
            if position.step % options.valid_steps == 0 or last:
                losses, exact = self.trainer.check(check)
                self.watch.line("valid", stage=position.stage, step=position.step, loss=losses, exact=exact)
            if time.monotonic() - self.saved > 60 * options.save_minutes:
                self.save()
            if stop:
                return

    def all(self, stop: _Stop) -> bool:
        """The stages left; true when the recipe is finished."""
        while self.position.stage < len(self.recipe.stages):
            stage = self.recipe.stages[self.position.stage]
            if self.position.step < stage.steps:
                self.stage(stage, stop)
            if self.position.step >= stage.steps:
                self.position.stage, self.position.step = self.position.stage + 1, 0
            if stop:
                break
        return self.position.stage >= len(self.recipe.stages)


def train(recipe: Recipe, data: Path, out: Path, options: Options | None = None) -> bool:
    """Train (or go on) in `out` with the token files of `data`; true when the recipe is finished."""
    options = options or Options()
    run = _Run(recipe, data, out, options)
    run.watch.line(
        "start", recipe=recipe.fingerprint(), optimizer=recipe.optimizer, device=str(run.trainer.device),
        parameters=sum(p.numel() for p in run.trainer.network.parameters()),
        total_M=round(recipe.total_tokens / 1e6, 1), done_M=round(run.position.tokens / 1e6, 1),
        workers=options.worker_count(),
    )  # fmt: skip
    stop = _Stop(options.minutes)
    try:
        finished = run.all(stop)
    finally:
        stop.restore()
    run.save()
    run.watch.line(
        "finished" if finished else "stopped", tokens_M=round(run.position.tokens / 1e6, 2),
        minutes=round(run.position.seconds / 60, 2), checkpoint=str(run.path),
    )  # fmt: skip
    run.watch.close()
    return finished
