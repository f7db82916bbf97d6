"""Where to look, learnt from a model's own attention: SD-RPN on the small vision-language model of `make vlm`.

    python benchmarks/regions.py --json docs/data/vision/regions.json

What the last token of a question attends to in an image, in the middle layers and without sinks, becomes labels: what
is attended to much is foreground, what little is background, and what lies between is left out. A predictor of one
transformer layer and an attention map learns them from the states of the middle layer. No box is shown to it. Its masks
are compared with the true place of the asked thing, beside the attention that it learnt from, at the threshold that is
best for this by true boxes, and beside the same predictor learnt from the attention to other pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from headwise.bench.judging.intervals import Interval, of_scores
from headwise.bench.provenance import machine
from headwise.caches import cache_folder
from headwise.files import write_json
from headwise.findings import ENOUGH, Finding, as_data, part
from headwise.models.vlm.asked import opening
from headwise.models.vlm.network import load, untrained
from headwise.models.vlm.scenes import CELL, CELLS, PATCH, PATCHES, SIDE
from headwise.models.vlm.training import HELD
from headwise.seams.transformers.load import quiet
from headwise.theory.fitting import adam
from headwise.vision.questions import Item, seeing
from headwise.vision.router import APART
from headwise.vision.sinks import sink_channels, sinks

HIGH, LOW = 0.5, 0.3  # of a map's largest weight: foreground from here on, background up to there
SEEDS, RATE, BATCH, READ = range(3), 1e-3, 16, 32
BIAS = -3.0  # of its logits: few patches are foreground
TUNED = 64  # questions by which the threshold of attention is chosen
FIRST = len(opening()) - PATCHES  # the image's first place in a prompt


@dataclass(frozen=True)
class Asked:
    """Of questions: what the middle layers attend to [n, PATCHES], the largest 1; what is foreground (1), background
    (0) or neither (-1) by it; the middle layer's states [n, tokens, width]; the asked thing's patches, bool [n,
    PATCHES]; and the share of image tokens that are sinks."""

    attention: Tensor
    labels: Tensor
    states: Tensor
    truth: Tensor
    sinks: float


class Predictor(nn.Module):
    """A transformer layer over a prompt's states, after which the last token's query scores the image tokens' keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.norm, self.query, self.key = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """Logits [n, PATCHES] of states [n, tokens, width]."""
        seen = self.norm(self.layer(states))
        query, keys = self.query(seen[:, -1]), self.key(seen[:, FIRST : FIRST + PATCHES])
        logits: Tensor = (keys @ query[..., None])[..., 0] * query.shape[-1] ** -0.5 + BIAS
        return logits


def colours(first: int) -> Iterator[Item]:
    """Questions for a thing's colour, about pictures from the one numbered `first` on."""
    return (item for item in seeing(first) if item.question.kind == "colour")


