"""What transformers calls while a model runs: the attention function, the mask function, and the cache between them.

Entered by public doors alone: one name, "headwise", in AttentionInterface and AttentionMaskInterface, and a Cache
subclass. Of one attention call: the model hands its new keys and values to `Cache.update`, which parks them, and calls
the attention function right after, which takes them from there. `Cache.get_mask_sizes` is called right before the mask
function in the same way. Both hand-overs are checked, so a model that works otherwise is refused, not served wrongly.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from headwise.errors import SessionError, UnsupportedModel
from headwise.forms import Scoring, Sinks
from headwise.seams.transformers.cross_keys import CrossKeys, attend_across
from headwise.seams.transformers.latent import Latent
from headwise.seams.transformers.probe import Asked, AttendsByItself
from headwise.seams.transformers.state_answers import StateAnswers

if TYPE_CHECKING:
    from headwise.seams.transformers.chain import Waiter

NAME = "headwise"

Attention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, Asked], torch.Tensor]
_Parked = tuple["Door", int, torch.Tensor, torch.Tensor]
_parked: ContextVar[_Parked | None] = ContextVar("parked", default=None)
_announced: ContextVar[Door | None] = ContextVar("announced", default=None)
# By layer, the keys of the newest forward that later layers may read too, and the door that they were handed to.
_lent: ContextVar[dict[int, tuple[Door, torch.Tensor]] | None] = ContextVar("lent", default=None)


def register() -> None:
    """Make the name "headwise" known to transformers. Done by `attach`; needed before only to load a model with
    `attn_implementation="headwise"`."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


class LayerMask(torch.Tensor):
    """The mask of some layers: the padding mask [b, tokens], which counts only where `padded`, and their sliding
    `window` of keys, where `chunked` one that begins anew every so many, or None."""

    window: int | None = None
    chunked: bool = False
    padded: bool = False
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> Any:
        """Of a few queries, `mask[:, :, queries, :]` (Gemma 4's layers that read another's keys): the same mask, as how
        many of the last ones there are is seen of themselves."""
        few = isinstance(index, tuple) and len(index) == 4 and all(isinstance(one, slice) for one in index)
        return self if few else super().__getitem__(index)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """transformers' mask function: for a headwise cache a LayerMask, or None if there is nothing to mask; else sdpa's.

    Sizes come as `args` that differ from 5.2 to later; only sdpa's mask needs them.
    """
    cache = _announced.get()
    _announced.set(None)
    if cache is None:
        return sdpa_mask(*args, **kwargs)
    if not kwargs.get("allow_is_causal_skip", True):
        raise AttendsByItself("the model asks for a mask that is not plain causal; run it without a headwise cache")
    padding, window = kwargs.get("attention_mask"), kwargs.get("local_size")
    if padding is not None and bool(padding.all()):
        padding = None
    if padding is None and window is None:
        return None
    mask = (torch.ones(1, 1, dtype=torch.bool) if padding is None else padding).as_subclass(LayerMask)
    mask.window, mask.padded = window, padding is not None
    mask.chunked = window is not None and _chunked(kwargs.get("config"), window)
    return mask


