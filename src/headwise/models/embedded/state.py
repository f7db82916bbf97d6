"""The trainer's state: optimisers, position in the recipe, atomic checkpoints."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from headwise.drafts import replaced
from headwise.errors import FileError
from headwise.schema import checked

from .network import Network
from .recipe import Recipe

OUTER = ("model.embed_tokens", "lm_head")  # matrices with a row per vocabulary entry


class Optimizers:
    """AdamW for everything, or Muon for the 2-D hidden matrices and AdamW for the rest."""

    def __init__(self, recipe: Recipe, network: Network, fused: bool) -> None:
        named = list(network.named_parameters())
        hidden = [p for n, p in named if p.ndim == 2 and not n.startswith(OUTER)]
        embed = [p for n, p in named if n.startswith(OUTER)]
        norms = [p for _, p in named if p.ndim < 2]
        muon = recipe.optimizer == "muon"
        groups = [
            {"params": embed if muon else embed + hidden, "weight_decay": recipe.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ]
        self.parts: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=fused), recipe.lr)
        ]
        if muon:
            part = torch.optim.Muon(
                hidden, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self.parts.append((part, recipe.muon_lr))

    def step(self, factor: float) -> None:
        """One update at `factor` times the peak learning rates; clears the gradients."""
        for optimizer, peak in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of the parts, in order."""
        return [optimizer.state_dict() for optimizer, _ in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Inverse of `state_dict`."""
        for (optimizer, _), state in zip(self.parts, states, strict=True):
            optimizer.load_state_dict(state)


@dataclass
class Position:
    """How far the run is: stage, optimiser steps done in it, tokens seen in all, wall seconds so far."""

    stage: int = 0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Checkpoint(BaseModel):
    """What the file of a run in training holds: tensors and plain data alone."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    recipe: Recipe
    fingerprint: str
    network: dict[str, torch.Tensor]
    optimizers: list[dict[str, Any]]
    position: Position


def save_checkpoint(path: Path, recipe: Recipe, network: Network, optimizers: Optimizers, position: Position) -> None:
    """Write a checkpoint whole or not at all."""
    payload = {
        "recipe": asdict(recipe),
        "fingerprint": recipe.fingerprint(),
        "network": network.state_dict(),
        "optimizers": optimizers.state_dict(),
        "position": asdict(position),
    }
    with replaced(path) as stream:
        torch.save(payload, stream)


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of our own, on the CPU. FileError where it is missing, damaged or holds anything but data."""
    if not path.is_file():
        raise FileError(f"{path} is missing; train first with `headwise train embedded`")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileError(f"{path} is no checkpoint of this version ({told}); train anew into another folder") from None
    return checked(Checkpoint, payload, str(path), FileError, "train anew into another folder")


def load_checkpoint(path: Path, recipe: Recipe, network: Network, optimizers: Optimizers) -> Position:
    """Restore a run of the same recipe; another recipe is refused."""
    found = read_checkpoint(path)
    if found.fingerprint != recipe.fingerprint():
        raise ValueError(
            f"{path} was trained with recipe {found.fingerprint}, this is {recipe.fingerprint()}; "
            "give the same settings to go on, or another output folder to start anew"
        )
    network.load_state_dict(found.network)
    optimizers.load_state_dict(found.optimizers)
    return found.position
