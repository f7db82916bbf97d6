"""The seam to transformers, and the only file that knows its internals.

Entered by public doors alone: one name, "headwise", in AttentionInterface and AttentionMaskInterface, and a Cache
subclass. Of one attention call: the model hands its new keys and values to `Cache.update`, which parks them, and calls
the attention function right after, which takes them from there. `Cache.get_mask_sizes` is called right before the mask
function in the same way. Both hand-overs are checked, so a model that works otherwise is refused, not served wrongly.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from headwise.cache.tiers import given_tier
from headwise.engine.budget import in_tokens
from headwise.engine.fingerprint import fingerprint
from headwise.engine.group import Phase
from headwise.engine.persist import load_session, save_session
from headwise.engine.probe import Scoring, Sighting, attend_once, geometry, refuse_positions, ropes
from headwise.engine.session import Session
from headwise.errors import PlanError, SessionError, UnsupportedModel
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.shapes import Geometry, Mark, Rope

NAME = "headwise"
DECODE_TOKENS = 16  # up to so many new tokens after a prompt are decoding (one, or a draft to verify); more are prompt

Attention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, Scoring], torch.Tensor]
_Parked = tuple["_Door", int, torch.Tensor, torch.Tensor]
_parked: ContextVar[_Parked | None] = ContextVar("parked", default=None)
_announced: ContextVar[_Door | None] = ContextVar("announced", default=None)


@dataclass(frozen=True)
class Seam:
    """What is known of a model after it was checked: its geometry, its rotary embeddings, its fingerprint.

    ropes is None where keys are rotated in a way that could not be identified; only methods that undo it mind.
    """

    geometry: Geometry
    ropes: tuple[Rope | None, ...] | None
    fingerprint: str


_seams: weakref.WeakKeyDictionary[PreTrainedModel, Seam] = weakref.WeakKeyDictionary()


_hooks: weakref.WeakKeyDictionary[PreTrainedModel, RemovableHandle] = weakref.WeakKeyDictionary()


def _commit(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """torch's forward hook, which runs after a forward that raised nothing: its cache need not go back any more."""
    for given in (*args, *kwargs.values()):
        if isinstance(given, Cache):
            given.commit()


