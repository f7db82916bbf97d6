"""Whether a class of model runs under headwise as it does alone: a tiny one of random weights is asked both ways."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from headwise.errors import HeadwiseError, UnsupportedModel
from headwise.seams.transformers.attach import refuse_features
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.encoder_decoder import EncoderDecoderCache
from headwise.seams.transformers.encoder_side import encoder_side, own_pair
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.recorder import text_config
from headwise.seams.transformers.selfcheck import small_copy

Sort = Literal["causal", "vision", "encoder-decoder"]
Found = Literal["identical", "refused", "differs", "crash", "not built"]
SORTS: dict[Sort, str] = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "vision": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "encoder-decoder": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}
MIXED = ["conv", "full_attention"]
BART = {
    "d_model": 64, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64, "decoder_layers": 2, "encoder_layers": 2,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4,
}  # fmt: skip
ROTARY = {"rope_type": "default", "rope_theta": 10_000.0}
INDEXER = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}  # fmt: skip
# Of types whose default config says too little to be built, is not made small by what is done to others, or has layers
# of one sort alone, none of which may attend.
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 4},
    "bigbird_pegasus": BART,
    "blenderbot": BART,
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROTARY, "sliding_attention": ROTARY}},
    "dbrx": {
        "d_model": 64,
        "n_heads": 2,
        "n_layers": 2,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gemma4_text": {"num_kv_shared_layers": 10},
    "gemma4_unified_text": {"num_kv_shared_layers": 10},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2},
    "lfm2": {"layer_types": MIXED, "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": MIXED, "num_hidden_layers": 2},
    "musicgen": {"decoder": {"num_codebooks": 1}},
    "musicgen_melody": {"decoder": {"num_codebooks": 1}},
    "nemotron": {"num_key_value_heads": 8},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "xmod": {"default_language": "en_XX"},
}
LIMIT = 1e-4  # how far logits may lie apart, as a share of their size
WHOLE, CHUNKED = (35, 1, 1, 1), (20, 18, 1, 1)  # tokens of each forward; windows lie at 8 tokens
PADDED = (11, 0)  # columns of padding of each row of a batch


@dataclass(frozen=True)
class Specimen:
    """A model type of transformers with the class that its auto classes make of it."""

    sort: Sort
    model_type: str
    kind: str


@dataclass(frozen=True)
class Verdict:
    """What came of one: `why` says what was refused or differs; governed of all its layers attend, passing pass on a
    state, reading attend over what another one stores. by_itself: whether the model attends by itself over what its
    cache hands back, so that a plan says only in what form that lies."""

    found: Found
    why: str = ""
    governed: int = 0
    passing: int = 0
    layers: int = 0
    reading: int = 0
    by_itself: bool = False


def specimens(sort: Sort) -> list[Specimen]:
    """All of a sort that the installed transformers knows, each class once by each of its model types."""
    listed = getattr(modeling_auto, SORTS[sort])
    firsts = ((name, kinds if isinstance(kinds, str) else kinds[0]) for name, kinds in listed.items())
    return [Specimen(sort, name, kind) for name, kind in firsts if name in CONFIG_MAPPING]


def examine(one: Specimen) -> Verdict:
    """Ask a tiny model of random weights for a prompt in one piece, in two, and in a padded batch, with steps after
    each, under headwise's empty recipe and alone."""
    try:
        model = specimen_model(one)
    except Exception as error:  # whatever a class raises that is not made of its defaults, or lacks a package
        return _not_built(one, _line(error))
    try:
        seam = _cache(model).seam
    except HeadwiseError as error:
        return Verdict("refused", _line(error))
    except Exception as error:
        return Verdict("crash", f"while it was attached: {_line(error)}")
    shape = seam.geometry
    counts = len(shape.attending), sum(map(bool, shape.states)), len(shape.layers), len(shape.reading)
    itself = seam.by_itself is not None
    worst: Verdict = Verdict("identical", "", *counts, itself)
    for number, (name, ask) in enumerate(_questions(model)):
        found, why = _compare(model, ask)
        if found == "not built" and number:
            continue  # it is asked nothing that it cannot do alone, but for a plain prompt
        if found != "identical":
            worst = (
                Verdict(found, f"{name}: {why}", *counts, itself) if worst.found in ("identical", "refused") else worst
            )
    return worst


