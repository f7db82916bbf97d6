"""Making sure that a model computes under headwise what it computes by its own definition, past every boundary.

The model itself is asked for a few tokens. Windows, chunks and changes of its rotary embedding lie thousands of tokens
away; so a small copy of its config, with few layers, random weights and these boundaries moved to a few tokens, is
asked for a prompt well past all of them and for steps after it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from headwise.errors import UnsupportedModel
from headwise.plan import Plan
from headwise.seams.transformers.by_itself import Bystander, heads_of
from headwise.seams.transformers.cross_cache import CrossCache
from headwise.seams.transformers.door import NAME
from headwise.seams.transformers.encoder_side import both, encoder_side, own_pair
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.mixers import shrink_both, shrink_mixers
from headwise.seams.transformers.probe import Seam
from headwise.seams.transformers.recorder import (
    TellsLayers,
    probe_ids,
    record,
    rope_settings,
    rope_switch,
    text_config,
    text_layers,
    text_part,
)
from headwise.seams.transformers.session_door import SessionDoor

# Fields that may name a window or a chunk, or how many tokens it takes for scores to be scaled otherwise (Llama 4).
# Or how many tokens an indexer chooses.
WINDOWS = re.compile(r"(window|window_size|window_len|chunk_size|local_attention|floor_scale|index_topk)$")
WINDOW, SWITCH = 8, 24  # where the copy's windows and the change of its rotary embedding are planted
LARGEST = 1024  # tokens that the model itself is asked for where it cannot be copied
MOST_WEIGHTS = 400_000_000  # of a copy, most of them where images are read, which a text does not enter

_verdicts: dict[tuple[type, str, str | None], str | None] = {}  # by class, config and way: why not, or None


def check_itself(model: PreTrainedModel, seam: Seam) -> None:
    """Compare an attached model under a dense session, a few tokens as a prompt and a few after it, with its own."""
    reason = _difference(model, seam, (12, 4))
    if reason is not None:
        raise UnsupportedModel(_refusal(model, reason))


def see(model: PreTrainedModel, by_itself: str | None = None) -> Seam:
    """What a forward shows of a model, which attends through headwise from then on, or by itself for this reason."""
    if by_itself is None:
        model.set_attn_implementation(NAME)
        return record(model)
    return record(model, Bystander(text_layers(model), heads_of(text_config(model))), by_itself)


def check_boundaries(model: PreTrainedModel, by_itself: str | None = None) -> None:
    """The same past every boundary that the model's config names and its positions reach; once for each config."""
    config = text_config(model)
    positions = getattr(config, "max_position_embeddings", None) or 2**31
    far = max((size for size in [*_windows(config).values(), rope_switch(config) or 0] if size < positions), default=0)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not far and len(kinds) < 2:
        return
    key = (type(model), model.config.to_json_string(), by_itself)
    if key not in _verdicts:
        _verdicts[key] = _beyond(model, far, by_itself)
    reason = _verdicts[key]
    if reason is not None:
        raise UnsupportedModel(_refusal(model, reason))


def _refusal(model: PreTrainedModel, reason: str) -> str:
    return f"{type(model).__name__}: {reason}; it uses an attention feature that headwise does not know; run it without"


def _beyond(model: PreTrainedModel, far: int, by_itself: str | None) -> str | None:
    """What differs past the boundaries of a model, of which the farthest is `far` tokens away."""
    try:
        small = small_copy(type(model), model.config)
    except Exception as error:  # whatever a config unknown to us raises when its sizes change
        if far > LARGEST:
            return f"what lies past {far} tokens cannot be checked, as no small copy can be made of it ({error})"
        pieces = (2 * far + 3, 5, 1, 1)
        return _difference(model, see(model, by_itself), pieces)
    seam = see(small, by_itself)
    feeds = [(2 * SWITCH + 3, 5, 1, 1, 1)]
    if seam.rope_switch is None:
        feeds.append((5, 20, 3, 1, 1))
    return next((reason for pieces in feeds if (reason := _difference(small, seam, pieces)) is not None), None)


