"""A transformers model as the subject of measures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from headwise.calibrate.layerwise import recomputed
from headwise.calibrate.look import observe
from headwise.errors import HeadwiseError
from headwise.observe import Attention, LayerAttention, Observer, Recall, Subject
from headwise.seams.transformers.cache import Cache, PreTrainedModel, Through, attach
from headwise.seams.transformers.drive import generate, prefill
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.probe import Asked


class ModelSubject(Subject):
    """Runs `model`, which is attached, for measures; those of `calibrate` itself go into its caches as well."""

    def __init__(self, model: PreTrainedModel) -> None:
        seam = attach(model)
        self.model, self.geometry, self.ropes, self.fingerprint = model, seam.geometry, seam.ropes, seam.fingerprint
        self.vocabulary: int = model.config.get_text_config(decoder=True).vocab_size
        self.device = model.device

    def observe(self, observer: Observer, documents: Sequence[torch.Tensor]) -> None:
        observe(self.model, observer, documents)

    def hidden(self, ids: torch.Tensor, places: torch.Tensor, attention: Attention) -> torch.Tensor:
        out = forward(self.model.base_model, self._through(attention), ids)
        found: torch.Tensor = out.last_hidden_state[0, places]
        return found

    def logits(self, ids: torch.Tensor, places: torch.Tensor, attention: Attention) -> torch.Tensor:
        found: torch.Tensor = forward(self.model, self._through(attention), ids, logits_to_keep=places).logits[0]
        return found

    def recomputed(self) -> AbstractContextManager[None]:
        return recomputed(self.model)

    def own_answers(self, recall: Recall) -> Recall:
        cache = Cache(self.model, "")
        prefill(self.model, cache, recall.ids)
        asked = tuple((q, generate(self.model, cache.fork(), q, answer.shape[1])) for q, answer in recall.asked)
        return replace(recall, asked=asked)

    def _through(self, attention: Attention) -> Through:
        """A cache that stores nothing and attends by `attention`."""

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked) -> torch.Tensor:
            return attention(LayerAttention(layer, q, k, v, asked.scoring, asked.window, asked.chunked))

        return Through(self.model, attend)


def model_of(subject: Subject) -> PreTrainedModel:
    """The model that a subject runs, for the measures that go into its caches."""
    if not isinstance(subject, ModelSubject):
        raise HeadwiseError(f"{type(subject).__name__} runs no transformers model; measure a ModelSubject(model)")
    return subject.model
