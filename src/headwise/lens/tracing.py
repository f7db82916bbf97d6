"""Which heads carry an answer, and where: what a head said of one prompt is put into another that has another answer.

Meng et al., Locating and Editing Factual Associations in GPT, arXiv 2202.05262, section 2 (causal tracing), by heads
as in Wang et al., arXiv 2211.00593, section 3 (path patching).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from headwise.calibrate.layerwise import decoder_layers
from headwise.calibrate.subject import ModelSubject
from headwise.errors import HeadwiseError, ShapeError, UnsupportedModel
from headwise.lens.interventions import Head, Patch, Places, patched, patched_rows, recorded
from headwise.seams.transformers.cache import PreTrainedModel

ROWS = 64  # patches that are tried in one forward
Progress = Callable[[int, int], None]  # forwards done, forwards in all


@dataclass(frozen=True, eq=False)
class Contrast:
    """Two prompts `clean` and `other`, ids [1, t], and the tokens that follow each: `right` and `wrong`."""

    clean: torch.Tensor
    other: torch.Tensor
    right: int
    wrong: int

    def __post_init__(self) -> None:
        if self.clean.shape != self.other.shape or self.clean.dim() != 2 or len(self.clean) != 1:
            told = f"{list(self.clean.shape)} and {list(self.other.shape)}"
            raise ShapeError(f"a contrast is two prompts [1, t] of as many tokens, got {told}")

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """How much more likely the right token is than the wrong one, by `logits [b, t, vocabulary]`: [b]."""
        return (logits[:, -1, self.right] - logits[:, -1, self.wrong]).float()


def every_head(model: PreTrainedModel) -> list[Head]:
    """All heads of a model's attending layers, in order."""
    geometry = ModelSubject(model).geometry
    return [(layer, head) for layer in geometry.attending for head in range(geometry.layers[layer].query_heads)]


@torch.no_grad()
def traced(
    model: PreTrainedModel, one: Contrast, patches: Sequence[Patch], progress: Progress = lambda done, total: None
) -> torch.Tensor:
    """What each patch, of the clean prompt's heads into the other prompt, brings back of the answer, [patches]: 0 is
    none of it, 1 all of the difference between both prompts. As many patches as ROWS share a forward."""
    heads = list(dict.fromkeys(patch.head for patch in patches))
    with recorded(model, heads) as said:
        whole = one.score(model(one.clean).logits)
    none = one.score(model(one.other).logits)
    if abs(float(whole - none)) < 1e-6:
        raise HeadwiseError("both prompts are answered alike: there is nothing to trace; give prompts that differ")
    found = [none.new_zeros(0)]
    for start in range(0, len(patches), ROWS):
        progress(start, len(patches))
        some = patches[start : start + ROWS]
        given = {head: output.expand(len(some), -1, -1) for head, output in said.items()}
        with patched_rows(model, some, given):
            found.append(one.score(model(one.other.expand(len(some), -1)).logits))
    progress(len(patches), len(patches))
    return (torch.cat(found) - none) / (whole - none)


@torch.no_grad()
def brought_back(model: PreTrainedModel, one: Contrast, heads: Sequence[Head], places: Places = None) -> float:
    """What all of these heads together, at these places, bring back of the answer: 0 is none of it, 1 all."""
    with recorded(model, heads) as said:
        whole = one.score(model(one.clean).logits)
    none = one.score(model(one.other).logits)
    with patched(model, said, places):
        found = one.score(model(one.other).logits)
    return float((found - none) / (whole - none))


def repeats(vocabulary: int, seed: int, run: int = 10) -> dict[str, Contrast]:
    """Contrasts of random tokens, all different, where what followed a run of tokens is asked for by reading it again.

    Two runs P and Q are followed by B and C, and P is read again, so that B comes next. "keys": the other prompt has
    the first P and Q exchanged, so that C does; what differs is what earlier places know of those before them. "query":
    the other prompt has Q read again in place of P.
    """
    drawn = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))[: 3 * run + 2]
    p, q, filler, b, c = drawn.split((run, run, run, 1, 1))
    start = torch.zeros(1, dtype=torch.int64)

    def prompt(first: torch.Tensor, second: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return torch.cat((start, first, b, filler, second, c, filler.flip(0), last))[None]

    clean = prompt(p, q, p)
    answers = int(b), int(c)
    return {"keys": Contrast(clean, prompt(q, p, p), *answers), "query": Contrast(clean, prompt(p, q, q), *answers)}


@torch.no_grad()
def along(model: PreTrainedModel, one: Contrast, sender: Head, receiver: Head) -> torch.Tensor:
    """What the receiver reads of the other prompt, [1, t, e], where of the sender alone the clean prompt's output
    reaches it, past everything in between: heads and feed-forward layers between them say what they say of the other
    prompt. Patched into the other prompt with `patched`, it is the effect of that path."""
    if not sender[0] < receiver[0]:
        raise HeadwiseError(
            f"there is no path from head {sender[0]}.{sender[1]} to {receiver[0]}.{receiver[1]}: give a receiver of a "
            "later layer"
        )
    between = [head for head in every_head(model) if sender[0] <= head[0] < receiver[0] and head != sender]
    layers = decoder_layers(model)
    wide: list[torch.nn.Module] = []
    for layer in layers[sender[0] : receiver[0]]:
        if isinstance(module := getattr(layer, "mlp", None), torch.nn.Module):
            wide.append(module)
    if len(wide) < receiver[0] - sender[0]:
        raise UnsupportedModel("the feed-forward layers of this model are not found: no path can be told from others")
    with recorded(model, [sender]) as said:
        model(one.clean)
    kept: dict[Any, Any] = {}

    def keep(module: torch.nn.Module, _: Any, output: Any) -> None:
        kept[module] = output

    with recorded(model, between) as others, ExitStack() as hooks:
        for module in wide:
            hooks.callback(module.register_forward_hook(keep).remove)
        model(one.other)
    with patched(model, {**others, sender: said[sender]}), recorded(model, [receiver]) as read, ExitStack() as hooks:
        for module in wide:
            hooks.callback(module.register_forward_hook(partial(_instead, kept[module])).remove)
        model(one.other)
    return read[receiver]


def _instead(kept: Any, *_: Any) -> Any:
    """A hook that gives what was kept in place of a module's output."""
    return kept