def place(item: Item) -> Tensor:
    """The patches of the cell in which the asked thing is, bool [PATCHES]."""
    thing = item.scene.of(item.question.shape or 0)
    assert thing is not None
    y, x = divmod(thing.cell, CELLS)
    grid, side = torch.zeros(SIDE // PATCH, SIDE // PATCH, dtype=torch.bool), CELL // PATCH
    grid[y * side : (y + 1) * side, x * side : (x + 1) * side] = True
    return grid.flatten()


@torch.no_grad()
def asked(model: Any, first: int, count: int) -> Asked:
    """So many questions as the model reads them."""
    items, maps, states, sunk = list(islice(colours(first), count)), [], [], []
    for start in range(0, count, READ):
        own = items[start : start + READ]
        ids, pixels = torch.stack([one.ids for one in own]), torch.stack([one.pixels for one in own])
        out = model(ids, pixel_values=pixels, output_attentions=True, output_hidden_states=True, use_cache=False)
        middle = len(out.attentions) // 2
        image = slice(FIRST, FIRST + PATCHES)
        looks = torch.stack(out.attentions[middle - 1 : middle + 1]).mean((0, 2))[:, -1, image]
        here = out.hidden_states[middle]
        sinking = torch.stack([sinks(one, sink_channels(one)) for one in here])[:, image]
        looks = looks.masked_fill(sinking, 0.0)
        maps.append(looks / looks.amax(1, keepdim=True))
        states.append(here)
        sunk.append(sinking.float().mean())
    attention = torch.cat(maps)
    labels = torch.where(attention >= HIGH, 1.0, torch.where(attention <= LOW, 0.0, -1.0))
    truth = torch.stack([place(one) for one in items])
    return Asked(attention, labels, torch.cat(states), truth, float(torch.stack(sunk).mean()))


def learnt(train: Asked, labels: Tensor, steps: int, seed: int) -> Predictor:
    """A predictor that learnt labels [n, PATCHES] from states; labels of -1 are left out."""
    torch.manual_seed(seed)
    chance, module = torch.Generator().manual_seed(seed), Predictor(train.states.shape[-1])

    def loss() -> Tensor:
        rows = torch.randint(len(labels), (BATCH,), generator=chance)
        told, own = module(train.states[rows]), labels[rows]
        return binary_cross_entropy_with_logits(told[own >= 0], own[own >= 0])

    adam(list(module.parameters()), loss, steps, RATE)
    return module.eval()


def overlap(mask: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of masks, bool [n, PATCHES]: [n]."""
    return (mask & truth).sum(1) / (mask | truth).sum(1).clamp(min=1)


def measured(model: Any, questions: int, trained: int, steps: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """By what finds the asked thing, its overlap with it by question [n], the mean over seeds; and facts."""
    train, tune, test = (
        asked(model, first, count)
        for first, count in ((APART, trained), (APART + 2**20, TUNED), (HELD, questions))
    )  # fmt: skip
    limits = [level / 20 for level in range(1, 20)]
    best = max(limits, key=lambda limit: float(overlap(tune.attention >= limit, tune.truth).mean()))
    found = {
        "attention, the foreground it teaches": overlap(test.attention >= HIGH, test.truth),
        "attention, best threshold by boxes": overlap(test.attention >= best, test.truth),
    }
    teachers = {"predictor": train.labels, "predictor, attention to other pictures": train.labels.roll(1, 0)}
    for name, labels in teachers.items():
        runs = []
        for seed in SEEDS:
            module = learnt(train, labels, steps, seed)
            with torch.no_grad():
                runs.append(overlap(module(test.states) > 0, test.truth))
            print(f"{name}, seed {seed}: IoU {float(runs[-1].mean()):.3f}", flush=True)
        found[name] = torch.stack(runs).mean(0)
    return found, {"threshold": best, "sinks": test.sinks, "left_out": float((train.labels < 0).float().mean())}


def finding(found: dict[str, Tensor], host: str, origin: dict[str, Any]) -> Finding:
    """What it shows of row 169."""

    def more(other: str) -> Interval:
        return of_scores((found["predictor"] - found[other]).tolist())

    by_boxes, others = "attention, best threshold by boxes", "predictor, attention to other pictures"
    return Finding(
        row=169, host=host, **origin,
        says="A predictor that learns from a model's own attention, without boxes, finds the asked thing better than "
        "the attention that it learnt from",
        parts=(
            part("IoU with the asked thing", more(by_boxes), above=0.1, control="attention at its best threshold"),
            part("IoU with the asked thing", more(others), above=0.0, control="learnt from other pictures' attention"),
        ),
        leaves_out="the crop that is encoded again, and what it does to answers",
    )  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--folder", type=Path, default=cache_folder() / "vlm")
    read.add_argument("--untrained", action="store_true", help="try the command on random weights")
    read.add_argument("--questions", type=int, default=128)
    read.add_argument("--trained", type=int, default=384)
    read.add_argument("--steps", type=int, default=150)
    read.add_argument("--json", type=Path)
    return read


def main() -> None:
    """Read, train, print and write."""
    given = arguments().parse_args()
    quiet()
    torch.set_num_threads(1)
    if not given.untrained and not given.folder.exists():
        raise SystemExit(f"{given.folder} is not there; `make vlm` trains the model")
    model = untrained(layers=2) if given.untrained else load(given.folder)
    model.eval().set_attn_implementation("eager")
    found, facts = measured(model, given.questions, given.trained, given.steps)
    own = machine()
    asking = f"--questions {given.questions} --trained {given.trained} --steps {given.steps}"
    origin = {
        "command": f"python benchmarks/{Path(__file__).name} {asking}",
        "machine": f"{own['processor']}, {own['cores']} cores",
        "date": date.today().isoformat(),
    }
    rows = []
    for name, scores in found.items():
        told = of_scores(scores.tolist())
        rows.append([name, f"{told.mean:.2f} [{told.low:.2f}, {told.high:.2f}]"])
        print(*rows[-1], sep=" | ")
    told_of = f"a run of its own: best threshold {facts['threshold']}, "
    told_of += f"{100 * facts['left_out']:.0f} % of the patches left out, {100 * facts['sinks']:.0f} % sinks"
    print(told_of)
    host = f"the small vision-language model of `make vlm`, {given.questions} questions for a colour"
    judgement = as_data([finding(found, host, origin)]) if given.questions >= ENOUGH else []
    if given.json is not None:
        columns = ["what finds the asked thing", "IoU with its place"]
        write_json(given.json, {"source": told_of, **origin, "columns": columns,
                                "rows": rows, "findings": judgement})  # fmt: skip


if __name__ == "__main__":
    main()