def register() -> None:
    """Make the name "headwise" known to transformers. Done by `attach`; needed before only to load a model with
    `attn_implementation="headwise"`."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def attach(model: PreTrainedModel) -> Seam:
    """Switch `model` to headwise and check that it computes what it computed before, to rounding.

    Without a headwise Cache the model keeps working as under sdpa. Raises UnsupportedModel naming the feature that
    cannot be honoured; the model then stays as it was. Done once per model.
    """
    if model in _seams and model.config._attn_implementation == NAME:
        return _seams[model]
    _refuse_features(model)
    register()
    before = model.config._attn_implementation
    training = model.training
    model.eval()
    try:
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        ids = (torch.arange(16, device=model.device) * 7 + 3)[None] % vocabulary
        with torch.no_grad():
            model.set_attn_implementation("eager")  # the model's own definition; sdpa leaves out what it cannot do
            expected = model(input_ids=ids, use_cache=False).logits
            model.set_attn_implementation(NAME)
            recorder = _Recorder(model.config.get_text_config(decoder=True).num_hidden_layers)
            model(input_ids=torch.full_like(ids, int(ids[0, 0])), past_key_values=recorder, use_cache=True)
            _seams[model] = seam = recorder.seam(model)
            _self_check(model, ids, expected)
            if model not in _hooks:
                _hooks[model] = model.register_forward_hook(_commit, with_kwargs=True)
    except Exception:
        _seams.pop(model, None)
        model.set_attn_implementation(before)
        raise
    finally:
        model.train(training)
    return seam


def _refuse_features(model: PreTrainedModel) -> None:
    """Refuse what is known from the config to compute attention in a way this seam cannot follow."""
    config = model.config.get_text_config(decoder=True)
    name = type(model).__name__
    reasons = {
        "an encoder with cross-attention": getattr(model.config, "is_encoder_decoder", False),
        "ALiBi position biases": getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"),
        "latent attention (MLA)": getattr(config, "kv_lora_rank", None) is not None,
        "layers that share another layer's cache": getattr(config, "num_kv_shared_layers", 0),
        "attention that does not go through transformers' AttentionInterface": not model._can_set_attn_implementation(),
    }
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    reasons[f"layers of kind {sorted(kinds)}"] = bool(kinds)
    for feature, present in reasons.items():
        if present:
            raise UnsupportedModel(f"{name} has {feature}, which headwise cannot honour; run it without headwise")


def _self_check(model: PreTrainedModel, ids: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare the model under a dense Cache, prompt and cached tokens, with what it computed before."""
    cache = Cache(model, "")
    first = model(input_ids=ids[:, :12], past_key_values=cache, use_cache=True).logits
    second = model(input_ids=ids[:, 12:], past_key_values=cache, use_cache=True).logits
    found = torch.cat((first, second), dim=1)
    error = float((found - expected).float().norm() / expected.float().norm())
    limit = 1e-3 if found.dtype == torch.float32 else 5e-2
    if not error <= limit:
        raise UnsupportedModel(
            f"{type(model).__name__}: logits under headwise differ from its own by {error:.1e} (limit {limit:.0e}); it "
            "uses an attention feature that headwise does not know; run it without headwise"
        )


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """transformers' mask function. For a headwise cache: the padding mask [b, tokens] or None; else sdpa's mask.

    Sizes come as `args` that differ from 5.2 to later; only sdpa's mask needs them.
    """
    cache = _announced.get()
    _announced.set(None)
    if cache is None:
        return sdpa_mask(*args, **kwargs)
    if not kwargs.get("allow_is_causal_skip", True):
        raise UnsupportedModel("the model asks for a mask that is not plain causal; run it without a headwise cache")
    padding = kwargs.get("attention_mask")
    return None if padding is None or bool(padding.all()) else padding


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
    parked = _parked.get()
    _parked.set(None)
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if sinks is not None:
        raise UnsupportedModel(f"{type(module).__name__} has attention-sink logits, which headwise cannot honour yet")
    if parked is None:
        if softcap is not None:
            raise UnsupportedModel(
                f"{type(module).__name__} caps its scores; without a headwise cache call "
                "model.set_attn_implementation('eager') first"
            )
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    cache, layer, own_key, own_value = parked
    if key is not own_key or value is not own_value:
        raise UnsupportedModel(f"{type(module).__name__} changes keys after caching them; run it without headwise")
    if dropout:
        raise UnsupportedModel("attention dropout is on; call model.eval() to use a headwise cache")
    if attention_mask is not None and attention_mask.dim() != 2:
        raise SessionError("a headwise cache takes a padding mask [b, tokens] only; pass attention_mask as 0s and 1s")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scoring = Scoring(scale, softcap, kwargs.get("sliding_window"))
    return cache.attend(layer, query, key, value, attention_mask, scoring).transpose(1, 2), None


class _Door(transformers.Cache):
    """A cache that hands each call on: keys and values to the attention function, itself to the mask function."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Park the new keys [b, h, t, d] and values of a layer for the attention function, which follows at once."""
        if _parked.get() is not None:
            _parked.set(None)
            raise SessionError(
                "the model did not compute attention through headwise after filling the cache; "
                "call model.set_attn_implementation('headwise') or make a new headwise.Cache(model)"
            )
        _parked.set((self, layer_idx, key_states, value_states))
        return key_states, value_states

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Key length and offset for the mask function, which follows at once. 5.2 passes positions, later a length."""
        _announced.set(self)
        length = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + length, 0

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scoring: Scoring
    ) -> torch.Tensor:
        """One layer of a step: q [b, H, t, d] and the parked k [b, h, t, d], v [b, h, t, e] -> out [b, H, t, e]."""
        raise NotImplementedError


class _Recorder(_Door):
    """A cache for one probing forward: notes what every layer hands over, and computes dense attention."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[])
        self.sightings: list[Sighting | None] = [None] * layers

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scoring: Scoring
    ) -> torch.Tensor:
        self.sightings[layer] = Sighting(k[0], v.shape[-1], q.shape[1], scoring)
        return attend_once(q, k, v, scoring)

    def seam(self, model: PreTrainedModel) -> Seam:
        """What the forward told."""
        config = model.config.get_text_config(decoder=True)
        shape = geometry(self.sightings, getattr(config, "max_position_embeddings", None) or 2**31)
        frequencies = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
        of = fingerprint(model.config.to_dict(), model.named_parameters())
        return Seam(shape, ropes([one for one in self.sightings if one], frequencies), of)