def _chunked(config: Any, size: int) -> bool:
    """Whether a mask's `size` is that of chunks: its name is that of a window too."""
    chunk, window = (getattr(config, name, None) for name in ("attention_chunk_size", "sliding_window"))
    if chunk is not None and chunk == window:
        raise UnsupportedModel(
            f"chunks and windows are both of {size} tokens, by which a mask does not tell them apart; run it without"
        )
    return size == chunk


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query [b, H, t, d] and the parked key [b, h, t, d] -> out [b, t, H, e]."""
    if isinstance(key, CrossKeys):
        _refuse_dropout(dropout)
        return attend_across(module, query, key, value, attention_mask, scaling, kwargs)
    parked = _parked.get()
    _parked.set(None)
    source = _lender(key) if parked is None else None
    if parked is None and source is None:
        return _without_cache(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    name = type(module).__name__
    latent = None
    if parked is not None and (key is not parked[2] or value is not parked[3]):
        latent = Latent.of(module, key, value, parked[2:])
        if latent is None:
            raise AttendsByItself(f"{name} changes keys after caching them; run it without headwise")
    if kwargs.get("position_bias") is not None:
        raise AttendsByItself(f"{name} adds position biases to its scores; run it without headwise")
    _refuse_dropout(dropout)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    padding, asked = told(attention_mask, scale, kwargs.get("softcap"))
    if (logits := kwargs.get("s_aux")) is not None:  # one a query head, by the name that flash attention gives it
        sinks = Sinks(logits.reshape(key.shape[1], -1))
        asked = replace(asked, scoring=replace(asked.scoring, sinks=sinks))
    if source is not None:
        door, owner = source
        out = door.follow(cast(int, module.layer_idx), owner, query, key, value, asked)
        return out.transpose(1, 2).contiguous(), None
    assert parked is not None, "it is one or the other"
    door, layer = parked[:2]
    if latent is None:
        out = door.attend(layer, query, key, value, padding, asked)
    else:
        asked = replace(asked, latent=True)
        out = latent.expanded(door.attend(layer, latent.absorbed(query), *latent.keys_and_values, padding, asked))
    return out.transpose(1, 2).contiguous(), None


def _refuse_dropout(dropout: float) -> None:
    if dropout:
        raise UnsupportedModel("attention dropout is on; call model.eval() to use a headwise cache")


def _lender(key: torch.Tensor) -> tuple[Door, int] | None:
    """The door and the layer that these keys were handed to in this forward, of layers whose keys others read."""
    for layer, (door, own) in (_lent.get() or {}).items():
        if own is key:
            return door, layer
    return None


def told(mask: torch.Tensor | None, scale: float, softcap: float | None) -> tuple[torch.Tensor | None, Asked]:
    """The padding mask [b, tokens], or None, and what is asked for beside it."""
    if mask is None:
        return None, _asked(scale, softcap, None)
    if not isinstance(mask, LayerMask):
        raise SessionError("a headwise cache takes a padding mask [b, tokens] only; pass attention_mask as 0s and 1s")
    # the mask's window and not the attention function's argument, which only flash attention looks at
    return mask.as_subclass(torch.Tensor) if mask.padded else None, _asked(scale, softcap, mask.window, mask.chunked)


@cache
def _asked(scale: float, softcap: float | None, window: int | None, chunked: bool = False) -> Asked:
    """The one value for all layers and steps that ask alike."""
    return Asked(Scoring(scale, softcap), window, chunked)


def _without_cache(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **how: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a call without a headwise cache: sdpa's, or the model's own eager one where sdpa cannot cap scores
    or add sinks."""
    if how.get("softcap") is None and how.get("s_aux") is None:
        return sdpa_attention_forward(module, query, key, value, mask, **how)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise UnsupportedModel(
            f"{type(module).__name__} caps its scores; without a headwise cache call headwise.detach(model) first"
        )
    new, held = query.shape[2], key.shape[2]
    if mask is None and not getattr(module, "is_causal", True):
        mask = torch.ones(1, 1, 1, held, dtype=torch.bool, device=query.device)
    if mask is None:  # sdpa's way to say plain causal
        mask = torch.ones(new, held, dtype=torch.bool, device=query.device).tril(held - new)[None, None]
    added = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    out: tuple[torch.Tensor, Any] = eager(module, query, key, value, added, **how)
    return out[0], None


class Told:
    """A cache that the forwards over it are told to."""

    def reads(self, ids: torch.Tensor | None) -> None:
        """A forward over this cache begins; ids [b, t], or None where it is not given any."""

    def succeeded(self, model: torch.nn.Module) -> None:
        """A forward of `model` over this cache has succeeded."""


