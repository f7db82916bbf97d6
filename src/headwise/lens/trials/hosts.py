"""Models that trials look into: small ones that are trained here in seconds, and pretrained ones by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from headwise.assets import embedded_model
from headwise.calibrate.subject import ModelSubject
from headwise.errors import HeadwiseError
from headwise.lens.interventions import Head
from headwise.lens.look import looked_at
from headwise.lens.prompt import Prompt
from headwise.lens.scene import Text
from headwise.lenses import LENSES, AttentionLens
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.seams.transformers.load import load_model, load_tokenizer
from headwise.seams.transformers.small import small_decoder

VOCABULARY, HALF = 64, 12  # of the copying host, and how many tokens it reads twice
LAYERS, HEADS, WIDTH = 2, 4, 64
BATCH, RATE, WARM = 32, 5e-3, 30
TRIED = 8  # questions that are drawn at most for each that a model has to answer

Batch = Callable[[torch.Generator], tuple[torch.Tensor, torch.Tensor]]  # ids [b, n] and labels [b, n], -100 unscored


def trained(model: PreTrainedModel, batch: Batch, steps: int, seed: int) -> ModelSubject:
    """A small decoder after so many steps of AdamW, ready to look into."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    with torch.enable_grad():
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / WARM) * (1 - step / steps)
            ids, labels = batch(generator)
            logits = model(ids, use_cache=False).logits
            loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.requires_grad_(False).eval()
    return ModelSubject(model)


def twice(vocabulary: int, half: int, rows: int, generator: torch.Generator) -> torch.Tensor:
    """Different random tokens, read twice: ids [rows, 2 * half]. What follows a token of the second half stands in the
    first."""
    first = torch.stack([torch.randperm(vocabulary, generator=generator)[:half] for _ in range(rows)])
    return torch.cat((first, first), dim=1)


@cache
def copying_host(seed: int, steps: int, heads: int = HEADS) -> ModelSubject:
    """Two layers of so many heads that copy: trained on random tokens read twice."""

    def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        ids = twice(VOCABULARY - 1, HALF, BATCH, generator)
        labels = torch.full_like(ids, -100)
        labels[:, HALF:-1] = ids[:, HALF + 1 :]
        return ids, labels

    return trained(small_decoder(VOCABULARY, LAYERS, heads, WIDTH, seed), batch, steps, seed)


def leading_head(subject: ModelSubject, lens: str, layer: int) -> Head:
    """The head of a layer of the copying host that has the highest figure of an attention lens."""
    one, ids = LENSES.get(lens), twice(VOCABULARY - 1, HALF, 1, torch.Generator().manual_seed(0))
    assert isinstance(one, AttentionLens)
    found = looked_at(subject, Text(ids, torch.zeros(ids.shape[1], dtype=torch.bool)), one.of)
    return layer, int(found[layer].argmax())


@cache
def pretrained(model: str) -> ModelSubject:
    """A pretrained model by its name, in float32; "embedded" is the one that ships."""
    return ModelSubject(load_model(place_of(model), "float32"))


@cache
def tokenizer_of(model: str) -> Callable[[str], torch.Tensor]:
    """What turns a text into its ids [1, n]."""
    tokenizer = load_tokenizer(place_of(model))
    return lambda text: torch.tensor([tokenizer(text).input_ids])


def place_of(model: str) -> str | Path:
    """Where a pretrained model lies."""
    return embedded_model() if model == "embedded" else model


def subject_of(model: str, seed: int, steps: int) -> ModelSubject:
    """The model of this name; where there is none, a copying host that is trained for it."""
    return pretrained(model) if model else copying_host(seed, steps)


def copied(subject: ModelSubject, count: int, generator: torch.Generator) -> list[Prompt]:
    """So many prompts of random tokens, read once and then in part again, of which the subject says the next one
    rightly. HeadwiseError where it hardly ever does."""
    found: list[Prompt] = []
    for _ in range(TRIED * count):
        ids = twice(subject.vocabulary - 1, HALF, 1, generator)
        told = HALF + int(torch.randint(2, HALF, (1,), generator=generator))
        prompt = Prompt(subject, ids[:, :told], int(ids[0, told]), subject.vocabulary - 1, seed=len(found))
        if int(prompt.logits(prompt.ids).argmax()) == prompt.target:
            found.append(prompt)
        if len(found) == count:
            return found
    raise HeadwiseError(f"the model copies {len(found)} of {TRIED * count} prompts rightly, {count} were wanted")
