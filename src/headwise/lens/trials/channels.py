"""The channel from the previous-token head to the copying head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from headwise.calibrate.measures.outputs import output_modules
from headwise.calibrate.subject import ModelSubject
from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.lens.channels import Circuits, strongest
from headwise.lens.interventions import Head
from headwise.lens.trials.hosts import HALF, VOCABULARY, copying_host, leading_head, twice

HEADS = 2


@register("channels")
@dataclass(frozen=True, kw_only=True)
class Channels(Experiment):
    """Finds the channel between two heads of a model that copies by its weights, and takes it away.

    steps: of the model's training. texts: that are copied. width: channels of the writer that are taken away in the
    second part.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Channels between layers",
        statement="Heads of different layers speak by channels of low rank that their weights show: in a model that "
        "copies, the previous-token head and the copying head have the highest composition score, and copying rests on "
        "that one channel",
        paper="Talking Heads: Understanding Inter-layer Communication in Transformer Language Models, arXiv "
        "2406.09519, sections 3 and 4",
        setting="GPT-2 Small on indirect objects and the laundry list, channels of 1 to 3 dimensions",
        seconds=20,
        systems=(77,),
        differs="two layers of two heads that copy, so that no other head does the same; composition by keys",
        leaves_out="steering along the channel",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("the known pair's composition score, less the highest of all other pairs", "top", "top_random",
             "a pair by chance", above=0.0),
        Part("share of copying that goes with the one strongest channel", "one", "one_random",
             "another channel of the same head", above=0.8),
        Part("share of copying that goes with the strongest channels, as many as `width`", "more", "more_random",
             "as many of the weakest", above=0.8),
    )  # fmt: skip

    steps: Steps = 150
    texts: Size = 64
    width: Size = 8

    def draw(self, seed: int) -> dict[str, Any]:
        """Scores and shares of one model."""
        subject, chance = copying_host(seed, self.steps, HEADS), torch.Generator().manual_seed(seed + 1000)
        ids = twice(VOCABULARY - 1, HALF, self.texts, chance)
        circuits = Circuits(subject)
        pairs = strongest(circuits)
        writer, reader = leading_head(subject, "previous", 0), leading_head(subject, "induction", 1)
        drawn = list(pairs)[int(torch.randint(len(pairs), (1,), generator=chance))]

        def ahead(pair: tuple[Head, Head]) -> float:
            return pairs[pair][0] - max(score for other, (score, _) in pairs.items() if other != pair)

        writes = circuits.writer(writer).writes
        order = circuits.composition(reader, writes).argsort(descending=True)
        whole = self.copied(subject, ids, writer, writes[:0])

        def lost(channels: torch.Tensor) -> float:
            return 1 - self.copied(subject, ids, writer, writes[channels]) / whole

        other = int(torch.randint(1, len(order), (1,), generator=chance))
        return {"measures": {
            "top": ahead((writer, reader)),
            "top_random": ahead(drawn),
            "one": lost(order[:1]),
            "one_random": lost(order[other : other + 1]),
            "more": lost(order[: self.width]),
            "more_random": lost(order[-self.width :]),
        }}  # fmt: skip

    @torch.no_grad()
    def copied(self, subject: ModelSubject, ids: torch.Tensor, head: Head, taken: torch.Tensor) -> float:
        """The share of tokens copied where these directions [c, width] are taken out of what the head adds."""

        def take(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            alone = inputs[0].unflatten(-1, (heads, -1)).clone()
            alone[..., [other for other in range(heads) if other != head[1]], :] = 0
            added = module.forward(alone.flatten(-2))
            return output - (added @ taken.T) @ taken

        heads = subject.geometry.layers[head[0]].query_heads
        handle = output_modules(subject)[head[0]].register_forward_hook(take)
        try:
            said = subject.model(ids, use_cache=False).logits[:, HALF:-1].argmax(-1)
        finally:
            handle.remove()
        return float((said == ids[:, HALF + 1 :]).float().mean())