class Door(Told, StateAnswers, transformers.Cache, ABC):  # type: ignore[misc]
    """A cache that hands each call on: keys and values to the attention function, itself to the mask function.

    lending: the layers whose keys and values later layers read too; None where that is to be found out.
    """

    lending: frozenset[int] | None = frozenset()
    waiter: Waiter | None = None  # of caches over which compiled layers wait for each other

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Park the new keys [b, h, t, d] and values of a layer for the attention function, which follows at once."""
        refuse_left_over()
        _parked.set((self, layer_idx, key_states, value_states))
        if self.lending is None or layer_idx in self.lending:
            _lent.set({**(_lent.get() or {}), layer_idx: (self, key_states)})
        return key_states, value_states

    def direct(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        softcap: float | None,
    ) -> torch.Tensor:
        """Both calls in one, for a layer that makes them itself: `attend` with the layer's mask, as its model gives it,
        and how it scores."""
        refuse_left_over()
        padding, asked = told(mask, scale, softcap)
        return self.attend(layer, q, k, v, padding, asked)

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Key length and offset for the mask function, which follows at once. 5.2 passes positions, later a length."""
        _announced.set(self)
        length = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + length, 0

    @abstractmethod
    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        """One layer of a step: q [b, H, t, d] and the parked k [b, h, t, d], v [b, h, t, e] -> out [b, H, t, e]."""

    def follow(
        self, layer: int, source: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked
    ) -> torch.Tensor:
        """One layer of a step that reads what layer `source` was given, k and v, and has stored: q [b, H, t, d] of the
        last t of the step's tokens -> [b, H, t, e]."""
        raise UnsupportedModel(
            f"layer {layer} reads the keys and values of layer {source}, which {type(self).__name__} does not follow; "
            "run it by a plain headwise.Cache"
        )


def refuse_left_over() -> None:
    """Refuse to go on where what was handed over before has not been taken."""
    if _parked.get() is not None or _announced.get() is not None:
        forget()
        raise SessionError(
            "the model did not compute attention through headwise after filling the cache; "
            "call model.set_attn_implementation('headwise') or make a new headwise.Cache(model)"
        )


def forget() -> None:
    """Drop what an interrupted forward left half handed over."""
    _parked.set(None)
    _announced.set(None)
    _lent.set(None)


def refuse_call(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before every forward of an attached model: drop what one that was interrupted left half handed over, and refuse
    what a headwise cache cannot answer. A forward pre-hook."""
    if not torch.compiler.is_compiling():
        forget()
    doors = [one for one in (*args, *kwargs.values()) if isinstance(one, Told)]
    if not doors:
        return
    if torch.compiler.is_compiling():
        _refuse_compiled(type(model).__name__)
    if kwargs.get("use_cache") is False:
        raise SessionError(
            "use_cache=False beside a headwise cache would read the whole text again at every step and store it each "
            "time; leave use_cache out, or the cache"
        )
    if model.training and getattr(model, "is_gradient_checkpointing", False):
        raise SessionError(
            "gradient checkpointing drops the cache while a model is trained; call model.eval() or "
            "model.gradient_checkpointing_disable() to use a headwise cache"
        )
    if kwargs.get("output_attentions"):
        raise SessionError(
            "output_attentions=True: under a headwise cache there are no attention weights to return; leave it out, or "
            "call headwise.detach(model) and model.set_attn_implementation('eager')"
        )
    named = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"  # type: ignore[union-attr]
    given = args[0] if args and named == "input_ids" else None
    for door in doors:
        door.reads(kwargs.get(named, given))


@torch.compiler.disable  # so that it is run, and not only traced
def _refuse_compiled(name: str) -> None:
    raise SessionError(
        f"{name} is compiled: what a headwise cache reads differs from step to step, so that this takes minutes and "
        "gains nothing; call the model as it was before torch.compile"
    )


def commit_call(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """After every forward of an attached model that raised nothing: its cache is told. A forward hook, as nothing else
    can tell an error behind the last layer from none."""
    _lent.set(None)
    for one in (*args, *kwargs.values()):
        if isinstance(one, Told):
            one.succeeded(model)
