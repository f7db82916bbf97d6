"""Codes filled level by level beside one code a pass: right codes and passes, on toy codes of three levels (row 132).

    python benchmarks/levels.py --json docs/data/decode/levels.json

A frame tells what is said, and a voice, which nothing tells, says it by other codes: all first codes of a sound have to
agree on a voice. Second codes are a matter of what is said and the first, third ones of the first two. A small
bidirectional model is trained to fill masked codes, once, and kept in --folder.
"""

from __future__ import annotations

import argparse
import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from headwise.bench.judging.intervals import of_strata
from headwise.bench.provenance import machine
from headwise.decoding.diffusion.levels import fill_levels
from headwise.findings import Finding, as_data, part

FRAMES, LEVELS, CODES, VOICES = 64, 3, 16, 4
MASK = CODES
WAYS: dict[str, tuple[int, ...]] = {
    "16 rounds, 1, 1": (16, 1, 1), "4 rounds, 1, 1": (4, 1, 1), "1 round each": (1, 1, 1),
    "64 rounds each": (FRAMES,) * LEVELS,
}  # fmt: skip
SPOKEN, NEXT, LAST = (
    torch.stack([torch.randperm(CODES, generator=torch.Generator().manual_seed(seed + row)) for row in range(VOICES)])
    for seed in (0, 10, 20)
)


def later(said: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The second and third codes [b, n] that belong to first ones."""
    second = torch.where(said < CODES // 2, NEXT[0][first], NEXT[1][first])
    return second, torch.where(first < CODES // 2, LAST[0][second], LAST[1][second])


def sounds(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """What is said, [b, n], and its codes [b, n, q]."""
    random = torch.Generator().manual_seed(seed)
    said = torch.randint(CODES, (count, FRAMES), generator=random)
    first = SPOKEN[torch.randint(VOICES, (count, 1), generator=random), said]
    return said, torch.stack((first, *later(said, first)), dim=2)


def right(said: Tensor, codes: Tensor) -> list[float]:
    """By sound the share of codes that are right: the first ones by the voice that most of them are of, the others by
    the first ones that are there."""
    voiced = (SPOKEN[:, said] == codes[None, ..., 0]).float().mean(2).amax(0)
    second, third = later(said, codes[..., 0])
    others = [(own == codes[..., level]).float().mean(1) for level, own in ((1, second), (2, third))]
    return ((voiced + others[0] + others[1]) / LEVELS).tolist()


class Host(torch.nn.Module):
    """Sees all frames at once and tells the codes of a level."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.said, self.places = torch.nn.Embedding(CODES, width), torch.nn.Embedding(FRAMES, width)
        self.codes = torch.nn.ModuleList(torch.nn.Embedding(CODES + 1, width) for _ in range(LEVELS))
        layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.out = torch.nn.ModuleList(torch.nn.Linear(width, CODES) for _ in range(LEVELS))

    def forward(self, said: Tensor, codes: Tensor, level: int) -> Tensor:
        x = self.said(said) + self.places.weight + sum(one(codes[..., i]) for i, one in enumerate(self.codes))
        told: Tensor = self.out[level](self.layers(x))
        return told


def trained(steps: int, batch: int, folder: Path) -> Host:
    """The host after its training, from the folder where it is there."""
    torch.manual_seed(0)
    model, path = Host(), folder / f"levels-{steps}-{batch}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path))
        return model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50, 1.05 - step / steps)
        said, codes = sounds(batch, 1000 + step)
        level = step % (LEVELS + 1) % LEVELS  # the first level, which is the hardest, twice as often
        share = math.cos(math.pi / 2 * float(torch.rand(())))
        hidden = torch.rand(codes.shape[:2]) < max(share, 1 / FRAMES)
        shown = codes.clone()
        shown[..., level][hidden], shown[..., level + 1 :] = MASK, MASK
        loss = cross_entropy(model(said, shown, level)[hidden], codes[..., level][hidden])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 101 == 100:  # another level each time
            print(f"step {step + 1} of {steps}: loss {float(loss.detach()):.3f} at level {level + 1}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval()


def one_by_one(model: Host, said: Tensor, random: torch.Generator) -> tuple[Tensor, int]:
    """Codes from left to right, level by level, one a pass."""
    codes = torch.full((*said.shape, LEVELS), MASK)
    for level in range(LEVELS):
        for place in range(FRAMES):
            by = model(said, codes, level)[:, place].softmax(-1)
            codes[:, place, level] = torch.multinomial(by, 1, generator=random)[:, 0]
    return codes, FRAMES * LEVELS


def judged(model: Host, count: int) -> dict[str, Any]:
    """Right codes of every way, by sound, and its passes."""
    said, _ = sounds(count, 10**6)
    found: dict[str, Any] = {}
    with torch.no_grad():
        for name, rounds in WAYS.items():
            random = torch.Generator().manual_seed(1)
            open_ = torch.full((*said.shape, LEVELS), MASK)
            filled = fill_levels(lambda codes, level: model(said, codes, level), open_, MASK, rounds, random)
            found[name] = {"right": right(said, filled.codes), "passes": filled.passes}
        codes, passes = one_by_one(model, said, torch.Generator().manual_seed(1))
        found["left to right"] = {"right": right(said, codes), "passes": passes}
    random = torch.Generator().manual_seed(2)
    chance = torch.randint(CODES, (*said.shape, LEVELS), generator=random)
    return found | {"chance": {"right": right(said, chance), "passes": 0}}


def finding(found: dict[str, Any], count: int, run: dict[str, Any]) -> Finding:
    """Row 132: near left to right in a tenth of the passes, and rounds at the first level matter."""
    many, one, each = found["16 rounds, 1, 1"], found["1 round each"], found["left to right"]

    def over(other: dict[str, Any]) -> Any:
        return of_strata([[a - b for a, b in zip(many["right"], other["right"], strict=True)]])

    parts = (
        part("right codes over those of one code a pass, left to right", over(each), above=-0.02),
        part("right codes over it", over(one), "one round at the first level", above=0),
        part("right codes over it", over(found["chance"]), "random codes", above=0),
    )
    says = "16 rounds at the first level and one at the others are as right as a code a pass, in a tenth of the passes"
    host = f"a bidirectional host of three layers, {count} sounds of {FRAMES} frames and {LEVELS} levels of toy codes"
    return Finding(
        row=132,
        says=says,
        host=host,
        parts=parts,
        leaves_out="sound, the Conformer's convolution, and a model that was trained to write left to right",
        **run,
    )


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sounds", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path("out/levels"))
    parser.add_argument("--json", type=Path, help="A table of figures for the docs.")
    return parser


def main() -> None:
    """A line for every way."""
    given = arguments().parse_args()
    found = judged(trained(given.steps, given.batch, given.folder), given.sounds)
    rows = []
    for name, row in found.items():
        mean = of_strata([row["right"]])
        rows.append([name, f"{mean.mean:.1%} ({mean.low:.1%} to {mean.high:.1%})", row["passes"] or ""])
        print(*rows[-1], flush=True)
    run: dict[str, Any] = {
        "command": f"python benchmarks/{Path(__file__).name} --steps {given.steps} --batch {given.batch} "
        f"--sounds {given.sounds}",
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()), "date": date.today().isoformat(),
    }  # fmt: skip
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        told = [finding(found, given.sounds, run)] if given.sounds >= 64 else []
        figures = {
            "source": f"{given.sounds} sounds", **run, "model": "a bidirectional host of three layers",
            "columns": ["filled by", "right codes", "passes"], "rows": rows, "findings": as_data(told),
        }  # fmt: skip
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