def _difference(model: PreTrainedModel, seam: Seam, pieces: Sequence[int]) -> str | None:
    """How a model's logits under headwise differ from those under its own eager attention, both given tokens in the
    same pieces; None where by rounding only. The model is left on headwise. One that attends by itself does so both
    times, over its own cache and over ours."""
    ids = probe_ids(model, sum(pieces))
    if seam.by_itself is None:
        model.set_attn_implementation("eager")  # the model's own definition; sdpa leaves out what it cannot do
    expected = _logits(model, own_cache(model), ids, pieces)
    if seam.by_itself is None:
        model.set_attn_implementation(NAME)
    found = _logits(model, _dense_cache(seam), ids, pieces)
    error = float((found - expected).float().norm() / expected.float().norm())
    limit = 1e-3 if found.dtype == torch.float32 else 5e-2
    if seam.by_itself is not None and not _looks_back(model, expected, ids, limit):
        return "what it makes of a token depends on later ones, so that it cannot go on from a cache"
    if error <= limit:
        return None
    return f"logits of {len(ids[0])} tokens under headwise differ from its own by {error:.1e} (limit {limit:.0e})"


def _dense_cache(seam: Seam) -> Any:
    """An empty headwise cache under the empty recipe."""
    own = SessionDoor(seam, Plan.uniform(seam.geometry, "", seam.fingerprint))
    if seam.across is None:
        return own
    return both(own, CrossCache(seam.across, Plan.uniform(seam.across.geometry, "", seam.fingerprint)))


def own_cache(model: PreTrainedModel) -> Any:
    """An empty cache as the model is used with without headwise: its own kind (a host's), or transformers'."""
    if model.config.is_encoder_decoder:
        return own_pair()
    return model.own_cache() if isinstance(model, TellsLayers) else DynamicCache(config=text_config(model))


def _looks_back(model: PreTrainedModel, expected: torch.Tensor, ids: torch.Tensor, limit: float) -> bool:
    """Whether the logits `expected` of a text in pieces are also those of it in one."""
    whole = _logits(model, own_cache(model), ids, (ids.shape[1],))
    return float((whole - expected).float().norm() / expected.float().norm()) <= limit


def _logits(model: PreTrainedModel, cache: Any, ids: torch.Tensor, pieces: Sequence[int]) -> torch.Tensor:
    return torch.cat([_step(model, cache, piece) for piece in ids.split(list(pieces), dim=1)], dim=1)


def _step(model: PreTrainedModel, cache: Any, ids: torch.Tensor) -> torch.Tensor:
    """The logits of one forward. A model that is still to be attached does not tell its cache of it."""
    own = getattr(cache, "self_attention_cache", cache)
    if isinstance(own, SessionDoor):
        own.reads(ids)
    logits: torch.Tensor = forward(model, cache, ids, **encoder_side(model, len(ids))).logits
    if isinstance(own, SessionDoor):
        own.succeeded(model)
    return logits


