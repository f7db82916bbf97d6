"""A smaller model with the same tokenizer drafts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwise.decoding.base import Proposer
from headwise.drafters import Drafter, DrafterCard, register
from headwise.errors import UnsupportedModel, shown
from headwise.knobs import Positive, Word
from headwise.recipe import Recipe


@register("smaller")
@dataclass(frozen=True)
class Smaller(Drafter):
    """Guesses with another model, whose vocabulary must be that of the first.

    model: its folder, hub id or short name. recipe: what its cache follows. tokens: guesses at once.
    """

    model: Word
    recipe: str = ""
    tokens: Positive = 4

    card = DrafterCard(
        title="Speculative decoding with a smaller model",
        paper="Fast Inference from Transformers via Speculative Decoding, arXiv 2211.17192, section 2",
        deviations="as many guesses each time; the paper's section 3 says which number is best",
    )

    def conflict(self) -> str | None:
        Recipe.parse(self.recipe)
        return super().conflict()

    def start(self, model: Any) -> Proposer:
        from headwise.seams.transformers.load import load_model  # which a list of drafters does without

        dtype = str(model.dtype).removeprefix("torch.")
        return drafting_model(model, load_model(self.model, dtype, str(model.device)), self.recipe, self.tokens)


def drafting_model(model: Any, small: Any, recipe: str = "", tokens: int = 4) -> Proposer:
    """`small` at work for `model`; UnsupportedModel where their vocabularies differ in size, or the tokenizers in the
    folders that they were loaded from do in their tokens."""
    from headwise.decoding.second import Second
    from headwise.seams.transformers.load import numbered_tokens

    sizes = [one.config.get_text_config().vocab_size for one in (model, small)]
    if sizes[0] != sizes[1]:
        raise UnsupportedModel(
            f"the drafting model has a vocabulary of {sizes[1]} tokens, the model one of {sizes[0]}; "
            "draft with a model of the same tokenizer"
        )
    words, own = (numbered_tokens(one) for one in (model, small))
    if words and own and (others := sorted(words.items() ^ own.items())):
        raise UnsupportedModel(
            f"the drafting model's tokenizer is another one: {shown(others[0][0])} is token "
            f"{own.get(others[0][0])} there and {words.get(others[0][0])} of the model; draft with a model of the same "
            "tokenizer"
        )
    return Second(small, Recipe.parse(recipe), tokens)