class Through(_Door):
    """A cache for one forward from its start, which stores nothing: attention is `attention(layer, q, k, v, scoring)`
    with its gradients, q [b, H, t, d], k [b, h, t, d], v [b, h, t, e] -> [b, H, t, e]."""

    def __init__(self, model: PreTrainedModel, attention: Attention) -> None:
        super().__init__(layers=[])
        self.seam = attach(model)
        self.attention = attention

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scoring: Scoring
    ) -> torch.Tensor:
        return self.attention(layer, q, k, v, scoring)


class Cache(_Door):
    """A transformers Cache that follows a recipe or a plan; hand it to `generate` or a forward as `past_key_values`.

    recipe: a sentence such as "snapkv(0.2) | int8", a Recipe, or a Plan; "" is dense. The model is attached (see
    `attach`) on first use. One cache serves one batch of sequences; rows are fixed by the first call.
    marks: named ranges of the prompt, for methods that treat examples or images as wholes. resident: bytes of keys and
    values held near, such as "64MiB"; the rest lies in a file in `folder` (None: the folder for temporary files) or,
    for a GPU, in host memory. None holds all of them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        recipe: str | Recipe | Plan = "",
        *,
        seed: int = 0,
        marks: Iterable[Mark] = (),
        resident: str | int | None = None,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__(layers=[])
        self.seam = attach(model)
        self.plan = as_plan(self.seam, recipe)
        in_tokens(self.plan, model.dtype)  # refuses too few bytes before any work
        kinds = {str(getattr(module, "rope_type", "")) for module in model.modules()}
        refuse_positions(self.plan, self.seam.ropes, kinds)
        self.seed, self.marks = seed, tuple(marks)
        self.tier = given_tier(resident, folder)
        self.session: Session | None = None
        self.total: int | None = None  # final prompt length, when the prompt comes in chunks
        self.undo = True  # whether `abort` can take the next forward back

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scoring: Scoring
    ) -> torch.Tensor:
        """One layer of a step: q [b, H, t, d] -> out [b, H, t, e]."""
        return self._at(layer, q, k, mask, scoring).step(layer, q, k, v, scale=scoring.scale, softcap=scoring.softcap)

    def absorb(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scoring: Scoring) -> None:
        """`attend` of unpadded rows where the answer is known: what is held afterwards is the same."""
        self._at(layer, q, k, None, scoring).absorb(layer, q, k, v, scale=scoring.scale, softcap=scoring.softcap)

    def _at(self, layer: int, q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, scoring: Scoring) -> Session:
        """The session at a layer's turn. The first layer of a call announces the step."""
        expected = self.seam.geometry.windows[layer]
        if scoring.window != expected:
            raise UnsupportedModel(f"layer {layer} has a window of {scoring.window} keys, at attach it had {expected}")
        if self.session is None:
            self.session = Session(
                self.plan, rows=k.shape[0], dtype=k.dtype, device=k.device, seed=self.seed, ropes=self.seam.ropes,
                marks=self.marks, tier=self.tier,
            )  # fmt: skip
        if layer == 0:
            tokens = q.shape[2]
            phase: Phase = "decode" if max(self.session.seen) > 0 and tokens <= DECODE_TOKENS else "prefill"
            live = None if mask is None else mask[:, -tokens:].bool()
            self.session.begin(tokens, phase, live, self.total, self.undo)
        return self.session

    def get_seq_length(self, layer_idx: int = 0, cache_position: Any = None) -> int:
        """Tokens passed, never tokens kept, as positions are counted by it; padding of the longest row included."""
        return 0 if self.session is None else self.session.passed

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * self.seam.geometry.layers

    @property
    def is_croppable(self) -> bool:
        """Whether going back leaves no trace: not after evictions, nor past a sliding window."""
        evicts = any(recipe.evict is not None for row in self.plan.recipes for recipe in row)
        return not evicts and not any(self.seam.geometry.windows)

    def crop(self, max_length: int) -> None:
        """Go back: a negative number removes so many tokens, a positive one is the length to keep, 0 does nothing."""
        if self.session is not None and max_length:
            length = self.get_seq_length()
            self.truncate(length + max_length if max_length < 0 else min(max_length, length))

    def truncate(self, seen: int) -> None:
        """Go back to `seen` tokens, counted as `get_seq_length` counts them."""
        if self.session is None:
            raise SessionError("the cache is empty; there is nothing to truncate")
        removed = self.session.passed - seen
        self.session.truncate([max(0, have - removed) for have in self.session.seen])

    @contextmanager
    def prompt(self, total: int) -> Iterator[None]:
        """While a prompt is read, in pieces or not, after which there are `total` tokens: budgets refer to them.

        When that fails, an empty cache is empty again, so nothing is kept to go back by; any other goes back to before
        the forward that failed.
        """
        empty = not self.get_seq_length()
        self.total, self.undo = total, not empty
        try:
            yield
        except BaseException:
            self.reset() if empty else self.abort()
            raise
        finally:
            self.total, self.undo = None, True

    def commit(self) -> None:
        """A forward over this cache has succeeded. Done after every forward of an attached model."""
        if self.session is not None:
            self.session.commit()

    def abort(self) -> None:
        """After an error or interrupt anywhere in a forward: everything is as it was before that forward, evictions
        included. After a forward that succeeded it changes nothing."""
        _parked.set(None)
        _announced.set(None)
        if self.session is not None:
            self.session.abort()
            if not self.session.passed:
                self.session = None

    def fork(self) -> Cache:
        """An independent copy: continue a conversation two ways."""
        other = object.__new__(Cache)
        other.__dict__.update(self.__dict__)
        other.session = None if self.session is None else self.session.fork()
        return other

    def reset(self) -> None:
        """Forget everything; the plan and the marks stay."""
        _parked.set(None)
        _announced.set(None)
        self.session = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        raise SessionError("beam search is not supported by a headwise cache; use num_beams=1")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise SessionError(f"cannot repeat a headwise cache {repeats} times; repeat the prompt in the batch instead")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        raise SessionError("cannot select rows of a headwise cache; run the rows you need as their own batch")

    @property
    def nbytes(self) -> int:
        """Bytes the cache holds now, by walking its storages."""
        return 0 if self.session is None else self.session.nbytes()

    def report(self) -> str:
        """Bytes, and by layer and KV head the tokens kept and the attention lost, as text."""
        return "nothing was read yet" if self.session is None else self.session.report()

    def save(self, path: str | Path) -> None:
        """Write the conversation to one file; `Cache.load` continues it token-identically."""
        if self.session is None:
            raise SessionError("the cache is empty; run a prompt through it before saving")
        save_session(self.session, path)

    @classmethod
    def load(cls, model: PreTrainedModel, recipe: str | Recipe | Plan, path: str | Path, **where: Any) -> Cache:
        """Continue a saved conversation; refused unless model and plan are those it was made with.

        where: `resident` and `folder`, as for a new cache.
        """
        cache = cls(model, recipe, **where)
        cache.session, _ = load_session(path, cache.plan, device=model.device, ropes=cache.seam.ropes, tier=cache.tier)
        return cache

    def __repr__(self) -> str:
        return f"headwise.Cache(seen={self.get_seq_length()}, bytes={self.nbytes})"


def as_plan(seam: Seam, recipe: str | Recipe | Plan) -> Plan:
    """The plan for this model that `recipe` means; a plan of another model is refused."""
    if not isinstance(recipe, Plan):
        return Plan.uniform(seam.geometry, recipe, seam.fingerprint)
    if recipe.model and recipe.model != seam.fingerprint:
        raise PlanError(
            f"the plan was made for model {recipe.model}, this one is {seam.fingerprint}; make a plan for this model"
        )
    if recipe.geometry != seam.geometry:
        raise PlanError(f"the plan is for {recipe.geometry}, the model has {seam.geometry}; make a plan for this model")
    return replace(recipe, model=seam.fingerprint)