def small_copy(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model of this kind and config with few layers, every sort among them, small sizes and near boundaries."""
    config = copy.deepcopy(config)
    if config.is_encoder_decoder:
        shrink_both(config)
    text = text_part(config)
    for part in (getattr(config, name, None) for name in config.sub_configs):
        if part is not text:
            _shorten(part)
    unlike = _unlike_layers(text)
    _shrink(text)
    kept = _fewer_layers(text)
    shrink_mixers(text)
    _plant(text)
    if unlike:
        text.per_layer_config = {new: _of_layer(text, unlike[old]) for new, old in enumerate(kept) if old in unlike}
    with torch.device("meta"):
        weights = sum(one.numel() for one in kind(copy.deepcopy(config)).parameters())
    if weights > MOST_WEIGHTS:
        raise UnsupportedModel(f"it would still have {weights} weights")
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = kind(config).float().eval()
        for weight in small.parameters():
            if weight.dim() > 1:
                weight.data.normal_(std=weight.shape[-1] ** -0.5)
    return small


def _shorten(part: Any) -> None:
    """Leave one layer of a part that reads no text."""
    for name in ("num_hidden_layers", "depth", "num_layers", "num_blocks"):
        if isinstance(getattr(part, name, None), int):
            setattr(part, name, 1)


def _shrink(config: Any) -> None:
    """Few heads, experts and words. The width of a head stays, as rotary embeddings are made for it."""
    heads = getattr(config, "num_attention_heads", None) or 1
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    small_kv = min(2, kv_heads)
    small = small_kv * min(2, heads // kv_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    most = {
        "num_attention_heads": small,
        "num_key_value_heads": small_kv,
        "hidden_size": small * width,
        **{name: 64 for name in ("vocab_size", "vocab_size_per_layer_input")},
        "max_position_embeddings": 256,
        **{name: 64 for name in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")},
        **{name: 4 for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")},
        **{name: 2 for name in ("num_experts_per_tok", "moe_k", "moe_topk")},
        **{name: 1 for name in ("n_group", "topk_group")},
        **{name: 0 for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    }
    for name, size in most.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(size, getattr(config, name)))
    if "head_dim" in vars(config):  # a field, and not made of others
        config.head_dim = width


def _unlike_layers(config: Any) -> dict[int, dict[str, Any]]:
    """Take from a config what it says of single layers beside what it says of all (Gemma 4's global ones): by layer."""
    if not getattr(config, "is_heterogeneous", False):
        return {}
    told: dict[Any, dict[str, Any]] = config.to_dict()["per_layer_config"]
    config.per_layer_config = None
    return {int(layer): said for layer, said in told.items()}


def _of_layer(config: Any, said: dict[str, Any]) -> dict[str, Any]:
    """What is said of a single layer, with no more KV heads than a config that was made small has."""
    heads = {"num_key_value_heads": config.num_key_value_heads}
    return {name: min(size, heads.get(name, size)) if type(size) is int else size for name, size in said.items()}


def _fewer_layers(config: Any) -> list[int]:
    """Keep the first layer of every sort that the config tells layer by layer, and two at least; four where it tells
    none. Layers that read an earlier one's keys and values, the last so many, are sorts of their own. The kept ones'
    numbers."""
    count = config.num_hidden_layers
    own = count - (getattr(config, "num_kv_shared_layers", None) or 0)
    told = {name: one for name, one in vars(config).items() if isinstance(one, list) and len(one) == count}
    sorts = {repr([layer < own, *(one[layer] for one in told.values())]): layer for layer in reversed(range(count))}
    kinds = told.get("layer_types", told.get("layers_block_type", ()))
    tied = [layer for layer, kind in enumerate(kinds) if kind == "hybrid"][:2]  # of one matrix, Zamba's
    kept = sorted({*sorts.values(), *range(min(2, count)), *tied}) if told else list(range(min(4, count)))
    for name, one in told.items():
        setattr(config, name, [one[layer] for layer in kept])
    config.num_hidden_layers = len(kept)
    if own < count:
        config.num_kv_shared_layers = sum(layer >= own for layer in kept)
    return kept


def _windows(config: Any) -> dict[str, int]:
    """The fields of a config that name a window or a chunk, with its tokens."""
    return {name: size for name, size in vars(config).items() if type(size) is int and size and WINDOWS.search(name)}


def _plant(config: Any) -> None:
    """Move windows, chunks and the change of a rotary embedding to a few tokens."""
    for name, size in _windows(config).items():
        setattr(config, name, min(WINDOW, size))
    if rope_switch(config) is not None:
        config.original_max_position_embeddings = SWITCH
        for settings in rope_settings(config):
            settings["original_max_position_embeddings"] = SWITCH
