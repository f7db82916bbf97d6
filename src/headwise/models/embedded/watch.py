"""What a run shows and writes: losses and exact answers by family, as lines and as JSON lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from .compose import KINDS
from .recipe import FAMILIES


def family_losses(nll: Tensor, tags: Tensor) -> dict[str, float]:
    """Mean nll (nats per token) of the tokens of each family; nll, tags [rows, context]."""
    kinds = (tags % KINDS).flatten().long()
    sums = torch.zeros(KINDS, device=nll.device).index_add_(0, kinds, nll.flatten().float())
    counts = torch.bincount(kinds, minlength=KINDS)
    return {
        name: s / c for name, s, c in zip(FAMILIES, sums.tolist()[: len(FAMILIES)], counts.tolist(), strict=False) if c
    }


def family_accuracies(hits: Tensor, tags: Tensor) -> dict[str, float]:
    """Share of answers of each family with every token right (teacher forced); hits, tags [rows, context]."""
    answer = (tags // KINDS).long()
    width = int(answer.max()) + 1
    slots = (answer + width * torch.arange(len(tags), device=tags.device)[:, None]).flatten()
    total = len(tags) * width
    wrong = torch.zeros(total, device=tags.device).index_add_(0, slots, (~hits).flatten().float())
    kind = torch.full((total,), KINDS - 1, device=tags.device)
    kind[slots] = (tags % KINDS).flatten().long()
    real = torch.arange(total, device=tags.device) % width > 0
    found = {}
    for number, name in enumerate(FAMILIES):
        mine = real & (kind == number)
        if bool(mine.any()):
            found[name] = float((wrong[mine] == 0).float().mean())
    return found


class Watch:
    """Prints progress (coloured on a terminal, plain lines elsewhere) and appends to a JSON-lines file."""

    def __init__(self, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file = log.open("a", encoding="utf-8")
        self._console = Console(soft_wrap=True, highlight=sys.stdout.isatty())

    def line(self, event: str, **values: Any) -> None:
        """One event: dictionaries of floats are shown as `name value` lists."""
        self._file.write(json.dumps({"event": event, **values}) + "\n")
        self._file.flush()
        shown = []
        for name, value in values.items():
            if isinstance(value, dict):
                value = " ".join(f"{k} {v:.3f}" for k, v in value.items())
                shown.append(f"| {name}: {value}")
            else:
                shown.append(f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}")
        self._console.print(f"{event}: " + " ".join(shown), markup=False)

    def close(self) -> None:
        """Close the log file."""
        self._file.close()
