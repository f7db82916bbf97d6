"""Heads that speak of one kind of thing, found by pursuit and turned round."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.errors import HeadwiseError
from headwise.experiments import Experiment, ExperimentCard, Part, Size, register
from headwise.lens.interventions import Head, scaled
from headwise.lens.pursuit import pursued
from headwise.lens.stream import stream
from headwise.lens.trials.hosts import pretrained, tokenizer_of

KINDS = {
    "colours": "red blue green black white brown grey yellow golden purple pink orange",
    "numbers": "one two three four five six seven eight nine ten eleven twelve",
    "days": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "kin": "father mother brother sister uncle aunt son daughter wife husband cousin",
    "countries": "France Germany Italy Spain Russia China Japan India Canada Brazil Mexico England",
}
ATOMS = 4
LISTED, FEWEST = 5, 6  # words of a prompt, and of a kind that are single tokens
RANDOM = 4  # draws of random heads
MOST = 1 / 64  # share of all heads that is turned round


@register("pursuit")
@dataclass(frozen=True, kw_only=True)
class Pursuit(Experiment):
    """Ranks heads by how far words of one kind explain what they write in lists of such words, and turns the best
    round; a draw takes one kind.

    model: a pretrained one. prompts: lists of a draw. strength: the factor of the heads that are turned.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Head Pursuit",
        statement="Heads whose outputs are explained by words of one kind are those that the model says such words by",
        paper="Head Pursuit: Probing Attention Specialization in Multimodal Transformers, arXiv 2510.21518, on pursuit "
        "and interventions",
        setting="Mistral 7B and LLaVA, kinds of names and of images; 8 to 32 heads are turned round",
        seconds=60,
        systems=(187,),
        differs="kinds of everyday words, each a single token; one head in 64 is turned, two at least",
        leaves_out="vision-language models",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("share of the kind's probability that goes as the best heads are turned round", "falls", "falls_random",
             "as many random heads", above=0.5),
        Part("explained share of the best head by words of the kind, less that by as many random tokens", "explains",
             "explains_random", "other random tokens", above=0.0),
    )  # fmt: skip

    model: str = "smollm2"
    prompts: Size = 16
    strength: Annotated[float, Ge(-10.0), Le(1.0)] = -1.0

    def draw(self, seed: int) -> dict[str, Any]:
        """What became of one kind of words."""
        subject, chance = pretrained(self.model), Random(seed)
        kind = self.words(seed)
        spell = tokenizer_of(self.model)
        rows = []
        for _ in range(self.prompts):
            listed = chance.sample(sorted(kind), LISTED)
            rows.append(spell(" ".join(["The list:", *(f"{kind[one]}," for one in listed)])))
        unembed = subject.model.get_output_embeddings().weight.detach().float()
        other = [torch.tensor(chance.sample(range(len(unembed)), len(kind))) for _ in range(2)]
        told = [self.explained(rows, unembed[ids]) for ids in (torch.tensor(sorted(kind)), *other)]
        order = sorted(told[0], key=lambda head: -told[0][head])
        count = max(2, round(MOST * len(order)))
        whole = self.said(rows, sorted(kind), [])
        lost = [1 - self.said(rows, sorted(kind), chance.sample(order[count:], count)) / whole for _ in range(RANDOM)]
        best = order[0]
        return {"measures": {
            "falls": 1 - self.said(rows, sorted(kind), order[:count]) / whole,
            "falls_random": sum(lost) / RANDOM,
            "explains": told[0][best] - told[1][best],
            "explains_random": told[2][best] - told[1][best],
            "said": whole,
        }}  # fmt: skip

    def words(self, seed: int) -> dict[int, str]:
        """By token, the words of the draw's kind."""
        spell = tokenizer_of(self.model)
        kinds = []
        for words in KINDS.values():
            ids = {one: spell(f"The list: {one}")[0, len(spell("The list:")[0]) :] for one in words.split()}
            kinds.append({int(found[0]): one for one, found in ids.items() if len(found) == 1})
        usable = [kind for kind in kinds if len(kind) >= FEWEST]
        if not usable:
            raise HeadwiseError(f"model={self.model}: no kind has {FEWEST} words that are single tokens")
        return usable[seed % len(usable)]

    def explained(self, rows: list[torch.Tensor], dictionary: torch.Tensor) -> dict[Head, float]:
        """By head, what the dictionary explains of what it writes where the next word is said."""
        subject, added = pretrained(self.model), {}
        streams = [stream(subject, ids, [ids.shape[1] - 1]) for ids in rows]
        for layer in streams[0].read:
            samples = torch.cat([one.added(layer) for one in streams], dim=1)
            for head, own in enumerate(samples):
                added[layer, head] = pursued(own, dictionary, ATOMS).explained[-1]
        return added

    @torch.no_grad()
    def said(self, rows: list[torch.Tensor], kind: list[int], turned: list[Head]) -> float:
        """The probability of the kind's words next, the mean over prompts."""
        subject, found = pretrained(self.model), []
        with scaled(subject.model, dict.fromkeys(turned, self.strength)):
            for ids in rows:
                logits = subject.model(ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
                found.append(float(logits.softmax(-1)[kind].sum()))
        return sum(found) / len(found)
