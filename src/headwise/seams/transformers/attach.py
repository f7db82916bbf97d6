"""Making a model run through headwise, after it was made sure that it then computes what it did before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from headwise.errors import HeadwiseError, UnsupportedModel
from headwise.seams.transformers.compiled import restore_layers
from headwise.seams.transformers.door import NAME, commit_call, forget, refuse_call, register
from headwise.seams.transformers.probe import AttendsByItself, Seam
from headwise.seams.transformers.recorder import text_config
from headwise.seams.transformers.selfcheck import check_boundaries, check_itself, see


@dataclass(frozen=True)
class _Attached:
    """A model that runs through headwise: what is known of it, and what to put back."""

    seam: Seam
    before: dict[str, str]
    hooks: tuple[RemovableHandle, ...]

    def remove_hooks(self) -> None:
        """Let the model's forwards run without headwise looking at their arguments."""
        for hook in self.hooks:
            hook.remove()


_HELD = "_headwise"  # the attribute of a model that is attached, so that its copies know it too
_one_at_a_time = threading.Lock()  # a model that is being attached changes its attention function several times
FOLLOWED = {  # what configs call layers of kinds that sessions follow
    *("full_attention", "sliding_attention", "chunked_attention", "hybrid", "hybrid_sliding"),
    *("indexed_attention", "deepseek_sparse_attention"),
    *("linear_attention", "mamba", "mamba2", "conv", "recurrent", "moe", "mlp"),
}
# What a model that does otherwise than this seam expects may raise; memory that ran out is not of these.
_CLASHES = (HeadwiseError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def attach(model: PreTrainedModel) -> Seam:
    """Switch `model` to headwise and check that it computes what it computed before, to rounding.

    Without a headwise Cache the model keeps working as under sdpa, or as under eager attention where sdpa cannot do
    what it asks. Raises UnsupportedModel naming the feature that cannot be honoured; the model then stays as it was.
    Done once per model; `detach` puts back what was there.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"{type(model).__name__} has an encoder with cross-attention, beside which this is not done; to generate, "
            "give it headwise.EncoderDecoderCache(model, recipe, cross)"
        )
    with _one_at_a_time:
        return _attach(model)


def attach_both(model: PreTrainedModel) -> Seam:
    """`attach` for a model of an encoder and a decoder."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UnsupportedModel(f"{type(model).__name__} has no encoder; give it a headwise.Cache")
    with _one_at_a_time:
        return _attach(model)


def attach_any(model: PreTrainedModel) -> Seam:
    """`attach`, or `attach_both` for a model of an encoder and a decoder."""
    both = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return attach_both(model) if both else attach(model)


def _attach(model: PreTrainedModel) -> Seam:
    held = _held(model)
    by_itself = held is not None and held.seam.by_itself and held.seam.across is None
    if held is not None and (by_itself or model.config._attn_implementation == NAME):
        return held.seam
    why: AttendsByItself | None = None
    try:
        refuse_features(model)
    except AttendsByItself as error:
        why = error
    register()
    before = implementations(model)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), _no_image_before(model):
            seam = _seam(model, before, why)
    except BaseException as error:
        forget()
        put_back(model, before)
        if isinstance(error, UnsupportedModel | torch.OutOfMemoryError) or not isinstance(error, _CLASHES):
            raise
        raise UnsupportedModel(
            f"{type(model).__name__} does not run under headwise ({type(error).__name__}: {error}); run it without"
        ) from error
    finally:
        model.train(training)
    if held is not None:
        held.remove_hooks()
    forget()
    hooks = (
        model.register_forward_pre_hook(refuse_call, with_kwargs=True),
        model.register_forward_hook(commit_call, with_kwargs=True),
    )
    setattr(model, _HELD, _Attached(seam, before, hooks))
    return seam


def _seam(model: PreTrainedModel, before: dict[str, str], why: AttendsByItself | None) -> Seam:
    """What is known of a model once it computes the same over a headwise cache: by headwise's attention, or, where that
    cannot follow it, by its own over what the cache hands back."""
    if why is None:
        try:
            seam = see(model)
            check_itself(model, seam)
            check_boundaries(model)
            model.set_attn_implementation(NAME)
            return seam
        except AttendsByItself as error:
            why = error
    forget()
    if not model.config.is_encoder_decoder:  # whose cross-attention is headwise's still
        put_back(model, before)
    reason = str(why).removesuffix(", which headwise cannot honour; run it without headwise").split("; run it")[0]
    try:
        seam = see(model, reason)
        check_itself(model, seam)
        check_boundaries(model, reason)
    except _CLASHES as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UnsupportedModel(f"{why}; nor can it attend by itself ({type(error).__name__}: {error})") from error
    return seam