def specimen_model(one: Specimen) -> PreTrainedModel:
    """The tiny model of random weights."""
    return small_copy(getattr(transformers, one.kind), _config(one))


def _cache(model: PreTrainedModel) -> Cache | EncoderDecoderCache:
    """An empty cache under the empty recipe."""
    return EncoderDecoderCache(model) if model.config.is_encoder_decoder else Cache(model)


def _config(one: Specimen) -> Any:
    config = CONFIG_MAPPING[one.model_type](**SETTINGS.get(one.model_type, {}))
    if not isinstance(config, getattr(transformers, one.kind).config_class):  # of a whole of which it is the text part
        config = config.get_text_config(decoder=True)
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    return config


def _not_built(one: Specimen, why: str) -> Verdict:
    """What can be told of a type without a small model of it: that it is refused for what its full size says."""
    try:
        with torch.device("meta"):
            refuse_features(getattr(transformers, one.kind)(_config(one)))
    except UnsupportedModel as error:
        return Verdict("refused", _line(error))
    except Exception as error:
        return Verdict("not built", _line(error))
    return Verdict("not built", why)


Ask = Callable[[Any], torch.Tensor]  # the logits that a model gives over a cache, or over its own where that is None


def _questions(model: PreTrainedModel) -> Iterator[tuple[str, Ask]]:
    ids = torch.randint(3, text_config(model).vocab_size, (2, 64), generator=torch.Generator().manual_seed(1))
    yield "prompt in one piece", lambda cache: _asked(model, cache, ids[:1], WHOLE)
    yield "prompt in two pieces", lambda cache: _asked(model, cache, ids[:1], CHUNKED)
    yield "left-padded batch", lambda cache: _asked(model, cache, ids, WHOLE, PADDED)


def _asked(
    model: PreTrainedModel, cache: Any, ids: torch.Tensor, pieces: Sequence[int], padded: Sequence[int] = ()
) -> torch.Tensor:
    """The logits of all tokens that are no padding."""
    mask = torch.ones(len(ids), sum(pieces), dtype=torch.int64)
    for row, columns in enumerate(padded):
        mask[row, :columns] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    placed = padded and "position_ids" in inspect.signature(type(model).forward).parameters
    named = "decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask"
    if cache is None and model.config.is_encoder_decoder:  # 4.57's T5Gemma makes itself one that drops encoder's tokens
        cache = own_pair()
    logits, start = [], 0
    for count in pieces:
        how: dict[str, Any] = encoder_side(model, len(ids))
        if padded:
            how[named] = mask[:, : start + count]
        if placed:
            how["position_ids"] = positions[:, start : start + count]
        with torch.no_grad():
            out = forward(model, cache, ids[:, start : start + count], **how)
        if cache is None:
            cache = next(found for name in ("cache", "past_key_values") if (found := getattr(out, name, None)))
        logits.append(out.logits)
        start += count
    return torch.cat(logits, dim=1)[mask.bool()]


def _compare(model: PreTrainedModel, ask: Ask) -> tuple[Found, str]:
    """What a model says under headwise beside what it says alone, by its own eager attention. "not built" where it
    cannot do so alone, so that there is nothing to compare."""
    try:
        model.set_attn_implementation("eager")
        expected = ask(None)
    except Exception as error:
        return "not built", f"it does not run alone: {_line(error)}"
    try:
        found = ask(_cache(model))
    except HeadwiseError as error:
        return "refused", _line(error)
    except Exception as error:
        return "crash", _line(error)
    apart = float((found - expected).norm() / expected.norm())
    return ("identical", "") if apart <= LIMIT else ("differs", f"logits by {apart:.1e} of their size")


def _line(error: Exception) -> str:
    """An error as one line."""
    return " ".join(f"{'' if isinstance(error, HeadwiseError) else type(error).__name__ + ': '}{error}".split())[:300]
