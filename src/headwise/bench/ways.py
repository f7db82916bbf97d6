"""The usual ways to choose tokens, each as a function from prompts to texts: transformers' own where it has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from headwise.decoding.mirostat import Mirostat
from headwise.decoding.searches import contrastive_search, diverse_beams
from headwise.faithful.generate import contrast
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import end_tokens
from headwise.seams.transformers.forward import cache_argument

ROWS = 16  # prompts that are read together


@dataclass(frozen=True)
class Prompts:
    """Prompts as ids [b, n], left-padded where mask [b, n] is 0."""

    ids: torch.Tensor
    mask: torch.Tensor

    def row(self, number: int) -> torch.Tensor:
        """A prompt [1, n] without its padding."""
        return self.ids[number, self.mask[number].bool()][None]


Write = Callable[[PreTrainedModel, Prompts, int], list[list[int]]]


@dataclass(frozen=True)
class Way:
    """A way to choose tokens: by `write(model, prompts, new)`, at most `new` tokens for each prompt. draws: whether it
    samples. by: whose code it is."""

    name: str
    draws: bool
    by: str
    write: Write


def _generated(**how: Any) -> Write:
    """By `generate` over a headwise cache."""

    def write(model: PreTrainedModel, prompts: Prompts, new: int) -> list[list[int]]:
        return _by_generate(model, prompts, new, {cache_argument(type(model)): Cache(model)} | how)

    return write


def _mirostat(tau: float) -> Write:
    def write(model: PreTrainedModel, prompts: Prompts, new: int) -> list[list[int]]:
        how = {"do_sample": True, "top_k": 0, "logits_processor": [Mirostat(tau)]}
        return _by_generate(model, prompts, new, {cache_argument(type(model)): Cache(model)} | how)

    return write


def _by_decoder(sentence: str) -> Write:
    def write(model: PreTrainedModel, prompts: Prompts, new: int) -> list[list[int]]:
        cache = Cache(model)
        how = {cache_argument(type(model)): cache, "custom_generate": contrast(model, cache, sentence)}
        return _by_generate(model, prompts, new, how)

    return write


def _by_search(search: Callable[..., list[int]], **how: Any) -> Write:
    """Prompt by prompt."""

    def write(model: PreTrainedModel, prompts: Prompts, new: int) -> list[list[int]]:
        return [search(model, Cache(model), prompts.row(row), new, **how) for row in range(len(prompts.ids))]

    return write


def _by_generate(model: PreTrainedModel, prompts: Prompts, new: int, how: dict[str, Any]) -> list[list[int]]:
    """What `generate` writes behind the prompts, up to the end of each."""
    ends = end_tokens(model)
    pad = model.generation_config.pad_token_id
    given: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": new,
        "pad_token_id": 0 if pad is None else pad,
        **how,
    }
    with torch.no_grad():
        out = model.generate(prompts.ids, attention_mask=prompts.mask, **given)  # type: ignore[operator]
    texts = out[:, prompts.ids.shape[1] :].tolist()
    return [text[: next((at + 1 for at, one in enumerate(text) if one in ends), len(text))] for text in texts]


def _sampled(**how: Any) -> Write:
    return _generated(do_sample=True, **({"top_k": 0} | how))


OWN, HERE = "transformers", "headwise"
WAYS: tuple[Way, ...] = (
    Way("greedy", False, OWN, _generated()),
    Way("beam search, 4", False, OWN, _generated(num_beams=4)),
    Way("diverse beams, 4", False, HERE, _by_search(diverse_beams)),
    Way("contrastive search, k=4", False, HERE, _by_search(contrastive_search)),
    Way("contrastive decoding", False, HERE, _by_decoder("contrastive")),
    Way("DoLa", False, HERE, _by_decoder("dola")),
    Way("temperature 0.7", True, OWN, _sampled(temperature=0.7)),
    Way("temperature 1", True, OWN, _sampled()),
    Way("top-p 0.9", True, OWN, _sampled(top_p=0.9)),
    Way("top-k 50", True, OWN, _sampled(top_k=50)),
    Way("eta 0.0006", True, OWN, _sampled(eta_cutoff=6e-4)),
    Way("mirostat 3", True, HERE, _mirostat(3.0)),
    Way("typical 0.9", True, OWN, _sampled(typical_p=0.9)),
)