def put_back(model: PreTrainedModel, before: dict[str, str]) -> None:
    """Set the attention functions `before`, of a model that has a choice."""
    if model._can_set_attn_implementation():
        model.set_attn_implementation(before)


def detach(model: PreTrainedModel) -> None:
    """Put back the attention that `model` had before it was attached, and the decoder layers that `fast` compiled.
    Caches made for it are refused from then on; a new one attaches it again. Nothing happens to a model that is not
    attached."""
    restore_layers(model)
    held = _held(model)
    if held is not None:
        delattr(model, _HELD)
        held.remove_hooks()
        put_back(model, held.before)


def _held(model: PreTrainedModel) -> _Attached | None:
    """What is known of a model that was attached, or copied from one."""
    held: _Attached | None = model.__dict__.get(_HELD)
    return held


def implementations(model: PreTrainedModel) -> dict[str, str]:
    """The names of the attention functions in use, "" for the model's own, as `set_attn_implementation` takes them."""
    parts = {name: getattr(model.config, name, None) for name in model.config.sub_configs}
    found = {name: one for name, part in parts.items() if (one := getattr(part, "_attn_implementation", None))}
    return {"": model.config._attn_implementation, **found}


@contextmanager
def _no_image_before(model: PreTrainedModel) -> Iterator[None]:
    """While the model is looked at: its positions are those of plain text, whatever it was shown before (Qwen-VL's
    `rope_deltas`)."""
    shown = [(part, part.rope_deltas) for part in model.modules() if getattr(part, "rope_deltas", None) is not None]
    for part, _ in shown:
        part.rope_deltas = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for part, deltas in shown:
            part.rope_deltas = deltas


def refuse_features(model: PreTrainedModel) -> None:
    """Refuse what is known from the config to compute attention in a way this seam cannot follow: as AttendsByItself
    where the model may do so itself over what a cache hands back."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) and not hasattr(model, "_orig_mod"):
        raise UnsupportedModel(
            f"{name} is not a transformers model but wraps one, past which generate may go; give the model inside "
            "(of PEFT: model.get_base_model())"
        )
    if hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
        raise UnsupportedModel(
            f"{name} is compiled: what a headwise cache reads differs from step to step, so that this takes minutes "
            "and gains nothing; give the model as it was before torch.compile"
        )
    if not model.can_generate() or model.get_output_embeddings() is None:
        raise UnsupportedModel(
            f"{name} has no head that writes tokens; load it with AutoModelForCausalLM, or its own ...ForCausalLM class"
        )
    config = text_config(model)
    kept_aside = "layers that keep their state on themselves, where no cache can save it or go back"
    if any(hasattr(part, "recurrent_states") for part in model.modules()):
        raise UnsupportedModel(f"{name} has {kept_aside}, which headwise cannot honour; run it without headwise")
    for kind in getattr(config, "layer_types", None) or ():
        if kind not in FOLLOWED:
            raise UnsupportedModel(
                f"{name} has layers of kind '{kind}', which headwise cannot honour; run it without headwise"
            )
    reasons = {
        "an indexer that chooses what its attention reads (DeepSeek sparse attention)": _names(config, "index_topk")
        or _names(config, "indexer_budget"),
        "ALiBi position biases": _names(config, "alibi") or config.model_type in ("bloom", "mpt"),
        "attention that does not go through transformers' AttentionInterface": not model._can_set_attn_implementation(),
    }
    for feature in (one for one, present in reasons.items() if present):
        raise AttendsByItself(f"{name} has {feature}, which headwise cannot honour; run it without headwise")


def _names(config: Any, feature: str) -> bool:
    """Whether a config names a feature. One whose layers differ in it raises when asked for a single value."""
    try:
        return bool(getattr(config, feature, None))
    except (AttributeError, ValueError, RuntimeError):
        return True
