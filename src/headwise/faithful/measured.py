"""What decoders are told of a model: measured once on facts planted in the built-in novel, and kept in the user's cache
folder under the model's fingerprint; and what its tokenizer and configuration say of its tokens."""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import torch

from headwise.assets import novel
from headwise.caches import cache_folder
from headwise.calibrate.measures.retrieval import retrieval_scores
from headwise.errors import HeadwiseError
from headwise.kept import once
from headwise.models.embedded import tasks
from headwise.observe import Recall
from headwise.seams.transformers.beside import Head
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.load import load_tokenizer

DOCUMENTS, FACTS, CHARACTERS = 6, 4, 2_400  # of what is measured on


def tokenizer_of(model: PreTrainedModel, instead: str) -> Any:
    """The tokenizer in the folder that a model was loaded from. HeadwiseError, with what may be given `instead`, for a
    model that was not loaded from one."""
    if not model.name_or_path:
        raise HeadwiseError(f"the model was not loaded from a folder with a tokenizer; {instead}")
    return _loaded(model.name_or_path)


@cache
def _loaded(name: str) -> Any:
    return load_tokenizer(name)


def planted(tokenizer: Any, documents: int = DOCUMENTS) -> list[Recall]:
    """Stretches of the novel's second book with facts planted in them, each asked about."""
    text, found = novel(), []
    text = text[text.index("BOOK TWO") :]
    for number in range(documents):
        rng = Random(f"contrast/{number}")
        start = text.index(". ", rng.randrange(len(text) - 2 * CHARACTERS)) + 2
        facts = tasks.draw_facts(rng, FACTS)
        depths = [(place + 0.5) / FACTS for place in range(FACTS)]
        document = tasks.plant(text[start : start + CHARACTERS], [fact.sentence for fact in facts], depths)
        asked = tuple((_ids(tokenizer, fact.question), _ids(tokenizer, fact.answer)) for fact in facts)
        found.append(Recall(_ids(tokenizer, document), asked))
    return found


def retrieval_heads(model: PreTrainedModel, count: int) -> tuple[Head, ...]:
    """The `count` query heads of the highest retrieval score, which are scored once and kept."""

    def measured() -> dict[str, Any]:
        tokenizer = tokenizer_of(model, "name the heads: named='12.3 14.0'")
        scores = retrieval_scores(model, planted(tokenizer)).flatten(1)  # [layers, query heads]
        return {"scores": scores.nan_to_num(0.0).tolist()}

    scores = torch.tensor(known(model, "retrieval", measured)["scores"])
    if count > scores.numel():
        raise HeadwiseError(f"heads={count}: the model has {scores.numel()} query heads; give fewer")
    order = scores.flatten().argsort(descending=True, stable=True)[:count]
    return tuple((int(place) // scores.shape[1], int(place) % scores.shape[1]) for place in order)


def special_ids(model: PreTrainedModel) -> list[int]:
    """The ids that a model's configuration names as beginning, end and padding."""
    config, found = model.config.get_text_config(decoder=True), set[int]()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        told = getattr(config, name, None)
        found |= set(told) if isinstance(told, list) else set() if told is None else {int(told)}
    return sorted(found)


def punctuation_ids(model: PreTrainedModel) -> list[int]:
    """The ids that write nothing but ASCII punctuation, with spaces around."""
    tokenizer_of(model, "name the ids of punctuation: marks='13 28'")
    return list(_punctuation(model.name_or_path))


@cache
def _punctuation(name: str) -> tuple[int, ...]:
    tokenizer = _loaded(name)
    texts = tokenizer.batch_decode([[one] for one in range(len(tokenizer))])
    special = set(tokenizer.all_special_ids)
    written = ((one, text.strip()) for one, text in enumerate(texts) if one not in special)
    return tuple(one for one, text in written if text and all(letter in string.punctuation for letter in text))


_held: dict[tuple[str, str], dict[str, Any]] = {}


def known(model: PreTrainedModel, what: str, measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is kept of a model under a name, else the JSON object that `measured` finds, which is kept from now on."""
    key = what, attach(model).fingerprint
    if key not in _held:
        _held[key] = once(cache_folder() / "contrast", "-1-".join(key), measured)
    return _held[key]


def _ids(tokenizer: Any, text: str) -> torch.Tensor:
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], dtype=torch.int64)
