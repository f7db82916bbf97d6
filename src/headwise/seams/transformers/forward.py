"""Calling a model with a cache: one place that knows by which name it takes one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationMixin

from headwise.engine.session import Session


def cache_argument(kind: type[torch.nn.Module]) -> str:
    """The name under which models of a class take a cache, in a forward and in `generate`: `cache` in the newest
    transformers, where `past_key_values` warns, and `past_key_values` before."""
    return _cache_argument(kind.forward)


@functools.cache
def _cache_argument(function: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(function).parameters else "past_key_values"


def generation_argument() -> str:
    """The name under which this version's `generate` hands a cache on, and outputs hold it."""
    return _cache_argument(GenerationMixin.prepare_inputs_for_generation)


@functools.cache
def _takes_places(function: Callable[..., Any]) -> bool:
    """Whether a forward can be asked for the logits of some tokens alone."""
    return not {"logits_to_keep", "kwargs"}.isdisjoint(_names(function))


@functools.cache
def _names(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def takes_positions(model: torch.nn.Module) -> bool:
    """Whether a forward can be told the positions of the tokens that it reads: not by a BART's."""
    return not model.config.is_encoder_decoder or "decoder_position_ids" in _names(type(model).forward)  # type: ignore[union-attr]


def ids_argument(model: torch.nn.Module) -> str:
    """The name under which a model is given the tokens that its cache takes in."""
    return "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"  # type: ignore[union-attr]


def forward(model: torch.nn.Module, cache: Any, ids: torch.Tensor, **how: Any) -> Any:
    """What `model` makes of the next tokens `ids [b, t]` of `cache`. how: more of its forward's arguments; the logits
    of `logits_to_keep`, the last so many or places, are picked from all where a model does not know that word."""
    how |= {cache_argument(type(model)): cache, "use_cache": True}
    if "position_ids" in how and model.config.is_encoder_decoder:  # type: ignore[union-attr]
        how["decoder_position_ids"] = how.pop("position_ids")
    if "logits_to_keep" in how and not _takes_places(type(model).forward):
        return _picked(model, ids, **how)
    return model(**{ids_argument(model): ids}, **how)  # nothing after it may fail: the cache has taken the tokens in


def _picked(model: torch.nn.Module, ids: torch.Tensor, logits_to_keep: int | torch.Tensor, **how: Any) -> Any:
    """The same of a model that gives the logits of all tokens."""
    places = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    out = model(**{ids_argument(model): ids}, **how)
    out.logits = out.logits[:, places]
    return out


def encoded(beside: Mapping[str, Any], row: int) -> torch.Tensor | None:
    """What an encoder made of a row's input, [columns, d] without padding at its end, of what a model's forward is
    given beside ids; None where there is no encoder."""
    if (given := beside.get("encoder_outputs")) is None:
        return None
    states: torch.Tensor = given[0][row]
    mask = beside.get("attention_mask")  # of Whisper's input it has other columns, and hides none
    return states if mask is None or mask.shape[1] != len(states) else states[mask[row].bool()]


@contextmanager
def last_states(model: Any) -> Iterator[list[torch.Tensor]]:
    """Within, what the model's last layer makes of the tokens of every forward: [b, t, d], as its output embedding is
    given it; of the last tokens alone where the model's own forward keeps no more logits."""
    states: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, given: states.append(given[0].detach())
    )
    try:
        yield states
    finally:
        handle.remove()


def padding(session: Session, live: Sequence[int], tokens: int) -> dict[str, torch.Tensor]:
    """What tells a forward of `tokens` columns, of which the last live[row] are no padding, where the rows of a session
    stand; nothing where all of them stand where their columns do."""
    if all(count == tokens for count in live) and all(have == session.passed for have in session.seen):
        return {}
    counts = torch.tensor(live)[:, None]
    now = torch.arange(tokens)[None] - (tokens - counts)  # below 0: padding
    before = torch.arange(session.passed)[None] >= session.passed - torch.tensor(session.seen)[:, None]
    mask = torch.cat((before, now >= 0), dim=1).long()
    positions = (torch.tensor(session.seen)[:, None] + now).clamp(min=0)
    return {"attention_mask": mask.to(session.device), "position_ids": positions.to(session.device)}
