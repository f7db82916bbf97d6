"""LayerCake: against what the model would say without punctuation in early layers and concepts in middle ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.choose import choose_mask
from headwise.decoders import Decoder, DecoderCard, register
from headwise.errors import HeadwiseError
from headwise.faithful.looks import Looks
from headwise.faithful.measured import punctuation_ids, special_ids
from headwise.faithful.scores import contrasted, plausible
from headwise.knobs import Ids, NonNegative, PositiveShare, Share, Weight


@register("layercake")
@dataclass(frozen=True)
class LayerCake(Decoder):
    """Weighs the model's logits against a look in which the newest token does not attend to punctuation in early
    layers, nor to the most attended other tokens in middle layers; among tokens that are plausible.

    alpha: the weight. early: the share of layers that are early. middle: the share at which the middle ones end.
    concepts: tokens that middle layers are kept from. marks: ids of punctuation, such as '13 28'; by the model's own
    tokenizer where empty. plausible: the share of the best token's probability below which no token is chosen.
    """

    alpha: Weight = 1.0
    early: Share = 0.2
    middle: Share = 0.7
    concepts: NonNegative = 8
    marks: Ids = ""
    plausible: PositiveShare = 0.1

    card = DecoderCard(
        title="Token-aware contrast within layers",
        paper="LayerCake: Token-Aware Contrastive Decoding within Large Language Model Layers, arXiv 2507.04404, "
        "section 3",
        costs="one more pass over the newest token, over the same cache",
        deviations="attention is suppressed for the newest token alone: the cache's keys and values stay those of the "
        "first look. Concepts are the most attended tokens of the middle layers, without punctuation, special tokens "
        "and the first token. Which layers are early and middle is a share, as depths differ. Made from the paper's "
        "text, as no official code was found",
        systems=(219,),
    )
    needs = frozenset({"again", "attention"})
    neutral = "layercake(alpha=0.0)"

    def conflict(self) -> str | None:
        if self.middle < self.early:
            return f"middle={self.middle:g} ends before early={self.early:g} does; give middle at least early"
        return None

    def prepare(self, looks: Looks) -> None:
        self._punctuation(looks)

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        logs = logits.log_softmax(-1)
        degraded = looks.hidden(self.suppressed(looks)).log_softmax(-1)
        out = contrasted(logs, degraded, self.alpha)
        return out.masked_fill(~plausible(logs, self.plausible), -torch.inf).log_softmax(-1)

    def suppressed(self, looks: Looks) -> dict[int, torch.Tensor]:
        """By layer, the places [b, n] that get no attention."""
        layers, attending = len(looks.geometry.layers), looks.geometry.attending
        first, last = round(self.early * layers), round(self.middle * layers)
        marks = torch.isin(looks.tokens, torch.tensor(self._punctuation(looks), device=looks.tokens.device))
        found = {layer: marks for layer in attending if layer < first}
        middle = [layer for layer in attending if first <= layer < last]
        if not middle or not self.concepts:
            return found
        special = torch.isin(looks.tokens, torch.tensor(special_ids(looks.model), device=marks.device))
        attention = torch.stack([looks.attention(layer).mean(1) for layer in middle]).mean(0)
        attention = attention.masked_fill(marks | special, 0.0)
        attention[:, 0] = 0.0
        count = min(self.concepts, attention.shape[1])
        concepts = choose_mask(attention, count, torch.zeros_like(marks)) & (attention > 0)
        return found | dict.fromkeys(middle, concepts)

    def _punctuation(self, looks: Looks) -> list[int]:
        """The ids of punctuation."""
        if not self.marks:
            return punctuation_ids(looks.model)
        ids = [int(word) for word in self.marks.split()]
        vocabulary: int = looks.model.config.get_text_config(decoder=True).vocab_size
        if (largest := max(ids)) >= vocabulary:
            raise HeadwiseError(f"layercake: marks: the model has ids 0 to {vocabulary - 1}, got {largest}")
        return ids
