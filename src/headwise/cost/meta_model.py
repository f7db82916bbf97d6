"""What a forward pass costs, told by a model on torch's "meta" device: every operation runs, none has any memory."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from headwise.errors import UnsupportedModel
from headwise.geometry import Geometry
from headwise.seams.transformers.attach import refuse_features
from headwise.seams.transformers.by_itself import Bystander, heads_of
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.seams.transformers.door import NAME, forget, register
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.probe import Asked, AttendsByItself, Sighting, geometry
from headwise.seams.transformers.recorder import Recorder


@dataclass(frozen=True)
class Work:
    """What the layers of one forward do, attention itself left out.

    peak: most bytes of activations at once. attending: most of them while a layer attends. operations: by each, the
    floating-point operations of its matrix product (0 for others) and the bytes it reads and writes.
    """

    peak: int
    attending: int
    operations: tuple[tuple[int, int], ...]


class _Meter(TorchDispatchMode):
    """Counts bytes alive and operations, by the storages that come and go."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.alive: dict[int, int] = {one.untyped_storage()._cdata: 0 for one in model.parameters()}
        self.alive |= {one.untyped_storage()._cdata: 0 for one in model.buffers()}
        self.now = self.peak = self.attending = 0
        self.operations: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = sum(self._new(one) for one in tree_leaves(out) if isinstance(one, torch.Tensor))
        if made:  # a view reads nothing
            read = sum(_bytes(one) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor))
            count = flop_registry.get(func._overloadpacket)
            flops = int(count(*args, **(kwargs or {}), out_val=out)) if count is not None else 0
            self.operations.append((flops, read + made))
        return out

    def _new(self, one: torch.Tensor) -> int:
        storage = one.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self.alive or not size:
            return 0
        self.alive[place] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, place)
        return size

    def _gone(self, place: int) -> None:
        self.now -= self.alive.pop(place)


def _bytes(one: torch.Tensor) -> int:
    return one.numel() * one.element_size()


class _Listener(Recorder):
    """Notes what every layer hands over, and answers with the empty tensor that attention would fill."""

    meter: _Meter | None = None

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        keys = k.new_empty(k.shape[1], 0, k.shape[3])  # nothing held, as the real keys go into the cache
        self.sightings[layer] = Sighting(keys, v.shape[-1], q.shape[1], asked)
        if self.meter is not None:
            self.meter.attending = max(self.meter.attending, self.meter.now)
        return q.new_empty(*q.shape[:3], v.shape[-1])

    def follow(
        self, layer: int, source: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked
    ) -> torch.Tensor:
        out = self.attend(layer, q, k, v, None, asked)
        if (seen := self.sightings[layer]) is not None:
            self.sightings[layer] = replace(seen, reads=source)
        return out


class _Aside(Bystander):
    """The same of a model that attends by itself."""

    meter: _Meter | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Note a layer's keys [b, h, t, d] and values, and hold none of them."""
        super().update(key_states[:, :, :0], value_states[:, :, :0], layer_idx)
        if self.meter is not None:
            self.meter.attending = max(self.meter.attending, self.meter.now)
        return key_states, value_states


@dataclass
class MetaModel:
    """A model on the "meta" device with the geometry of its attention. by_itself: why it attends by itself, or None."""

    model: PreTrainedModel
    geometry: Geometry = field(init=False)
    by_itself: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        config = self.model.config.get_text_config(decoder=True)
        before = self.model.config._attn_implementation
        try:
            refuse_features(self.model)
            register()
            self.model.set_attn_implementation(NAME)
            listener = self._forward(2, 1)
        except AttendsByItself as error:
            forget()
            self.by_itself = str(error).split(", which headwise")[0].split("; run it")[0]
            if self.model._can_set_attn_implementation():
                self.model.set_attn_implementation(before)
            listener = self._forward(2, 1)
        states = [listener.states.numbers(layer) for layer in range(len(listener.sightings))]
        self.geometry = geometry(listener.sightings, states, getattr(config, "max_position_embeddings", None) or 2**31)

    def work(self, tokens: int, batch: int = 1) -> Work:
        """What a forward of `batch` sequences of `tokens` new tokens does; logits of the last token only."""
        meter = _Meter(self.model)
        with meter:
            self._forward(tokens, batch, meter)
        return Work(meter.peak, meter.attending, tuple(meter.operations))

    def _forward(self, tokens: int, batch: int, meter: _Meter | None = None) -> _Listener | _Aside:
        config = self.model.config.get_text_config(decoder=True)
        layers = config.num_hidden_layers
        listener = _Listener(layers) if self.by_itself is None else _Aside(layers, heads_of(config))
        listener.meter = meter
        if meter is not None:
            listener.lending = self.geometry.lending  # by then it is known; keys of all other layers may go
        ids = torch.zeros(batch, tokens, dtype=torch.int64, device="meta")
        try:
            with torch.no_grad():
                forward(self.model, listener, ids, logits_to_keep=1)
        except (NotImplementedError, RuntimeError) as error:
            raise UnsupportedModel(
                f"{type(self.model).__name__} cannot be run without its weights ({str(error).splitlines()[0]}); "
                "measure it instead with `headwise speed`"
            ) from None
        return listener
